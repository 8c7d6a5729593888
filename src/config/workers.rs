//! The keys that say which instance does what. Only `assignment` and the wiring of buses and
//! calls between instances read them.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{ConfigError, StreamName, units, units::Secret};

/// Name of the main process.
pub const MAIN: &str = "main";

/// The keys that say which instance does what.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Workers {
    /// `worker_app`: the role. Absent: the main process.
    #[serde(rename = "worker_app")]
    pub app: Option<String>,
    /// `worker_name`. Default: `worker_app`.
    #[serde(rename = "worker_name")]
    pub name: Option<String>,
    /// `worker_replication_secret[_path]`: authenticates calls between instances.
    #[serde(rename = "worker_replication_secret")]
    pub replication_secret: Option<Secret>,
    #[serde(rename = "worker_replication_secret_path")]
    pub(crate) replication_secret_path: Option<PathBuf>,
    /// `instance_map`: how to reach each instance.
    pub instance_map: BTreeMap<String, InstanceAddress>,
    /// `stream_writers`.
    pub stream_writers: StreamWriters,
    /// `redis`.
    pub redis: Redis,
    pub(crate) run_background_tasks_on: Option<String>,
    pub(crate) update_user_directory_from_worker: Option<String>,
    pub(crate) notify_appservices_from_worker: Option<String>,
    pub(crate) media_instance_running_background_jobs: Option<String>,
    pub(crate) pusher_instances: Vec<String>,
    pub(crate) federation_sender_instances: Vec<String>,
    pub(crate) start_pushers: Option<bool>,
    pub(crate) send_federation: Option<bool>,
    pub(crate) notify_appservices: Option<bool>,
    pub(crate) update_user_directory: Option<bool>,
    pub(crate) enable_media_repo: bool,
    /// `outbound_federation_restricted_to`.
    pub outbound_federation_restricted_to: Vec<String>,
    #[serde(rename = "worker_replication_host")]
    pub(crate) replication_host: Option<String>,
    #[serde(rename = "worker_replication_http_port")]
    pub(crate) replication_http_port: Option<u16>,
    #[serde(rename = "worker_replication_http_tls")]
    pub(crate) replication_http_tls: bool,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            app: None,
            name: None,
            replication_secret: None,
            replication_secret_path: None,
            instance_map: BTreeMap::new(),
            stream_writers: StreamWriters::default(),
            redis: Redis::default(),
            run_background_tasks_on: None,
            update_user_directory_from_worker: None,
            notify_appservices_from_worker: None,
            media_instance_running_background_jobs: None,
            pusher_instances: Vec::new(),
            federation_sender_instances: Vec::new(),
            start_pushers: None,
            send_federation: None,
            notify_appservices: None,
            update_user_directory: None,
            enable_media_repo: true,
            outbound_federation_restricted_to: Vec::new(),
            replication_host: None,
            replication_http_port: None,
            replication_http_tls: false,
        }
    }
}

/// One entry of `instance_map`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub struct InstanceAddress {
    /// `host`.
    pub host: Option<String>,
    /// `port`.
    pub port: Option<u16>,
    /// `tls`.
    pub tls: bool,
    /// `path` of a unix socket, instead of the others.
    pub path: Option<PathBuf>,
}

impl fmt::Display for InstanceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, &self.host, self.port) {
            (Some(path), ..) => write!(f, "{}", path.display()),
            (None, Some(host), Some(port)) => write!(f, "{host}, port {port}"),
            (None, Some(host), None) => f.write_str(host),
            (None, None, Some(port)) => write!(f, "port {port}"),
            (None, None, None) => f.write_str("empty"),
        }
    }
}

/// `stream_writers`: one name or a list for each stream.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "each field is the stream of its name")]
pub struct StreamWriters {
    #[serde(deserialize_with = "units::at_least_one")]
    pub events: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub typing: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub to_device: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub account_data: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub receipts: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub presence: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub push_rules: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub device_lists: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub thread_subscriptions: Vec<String>,
    #[serde(deserialize_with = "units::at_least_one")]
    pub quarantined_media_changes: Vec<String>,
}

