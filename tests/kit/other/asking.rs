//! What another server asks of the one under test: signed requests, transactions, joins, invites.

use ruma_common::room_version_rules::RoomVersionRules;
use ruma_signatures::{
    PublicKeyMap, Verified, required_server_signatures_to_verify_event, verify_event,
};
use serde_json::{Value, json};

use super::{Key, Other, Pdu, Room, VERSIONS, lock, memory::Memory, rules_of};
use crate::http::{Answer, Http, path};

/// A server to be asked: its name, and where it listens without TLS.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its `server_name`.
    pub name: String,
    pub(crate) http: Http,
}

impl Peer {
    /// `url` is `http://…` without a slash at the end.
    pub fn new(name: &str, url: &str) -> Self {
        Self { name: name.to_owned(), http: Http::new(url.to_owned()) }
    }
}

/// The header of a request from `origin`, signed with `key`.
pub fn authorization(
    (origin, key): (&str, &Key),
    destination: &str,
    method: &str,
    uri: &str,
    body: Option<&Value>,
) -> String {
    let mut request = json!({
        "method": method,
        "uri": uri,
        "origin": origin,
        "destination": destination,
    });
    if let Some(body) = body {
        request["content"] = body.clone();
    }
    let signed = key.sign(origin, request);
    let signature = signed["signatures"][origin][key.id()].as_str().unwrap_or_default().to_owned();
    format!(
        "X-Matrix origin=\"{origin}\",destination=\"{destination}\",key=\"{}\",sig=\"{signature}\"",
        key.id()
    )
}

impl Other {
    /// A signed request; `path` is a whole one, with its query.
    pub async fn ask(&self, peer: &Peer, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let identity = (self.name(), self.key());
        let header = authorization((&identity.0, &identity.1), &peer.name, method, path, body);
        let mut request = peer.http.request(method, path).header("authorization", &header);
        if let Some(body) = body {
            request = request.json(body);
        }
        request.await
    }

    /// A signed GET.
    pub async fn get(&self, peer: &Peer, path: &str) -> Answer {
        self.ask(peer, "GET", path, None).await
    }

    /// Sends a transaction with a new id.
    pub async fn send(&self, peer: &Peer, pdus: &[Pdu], edus: &[Value]) -> Answer {
        self.send_as(peer, &self.next_transaction(), pdus, edus).await
    }

    /// Sends a transaction.
    pub async fn send_as(
        &self,
        peer: &Peer,
        transaction: &str,
        pdus: &[Pdu],
        edus: &[Value],
    ) -> Answer {
        let body = json!({
            "origin": self.name(),
            "origin_server_ts": super::now_ms(),
            "pdus": pdus.iter().map(|pdu| &pdu.json).collect::<Vec<_>>(),
            "edus": edus,
        });
        let path = path("/_matrix/federation/v1/send/{}", &[transaction]);
        self.ask(peer, "PUT", &path, Some(&body)).await
    }

    /// Sends events, and asserts that all are taken.
    pub async fn deliver(&self, peer: &Peer, pdus: &[Pdu]) {
        let answer = self.send(peer, pdus, &[]).await;
        for (id, result) in answer.ok()["pdus"].as_object().into_iter().flatten() {
            assert!(result["error"].is_null(), "{id}: {answer}");
        }
    }

    /// `make_join`, `make_leave` or `make_knock`, by `what`.
    pub async fn make(&self, peer: &Peer, what: &str, room: &str, user: &str) -> Answer {
        let versions: String =
            VERSIONS.iter().map(|version| format!("ver={version}")).collect::<Vec<_>>().join("&");
        let route = format!("/_matrix/federation/v1/make_{what}/{{}}/{{}}");
        let query = if what == "leave" { String::new() } else { format!("?{versions}") };
        self.get(peer, &(path(&route, &[room, user]) + &query)).await
    }

    /// What has been made, signed and ready to be sent.
    pub fn seal(&self, made: &Answer) -> Pdu {
        let made = made.ok();
        let rules = rules_of(made["room_version"].as_str().unwrap_or("1"));
        let mut event = made["event"].clone();
        event["origin_server_ts"] = super::now_ms().into();
        event["origin"] = self.name().into();
        if rules.event_id_format == ruma_common::room_version_rules::EventIdFormatVersion::V1 {
            event["event_id"] = format!("${:016x}:{}", rand::random::<u64>(), self.name()).into();
        }
        Pdu::seal(event, &rules, &self.name(), &self.key())
    }

