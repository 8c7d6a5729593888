//! What shows only when all files of a server are side by side; and wrong configurations of single
//! instances: each with the exact words that an admin reads.

use crate::{Fleet, FleetFile, Overrides, Severity};

const SHARED: &str = "
server_name: example.org
database: { name: psycopg2, args: { host: /run/postgresql, database: chatd, user: chatd } }
redis: { enabled: true }
worker_replication_secret: hush
listeners:
  - { port: 8008, bind_addresses: [127.0.0.1], type: http, resources: [{ names: [client, federation] }] }
  - { port: 9093, bind_addresses: [127.0.0.1], type: http, resources: [{ names: [replication] }] }
";

/// The map of a fleet with one persister, and its file.
const MAP: &str = "
instance_map:
  main: { host: 127.0.0.1, port: 9093 }
  persister1: { host: 127.0.0.1, port: 9101 }
stream_writers: { events: persister1 }
";
const PERSISTER: &str = "
worker_app: synapse.app.generic_worker
worker_name: persister1
worker_listeners:
  - { port: 9101, bind_addresses: [127.0.0.1], type: http, resources: [{ names: [replication] }] }
";

fn worker(name: &str, port: u16) -> String {
    format!(
        "worker_app: synapse.app.generic_worker\nworker_name: {name}\nworker_listeners:\n  \
         - {{ port: {port}, bind_addresses: [127.0.0.1], type: http, \
         resources: [{{ names: [client, federation] }}] }}\n"
    )
}

fn findings(files: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let fleet = Fleet::from_texts(files, &Overrides::default()).unwrap();
    let told = |severity| {
        let found = fleet.findings.iter().filter(|one| one.severity == severity);
        found.map(ToString::to_string).collect()
    };
    (told(Severity::Error), told(Severity::Warning))
}

#[test]
fn a_good_fleet_has_no_findings() {
    let shared = [SHARED, MAP].concat();
    let files = [
        ("homeserver.yaml", shared.as_str()),
        ("persister1.yaml", PERSISTER),
        ("w1.yaml", &worker("w1", 8101)),
    ];
    let none = (Vec::<String>::new(), Vec::<String>::new());
    assert_eq!(findings(&files), none);
    let fleet = Fleet::from_texts(&files, &Overrides::default()).unwrap();
    let names: Vec<_> = fleet.members.iter().map(crate::Member::name).collect();
    assert_eq!(names, ["main", "persister1", "w1"]);
}