impl StreamWriters {
    /// What the file says about `stream`; empty if nothing.
    pub fn named(&self, stream: StreamName) -> &[String] {
        match stream {
            StreamName::Events => &self.events,
            StreamName::Typing => &self.typing,
            StreamName::ToDevice => &self.to_device,
            StreamName::AccountData => &self.account_data,
            StreamName::Receipts => &self.receipts,
            StreamName::Presence => &self.presence,
            StreamName::PushRules => &self.push_rules,
            StreamName::DeviceLists => &self.device_lists,
            StreamName::ThreadSubscriptions => &self.thread_subscriptions,
            StreamName::QuarantinedMedia => &self.quarantined_media_changes,
            StreamName::Caches => &[],
        }
    }
}

/// `redis`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Redis {
    /// `enabled`.
    pub enabled: bool,
    /// `host`. Default `localhost`.
    pub host: String,
    /// `port`. Default 6379.
    pub port: u16,
    /// `path` of a unix socket, instead of host and port.
    pub path: Option<PathBuf>,
    /// `url`, instead of all of these: `redis://`, `rediss://`, `redis-sentinel://` or
    /// `redis-cluster://`. Not known to Synapse.
    pub url: Option<String>,
    /// `password` or `password_path`.
    pub password: Option<Secret>,
    pub(crate) password_path: Option<PathBuf>,
    /// `dbid`.
    #[serde(deserialize_with = "units::text_or_number")]
    pub dbid: String,
    /// `use_tls`.
    pub use_tls: bool,
    /// `certificate_file`.
    pub certificate_file: Option<PathBuf>,
    /// `private_key_file`.
    pub private_key_file: Option<PathBuf>,
    /// `ca_file`.
    pub ca_file: Option<PathBuf>,
    /// `ca_path`.
    pub ca_path: Option<PathBuf>,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            enabled: false,
            host: "localhost".to_owned(),
            port: 6379,
            path: None,
            url: None,
            password: None,
            password_path: None,
            dbid: "0".to_owned(),
            use_tls: false,
            certificate_file: None,
            private_key_file: None,
            ca_file: None,
            ca_path: None,
        }
    }
}

impl Workers {
    /// Name of this instance: `main`, or `worker_name`.
    pub fn instance_name(&self) -> &str {
        if self.is_main() { MAIN } else { self.name.as_deref().unwrap_or(MAIN) }
    }

    /// `worker_replication_host` and its port are the older way to say `instance_map.main`.
    pub(crate) fn adopt_replication_host(
        &mut self,
        warnings: &mut Vec<String>,
    ) -> Result<(), ConfigError> {
        let (host, port) = match (self.replication_host.clone(), self.replication_http_port) {
            (Some(host), Some(port)) => (host, port),
            (None, None) => return Ok(()),
            (Some(host), None) => {
                return Err(ConfigError::at(
                    "worker_replication_host",
                    "stands without worker_replication_http_port",
                )
                .found(format!("{host:?}"))
                .remedy("write both as `instance_map.main`, with host and port"));
            }
            (None, Some(port)) => {
                return Err(ConfigError::at(
                    "worker_replication_http_port",
                    "stands without worker_replication_host",
                )
                .found(port)
                .remedy("write both as `instance_map.main`, with host and port"));
            }
        };
        if self.instance_map.contains_key(MAIN) {
            warnings.push(
                "`worker_replication_host` has no effect, because instance_map has `main`"
                    .to_owned(),
            );
            return Ok(());
        }
        warnings.push(format!(
            "`worker_replication_host` is read as `instance_map.main` (host {host}, port {port}); \
             write that in the shared configuration instead"
        ));
        let tls = self.replication_http_tls;
        let main = InstanceAddress { host: Some(host), port: Some(port), tls, path: None };
        self.instance_map.insert(MAIN.to_owned(), main);
        Ok(())
    }

    /// Whether this is the main process: no `worker_app`, or one that means `homeserver`.
    pub fn is_main(&self) -> bool {
        self.app.as_deref().is_none_or(|app| matches!(plain_app(app), "homeserver" | "main"))
    }
}

/// `synapse.app.X`, `chat.app.X` and `chatd.app.X` are `X`.
pub(crate) fn plain_app(app: &str) -> &str {
    ["synapse.app.", "chat.app.", "chatd.app."]
        .iter()
        .find_map(|prefix| app.strip_prefix(prefix))
        .unwrap_or(app)
}
