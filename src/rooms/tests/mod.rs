//! Rooms over a real database, with other servers that are only a signing key.

mod arriving;
mod everywhere;
mod federation;
mod forks;
mod importing;
mod outliers;
mod unheard;

use std::sync::Arc;

use chatd_base::{Clock, Stop};
use chatd_config::{Config, Overrides, StreamName};
use chatd_kit::{
    Database,
    cluster::{Cluster, USER},
};
use chatd_storage::{ConnectSettings, Interner, Pool, migrate, notices::Notices};
use chatd_streams::{
    Owners, Streams,
    bus::{Bus, LocalBus},
};
use chatd_users::{Deps, Users};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedUserId,
    RoomId, RoomVersionId, ServerName, room_version_rules::EventIdFormatVersion,
};
use ruma_signatures::hash_and_sign_event;
use serde_json::{Map, Value, json};

use crate::{Draft, Received, Rooms, Signer, create::CreateRoom, owner::lock};

/// Everything below HTTP.
struct House {
    rooms: Arc<Rooms>,
    pool: Pool,
    database: Arc<Database>,
    stop: Stop,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn user(name: &str) -> OwnedUserId {
    OwnedUserId::try_from(name).unwrap()
}

impl House {
    async fn open() -> Self {
        let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
        Self::over(Arc::new(database)).await
    }

    /// The same server after a restart.
    async fn again(self) -> Self {
        let database = self.database.clone();
        drop(self);
        Self::over(database).await
    }

    async fn over(database: Arc<Database>) -> Self {
        Self::named("here.example", database).await
    }

    /// The server of that name.
    async fn named(server: &str, database: Arc<Database>) -> Self {
        Self::of_server(server, database, "main", Arc::new(LocalBus)).await
    }

    /// The instance of that name.
    async fn of(database: Arc<Database>, name: &str, bus: Arc<dyn Bus>) -> Self {
        Self::of_server("here.example", database, name, bus).await
    }

    async fn of_server(
        server: &str,
        database: Arc<Database>,
        name: &str,
        bus: Arc<dyn Bus>,
    ) -> Self {
        let is_alone = bus.patience().is_none();
        let folder = database.cluster().socket_folder().to_owned();
        let pool =
            Pool::open(&ConnectSettings::on_socket(folder, USER, database.name(), 8)).unwrap();
        migrate(&pool).await.unwrap();
        let text = format!("server_name: {server}");
        let config = Config::from_texts(&[("test", &text)], &Overrides::default()).unwrap();
        let stop = Stop::new();
        let all = StreamName::ALL.iter().copied().collect();
        let streams = Streams::open(&pool, bus, name, &all, &stop).await.unwrap();
        let notices = Notices::new(streams.writer.writer, !is_alone);
        let owners = Owners::open(&pool, name, is_alone).await.unwrap();
        let users = Arc::new(Users::new(Deps {
            pool: pool.clone(),
            interner: Arc::new(Interner::new(&pool, 1_000)),
            streams: Arc::new(streams),
            notices,
            config: Arc::new(config),
            clock: Clock::system(),
            stop: stop.clone(),
            closing: stop.clone(),
        }));
        let rooms = Rooms::new(&users, Arc::new(owners), signer(server));
        let rooms = Arc::new(rooms);
        rooms.answer_calls();
        Self { rooms, pool, database, stop }
    }

    /// A public room of `@alice:here.example` whose events have the power 50 by default.
    async fn room(&self, version: &str) -> OwnedRoomId {
        let request = CreateRoom {
            room_version: Some(version.to_owned()),
            preset: Some(crate::create::Preset::PublicChat),
            ..CreateRoom::default()
        };
        self.rooms.create(&user("@alice:here.example"), request, None).await.unwrap()
    }

