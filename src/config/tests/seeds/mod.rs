//! The configurations of published guides, as they are written there: `CHATD_SEEDS_DIR` has the
//! guides. Host names, ports and secrets are filled in, nothing else.

mod documents;

use std::{fs, path::PathBuf};

use serde_json::{Map, Value, json};

use crate::{Assignment, Fleet, Member, Overrides, StreamName as S, TaskName as T};

/// What every server has before it reads a guide.
const BASE: &str = r#"{
    "server_name": "example.org",
    "database": {"name": "psycopg2", "args": {"host": "/run/postgresql", "user": "chatd"}},
    "redis": {"enabled": true},
    "listeners": [{"port": 8008, "bind_addresses": ["127.0.0.1"], "type": "http",
                   "resources": [{"names": ["client", "federation"]}]}]
}"#;

/// A guide's configuration, whole.
struct Deployment {
    shared: Map<String, Value>,
    workers: Vec<Map<String, Value>>,
}

impl Deployment {
    fn of(pieces: Vec<Map<String, Value>>, page: &str) -> Self {
        let mut deployment =
            Self { shared: serde_json::from_str(BASE).unwrap(), workers: Vec::new() };
        for mut piece in pieces {
            if piece.contains_key("worker_app") {
                deployment.workers.push(piece);
            } else if piece.contains_key("worker_listeners") {
                // The guide has said already whose file this is in.
                piece.insert("worker_app".to_owned(), json!("chat.app.media_repository"));
                piece.insert("worker_name".to_owned(), json!("media-repository-1"));
                deployment.workers.push(piece);
            } else {
                deployment.share(piece);
            }
        }
        deployment.fill_in();
        deployment.copy_workers(page);
        deployment
    }

    /// Adds to the shared file: maps and listeners grow, anything else is replaced.
    fn share(&mut self, piece: Map<String, Value>) {
        for (key, value) in piece {
            match (self.shared.get_mut(&key), value) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    for (name, value) in new {
                        let stays = key == "instance_map" && old.contains_key(&name);
                        if !stays {
                            old.insert(name, value);
                        }
                    }
                }
                (Some(Value::Array(old)), Value::Array(new)) if key == "listeners" => {
                    old.extend(new)
                }
                (_, value) => {
                    self.shared.insert(key, value);
                }
            }
        }
    }

    /// What the reader of a guide has to fill in: secrets, addresses that are free, and the files
    /// of workers that are named and not shown.
    fn fill_in(&mut self) {
        self.shared.insert("worker_replication_secret".to_owned(), json!("hush"));
        let shown: Vec<_> = self.workers.iter().map(|one| one["worker_name"].clone()).collect();
        for (index, name) in self.named().into_iter().enumerate() {
            let port = 18000 + index;
            let needs_address = self.is_called(&name);
            let map = self.shared.entry("instance_map").or_insert_with(|| json!({}));
            let entry = &mut map[&name];
            if needs_address && entry.get("path").is_none() && !shown.contains(&json!(name)) {
                *entry = json!({"host": "127.0.0.1", "port": port});
            }
            let bind = entry.clone();
            if entry.is_null() {
                map.as_object_mut().unwrap().remove(&name);
            }
            if !shown.contains(&json!(name)) {
                self.workers.push(worker(&name, &bind));
            }
        }
        self.settle_main();
        let to_main = !self.shared.contains_key("instance_map")
            || self.shared["instance_map"].get("main").is_none();
        for worker in &mut self.workers {
            if to_main && !worker.contains_key("worker_replication_host") {
                worker.insert("worker_replication_host".to_owned(), json!("127.0.0.1"));
                worker.insert("worker_replication_http_port".to_owned(), json!(9093));
            }
        }
    }

    /// Workers whose files are only mentioned are like the last one that is shown.
    fn copy_workers(&mut self, page: &str) {
        let shown = self.workers.iter().rposition(|one| one.contains_key("worker_log_config"));
        let Some(like) = shown.map(|index| serde_json::to_string(&self.workers[index]).unwrap())
        else {
            return;
        };
        let model = self.workers[shown.unwrap()]["worker_name"].as_str().unwrap().to_owned();
        for mention in page.split("--config-path=/data/workers/").skip(1) {
            let name = mention.split(".yaml").next().unwrap();
            if self.workers.iter().all(|one| one["worker_name"] != name) {
                let copy = serde_json::from_str(&like.replace(&model, name)).unwrap();
                self.workers.push(copy);
            }
        }
    }

    /// The main process listens where the map says.
    fn settle_main(&mut self) {
        let path = self.shared.get("instance_map").and_then(|map| map["main"].get("path")).cloned();
        if let Some(path) = path {
            let listener =
                json!({"path": path, "type": "http", "resources": [{"names": ["replication"]}]});
            self.shared["listeners"].as_array_mut().unwrap().push(listener);
        }
    }

    /// Every instance that a key names.
    fn named(&self) -> Vec<String> {
        let mut names = Vec::new();
        let keys = [
            "stream_writers",
            "pusher_instances",
            "federation_sender_instances",
            "outbound_federation_restricted_to",
            "run_background_tasks_on",
            "notify_appservices_from_worker",
            "update_user_directory_from_worker",
            "media_instance_running_background_jobs",
        ];
        for key in keys {
            collect(self.shared.get(key).unwrap_or(&Value::Null), &mut names);
        }
        names.sort();
        names.dedup();
        names
    }

    /// Whether others must reach it.
    fn is_called(&self, name: &str) -> bool {
        let mut names = Vec::new();
        for key in ["stream_writers", "outbound_federation_restricted_to"] {
            collect(self.shared.get(key).unwrap_or(&Value::Null), &mut names);
        }
        names.iter().any(|one| one == name)
    }

    fn fleet(&self) -> Fleet {
        let files = self.workers.iter().enumerate();
        let files: Vec<_> = files
            .map(|(index, worker)| {
                (format!("worker{index}.yaml"), serde_json::to_string(worker).unwrap())
            })
            .collect();
        let shared = serde_json::to_string(&self.shared).unwrap();
        let mut texts = vec![("homeserver.yaml", shared.as_str())];
        texts.extend(files.iter().map(|(name, text)| (name.as_str(), text.as_str())));
        Fleet::from_texts(&texts, &Overrides::default()).unwrap()
    }
}

fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::String(name) => names.push(name.clone()),
        Value::Array(list) => list.iter().for_each(|one| collect(one, names)),
        Value::Object(map) => map.values().for_each(|one| collect(one, names)),
        _ => {}
    }
}

/// A worker that a guide names without showing its file.
fn worker(name: &str, bind: &Value) -> Map<String, Value> {
    let app = if name.contains("media") { "media_repository" } else { "generic_worker" };
    let mut file = json!({"worker_app": format!("synapse.app.{app}"), "worker_name": name});
    let mut listener = json!({"type": "http", "resources": [{"names": ["replication"]}]});
    if let Some(path) = bind.get("path") {
        listener["path"] = path.clone();
    } else if let Some(port) = bind.get("port") {
        listener["port"] = port.clone();
    }
    if listener.get("path").or(listener.get("port")).is_some() {
        file["worker_listeners"] = json!([listener]);
    }
    serde_json::from_value(file).unwrap()
}

fn read(folder: &str) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path, text)
        })
        .collect()
}

/// A guide: how many pieces it has, and what some of its instances must get.
struct Expected {
    pieces: usize,
    instances: usize,
    writers: &'static [(S, &'static str)],
    runners: &'static [(T, &'static str)],
}

const GUIDES: [Expected; 5] = [
    Expected {
        pieces: 16,
        instances: 12,
        writers: &[(S::Events, "event_persister1 event_persister2"), (S::Typing, "main")],
        runners: &[
            (T::Cleanup, "background_worker"),
            (T::Pusher, "pusher_worker1 pusher_worker2"),
            (T::FederationSender, "federation_sender1 federation_sender2"),
            (T::UserDirectory, "worker_name"),
            (T::MediaCleanup, "media-repository-1"),
        ],
    },
    MARKDOWN,
    MARKDOWN,
    Expected {
        pieces: 9,
        instances: 10,
        writers: &[(S::Events, "event_persister1 event_persister2"), (S::Typing, "main")],
        runners: &[
            (T::BackgroundUpdates, "background_worker"),
            (T::Pusher, "pusher_worker1 pusher_worker2"),
            (T::FederationSender, "federation_sender1 federation_sender2"),
            (T::AppserviceSender, "main"),
        ],
    },
    Expected {
        pieces: 4,
        instances: 13,
        writers: &[
            (S::Events, "tasks1"),
            (S::Typing, "client_sync1"),
            (S::Receipts, "client_sync1"),
            (S::PushRules, "main"),
        ],
        runners: &[
            (T::FederationSender, "sender1 sender2 sender3 sender4"),
            (T::Pusher, "tasks1"),
            (T::UserDirectory, "client_sync1"),
            (T::MediaCleanup, "media1"),
        ],
    },
];

/// Two copies of one edition.
const MARKDOWN: Expected = Expected {
    pieces: 11,
    instances: 10,
    writers: &[(S::Events, "event_persister1 event_persister2"), (S::DeviceLists, "main")],
    runners: &[
        (T::Cleanup, "background_worker"),
        (T::Pusher, "pusher_worker1 pusher_worker2"),
        (T::FederationSender, "federation_sender1 federation_sender2"),
        (T::AppserviceSender, "worker_name"),
    ],
};

fn who(fleet: &Fleet, does: impl Fn(&Assignment) -> bool) -> String {
    let mut names: Vec<_> =
        fleet.members.iter().filter(|one| does(&one.assignment)).map(Member::name).collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
#[expect(clippy::print_stderr, reason = "whoever runs the tests should know that one was not")]
fn guides_start_unchanged() {
    let Some(folder) = std::env::var("CHATD_SEEDS_DIR").ok() else {
        eprintln!("CHATD_SEEDS_DIR is not set: the configurations of guides are not tried");
        return;
    };
    let guides = read(&folder);
    assert_eq!(guides.len(), GUIDES.len());
    for ((path, text), expected) in guides.iter().zip(GUIDES) {
        let pieces = documents::pieces(text);
        let what = path.display();
        assert_eq!(pieces.len(), expected.pieces, "{what}: {pieces:#?}");
        let fleet = Deployment::of(pieces, text).fleet();
        assert!(!fleet.has_errors(), "{what}: {:#?}", fleet.findings);
        for finding in &fleet.findings {
            let text = finding.to_string();
            assert!(!text.contains("is no key that"), "{what}: {text}");
        }
        for (stream, names) in expected.writers {
            assert_eq!(who(&fleet, |one| one.writes(*stream)), *names, "{what}: {stream}");
        }
        for (task, names) in expected.runners {
            assert_eq!(who(&fleet, |one| one.runs(*task)), *names, "{what}: {task}");
        }
        assert_eq!(fleet.members.len(), expected.instances, "{what}");
    }
}
