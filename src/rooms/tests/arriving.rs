//! Events of other servers in numbers: lines, piles of heads, gaps, and any order.

use std::time::Instant;

use super::*;
use crate::Verdict;

const ALICE: &str = "@alice:here.example";
const BOB: &str = "@bob:bob.example";

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