    async fn state(
        &self,
        room: &RoomId,
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> OwnedEventId {
        let draft = Draft::state(user(sender), kind, key, object(content));
        self.rooms.send(room, &draft).await.unwrap().event_id
    }

    async fn say(&self, room: &RoomId, sender: &str) -> OwnedEventId {
        let draft = Draft::message(user(sender), "m.room.message", object(json!({"body": "."})));
        self.rooms.send(room, &draft).await.unwrap().event_id
    }

    /// The current event of a key.
    async fn current(&self, room: &RoomId, kind: &str, key: &str) -> Option<OwnedEventId> {
        let slot = self.rooms.owner.slot(room).await.unwrap();
        let live = lock(&slot).lock();
        live.body(kind, key).map(|body| body.event_id.clone())
    }

    /// Forward extremities.
    async fn heads(&self, room: &RoomId) -> Vec<OwnedEventId> {
        let slot = self.rooms.owner.slot(room).await.unwrap();
        let live = lock(&slot).lock();
        live.heads.iter().map(|head| head.event_id.clone()).collect()
    }

    /// An event that `sender`'s server would make after `prev`: with the auth events that the
    /// room has now.
    async fn foreign(&self, room: &RoomId, prev: &[&EventId], event: Value) -> CanonicalJsonObject {
        let sender = user(event["sender"].as_str().unwrap());
        let server = sender.server_name().to_string();
        let events = self.rooms.federation_events(room, prev).await.unwrap();
        let depth = events.iter().filter_map(|event| match event.get("depth") {
            Some(CanonicalJsonValue::Integer(depth)) => Some(i64::from(*depth)),
            _ => None,
        });
        let depth = depth.max().unwrap_or(0) + 1;
        let slot = self.rooms.owner.slot(room).await.unwrap();
        let mut draft = Draft::message(
            sender.clone(),
            event["type"].as_str().unwrap(),
            object(event["content"].clone()),
        );
        draft.state_key = event["state_key"].as_str().map(str::to_owned);
        self.rooms.owner.load_members(&slot, &draft).await.unwrap();
        let (rules, auth) = {
            let live = lock(&slot).lock();
            let kind = event["type"].as_str().unwrap().into();
            let content = serde_json::value::to_raw_value(&event["content"]).unwrap();
            let types = ruma_state_res::auth_types_for_event(
                &kind,
                &sender,
                event["state_key"].as_str(),
                &content,
                &live.rules.authorization,
            );
            let auth: Vec<OwnedEventId> = types
                .unwrap()
                .iter()
                .filter_map(|(kind, key)| live.body(&kind.to_string(), key))
                .map(|body| body.event_id.clone())
                .collect();
            (live.rules.clone(), auth)
        };
        let has_v1_ids = rules.event_id_format == EventIdFormatVersion::V1;
        let references = |ids: Vec<&EventId>| -> Value {
            let pair = |id: &EventId| match has_v1_ids {
                true => json!([id, {"sha256": "not looked at"}]),
                false => json!(id),
            };
            ids.into_iter().map(pair).collect()
        };
        let mut whole = json!({
            "room_id": room,
            "depth": depth,
            "origin_server_ts": 1_800_000_000_000_i64 + depth,
            "prev_events": references(prev.to_vec()),
            "auth_events": references(auth.iter().map(|id| &**id).collect()),
        });
        whole.as_object_mut().unwrap().extend(object(event));
        if has_v1_ids {
            let server = <&ServerName>::try_from(server.as_str()).unwrap();
            whole["event_id"] = EventId::new_v1(server).as_str().into();
        }
        let CanonicalJsonValue::Object(mut whole) = CanonicalJsonValue::try_from(whole).unwrap()
        else {
            panic!("not an object")
        };
        hash_and_sign_event(&server, &signer(&server), &mut whole, &rules.redaction).unwrap();
        whole
    }

    /// [`Self::foreign`], received here.
    async fn receive(&self, room: &RoomId, prev: &[&EventId], event: Value) -> Received {
        let event = self.foreign(room, prev, event).await;
        self.rooms.owner.receive(room, event).await.unwrap()
    }

    /// Makes a user of another server a member.
    async fn join(&self, room: &RoomId, name: &str) -> OwnedEventId {
        let heads = self.heads(room).await;
        let heads: Vec<&EventId> = heads.iter().map(|id| &**id).collect();
        let received = self.receive(room, &heads, member(name, "join")).await;
        assert_eq!(received.verdict, crate::Verdict::Accepted);
        received.event_id
    }
}

fn signer(server: &str) -> Signer {
    let server = ruma_common::OwnedServerName::try_from(server).unwrap();
    Signer::new(server, "a_key", &[7; 32]).unwrap()
}

fn member(name: &str, membership: &str) -> Value {
    json!({"type": "m.room.member", "state_key": name, "sender": name,
           "content": {"membership": membership}})
}

fn topic(sender: &str, text: &str) -> Value {
    json!({"type": "m.room.topic", "state_key": "", "sender": sender, "content": {"topic": text}})
}

fn message(sender: &str) -> Value {
    json!({"type": "m.room.message", "sender": sender, "content": {"body": "."}})
}
