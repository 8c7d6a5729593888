//! The configurations of published guides, as they are written there: host names, ports and
//! secrets are filled in, nothing else.

mod documents;

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

/// What every server has before it reads a guide.
const BASE: &str = r#"{
    "server_name": "example.org",
    "database": {"name": "psycopg2", "args": {"host": "/run/postgresql", "user": "chatd"}},
    "redis": {"enabled": true},
    "listeners": [{"port": 8008, "bind_addresses": ["127.0.0.1"], "type": "http",
                   "resources": [{"names": ["client", "federation"]}]}]
}"#;

/// A guide's configuration, whole.
#[derive(Debug)]
pub struct Guide {
    /// The page that it stands on.
    pub path: PathBuf,
    /// Of how many pieces it is put together.
    pub pieces: usize,
    /// The file that all instances read.
    pub shared: Map<String, Value>,
    /// The files of the workers.
    pub workers: Vec<Map<String, Value>>,
}

impl Guide {
    /// Those of all pages (`*.txt`) in a folder, by name.
    pub fn read_all(folder: &Path) -> Vec<Self> {
        let entries = fs::read_dir(folder).unwrap();
        let mut paths: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
            .collect();
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let page = fs::read_to_string(&path).unwrap();
        let pieces = documents::pieces(&page);
        let mut guide = Self {
            path,
            pieces: pieces.len(),
            shared: serde_json::from_str(BASE).unwrap(),
            workers: Vec::new(),
        };
        for mut piece in pieces {
            if piece.contains_key("worker_app") {
                guide.workers.push(piece);
            } else if piece.contains_key("worker_listeners") {
                // The guide has said already whose file this is in.
                piece.insert("worker_app".to_owned(), json!("chat.app.media_repository"));
                piece.insert("worker_name".to_owned(), json!("media-repository-1"));
                guide.workers.push(piece);
            } else {
                guide.share(piece);
            }
        }
        guide.copy_workers(&page);
        guide.fill_in();
        guide
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

    /// Workers whose files are only mentioned are like the first one that is shown if others call
    /// them, and like the last one if nobody does.
    fn copy_workers(&mut self, page: &str) {
        let is_shown = |one: &&Map<String, Value>| one.contains_key("worker_log_config");
        let mut shown = self.workers.iter().filter(is_shown);
        let Some(called) = shown.next().cloned() else { return };
        let other = shown.next_back().cloned().unwrap_or_else(|| called.clone());
        for mention in page.split("--config-path=/data/workers/").skip(1) {
            let name = mention.split(".yaml").next().unwrap();
            if self.workers.iter().any(|one| one["worker_name"] == name) {
                continue;
            }
            let is_called = self.shared["instance_map"].get(name).is_some();
            let like = if is_called { &called } else { &other };
            let model = like["worker_name"].as_str().unwrap();
            let text = serde_json::to_string(like).unwrap();
            let mut copy: Map<_, _> = serde_json::from_str(&text.replace(model, name)).unwrap();
            copy.insert("worker_app".to_owned(), json!(app(name)));
            self.workers.push(copy);
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
}

fn collect(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::String(name) => names.push(name.clone()),
        Value::Array(list) => list.iter().for_each(|one| collect(one, names)),
        Value::Object(map) => map.values().for_each(|one| collect(one, names)),
        _ => {}
    }
}

/// The app that a guide gives to a worker of this name.
fn app(name: &str) -> &str {
    if name.contains("media") {
        "synapse.app.media_repository"
    } else {
        "synapse.app.generic_worker"
    }
}

/// A worker that a guide names without showing its file.
fn worker(name: &str, bind: &Value) -> Map<String, Value> {
    let mut file = json!({"worker_app": app(name), "worker_name": name});
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
