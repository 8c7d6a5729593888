//! `chatd hash-password`: the hash that the database keeps, for admins who set one by hand.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, Source, password, say};

/// Arguments of `hash-password`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The password; asked for without echo if absent
    #[arg(short, long)]
    password: Option<String>,
    /// File whose first line is the password, or `-` for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// Cost of the hash, 4 to 31 [default: bcrypt_rounds of the configuration, or 12]
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(4..=31))]
    rounds: Option<u32>,
}

/// Prints the hash; pepper and rounds are those of the configuration, if one is given.
pub fn execute(source: &Source, arguments: &Arguments) -> Result<(), Failure> {
    let passwords = match source.config.is_empty() {
        true => chatd_config::Passwords::default(),
        false => source.load()?.passwords,
    };
    let password = password::get(arguments.password.clone(), arguments.password_file.as_deref())?;
    let pepper = passwords.login.pepper.as_ref().map_or("", |pepper| pepper.expose());
    let rounds = arguments.rounds.unwrap_or(passwords.bcrypt_rounds);
    let hash = chatd_users::passwords::hash(&password, pepper, rounds)
        .map_err(|error| Failure::other(error.to_string()))?;
    say(hash);
    Ok(())
}
