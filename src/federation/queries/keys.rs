//! Keys of other servers' users: their servers are asked at the same time, and one that does not
//! answer in time is told as a failure.

use std::{collections::BTreeMap, time::Duration};

use chatd_base::{Requester, Result};
use chatd_servers::{Ask, Failure};
use chatd_users::{
    key_query::{Queried, Wanted},
    keys::Claimed,
};
use futures::{StreamExt, stream};
use ruma_common::{OwnedServerName, OwnedUserId, ServerName};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::Queries;

/// Servers that are asked at the same time for one request (R8).
const AT_ONCE: usize = 64;
/// How long a client may want to wait.
const LONGEST: Duration = Duration::from_secs(60);

/// How long somebody who signs keys waits for the servers that these are of.
const MASTER_KEYS_WITHIN: Duration = Duration::from_secs(10);

/// What each server is asked for, by users.
type ByServer<T> = BTreeMap<OwnedServerName, BTreeMap<OwnedUserId, T>>;

/// Algorithms by user and device.
pub type Claims = BTreeMap<OwnedUserId, BTreeMap<String, String>>;

#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    device_keys: BTreeMap<OwnedUserId, Map<String, Value>>,
    #[serde(default)]
    master_keys: BTreeMap<OwnedUserId, Value>,
    #[serde(default)]
    self_signing_keys: BTreeMap<OwnedUserId, Value>,
}

#[derive(Deserialize)]
struct OneTimeKeys {
    #[serde(default)]
    one_time_keys: BTreeMap<OwnedUserId, BTreeMap<String, Map<String, Value>>>,
}

impl Queries {
    /// Adds to `answer` the keys of those users in `wanted` who are of other servers and are not in
    /// it yet.
    pub async fn keys(
        &self,
        who: &Requester,
        wanted: &Wanted,
        within: Duration,
        answer: &mut Queried,
    ) -> Result<()> {
        let open =
            wanted.iter().filter(|(user, _)| !answer.device_keys.contains_key(user.as_str()));
        let open: Wanted = open.map(|(user, devices)| (user.clone(), devices.clone())).collect();
        self.ask_keys(&open, within, answer).await;
        self.users.keys.sign_as(who, open.keys(), answer).await
    }

    /// Master keys of those of `users` who are of other servers, as these tell them now.
    pub async fn master_keys<'a>(
        &self,
        users: impl Iterator<Item = &'a OwnedUserId>,
    ) -> BTreeMap<String, Value> {
        let wanted: Wanted = users.map(|user| (user.clone(), Vec::new())).collect();
        let mut answer = Queried::default();
        self.ask_keys(&wanted, MASTER_KEYS_WITHIN, &mut answer).await;
        answer.master_keys
    }

    async fn ask_keys(&self, wanted: &Wanted, within: Duration, answer: &mut Queried) {
        let by_server = self.by_server(wanted);
        let answers = self.ask_all::<Keys, _>("query", "device_keys", &by_server, within).await;
        for (server, keys) in answers {
            let asked = by_server.get(&server);
            match keys {
                Ok(keys) => add(answer, keys, asked.unwrap_or(&BTreeMap::new())),
                Err(failure) => drop(answer.failures.insert(server.to_string(), shown(&failure))),
            }
        }
    }

    /// Claims a key of each device in `wanted` that is of another server. Returns the keys, and the
    /// servers that could not be asked.
    pub async fn claim(&self, wanted: &Claims, within: Duration) -> (Claimed, Map<String, Value>) {
        let by_server = self.by_server(wanted);
        let answers = self.ask_all::<OneTimeKeys, _>("claim", "one_time_keys", &by_server, within);
        let (mut claimed, mut failures) = (Claimed::new(), Map::new());
        for (server, keys) in answers.await {
            let asked = by_server.get(&server);
            let is_asked = |user: &OwnedUserId| asked.is_some_and(|asked| asked.contains_key(user));
            match keys {
                Ok(OneTimeKeys { one_time_keys }) => {
                    claimed.extend(one_time_keys.into_iter().filter(|(user, _)| is_asked(user)));
                }
                Err(failure) => drop(failures.insert(server.to_string(), shown(&failure))),
            }
        }
        (claimed, failures)
    }

    fn by_server<T: Clone>(&self, wanted: &BTreeMap<OwnedUserId, T>) -> ByServer<T> {
        let mut by_server = ByServer::new();
        for (user, what) in wanted {
            if user.server_name() != self.config.server_name {
                let server = by_server.entry(user.server_name().to_owned()).or_default();
                server.insert(user.clone(), what.clone());
            }
        }
        by_server
    }

    /// Asks all servers for what is wanted of their users.
    async fn ask_all<A: DeserializeOwned, T: Serialize>(
        &self,
        what: &str,
        member: &str,
        by_server: &ByServer<T>,
        within: Duration,
    ) -> Vec<(OwnedServerName, Result<A, Failure>)> {
        let by = Instant::now() + within.min(LONGEST);
        let path = format!("/_matrix/federation/v1/user/keys/{what}");
        let asking = by_server.iter().map(|(server, wanted)| {
            let body = json!({ member: wanted }).to_string();
            let ask = Ask::post(path.clone()).json(body.into());
            async move { (server.clone(), self.ask_by(server, ask, by).await) }
        });
        let asking: Vec<_> = asking.collect();
        stream::iter(asking).buffer_unordered(AT_ONCE).collect().await
    }

    async fn ask_by<A: DeserializeOwned>(
        &self,
        server: &ServerName,
        ask: Ask,
        by: Instant,
    ) -> Result<A, Failure> {
        let left = by.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Away("there was no time left".to_owned()));
        }
        self.servers.client.ask_json(server, ask.within(left)).await
    }
}

