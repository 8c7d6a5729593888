//! What shows only when all files of a server are side by side.

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