#[test]
fn what_is_wrong_between_instances_is_told() {
    let with = |more: &str| [SHARED, MAP, more].concat();
    let w1 = worker("w1", 8101);
    let w2 = worker("w2", 8101);
    let cases: Vec<(String, Vec<&str>, &str)> = vec![
        (
            with(""),
            vec![],
            "error: homeserver.yaml, line 13: `stream_writers.events` is persister1: no file has \
             this instance, so that nobody does what is given to it\n  what to do: give the file \
             with `worker_name: persister1` too, or name another instance",
        ),
        (
            with("pusher_instances: [persistor1]"),
            vec![PERSISTER],
            "error: homeserver.yaml, line 14: `pusher_instances` is persistor1: no file has this \
             instance, so that nobody does what is given to it\n  what to do: did you mean \
             `persister1`?",
        ),
        (
            with(""),
            vec![PERSISTER, &w1, &w2],
            "error (w1, w2): both listen at port 8101 of one machine\n  what to do: give each \
             instance a port of its own",
        ),
        (
            with(""),
            vec![PERSISTER, &w1, &w1],
            "error (w1): 3.yaml, line 2: `worker_name` is w1: is the name of two instances\n  what \
             to do: give each worker a worker_name of its own",
        ),
        (
            with("").replace("port: 9101", "port: 9102"),
            vec![PERSISTER],
            "error (persister1): homeserver.yaml, line 12: `instance_map.persister1` is 127.0.0.1, \
             port 9102: persister1 listens for other instances at 127.0.0.1:9101 only\n  what to \
             do: write the port or path of that listener",
        ),
        (
            with("").replace("port: 9101", "port: 9093"),
            vec![PERSISTER],
            "error (main, persister1): homeserver.yaml, line 12: `instance_map.persister1` is \
             127.0.0.1, port 9093: is the address of `main` too\n  what to do: give each instance \
             the address of its own replication listener",
        ),
        (
            with(""),
            vec![PERSISTER, "worker_app: generic_worker\nworker_name: w1\nstream_writers: {}"],
            "error (w1): 2.yaml, line 3: `stream_writers` is events: main; ",
        ),
        (
            with(""),
            vec![
                PERSISTER,
                "worker_app: generic_worker\nworker_name: w1\nworker_replication_secret: other",
            ],
            "error (w1): 2.yaml, line 3: `worker_replication_secret` is ***: differs from what the \
             main process has\n  what to do: keep it in the shared configuration only",
        ),
        (
            with("notify_appservices: false"),
            vec![
                PERSISTER,
                "worker_app: appservice\nworker_name: a1",
                "worker_app: appservice\nworker_name: a2",
            ],
            "error (a1, a2): only one instance can do `appservice_sender`\n  what to do: name one \
             of them in notify_appservices_from_worker",
        ),
        (
            [SHARED, "instance_map: { main: { path: /run/main.sock }, w: { path: /run/w.sock } }"]
                .concat()
                .replace("port: 9093, bind_addresses: [127.0.0.1]", "path: /run/main.sock"),
            vec![
                "worker_app: generic_worker\nworker_name: w\nworker_listeners: [{ path: /run/main.sock, type: http, resources: [{ names: [replication] }] }]",
            ],
            "error (main, w): all listen at /run/main.sock\n  what to do: give each instance a \
             socket of its own",
        ),
        (
            with("start_pushers: false"),
            vec![PERSISTER],
            "warning: nobody does `pusher`: the main process is told not to\n  what to do: name an \
             instance in pusher_instances, if this is not what you want",
        ),
        (
            with(""),
            vec![PERSISTER, "worker_app: generic_worker\nworker_name: w1"],
            "warning (w1): does nothing: it writes no stream, has no task, and no listener for \
             clients, servers or media",
        ),
        (
            with(""),
            vec![PERSISTER, "worker_app: generic_worker\nworker_name: w1\nlisteners: []"],
            "warning (w1): 2.yaml, line 3: `listeners`: has no effect in the file of a worker\n  \
             what to do: call it `worker_listeners`",
        ),
        (
            SHARED
                .replace("names: [client, federation]", "names: [client, federation, replication]"),
            vec![],
            "warning (main): port 8008 serves `replication` beside what the reverse proxy needs",
        ),
        (
            SHARED.replace("names: [client, federation]", "names: [client]"),
            vec![],
            "warning: no listener serves other servers: none has the resource `federation`",
        ),
    ];
    for (shared, workers, expected) in cases {
        let names: Vec<_> = (1..=workers.len()).map(|at| format!("{at}.yaml")).collect();
        let mut files = vec![("homeserver.yaml", shared.as_str())];
        files.extend(names.iter().map(String::as_str).zip(workers));
        let (errors, warnings) = findings(&files);
        let found = errors.iter().chain(&warnings).any(|one| one.starts_with(expected));
        assert!(found, "expected: {expected}\n found: {errors:#?} {warnings:#?}\n{shared}");
    }
}

#[test]
fn ports_in_containers_of_their_own_are_no_error() {
    let shared = format!(
        "{SHARED}instance_map: {{ main: {{ path: /run/main.sock }}, w1: {{ path: /run/w1.sock }}, \
         w2: {{ path: /run/w2.sock }} }}\n"
    )
    .replace("port: 9093, bind_addresses: [127.0.0.1]", "path: /run/main.sock");
    let worker = |name: &str| {
        format!(
            "worker_app: generic_worker\nworker_name: {name}\nworker_listeners:\n  \
             - {{ port: 9000, type: metrics }}\n  - {{ path: /run/{name}.sock, type: http, \
             resources: [{{ names: [replication] }}] }}\n  - {{ path: /run/in_{name}.sock, \
             type: http, resources: [{{ names: [client] }}] }}\n"
        )
    };
    let (w1, w2) = (worker("w1"), worker("w2"));
    let (errors, warnings) = findings(&[("s.yaml", &shared), ("1.yaml", &w1), ("2.yaml", &w2)]);
    assert_eq!(errors, Vec::<String>::new());
    let expected =
        "warning (w1, w2): all listen at port 9000, which needs a machine or container for each";
    assert_eq!(warnings, [expected]);
}

#[test]
fn a_worker_whose_own_configuration_is_wrong_is_an_error_of_the_fleet() {
    let shared = [SHARED, MAP].concat();
    let worker = "worker_app: generic_wroker\nworker_name: persister1";
    let (errors, _) = findings(&[("homeserver.yaml", &shared), ("p.yaml", worker)]);
    assert_eq!(errors.len(), 1, "what follows from it is not told: {errors:#?}");
    assert!(errors[0].starts_with("error (persister1): p.yaml, line 1: `worker_app` is "));
}

#[test]
fn a_file_may_be_given_for_a_name() {
    let file = |name: Option<&str>, path: &str| FleetFile {
        name: name.map(str::to_owned),
        path: path.into(),
    };
    assert_eq!(
        FleetFile::from_argument("sync-0=roles/sync.yaml"),
        file(Some("sync-0"), "roles/sync.yaml")
    );
    assert_eq!(FleetFile::from_argument("a/b=c.yaml"), file(None, "a/b=c.yaml"));
    assert_eq!(FleetFile::from_argument("a.yaml"), file(None, "a.yaml"));
}
