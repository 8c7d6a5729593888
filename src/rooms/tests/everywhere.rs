//! Events for rooms of two instances: each is added once by whoever owns the room, though answers
//! are lost and shards move.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Result, ShardId, Stop};
use chatd_config::StreamName;
use chatd_storage::shards;
use chatd_streams::{
    Colleagues,
    bus::{BusState, Encode},
};

use uuid::Uuid;

use super::*;
use crate::membership::Extra;

/// A bus that loses everything.
struct Deaf;

impl Bus for Deaf {
    fn publish(&self, _stream: &'static str, _frame: &dyn Encode) {}

    fn listen(&self, _streams: &Arc<Streams>, _stop: &Stop) {}

    fn patience(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }

    fn is_calm(&self) -> bool {
        false
    }

    fn state(&self) -> Option<BusState> {
        None
    }
}

/// The other instance, whose first answers get lost.
struct Other {
    calls: Arc<Calls>,
    lost: AtomicU32,
    asked: AtomicU32,
}

impl Colleagues for Other {
    fn writer_of(&self, _: StreamName) -> Option<String> {
        None
    }

    fn call<'a>(
        &'a self,
        _: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let answer = self.calls.answer(name, body).await.unwrap();
            let is_lost = |left: u32| left.checked_sub(1);
            match self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_lost) {
                Ok(_) => Err(CallError::Lost("the connection was cut".to_owned())),
                Err(_) => Ok(answer.into()),
            }
        })
    }
}

/// Two instances with half of the shards each; `a` can ask `b`.
async fn pair(lost: u32) -> (House, House, Arc<Other>) {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let database = Arc::new(database);
    let a = House::of(database.clone(), "a", Arc::new(Deaf)).await;
    let b = House::of(database, "b", Arc::new(Deaf)).await;
    let (low, high): (Vec<_>, Vec<_>) = (0..64).map(ShardId).partition(|id| id.0 < 32);
    shards::claim(&a.pool, &low, "a").await.unwrap();
    shards::claim(&a.pool, &high, "b").await.unwrap();
    for house in [&a, &b] {
        house.rooms.owner.owners.refresh().await.unwrap();
    }
    let calls = b.rooms.owner.users.deps.streams.calls.clone();
    let (lost, asked) = (AtomicU32::new(lost), AtomicU32::new(0));
    let other = Arc::new(Other { calls, lost, asked });
    a.rooms.owner.users.deps.streams.others.join(other.clone());
    (a, b, other)
}

fn hello(room: &RoomId) -> (OwnedRoomId, Draft) {
    let content = object(json!({"body": "hello"}));
    let draft = Draft::message(user("@alice:here.example"), "m.room.message", content);
    (room.to_owned(), draft.bulk())
}

/// How many messages there are in each room.
async fn messages(house: &House, rooms: &[OwnedRoomId]) -> Vec<i64> {
    let admin = house.database.connect().await.unwrap();
    let sql = "SELECT count(*) FROM events e JOIN rooms r ON r.nid = e.room JOIN event_types t
               ON t.nid = e.type WHERE r.room_id = $1 AND t.type = 'm.room.message'";
    let mut counts = Vec::new();
    for room in rooms {
        counts.push(admin.query_one(sql, &[&room.as_str()]).await.unwrap().get(0));
    }
    counts
}

#[tokio::test]
async fn each_owner_is_asked_once_and_a_lost_answer_makes_no_second_event() {
    let (a, b, other) = pair(2).await;
    let rooms = [a.room("10").await, b.room("10").await, b.room("10").await, a.room("10").await];
    let sent = a.rooms.send_all(rooms.iter().map(|room| hello(room)).collect()).await;
    assert!(sent.len() == 4 && sent.iter().all(|(_, outcome)| outcome.is_ok()), "{sent:?}");
    assert_eq!(other.asked.load(Ordering::SeqCst), 3, "one call for both rooms, and twice again");
    assert_eq!(messages(&a, &rooms).await, [1, 1, 1, 1]);
}

#[tokio::test]
async fn a_room_that_has_moved_is_followed() {
    let (a, b, other) = pair(0).await;
    let rooms = [a.room("10").await, b.room("10").await];
    let everything: Vec<_> = (0..64).map(ShardId).collect();
    shards::claim(&a.pool, &everything, "b").await.unwrap();
    b.rooms.owner.owners.refresh().await.unwrap();
    let mut letters: Vec<_> = rooms.iter().map(|room| hello(room)).collect();
    letters[1].1.sender = user("@mallory:here.example");
    let mut sent = a.rooms.send_all(letters).await;
    sent.sort_by_key(|(_, outcome)| outcome.is_err());
    assert_eq!((&sent[0].0, &sent[1].0), (&rooms[0], &rooms[1]));
    assert!(sent[0].1.is_ok(), "{sent:?}");
    let refused = sent[1].1.as_ref().unwrap_err();
    assert_eq!(refused.errcode(), Some("M_FORBIDDEN"), "as the owner says it");
    assert_eq!(messages(&a, &rooms).await, [1, 0]);
    assert_eq!(other.asked.load(Ordering::SeqCst), 2);
}

fn named(alias: &str) -> CreateRoom {
    CreateRoom { room_alias_name: Some(alias.to_owned()), ..CreateRoom::default() }
}

#[tokio::test]
async fn a_repeat_gets_the_room_of_the_first() {
    let (a, b, _) = pair(0).await;
    let alice = user("@alice:here.example");
    let (key, other) = (Some(Uuid::from_u128(7)), Some(Uuid::from_u128(8)));
    let first = a.rooms.create(&alice, named("tea"), key).await.unwrap();
    for house in [&a, &b] {
        assert_eq!(house.rooms.create(&alice, named("tea"), key).await.unwrap(), first);
    }
    let taken = b.rooms.create(&alice, named("tea"), other).await.unwrap_err();
    assert_eq!(taken.errcode(), Some("M_ROOM_IN_USE"));
    let nameless = |house: &House| {
        let (rooms, alice) = (house.rooms.clone(), alice.clone());
        async move { rooms.create(&alice, CreateRoom::default(), other).await.unwrap() }
    };
    let (one, two) = futures::join!(nameless(&a), nameless(&b));
    assert_eq!(one, two, "also if both are under way");
    let admin = a.database.connect().await.unwrap();
    let count: i64 = admin.query_one("SELECT count(*) FROM rooms", &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_repeat_of_a_kick_is_told_what_the_first_was() {
    let house = House::open().await;
    let room = house.room("10").await;
    let (alice, bob) = (user("@alice:here.example"), user("@bob:here.example"));
    house
        .state(&room, bob.as_str(), "m.room.member", bob.as_str(), json!({"membership": "join"}))
        .await;
    let kick = |key| {
        let extra = Extra { key: Some(Uuid::from_u128(key)), ..Extra::default() };
        house.rooms.kick(&alice, &bob, &room, extra)
    };
    kick(7).await.unwrap();
    kick(7).await.unwrap();
    assert_eq!(kick(8).await.unwrap_err().errcode(), Some("M_FORBIDDEN"));
}
