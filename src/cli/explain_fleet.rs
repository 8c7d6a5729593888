//! `chatd explain --fleet`: who does what in a whole server, and what is wrong with it.

use chatd_config::{Finding, Fleet, Member, Roles, RouterName, Severity, StreamName, TaskName};
use serde_json::{Map, Value, json};

use super::{Failure, explain, say};

/// Prints all instances, what each has, and the findings. Fails if one of them is an error.
pub fn execute(fleet: &Fleet, as_json: bool) -> Result<(), Failure> {
    if as_json {
        say(format_args!("{:#}", json_of(fleet)));
    } else {
        say(text_of(fleet).trim_end());
    }
    match count(fleet, Severity::Error) {
        0 => Ok(()),
        1 => Err(Failure::config("the configuration of this fleet has an error")),
        errors => {
            Err(Failure::config(format!("the configuration of this fleet has {errors} errors")))
        }
    }
}

fn count(fleet: &Fleet, severity: Severity) -> usize {
    fleet.findings.iter().filter(|finding| finding.severity == severity).count()
}

/// Who writes `stream`, as the shared configuration says.
fn writers_of(fleet: &Fleet, stream: StreamName) -> Vec<&str> {
    if stream == StreamName::Caches {
        return fleet.members.iter().map(Member::name).collect();
    }
    let names = fleet.members.first().map(|member| member.assignment.writers_of(stream));
    names.unwrap_or_default().iter().map(String::as_str).collect()
}

/// Who runs `task`: those that are named, or those that have the role for it.
fn runners_of(fleet: &Fleet, task: TaskName) -> Vec<&str> {
    let named = fleet.members.first().and_then(|one| one.assignment.runners_of.get(&task));
    match named {
        Some(names) if !names.is_empty() => names.iter().map(String::as_str).collect(),
        _ => {
            let members = fleet.members.iter();
            members.filter(|one| one.assignment.runs(task)).map(Member::name).collect()
        }
    }
}

/// Who answers the endpoints of `router` on some listener.
fn servers_of(fleet: &Fleet, router: RouterName) -> Vec<&str> {
    fleet.members.iter().filter(|member| member.answers(router)).map(Member::name).collect()
}

fn json_of(fleet: &Fleet) -> Value {
    let map = fleet.instance_map();
    let instances: Vec<Value> = fleet
        .members
        .iter()
        .map(|member| {
            json!({
                "instance": member.name(),
                "role": member.assignment.role,
                "files": member.config.files,
                "called_at": map.get(member.name()).map(ToString::to_string),
                "listeners": explain::listeners(&member.config, &member.assignment),
                "writers": member.assignment.writers,
                "tasks": member.assignment.tasks,
            })
        })
        .collect();
    let streams = StreamName::ALL.iter();
    let streams: Map<_, _> =
        streams.map(|one| (one.to_string(), json!(writers_of(fleet, *one)))).collect();
    let tasks = TaskName::ALL.iter();
    let tasks: Map<_, _> =
        tasks.map(|one| (one.to_string(), json!(runners_of(fleet, *one)))).collect();
    let routers = RouterName::ALL.iter();
    let routers: Map<_, _> =
        routers.map(|one| (one.to_string(), json!(servers_of(fleet, *one)))).collect();
    json!({
        "server_name": fleet.members.first().map(|member| &member.config.server_name),
        "instances": instances,
        "streams": streams,
        "tasks": tasks,
        "routers": routers,
        "findings": fleet.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn finding(finding: &Finding) -> Value {
    let mistake = &finding.mistake;
    json!({
        "severity": finding.severity,
        "instances": finding.instances,
        "source": mistake.source,
        "line": mistake.line,
        "key": mistake.key,
        "value": mistake.value,
        "problem": mistake.problem,
        "remedy": mistake.remedy,
    })
}

fn text_of(fleet: &Fleet) -> String {
    let mut text = String::new();
    if let Some(member) = fleet.members.first() {
        text += &format!(
            "server     {}\ndatabase   {}\ninstances  {}\n",
            member.config.server_name,
            explain::database(&member.config),
            fleet.members.len()
        );
    }
    for member in &fleet.members {
        text += &instance(fleet, member);
    }
    text += "\nwho writes each stream\n";
    for stream in StreamName::ALL.iter().filter(|stream| **stream != StreamName::Caches) {
        text += &format!("  {stream:<26} {}\n", names(&writers_of(fleet, *stream)));
    }
    text += "\nwho does each task\n";
    for task in TaskName::ALL {
        text += &format!("  {task:<26} {}\n", names(&runners_of(fleet, *task)));
    }
    text += "\nwho answers each group of endpoints\n";
    for router in RouterName::ALL {
        text += &format!("  {router:<26} {}\n", names(&servers_of(fleet, *router)));
    }
    text.push('\n');
    for finding in &fleet.findings {
        text += &format!("{finding}\n");
    }
    let (errors, warnings) = (count(fleet, Severity::Error), count(fleet, Severity::Warning));
    text += &format!("errors: {errors}, warnings: {warnings}\n");
    text
}

fn names(names: &[&str]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn instance(fleet: &Fleet, member: &Member) -> String {
    let role = &member.assignment.role;
    let summary = Roles::embedded();
    let summary = summary.iter().find(|one| one.name == role).map(|one| one.summary.clone());
    let mut text = format!("\n{} ({role})  {}\n", member.name(), summary.unwrap_or_default());
    for listener in &member.config.listeners {
        text += &format!("  listens    {listener}: {}\n", explain::resources(listener));
    }
    if let Some(address) = fleet.instance_map().get(member.name()) {
        text += &format!("  called at  {address}\n");
    }
    let writers = member.assignment.writers.iter().filter(|one| **one != StreamName::Caches);
    let writers: Vec<_> = writers.map(|one| one.as_str()).collect();
    let tasks: Vec<_> = member.assignment.tasks.iter().map(|one| one.as_str()).collect();
    for (what, list) in [("writes", writers), ("does", tasks)] {
        if !list.is_empty() {
            text += &format!("  {what:<10} {}\n", list.join(", "));
        }
    }
    text
}
