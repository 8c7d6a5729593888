//! A Matrix homeserver.

mod embedded;
mod wiring;

use std::path::PathBuf;

use chatd_config::{Config, Overrides, Roles, assignment};

fn main() -> anyhow::Result<()> {
    let files: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let config = Config::load(&files, &Overrides::from_env())?;
    let mine = assignment(&config, &Roles::embedded())?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(wiring::run(
        config.into(),
        mine,
        chatd_base::Stop::new(),
    ))
}
