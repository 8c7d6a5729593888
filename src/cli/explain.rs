//! `chatd explain`: the assignment of this instance, for people and for programs.

use chatd_config::{
    Assignment, Config, Database, Listener, ListenerKind, Roles, RouterName, StreamName, TaskName,
    assignment,
};
use clap::Args;
use serde_json::{Value, json};

use super::{Failure, Source, explain_fleet, say};

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Explain all instances at once: files with `worker_app` are workers, the others are shared
    #[arg(long)]
    fleet: bool,
    /// Further files of the fleet, as in `-c homeserver.yaml workers/*.yaml`; NAME=FILE for an
    /// instance that gets its name by --name
    #[arg(value_name = "FILE", requires = "fleet")]
    files: Vec<String>,
}

/// Prints what this instance would do.
pub fn execute(source: &Source, arguments: &Arguments) -> Result<(), Failure> {
    if arguments.fleet {
        return explain_fleet::execute(&source.load_fleet(&arguments.files)?, arguments.json);
    }
    let config = source.load()?;
    let roles = Roles::embedded();
    let mine = assignment(&config, &roles)?;
    if arguments.json {
        say(format_args!("{:#}", as_json(&config, &mine)));
    } else {
        let summary = &roles.for_app(config.workers.app.as_deref())?.summary;
        say(as_text(&config, &mine, summary).trim_end());
    }
    Ok(())
}

fn as_json(config: &Config, mine: &Assignment) -> Value {
    json!({
        "server_name": config.server_name,
        "instance": mine.instance,
        "role": mine.role,
        "database": database(config),
        "files": config.files,
        "listeners": listeners(config, mine),
        "routers": mine.routers,
        "writers": mine.writers,
        "tasks": mine.tasks,
        "writers_of": mine.writers_of,
        "runners_of": mine.runners_of,
        "warnings": config.warnings,
    })
}

/// The listeners of an instance with what is mounted on each.
pub(super) fn listeners(config: &Config, mine: &Assignment) -> Vec<Value> {
    let one = |listener: &Listener| {
        json!({
            "bind": listener.to_string(),
            "type": listener.kind,
            "tls": listener.tls,
            "x_forwarded": listener.x_forwarded,
            "routers": mounted(mine, listener),
        })
    };
    config.listeners.iter().map(one).collect()
}

fn mounted(mine: &Assignment, listener: &Listener) -> Vec<RouterName> {
    if listener.kind == ListenerKind::Metrics {
        return vec![RouterName::Metrics];
    }
    mine.routers.iter().copied().filter(|router| mine.mounts(*router, listener)).collect()
}

/// Where the database is, for people.
pub(super) fn database(config: &Config) -> String {
    match &config.database {
        Database::Embedded { .. } => format!("embedded, in {}", config.data_dir.display()),
        Database::Postgres(postgres) => {
            format!("PostgreSQL at {}, port {}", postgres.host, postgres.port)
        }
    }
}

/// What a listener serves, for people.
pub(super) fn resources(listener: &Listener) -> String {
    let names = listener.resources.iter().flat_map(|one| &one.names).map(|name| name.as_str());
    match listener.kind {
        ListenerKind::Http => names.collect::<Vec<_>>().join(", "),
        ListenerKind::Metrics => "metrics only".to_owned(),
    }
}

fn as_text(config: &Config, mine: &Assignment, summary: &str) -> String {
    let mut text = format!(
        "instance   {}\nrole       {}: {summary}\nserver     {}\ndatabase   {}\n\nlisteners\n",
        mine.instance,
        mine.role,
        config.server_name,
        database(config),
    );
    for listener in &config.listeners {
        text += &format!("  {listener}: {}\n", resources(listener));
    }
    text += "\nendpoints\n";
    let names: Vec<_> = mine.routers.iter().map(|router| router.as_str()).collect();
    for line in names.chunks(4) {
        text += &format!("  {}\n", line.join(", "));
    }
    text += "\nstreams\n";
    for stream in StreamName::ALL {
        let who = if *stream == StreamName::Caches {
            "every instance".to_owned()
        } else {
            mine.writers_of(*stream).join(", ")
        };
        text += &format!("  {stream:<26} {} {who}\n", mark(mine.writes(*stream)));
    }
    text += "\ntasks\n";
    for task in TaskName::ALL {
        let who = match mine.runners_of.get(task).map(|names| names.join(", ")) {
            Some(names) if !names.is_empty() => names,
            _ => "an instance with the role for it".to_owned(),
        };
        text += &format!("  {task:<26} {} {who}\n", mark(mine.runs(*task)));
    }
    for warning in &config.warnings {
        text += &format!("\nwarning: {warning}\n");
    }
    text
}

fn mark(mine: bool) -> &'static str {
    if mine { "here:     " } else { "elsewhere:" }
}