    /// `send_join`, `send_leave` or `send_knock`, by `what`.
    pub async fn send_made(&self, peer: &Peer, what: &str, room: &str, pdu: &Pdu) -> Answer {
        let version = if what == "knock" { "v1" } else { "v2" };
        let route = format!("/_matrix/federation/{version}/send_{what}/{{}}/{{}}");
        self.ask(peer, "PUT", &path(&route, &[room, &pdu.id]), Some(&pdu.json)).await
    }

    /// Joins a room of `peer`, and remembers it. Panics if it is refused, or if anything in the
    /// answer is not signed and hashed as it has to be.
    pub async fn join(&self, peer: &Peer, room: &str, user: &str) -> Room {
        let made = self.make(peer, "join", room, user).await;
        let version = made.ok()["room_version"].as_str().unwrap_or("1").to_owned();
        let pdu = self.seal(&made);
        let answer = self.send_made(peer, "join", room, &pdu).await;
        let known = self
            .room(room)
            .unwrap_or_else(|| Room::of(Memory::new(room, &version), &self.name(), &self.key()));
        let rules = known.rules();
        let list = |name: &str| -> Vec<Pdu> {
            let events = answer.ok()[name].as_array().cloned().unwrap_or_default();
            events.into_iter().map(|event| Pdu::of(event, &rules)).collect()
        };
        let (state, chain) = (list("state"), list("auth_chain"));
        for pdu in state.iter().chain(&chain) {
            self.check_pdu(pdu, &rules).await.unwrap_or_else(|e| panic!("{e}: {:#}", pdu.json));
        }
        // A restricted join comes back with one more signature.
        let joined = answer.ok().get("event").cloned();
        let joined = joined.map_or(pdu, |event| Pdu::of(event, &rules));
        let mut memory = known.memory();
        memory.begin(&state, &chain);
        memory.add(&joined);
        drop(memory);
        lock(&self.inner.rooms).insert(room.to_owned(), known.clone());
        known
    }

    /// `user`, who is its own, leaves a room of `peer`, or declines an invitation to it.
    pub async fn leave(&self, peer: &Peer, room: &str, user: &str) -> Answer {
        let pdu = self.seal(&self.make(peer, "leave", room, user).await);
        self.send_made(peer, "leave", room, &pdu).await
    }

    /// `user`, who is its own, knocks at a room of `peer`.
    pub async fn knock(&self, peer: &Peer, room: &str, user: &str) -> Answer {
        let pdu = self.seal(&self.make(peer, "knock", room, user).await);
        self.send_made(peer, "knock", room, &pdu).await
    }

    /// `sender` invites `user`, who is of `peer`; the room remembers it if `peer` agrees.
    pub async fn invite(&self, peer: &Peer, room: &Room, sender: &str, user: &str) -> Answer {
        let content = json!({"membership": "invite"});
        let pdu = room.draft(sender, "m.room.member", content).state(user).make();
        let names = ["m.room.create", "m.room.join_rules", "m.room.name"];
        let stripped: Vec<Value> = names
            .iter()
            .filter_map(|kind| room.state(kind, ""))
            .map(|pdu| if room.version() == "12" { pdu.json } else { pdu.stripped() })
            .collect();
        let body = json!({
            "room_version": room.version(),
            "event": pdu.json,
            "invite_room_state": stripped,
        });
        let path = path("/_matrix/federation/v2/invite/{}/{}", &[&room.id(), &pdu.id]);
        let answer = self.ask(peer, "PUT", &path, Some(&body)).await;
        if answer.status == 200 {
            room.take(&Pdu::of(answer.ok()["event"].clone(), &room.rules()));
        }
        answer
    }

    /// Whether all have signed `pdu` that have to, and its hash is right.
    pub async fn check_pdu(&self, pdu: &Pdu, rules: &RoomVersionRules) -> Result<(), String> {
        let event = pdu.canonical();
        let servers = required_server_signatures_to_verify_event(&event, &rules.signatures)
            .map_err(|error| error.to_string())?;
        let mut keys = PublicKeyMap::new();
        for server in servers {
            let more = self.keys_of(server.as_str()).await;
            keys.extend((*more.map_err(|error| format!("{error:#}"))?).clone());
        }
        match verify_event(&keys, &event, rules) {
            Ok(Verified::All) => Ok(()),
            Ok(Verified::Signatures) => Err(format!("{}: the content hash is wrong", pdu.id)),
            Err(error) => Err(format!("{}: {error}", pdu.id)),
        }
    }
}
