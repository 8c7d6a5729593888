//! `chatd check-config`: everything that a start would complain about, without starting.

use chatd_config::{Config, ConfigError, Roles, SigningKeys, assignment};

use super::{Failure, Source, note, say};
use crate::logging;

/// Says whether the configuration is good, with its warnings.
pub fn execute(source: &Source) -> Result<(), Failure> {
    let config = source.load()?;
    let mine = assignment(&config, &Roles::embedded())?;
    check_files(&config)?;
    for warning in &config.warnings {
        note(format_args!("warning: {warning}"));
    }
    say(format_args!("the configuration of {} ({}) is good", mine.instance, mine.role));
    Ok(())
}

/// The files that the configuration names.
fn check_files(config: &Config) -> Result<(), ConfigError> {
    if config.signing_key_path.exists() {
        SigningKeys::read(&config.signing_key_path)?;
    }
    if let Some(tls) = &config.tls {
        let files = [
            ("tls_certificate_path", &tls.certificate_path),
            ("tls_private_key_path", &tls.private_key_path),
        ];
        for (key, path) in files {
            std::fs::File::open(path).map_err(|error| {
                ConfigError::at(key, format!("the file cannot be read: {error}"))
                    .found(path.display())
            })?;
        }
    }
    logging::check(config)
}
