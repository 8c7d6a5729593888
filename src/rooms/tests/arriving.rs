//! Events of other servers in numbers: lines, piles of heads, gaps, and any order.

use std::time::Instant;

use chatd_base::cost;
use futures::future::join_all;
use rand::{
    SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};

use super::*;
use crate::Verdict;

const ALICE: &str = "@alice:here.example";
const BOB: &str = "@bob:bob.example";
const CAROL: &str = "@carol:carol.example";

fn id_of(version: &str, event: &CanonicalJsonObject) -> OwnedEventId {
    let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
    crate::seal::take_apart(&rules, event.clone()).unwrap().event_id
}

impl House {
    /// Events of one server, each after the one before.
    async fn chain(&self, room: &RoomId, version: &str, length: usize) -> Vec<CanonicalJsonObject> {
        let newest = self.heads(room).await.remove(0);
        let first = self.foreign(room, &[&newest], message(BOB)).await;
        let mut chain = vec![first];
        while chain.len() < length {
            let last = chain.last().unwrap();
            let after = self.after(version, last, chain.len());
            chain.push(after);
        }
        chain
    }

    /// An event like `last` that follows it.
    fn after(
        &self,
        version: &str,
        last: &CanonicalJsonObject,
        number: usize,
    ) -> CanonicalJsonObject {
        let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
        let mut next = last.clone();
        let prev = CanonicalJsonValue::Array(vec![id_of(version, last).as_str().into()]);
        next.insert("prev_events".to_owned(), prev);
        let depth = js_int::Int::try_from(1_000 + i64::try_from(number).unwrap()).unwrap();
        next.insert("depth".to_owned(), CanonicalJsonValue::Integer(depth));
        next.remove("signatures");
        next.remove("hashes");
        let server = "bob.example";
        hash_and_sign_event(server, &signer(server), &mut next, &rules.redaction).unwrap();
        next
    }
}

#[tokio::test]
async fn a_line_of_events_is_one_commit() {
    let house = House::open().await;
    let room = house.room("11").await;
    house.join(&room, BOB).await;
    let chain = house.chain(&room, "11", 1_000).await;
    let begun = Instant::now();
    for part in chain.chunks(50) {
        let received = house.rooms.owner.receive_all(&room, part.to_vec()).await.unwrap();
        assert!(received.iter().all(|r| r.as_ref().unwrap().verdict == Verdict::Accepted));
    }
    let rate = 1_000.0 / begun.elapsed().as_secs_f64();
    eprintln!("{rate:.0} events a second");
    assert_eq!(house.heads(&room).await, [id_of("11", chain.last().unwrap())]);
    let again = house.rooms.owner.receive_all(&room, chain[..50].to_vec()).await.unwrap();
    assert!(again.iter().all(|r| r.as_ref().unwrap().verdict == Verdict::Known));
}

#[tokio::test]
async fn who_asks_for_places_at_the_same_time_shares_a_query() {
    let house = House::open().await;
    let mut heads = Vec::new();
    for _ in 0..10 {
        let room = house.room("11").await;
        heads.extend(house.heads(&room).await);
    }
    let places = &house.rooms.owner.places;
    let ask = async |head: &OwnedEventId| places.list(&[head.as_str(), "$nobody"]).await.unwrap();
    let (found, cost) = cost::scope(join_all(heads.iter().map(ask))).await;
    for (head, found) in heads.iter().zip(&found) {
        assert_eq!(found.keys().collect::<Vec<_>>(), [head.as_str()]);
    }
    // The first two; the other eight are one query, which is of none of them.
    assert_eq!(cost.statements, 2);
    assert_eq!(ask(&heads[0]).await[heads[0].as_str()].nid, found[0][heads[0].as_str()].nid);
}

