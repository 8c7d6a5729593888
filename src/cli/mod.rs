//! The command line. One file per command; what they share is here.

mod check_config;
mod explain;
mod explain_fleet;
mod failure;
mod generate_config;
mod generate_keys;
mod hash_password;
mod password;
mod proxy_config;
mod register_user;
mod roles;
mod run;
mod top;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use chatd_config::{Config, ConfigError, Fleet, FleetFile, Overrides};
use clap::{Args, Parser, Subcommand};

pub use failure::Failure;

/// A Matrix homeserver. Without arguments: a whole server with its own database in ./chatd-data.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    source: Source,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start this instance (the same as no command)
    Run,
    /// Write a configuration file for a new server
    GenerateConfig(generate_config::Arguments),
    /// Make a new signing key, and say how it takes the place of the one in use
    GenerateKeys(generate_keys::Arguments),
    /// Read the configuration, say what is wrong with it, and start nothing
    CheckConfig,
    /// Say what this instance would do: role, endpoints, streams, tasks, listeners
    Explain(explain::Arguments),
    /// Write a configuration for a reverse proxy in front of a fleet or a single server
    ProxyConfig(proxy_config::Arguments),
    /// Watch the instances of a fleet: state, positions and lag, lanes, bus
    Top(top::Arguments),
    /// List the roles that `worker_app` can name
    Roles,
    /// Make an account on a running server, by the shared secret
    RegisterUser(register_user::Arguments),
    /// Print the hash of a password, as the database keeps it
    HashPassword(hash_password::Arguments),
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub struct Source {
    /// File or folder (each *.yaml in it, by name); may be repeated, later ones win key by key
    #[arg(
        short,
        long,
        global = true,
        value_name = "PATH",
        visible_aliases = ["config-path", "config-file"],
    )]
    config: Vec<PathBuf>,
    /// Role of this instance, as `worker_app` would say
    #[arg(long, global = true)]
    role: Option<String>,
    /// Name of this instance, as `worker_name` would say
    #[arg(long, global = true)]
    name: Option<String>,
    /// Folder for chatd's own files [default: ./chatd-data]
    #[arg(long, global = true, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
}

impl Cli {
    /// Does what was asked for.
    pub fn execute(self) -> Result<(), Failure> {
        let source = &self.source;
        match self.command {
            None | Some(Command::Run) => run::execute(source),
            Some(Command::GenerateConfig(arguments)) => generate_config::execute(source, arguments),
            Some(Command::GenerateKeys(arguments)) => generate_keys::execute(source, &arguments),
            Some(Command::CheckConfig) => check_config::execute(source),
            Some(Command::Explain(arguments)) => explain::execute(source, &arguments),
            Some(Command::ProxyConfig(arguments)) => proxy_config::execute(source, arguments),
            Some(Command::Top(arguments)) => top::execute(source, &arguments),
            Some(Command::Roles) => roles::execute(),
            Some(Command::RegisterUser(arguments)) => register_user::execute(source, arguments),
            Some(Command::HashPassword(arguments)) => hash_password::execute(source, &arguments),
        }
    }
}

impl Source {
    /// The configuration; without files, the one in the data directory.
    fn load(&self) -> Result<Config, ConfigError> {
        match &self.config[..] {
            [] => Config::preview_monolith(&self.data_dir(), &self.overrides()),
            files => Config::load(files, &self.overrides()),
        }
    }

    /// All instances at once: the files of `-c`, and `more`.
    fn load_fleet(&self, more: &[String]) -> Result<Fleet, Failure> {
        if self.role.is_some() || self.name.is_some() {
            return Err(Failure::usage(
                "--role and --name are of one instance; for a fleet, write NAME=FILE",
            ));
        }
        let shared = self.config.iter().map(|path| FleetFile { name: None, path: path.clone() });
        let more = more.iter().map(|text| FleetFile::from_argument(text));
        let files: Vec<_> = shared.chain(more).collect();
        if files.is_empty() {
            return Err(Failure::usage(
                "which fleet? give its files: -c homeserver.yaml workers/*.yaml",
            ));
        }
        Ok(Fleet::load(&files, &self.overrides())?)
    }

    /// As [`Source::load`], but the file in the data directory is made if there is none.
    fn load_or_create(&self) -> Result<Config, ConfigError> {
        match &self.config[..] {
            [] => Config::for_monolith(&self.data_dir(), &self.overrides()),
            files => Config::load(files, &self.overrides()),
        }
    }

    fn overrides(&self) -> Overrides {
        Overrides {
            role: self.role.clone(),
            name: self.name.clone(),
            data_dir: self.data_dir.clone(),
            ..Overrides::from_env()
        }
    }

    fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from("chatd-data"))
    }
}

/// Prints a line on standard output. A reader that went away is no failure of ours.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

/// Prints a line on standard error.
fn note(line: impl std::fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    mod examples;
}
