//! The work of a fleet that one instance does for all, as the configuration gives it out.

use chatd_config::{Assignment, MAIN, Roles, TaskName};
use chatd_streams::leases::{Able, Duty};

/// The role that can do everything, if it is told to.
const GENERIC: &str = "generic_worker";

/// All tasks. One that several instances share is a duty for each of them.
pub fn duties(mine: &Assignment, roles: &Roles) -> Vec<Duty> {
    TaskName::ALL.iter().flat_map(|&task| of_task(mine, roles, task)).collect()
}

fn of_task(mine: &Assignment, roles: &Roles, task: TaskName) -> Vec<Duty> {
    let named = mine.runners_of.get(&task).map_or(&[][..], Vec::as_slice);
    let name = task.as_str();
    let able = |kept: &dyn Fn(&str) -> bool| {
        Able::Roles(roles.able_to(task).filter(|role| kept(role)).map(str::to_owned).collect())
    };
    match named {
        // Whoever has a role of this one purpose.
        [] => {
            let able = able(&|role| role != MAIN && role != GENERIC);
            vec![Duty { name: name.to_owned(), preferred: None, able }]
        }
        // Only these may be able to reach other servers.
        _ if task == TaskName::FederationSender => shared(name, named),
        [one] => {
            let preferred = Some(one.clone());
            vec![Duty { name: name.to_owned(), preferred, able: able(&|_| true) }]
        }
        _ => shared(name, named),
    }
}

/// A part for each instance; who is away is stood in for by the others.
fn shared(task: &str, named: &[String]) -> Vec<Duty> {
    let part = |one: &String| Duty {
        name: format!("{task}/{one}"),
        preferred: Some(one.clone()),
        able: Able::Named(named.to_vec()),
    };
    named.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use chatd_config::{Config, Overrides, assignment};

    use super::*;

    fn of(yaml: &str) -> Vec<Duty> {
        let folder = std::env::temp_dir().join(format!("chatd-duties-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("homeserver.yaml");
        let text = format!(
            "server_name: example.org\nredis: {{enabled: true}}\n\
             worker_replication_secret: secret\n\
             database: {{name: psycopg2, args: {{user: u, dbname: d, host: h}}}}\n{yaml}"
        );
        std::fs::write(&file, text).unwrap();
        let config = Config::load(&[file], &Overrides::default()).unwrap();
        let roles = Roles::embedded();
        let found = duties(&assignment(&config, &roles).unwrap(), &roles);
        remove(&folder);
        found
    }

    fn remove(folder: &Path) {
        std::fs::remove_dir_all(folder).unwrap();
    }

    fn find<'a>(duties: &'a [Duty], name: &str) -> &'a Duty {
        duties.iter().find(|duty| duty.name == name).unwrap_or_else(|| panic!("{name}: {duties:?}"))
    }

    #[test]
    fn main_does_what_nobody_else_is_named_for() {
        let duties = of("");
        for task in TaskName::ALL {
            let found = duties.iter().find(|duty| duty.name.starts_with(task.as_str())).unwrap();
            assert_eq!(found.preferred.as_deref(), Some("main"), "{task:?}");
        }
    }

    #[test]
    fn tasks_follow_the_configuration() {
        let duties = of("\
            run_background_tasks_on: background\n\
            pusher_instances: [pusher1, pusher2]\n\
            federation_sender_instances: [sender1]\n\
            notify_appservices: false\n\
            listeners: [{type: http, port: 1, bind_addresses: ['127.0.0.1'], \
              resources: [{names: [replication]}]}]\n\
            instance_map:\n  \
              main: {host: h, port: 1}\n  background: {host: h, port: 2}\n  \
              pusher1: {host: h, port: 3}\n  pusher2: {host: h, port: 4}\n  \
              sender1: {host: h, port: 5}\n");
        let cleanup = find(&duties, "cleanup");
        assert_eq!(cleanup.preferred.as_deref(), Some("background"));
        let Able::Roles(roles) = &cleanup.able else { panic!("{cleanup:?}") };
        assert!(roles.iter().any(|role| role == "main") && roles.iter().any(|r| r == GENERIC));
        let both = vec!["pusher1".to_owned(), "pusher2".to_owned()];
        for name in &both {
            let part = find(&duties, &format!("pusher/{name}"));
            assert_eq!(part.preferred.as_ref(), Some(name));
            assert_eq!(part.able, Able::Named(both.clone()));
        }
        let sender = find(&duties, "federation_sender/sender1");
        assert_eq!(sender.able, Able::Named(vec!["sender1".to_owned()]));
        let appservices = find(&duties, "appservice_sender");
        assert_eq!(appservices.preferred, None);
        assert_eq!(appservices.able, Able::Roles(vec!["appservice".to_owned()]));
    }
}