#[tokio::test]
async fn a_pile_of_heads_is_joined() {
    let mut house = House::open().await;
    let room = house.room("10").await;
    let fork = house.join(&room, BOB).await;
    let mut events = Vec::new();
    for number in 0..60 {
        let said = json!({"type": "m.room.message", "sender": BOB, "content": {"body": number}});
        events.push(house.foreign(&room, &[&fork], said).await);
    }
    let received = house.rooms.owner.receive_all(&room, events).await.unwrap();
    assert!(received.iter().all(|r| r.as_ref().unwrap().verdict == Verdict::Accepted));
    assert!(house.heads(&room).await.len() <= 11);
    house = house.again().await;
    house.say(&room, ALICE).await;
    assert_eq!(house.heads(&room).await.len(), 1);
}

/// The state of a room as names and ids.
async fn state_of(house: &House, room: &RoomId) -> Vec<(String, String, OwnedEventId)> {
    let client = house.database.connect().await.unwrap();
    let sql = "SELECT k.type, k.state_key, e.event_id FROM current_state c
               JOIN rooms r ON r.nid = c.room JOIN state_keys k ON k.nid = c.key
               JOIN events e ON e.nid = c.event WHERE r.room_id = $1 ORDER BY 1, 2";
    let rows = client.query(sql, &[&room.as_str()]).await.unwrap();
    rows.iter()
        .map(|row| (row.get(0), row.get(1), row.get::<_, String>(2).try_into().unwrap()))
        .collect()
}

/// Receives events in that order; those that refer to later ones come again when these are there.
async fn deliver(house: &House, room: &RoomId, order: Vec<CanonicalJsonObject>) {
    let mut open = order;
    while !open.is_empty() {
        let received = house.rooms.owner.receive_all(room, open.clone()).await.unwrap();
        let waits = |received: &Result<Received, _>| {
            matches!(received, Ok(Received { verdict: Verdict::Missing(_), .. }))
        };
        let left: Vec<_> = open
            .iter()
            .zip(&received)
            .filter(|(_, received)| waits(received))
            .map(|(event, _)| event.clone())
            .collect();
        assert!(left.len() < open.len(), "nothing has come of {received:?}");
        open = left;
    }
}

/// Events on branches of a room, as two moderators would make them who do not see each other's.
async fn branches(
    house: &House,
    room: &RoomId,
    (version, fork): (&str, &OwnedEventId),
    rng: &mut rand::rngs::StdRng,
) -> Vec<CanonicalJsonObject> {
    let mut known = vec![fork.clone()];
    let mut events = Vec::new();
    for number in 0..14 {
        let sender = [BOB, CAROL][number % 2];
        let what = match number % 4 {
            0 => topic(sender, &number.to_string()),
            1 => json!({"type": "m.room.name", "state_key": "", "sender": sender,
                        "content": {"name": number.to_string()}}),
            2 => json!({"type": "m.room.join_rules", "state_key": "", "sender": sender,
                        "content": {"join_rule": "invite", "number": number}}),
            _ => message(sender),
        };
        let mut prev: Vec<&EventId> =
            known.choose_multiple(rng, 1 + number % 3).map(|id| &**id).collect();
        prev.sort_unstable();
        let event = house.foreign(room, &prev, what).await;
        known.push(id_of(version, &event));
        house.rooms.owner.receive(room, event.clone()).await.unwrap();
        events.push(event);
    }
    events
}

#[tokio::test]
async fn any_order_of_the_same_events_ends_with_the_same_state() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
    for version in ["1", "6", "11", "12"] {
        let house = House::open().await;
        let room = house.room(version).await;
        house.join(&room, BOB).await;
        house.join(&room, CAROL).await;
        let mut users = json!({BOB: 50, CAROL: 50});
        if version != "12" {
            users[ALICE] = 100.into();
        }
        let levels = json!({"users": users});
        let fork = house.state(&room, ALICE, "m.room.power_levels", "", levels).await;
        let before = house.database.clone();
        drop(house);
        let house = House::over(Arc::new(before.copy().await.unwrap())).await;
        let events = branches(&house, &room, (version, &fork), &mut rng).await;
        let wanted = state_of(&house, &room).await;
        for _ in 0..3 {
            let far = House::over(Arc::new(before.copy().await.unwrap())).await;
            let mut order = events.clone();
            order.shuffle(&mut rng);
            deliver(&far, &room, order).await;
            assert_eq!(state_of(&far, &room).await, wanted, "version {version}, seed {seed}");
        }
    }
}

