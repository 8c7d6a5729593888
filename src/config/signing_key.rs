//! The server's signing key in Synapse's file format: a line `ed25519 a_AbCd <seed in base64>`.

use std::{fmt, fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use ruma_common::serde::{Base64, base64::Standard};

use crate::{ConfigError, generate};

/// The keys of a signing key file. The first one signs.
#[derive(Clone, Debug)]
pub struct SigningKeys {
    current: SigningKey,
    others: Vec<SigningKey>,
}

/// One ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// What stands after `ed25519:` in the id of the key.
    pub version: String,
    /// The private seed.
    pub seed: [u8; 32],
}

impl SigningKey {
    /// `ed25519:<version>`.
    pub fn key_id(&self) -> String {
        format!("ed25519:{}", self.version)
    }

    /// A new key with a random seed and version.
    pub fn generate() -> Self {
        Self { version: format!("a_{}", generate::letters(4)), seed: generate::random_bytes() }
    }

    /// A line of a key file.
    pub fn to_line(&self) -> String {
        format!("ed25519 {} {}\n", self.version, STANDARD_NO_PAD.encode(self.seed))
    }

    /// Makes a key file that only its owner may read. Refuses to touch one that is there already.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        write_private(path, &self.to_line())
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let (algorithm, version, seed) = (words.next()?, words.next()?, words.next()?);
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let good = algorithm == "ed25519" && words.next().is_none() && version.chars().all(word);
        // Bits after the last whole byte are ignored, as everybody does.
        let seed = Base64::<Standard>::parse(seed).ok()?.into_inner();
        good.then_some(Self { version: version.to_owned(), seed: seed.try_into().ok()? })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("version", &self.version).finish_non_exhaustive()
    }
}

impl SigningKeys {
    /// One key, which signs.
    pub fn of(key: SigningKey) -> Self {
        Self { current: key, others: Vec::new() }
    }

    /// The key that signs.
    pub fn current(&self) -> &SigningKey {
        &self.current
    }

    /// Further keys of the file: published, so that what they signed can be checked.
    pub fn others(&self) -> &[SigningKey] {
        &self.others
    }

    /// Reads a key file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_for("signing_key_path", path)
    }

    /// Reads a key file that `key` names.
    pub fn read_for(key: &str, path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|error| {
            ConfigError::at(key, format!("the file cannot be read: {error}")).found(path.display())
        })?;
        Self::parse(&text).ok_or_else(|| {
            ConfigError::at(key, "expected lines `ed25519 <version> <seed in base64>`")
                .found(path.display())
            .remedy(
                "restore the file from a backup; a new key makes this server a stranger to others",
            )
        })
    }

    /// Reads a key file, or makes one with a new key that only its owner may read.
    pub fn read_or_create(path: &Path) -> Result<Self, ConfigError> {
        if path.exists() {
            return Self::read(path);
        }
        let key = SigningKey::generate();
        key.write(path).map_err(|error| {
            ConfigError::at("signing_key_path", format!("the file cannot be made: {error}"))
                .found(path.display())
        })?;
        Ok(Self::of(key))
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let mut keys = lines.map(SigningKey::parse).collect::<Option<Vec<_>>>()?.into_iter();
        Some(Self { current: keys.next()?, others: keys.collect() })
    }
}

/// Writes a new file that only its owner may read (mode 0600), with the folders above it.
/// Refuses to touch a file that is there already.
pub(crate) fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_synapse_is_read() {
        let seed = STANDARD_NO_PAD.encode([7; 32]);
        let keys =
            SigningKeys::parse(&format!("ed25519 a_AbCd {seed}\n\ned25519 1 {seed}=\n")).unwrap();
        assert_eq!(keys.current().key_id(), "ed25519:a_AbCd");
        assert_eq!((keys.current().seed, keys.others().len()), ([7; 32], 1));
        // The specification's, whose last letter says more than belongs to the seed.
        let of_spec = "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1";
        assert!(SigningKeys::parse(of_spec).is_some());
        for bad in
            ["", "ed25519 a_b", "rsa a_b AAAA", "ed25519 a_b AAAA", &format!("ed25519 a:b {seed}")]
        {
            assert!(SigningKeys::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_key_that_was_made_is_read_back_and_kept_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/example.org.signing.key");
        let made = SigningKeys::read_or_create(&path).unwrap();
        let read = SigningKeys::read_or_create(&path).unwrap();
        assert_eq!(made.current(), read.current());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
