//! A configuration for somebody who has none.

use std::path::{Path, PathBuf};

use rand::{TryRngCore, rngs::OsRng};
use ruma_common::OwnedServerName;

use crate::{Config, ConfigError, Overrides, signing_key};

/// Name of the generated file in the data directory.
const FILE: &str = "homeserver.yaml";

/// What the generated file says.
#[derive(Clone, Debug)]
pub struct NewConfig {
    /// `server_name`.
    pub server_name: OwnedServerName,
    /// `chatd.data_dir`.
    pub data_dir: PathBuf,
}

impl NewConfig {
    fn for_laptop(data_dir: &Path) -> Self {
        let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        Self { server_name: "localhost".try_into().expect("a valid server name"), data_dir }
    }

    /// The text of a homeserver.yaml with a fresh shared secret: one process, embedded database,
    /// port 8008 on the loopback addresses.
    pub fn to_yaml(&self) -> String {
        format!(
            "# Configuration of chatd. Every key is described in docs/configuration.md;\n\
             # the keys are those of Synapse's homeserver.yaml.\n\
             \n\
             # The part after the colon of all user and room ids. It can never be changed.\n\
             server_name: \"{server_name}\"\n\
             \n\
             # Where clients reach this server from outside, through your reverse proxy.\n\
             #public_baseurl: \"https://{server_name}\"\n\
             \n\
             listeners:\n\
             \x20 - port: 8008\n\
             \x20   type: http\n\
             \x20   bind_addresses: [\"127.0.0.1\", \"::1\"]\n\
             \x20   # Set it to true behind a reverse proxy that sets X-Forwarded-For.\n\
             \x20   x_forwarded: false\n\
             \x20   resources:\n\
             \x20     - names: [client, federation]\n\
             \n\
             # A PostgreSQL that chatd runs by itself, in its data directory. For your own server:\n\
             #   name: psycopg2\n\
             #   args: {{ host: localhost, user: chatd, password: \"...\", dbname: chatd }}\n\
             database:\n\
             \x20 name: embedded\n\
             \n\
             # Whoever knows this can make accounts, with `chatd register-user`.\n\
             registration_shared_secret: \"{secret}\"\n\
             \n\
             # chatd never sends statistics anywhere, whatever stands here.\n\
             report_stats: false\n\
             \n\
             chatd:\n\
             \x20 data_dir: {data_dir}\n",
            server_name = self.server_name,
            secret = letters(48),
            // JSON strings are YAML strings.
            data_dir = serde_json::Value::from(self.data_dir.to_string_lossy()),
        )
    }

    /// Writes the text to a new file that only its owner may read.
    pub fn write(&self, file: &Path) -> Result<(), ConfigError> {
        signing_key::write_private(file, &self.to_yaml()).map_err(|error| {
            ConfigError::new(format!("cannot be written: {error}"))
                .in_file(file)
                .remedy("choose another file, or remove the one that is there")
        })
    }
}

impl Config {
    /// The configuration of somebody who gave none: the file in the data directory, which is
    /// made at the first start. Server name `localhost`, port 8008 on loopback, embedded database.
    pub fn for_monolith(data_dir: &Path, over: &Overrides) -> Result<Self, ConfigError> {
        let file = data_dir.join(FILE);
        if !file.exists() {
            NewConfig::for_laptop(data_dir).write(&file)?;
        }
        Self::load(&[file], &in_folder(data_dir, over))
    }

    /// What [`Config::for_monolith`] would give, without writing anything.
    pub fn preview_monolith(data_dir: &Path, over: &Overrides) -> Result<Self, ConfigError> {
        let file = data_dir.join(FILE);
        let over = in_folder(data_dir, over);
        if file.exists() {
            return Self::load(&[file], &over);
        }
        let text = NewConfig::for_laptop(data_dir).to_yaml();
        Self::from_texts(&[(&file.to_string_lossy(), &text)], &over)
    }
}

fn in_folder(data_dir: &Path, over: &Overrides) -> Overrides {
    Overrides { data_dir: Some(data_dir.to_owned()), ..over.clone() }
}

/// Random letters of both cases, from the system's source of randomness.
pub(crate) fn letters(count: usize) -> String {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(count);
    while text.len() < count {
        // Bytes at or above 4 * 52 would make some letters more likely than others.
        let fair = random_bytes::<64>().into_iter().filter(|byte| *byte < 208);
        text.extend(
            fair.map(|byte| char::from(LETTERS[usize::from(byte % 52)])).take(count - text.len()),
        );
    }
    text
}

/// Random bytes from the system.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).expect("the system has a source of randomness");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Database;

    #[test]
    fn the_first_start_makes_a_file_and_the_second_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        let preview = Config::preview_monolith(&data_dir, &Overrides::default()).unwrap();
        assert!(!data_dir.exists(), "a preview writes nothing");
        assert_eq!(preview.server_name, "localhost");
        let first = Config::for_monolith(&data_dir, &Overrides::default()).unwrap();
        let second = Config::for_monolith(&data_dir, &Overrides::default()).unwrap();
        assert_eq!(first.server_name, "localhost");
        assert_eq!(first.listeners[0].to_string(), "127.0.0.1:8008, [::1]:8008");
        assert!(matches!(first.database, Database::Embedded { .. }));
        assert!(first.registration.shared_secret.is_some());
        assert_eq!(first.registration.shared_secret, second.registration.shared_secret);
        assert_eq!(second.signing_key_path, data_dir.join("localhost.signing.key"));
        assert_eq!(first.warnings, Vec::<String>::new());
    }
}
