//! Secrets that stand in files of their own: `registration_shared_secret_path` and the like.

use std::{fs, path::PathBuf};

use crate::{Config, ConfigError, Secret};

/// Reads the file of each `*_path` key into the secret that it stands for. Both at once is an
/// error, as in Synapse, because nobody could tell which one counts.
pub(crate) fn resolve(config: &mut Config) -> Result<(), ConfigError> {
    let registration = &mut config.registration;
    let login = &mut config.passwords.login;
    let (voip, workers) = (&mut config.voip, &mut config.workers);
    let pairs = [
        (
            "registration_shared_secret",
            &mut registration.shared_secret,
            &registration.shared_secret_path,
        ),
        ("password_config.pepper", &mut login.pepper, &login.pepper_path),
        ("turn_shared_secret", &mut voip.shared_secret, &voip.shared_secret_path),
        (
            "worker_replication_secret",
            &mut workers.replication_secret,
            &workers.replication_secret_path,
        ),
        ("redis.password", &mut workers.redis.password, &workers.redis.password_path),
    ];
    for (key, secret, path) in pairs {
        *secret = one_of(key, secret.take(), path.as_ref())?;
    }
    Ok(())
}

/// The secret itself or the content of its file, without white space around it.
pub(crate) fn one_of(
    key: &str,
    secret: Option<Secret>,
    path: Option<&PathBuf>,
) -> Result<Option<Secret>, ConfigError> {
    let path_key = format!("{key}_path");
    match (secret, path) {
        (Some(_), Some(_)) => Err(ConfigError::at(&path_key, format!("stands beside `{key}`"))
            .remedy("keep one of the two")),
        (secret, None) => Ok(secret.filter(|secret| !secret.expose().is_empty())),
        (None, Some(path)) => {
            let text = fs::read_to_string(path).map_err(|error| {
                ConfigError::at(&path_key, format!("the file cannot be read: {error}"))
                    .found(path.display())
            })?;
            match text.trim() {
                "" => Err(ConfigError::at(&path_key, "the file is empty").found(path.display())),
                text => Ok(Some(Secret::new(text))),
            }
        }
    }
}
