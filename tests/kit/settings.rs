//! The homeserver.yaml of a test server.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{gate::Gate, ports::Port, tls::Authority};

/// `registration_shared_secret` of every test server.
pub const SHARED_SECRET: &str = "the secret of the test kit";

/// `server_name` of every test server that is alone.
pub const SERVER_NAME: &str = "test.local";

/// Settings of one server: high limits and open registration, unless a test says otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    keys: Map<String, Value>,
    federation: Option<Doors>,
    /// Instances of a fleet that have no way to other machines.
    confined: Vec<String>,
}

/// Where a server is for others.
#[derive(Clone, Debug)]
struct Doors {
    /// Where they find it; also its name.
    outside: Port,
    /// Where it listens.
    inside: Port,
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

impl Settings {
    /// What most tests want.
    pub fn new() -> Self {
        let rate = json!({"per_second": 100_000, "burst_count": 100_000});
        let keys = json!({
            "server_name": SERVER_NAME,
            "report_stats": false,
            "registration_shared_secret": SHARED_SECRET,
            "enable_registration": true,
            "enable_registration_without_verification": true,
            "bcrypt_rounds": 4,
            "rc_message": rate,
            "rc_registration": rate,
            "rc_login": {"address": rate, "account": rate, "failed_attempts": rate},
            "rc_admin_redaction": rate,
            "rc_joins": {"local": rate, "remote": rate},
            "rc_joins_per_room": rate,
            "rc_invites": {"per_room": rate, "per_user": rate, "per_issuer": rate},
            "rc_third_party_invite": rate,
            "rc_room_creation": rate,
            "rc_presence": {"per_user": rate},
            "room_list_publication_rules": [{"action": "allow"}],
            "chatd": {"expose_request_cost": true},
        });
        let Value::Object(keys) = keys else { unreachable!("the literal above is an object") };
        Self { keys, federation: None, confined: Vec::new() }
    }

    /// One among others: its name is `127.0.0.1:<port>`, where it listens with TLS, and it talks
    /// to every server whose certificate is by the kit's authority.
    pub fn federating() -> Self {
        let port = Port::claim().expect("a port for other servers");
        Self::behind(Doors { outside: port.clone(), inside: port })
    }

    /// The same with a gate between it and all others.
    pub async fn gated() -> (Self, Gate) {
        let claim = || Port::claim().expect("a port for other servers");
        let doors = Doors { outside: claim(), inside: claim() };
        let gate = Gate::between(&doors.outside, &doors.inside).await;
        (Self::behind(doors), gate)
    }

    fn behind(doors: Doors) -> Self {
        let authority = Authority::shared().expect("an authority of the test kit");
        let certificate = authority.loopback();
        let many = json!({
            "window_size": 1000,
            "sleep_limit": 100_000,
            "sleep_delay": 0,
            "reject_limit": 100_000,
            "concurrent": 100,
        });
        // Who was away is asked again soon.
        let patience = json!({
            "destination_min_retry_interval": 500,
            "destination_max_retry_interval": 2_000,
            "destination_retry_multiplier": 2,
        });
        let mut settings = Self::new()
            .with("server_name", doors.outside.server_name())
            .with("federation_custom_ca_list", json!([authority.certificate()]))
            .with("ip_range_blocklist", json!([]))
            .with("trusted_key_servers", json!([]))
            .with("allow_public_rooms_over_federation", true)
            .with("allow_device_name_lookup_over_federation", true)
            .with("federation", patience)
            .with("rc_federation", many)
            .with("tls_certificate_path", json!(certificate.chain))
            .with("tls_private_key_path", json!(certificate.key));
        settings.federation = Some(doors);
        settings
    }

    /// Where it listens for other servers, if it does.
    pub(crate) fn listens(&self) -> Option<u16> {
        self.federation.as_ref().map(|doors| doors.inside.number())
    }

    /// Where other servers find it, if they do.
    pub fn federation(&self) -> Option<u16> {
        self.federation.as_ref().map(|doors| doors.outside.number())
    }

    /// Its `server_name`.
    pub fn server_name(&self) -> &str {
        self.keys["server_name"].as_str().unwrap_or_default()
    }

    /// The same with another value for a top-level key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.insert(key.to_owned(), value.into());
        self
    }

    /// The same; these instances of a fleet run in network namespaces of their own, in which there is
    /// no other address than theirs and no route. What they say goes over unix sockets.
    /// [`crate::process::may_confine`] says whether that can be had here.
    #[must_use]
    pub fn confining(mut self, instances: &[&str]) -> Self {
        self.confined = instances.iter().map(|&name| name.to_owned()).collect();
        self
    }

    /// Whether an instance of this name is one of them.
    pub(crate) fn confines(&self, instance: &str) -> bool {
        self.confined.iter().any(|name| name == instance)
    }

    /// The file: JSON, which is YAML too.
    pub(crate) fn to_yaml(&self, database: &Value, folder: &Path) -> String {
        let mut keys = self.keys.clone();
        keys.insert("database".to_owned(), database.clone());
        keys.insert("signing_key_path".to_owned(), json!(folder.join("signing.key")));
        keys.insert("pid_file".to_owned(), json!(folder.join("chatd.pid")));
        format!("{:#}\n", Value::Object(keys))
    }

    /// The same without a top-level key.
    #[must_use]
    pub(crate) fn without(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    /// The same with `value` for a top-level key that has none.
    #[must_use]
    pub(crate) fn or(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.keys.entry(key).or_insert_with(|| value.into());
        self
    }

    /// The same with another value for a key of the section `chatd`.
    #[must_use]
    pub(crate) fn with_chatd(mut self, key: &str, value: impl Into<Value>) -> Self {
        let section = self.keys.entry("chatd").or_insert_with(|| json!({}));
        section[key] = value.into();
        self
    }
}