/// Takes over what a server says of users that it was asked for. Keys under the name of another
/// user or device are nobody's.
fn add(answer: &mut Queried, keys: Keys, asked: &BTreeMap<OwnedUserId, Vec<String>>) {
    for (user, devices) in keys.device_keys {
        let Some(wanted) = asked.get(&user) else { continue };
        let is_own = |(device, keys): &(String, Value)| {
            let says = |name: &str| keys.get(name).and_then(Value::as_str);
            says("user_id") == Some(user.as_str())
                && says("device_id") == Some(device)
                && (wanted.is_empty() || wanted.contains(device))
        };
        let devices = devices.into_iter().filter(is_own).collect();
        answer.device_keys.insert(user.to_string(), devices);
    }
    let of_users = |keys: BTreeMap<OwnedUserId, Value>| {
        let own = |(user, key): &(OwnedUserId, Value)| {
            asked.contains_key(user)
                && key.get("user_id").and_then(Value::as_str) == Some(user.as_str())
        };
        keys.into_iter().filter(own).map(|(user, key)| (user.to_string(), key)).collect::<Vec<_>>()
    };
    answer.master_keys.extend(of_users(keys.master_keys));
    answer.self_signing_keys.extend(of_users(keys.self_signing_keys));
}

/// An entry of `failures`.
fn shown(failure: &Failure) -> Value {
    let status = match failure {
        Failure::Refused { status, .. } => *status,
        Failure::Forbidden(_) => 403,
        Failure::Away(_) | Failure::BackingOff { .. } => 503,
        Failure::Odd(_) => 502,
    };
    json!({ "status": status, "message": failure.told() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_speaks_for_the_users_that_it_is_asked_for() {
        let user = |name: &str| OwnedUserId::try_from(format!("@{name}:a.example")).unwrap();
        let device = |user: &str, device: &str| json!({"user_id": user, "device_id": device});
        let keys = json!({
            "device_keys": {
                "@a:a.example": {
                    "D": device("@a:a.example", "D"),
                    "E": device("@a:a.example", "F"),
                    "G": device("@b:a.example", "G"),
                    "H": device("@a:a.example", "H"),
                },
                "@victim:here.example": {"D": device("@victim:here.example", "D")},
            },
            "master_keys": {
                "@a:a.example": {"user_id": "@a:a.example"},
                "@b:a.example": {"user_id": "@a:a.example"},
                "@victim:here.example": {"user_id": "@victim:here.example"},
            },
        });
        let asked = BTreeMap::from([
            (user("a"), vec!["D".to_owned(), "E".to_owned(), "G".to_owned()]),
            (user("b"), Vec::new()),
        ]);
        let mut answer = Queried::default();
        add(&mut answer, serde_json::from_value(keys).unwrap(), &asked);
        let devices: Vec<_> =
            answer.device_keys["@a:a.example"].keys().map(String::as_str).collect();
        assert_eq!((devices, answer.device_keys.len()), (vec!["D"], 1));
        let masters: Vec<_> = answer.master_keys.keys().collect();
        assert_eq!(masters, ["@a:a.example"]);
    }
}
