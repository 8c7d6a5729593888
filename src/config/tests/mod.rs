//! Configurations in; values, assignments or error texts out.

mod assignments;
mod examples;
mod fleets;
mod proxies;
mod seeds;
mod values;
mod wrong;

use crate::{Assignment, Config, ConfigError, Overrides, Roles, assignment};

/// One file without environment.
fn load(yaml: &str) -> Result<Config, ConfigError> {
    Config::from_texts(&[("homeserver.yaml", yaml)], &Overrides::default())
}

/// A shared file and the file of one worker; the assignment, or the text of what is wrong.
fn assign(shared: &str, worker: &str) -> Result<Assignment, String> {
    let files = [("homeserver.yaml", shared), ("worker.yaml", worker)];
    Config::from_texts(&files, &Overrides::default())
        .and_then(|config| assignment(&config, &Roles::embedded()))
        .map_err(|error| error.to_string())
}
