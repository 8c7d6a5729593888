//! `chatd top`: the instances of a fleet, live in the terminal.
//!
//! It asks the replication listener of each instance (`/health?detail`), and nobody else: neither
//! the database nor Redis, so that it shows something when those are lost.

mod ask;
mod screen;
mod snapshot;
#[cfg(test)]
mod tests;
mod text;

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
    time::Duration,
};

use chatd_config::{Bind, Config, InstanceAddress, ResourceName};
use clap::Args;

use super::{Failure, Source, say};
use ask::Asker;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Show what there is now, and end
    #[arg(long)]
    once: bool,
    /// Write each look as a line of JSON
    #[arg(long)]
    json: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    interval: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let allowed = 0.2..=3600.0;
    allowed.contains(&number).then_some(number).ok_or_else(|| "from 0.2 to 3600".to_owned())
}

/// Looks at the instances until told to end; fails if `--once` finds none of them.
pub fn execute(source: &Source, arguments: &Arguments) -> Result<(), Failure> {
    let is_live = !arguments.once && !arguments.json;
    if is_live && !io::stdout().is_terminal() {
        return Err(Failure::usage("standard output is no terminal: use --once or --json"));
    }
    let config = source.load()?;
    let mut asker = Asker::new(instances(&config)?)?;
    let interval = Duration::from_secs_f64(arguments.interval);
    if is_live {
        return screen::show(&mut asker, interval);
    }
    loop {
        let snapshot = asker.look();
        if arguments.json {
            say(serde_json::to_string(&snapshot)
                .map_err(|error| Failure::other(error.to_string()))?);
        } else {
            say(text::of(&snapshot, None).trim_end());
        }
        if arguments.once {
            return match snapshot.instances.iter().any(|one| one.detail.is_some()) {
                true => Ok(()),
                false => Err(Failure::unavailable("no instance answers")),
            };
        }
        std::thread::sleep(interval);
    }
}

/// Where the instances are: as `instance_map` says, and this configuration's own listener.
fn instances(config: &Config) -> Result<BTreeMap<String, InstanceAddress>, Failure> {
    let mut all = config.workers.instance_map.clone();
    let own = config.listeners.iter().find(|one| one.serves(ResourceName::Replication) && !one.tls);
    if let Some(listener) = own {
        let address = match &listener.bind {
            Bind::Unix { path, .. } => {
                InstanceAddress { path: Some(path.clone()), ..InstanceAddress::default() }
            }
            Bind::Tcp { addresses, port } => {
                let host = match addresses.first().filter(|address| !address.is_unspecified()) {
                    Some(address) => address.to_string(),
                    None => "localhost".to_owned(),
                };
                let port = Some(*port);
                InstanceAddress { host: Some(host), port, ..InstanceAddress::default() }
            }
        };
        all.entry(config.workers.instance_name().to_owned()).or_insert(address);
    }
    if all.is_empty() {
        return Err(Failure::config(
            "there is no replication listener to ask: instance_map is empty, and no listener of \
             this configuration has the resource `replication`",
        ));
    }
    Ok(all)
}