#[tokio::test]
async fn an_event_after_a_gap_stands_on_the_state_that_it_is_given() {
    let house = House::open().await;
    for version in ["1", "11", "12"] {
        let room = house.room(version).await;
        house.join(&room, BOB).await;
        let fork = house.heads(&room).await.remove(0);
        // Bob's server has a member and a message that have not come.
        let carol = house.foreign(&room, &[&fork], member(CAROL, "join")).await;
        let carol_id = id_of(version, &carol);
        let house_before = state_of(&house, &room).await;
        let before: Vec<OwnedEventId> =
            house_before.into_iter().map(|(.., id)| id).chain([carol_id.clone()]).collect();
        let lost = house.after(version, &house.foreign(&room, &[&fork], message(BOB)).await, 1);
        let lost_id = id_of(version, &lost);
        let mut said = house.foreign(&room, &[&lost_id], message(CAROL)).await;
        name_auth(&house, &room, version, &mut said, &carol_id).await;
        let owner = &house.rooms.owner;
        let missing = owner.receive(&room, said.clone()).await.unwrap();
        assert!(matches!(missing.verdict, Verdict::Missing(_)), "{missing:?}");
        let stored = owner.store_outliers(&room, vec![carol.clone()]).await.unwrap();
        assert!(stored.left_out.is_empty(), "{:?}", stored.left_out);
        let received = owner.receive_at(&room, said, &before).await.unwrap();
        assert_eq!(received.verdict, Verdict::Accepted, "version {version}");
        let current = house.current(&room, "m.room.member", CAROL).await;
        assert_eq!(current.as_ref(), Some(&carol_id), "version {version}");
        assert_eq!(house.heads(&room).await.len(), 2);
        // The outlier comes as an event of the room, and takes its place behind.
        let again = owner.receive(&room, carol).await.unwrap();
        assert_eq!(again.verdict, Verdict::Accepted, "version {version}");
        let client = house.database.connect().await.unwrap();
        let sql = "SELECT flags & 1::int2, pos > 0 FROM events WHERE event_id = $1";
        let row = client.query_one(sql, &[&carol_id.as_str()]).await.unwrap();
        assert_eq!((row.get::<_, i16>(0), row.get::<_, bool>(1)), (0, true));
        let sql = "SELECT missing FROM event_gaps";
        let gaps: Vec<String> =
            client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
        assert_eq!(gaps, [lost_id.as_str()]);
        client.execute("DELETE FROM event_gaps", &[]).await.unwrap();
        house.say(&room, ALICE).await;
        assert_eq!(house.heads(&room).await.len(), 1);
    }
}

/// Makes `event` name the membership that allows it, and signs it anew.
async fn name_auth(
    house: &House,
    room: &RoomId,
    version: &str,
    event: &mut CanonicalJsonObject,
    member: &EventId,
) {
    let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
    let mut named: Vec<OwnedEventId> = Vec::new();
    for (kind, key) in [("m.room.create", ""), ("m.room.power_levels", "")] {
        let is_create = kind == "m.room.create";
        if !(is_create && rules.authorization.room_create_event_id_as_room_id) {
            named.extend(house.current(room, kind, key).await);
        }
    }
    named.push(member.to_owned());
    let has_v1_ids = rules.event_id_format == EventIdFormatVersion::V1;
    let one = |id: &OwnedEventId| match has_v1_ids {
        true => json!([id, {"sha256": "not looked at"}]),
        false => json!(id),
    };
    let named: Value = named.iter().map(one).collect();
    event.insert("auth_events".to_owned(), named.try_into().unwrap());
    event.remove("signatures");
    event.remove("hashes");
    let server = "carol.example";
    hash_and_sign_event(server, &signer(server), event, &rules.redaction).unwrap();
}
