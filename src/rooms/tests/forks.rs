//! Branches that meet: events of other servers with predecessors of their own.

use super::*;
use crate::Verdict;

const ALICE: &str = "@alice:here.example";
const BOB: &str = "@bob:bob.example";
const CAROL: &str = "@carol:carol.example";

/// A room of Alice with Bob and Carol as moderators, and its newest event.
async fn moderated(house: &House, version: &str) -> (OwnedRoomId, OwnedEventId) {
    let room = house.room(version).await;
    for name in [BOB, CAROL] {
        house.join(&room, name).await;
    }
    house.state(&room, ALICE, "m.room.topic", "", json!({"topic": "old"})).await;
    let mut users = json!({BOB: 50, CAROL: 50});
    if version != "12" {
        users[ALICE] = 100.into();
    }
    let levels = json!({"users": users});
    let newest = house.state(&room, ALICE, "m.room.power_levels", "", levels).await;
    (room, newest)
}

#[tokio::test]
async fn two_topics_make_two_heads_and_one_state() {
    let mut house = House::open().await;
    for version in ["1", "2", "6", "10", "11", "12"] {
        let (room, fork) = moderated(&house, version).await;
        let first = house.receive(&room, &[&fork], topic(BOB, "first")).await;
        let step = house.receive(&room, &[&fork], message(CAROL)).await;
        let second = house.receive(&room, &[&step.event_id], topic(CAROL, "second")).await;
        for received in [&first, &step, &second] {
            assert_eq!(received.verdict, Verdict::Accepted, "version {version}");
        }
        assert_eq!(house.heads(&room).await.len(), 2);
        let current = house.current(&room, "m.room.topic", "").await;
        assert_eq!(current.as_ref(), Some(&second.event_id), "version {version}");

        house = house.again().await;
        assert_eq!(house.heads(&room).await.len(), 2, "the fork outlives a restart");
        assert_eq!(house.current(&room, "m.room.topic", "").await, current);
        let merge = house.say(&room, ALICE).await;
        assert_eq!(house.heads(&room).await, [merge], "an event of ours follows both");
        // The first branch goes on where it was, and does not bring its topic back.
        let late = house.receive(&room, &[&first.event_id], message(BOB)).await;
        assert_eq!(late.verdict, Verdict::Accepted);
        assert_eq!(house.current(&room, "m.room.topic", "").await, current, "version {version}");
        same_as_tables(&house, &room).await;
    }
}

/// What the owner has in memory is what it would read.
async fn same_as_tables(house: &House, room: &RoomId) {
    let slot = house.rooms.owner.slot(room).await.unwrap();
    let (nid, snapshot, state) = {
        let live = lock(&slot).lock();
        (live.room, live.snapshot.clone(), live.state.clone())
    };
    let state: chatd_storage::snapshots::StateMap = state.into_iter().collect();
    let stored = chatd_storage::rooms::list_current_state(&house.pool, nid).await.unwrap();
    assert_eq!(stored.into_iter().collect::<chatd_storage::snapshots::StateMap>(), state);
    let loaded = chatd_storage::snapshots::load_many(&house.pool, nid, &[snapshot.id]).await;
    let (of_snapshot, head) = &loaded.unwrap()[&snapshot.id];
    assert_eq!((of_snapshot, head), (&state, &snapshot));
}

#[tokio::test]
async fn an_event_of_a_banned_user_is_soft_failed() {
    let house = House::open().await;
    for version in ["1", "6", "12"] {
        let (room, fork) = moderated(&house, version).await;
        let late = house.foreign(&room, &[&fork], topic(BOB, "before the ban")).await;
        house.state(&room, ALICE, "m.room.member", BOB, json!({"membership": "ban"})).await;
        let heads = house.heads(&room).await;
        let old = house.current(&room, "m.room.topic", "").await;
        let received = house.rooms.owner.receive(&room, late.clone()).await.unwrap();
        assert!(matches!(received.verdict, Verdict::SoftFailed(_)), "{received:?}");
        assert_eq!(house.heads(&room).await, heads);
        assert_eq!(house.current(&room, "m.room.topic", "").await, old);
        let again = house.rooms.owner.receive(&room, late).await.unwrap();
        assert_eq!(again.verdict, Verdict::Known);
        // Whoever builds on it is judged alone, and does not make its topic count.
        let after = house.receive(&room, &[&received.event_id], message(CAROL)).await;
        assert_eq!(after.verdict, Verdict::Accepted, "version {version}");
        assert_eq!(house.current(&room, "m.room.topic", "").await, old, "version {version}");
        let ban = house.current(&room, "m.room.member", BOB).await;
        house.say(&room, ALICE).await;
        assert_eq!(house.current(&room, "m.room.member", BOB).await, ban);
        same_as_tables(&house, &room).await;
    }
}

#[tokio::test]
async fn an_event_without_power_is_rejected() {
    let house = House::open().await;
    for version in ["1", "11", "12"] {
        let (room, fork) = moderated(&house, version).await;
        let levels = json!({"type": "m.room.power_levels", "state_key": "", "sender": BOB,
                            "content": {"users": {BOB: 100}}});
        let received = house.receive(&room, &[&fork], levels).await;
        assert!(matches!(received.verdict, Verdict::Rejected(_)), "{received:?}");
        assert_eq!(house.heads(&room).await, std::slice::from_ref(&fork));
        // The state after a rejected event is the state before it.
        let after = house.receive(&room, &[&received.event_id], message(CAROL)).await;
        assert_eq!(after.verdict, Verdict::Accepted);
        let current = house.current(&room, "m.room.power_levels", "").await;
        assert_eq!(current.as_ref(), Some(&fork));
        assert_eq!(house.heads(&room).await, [after.event_id], "it lay behind");
        same_as_tables(&house, &room).await;
    }
}

#[tokio::test]
async fn resolution_takes_a_membership_back() {
    let house = House::open().await;
    let (room, fork) = moderated(&house, "10").await;
    let dave = "@dave:dave.example";
    let joined = house.receive(&room, &[&fork], member(dave, "join")).await;
    assert_eq!(joined.verdict, Verdict::Accepted);
    let closed = json!({"type": "m.room.join_rules", "state_key": "", "sender": BOB,
                        "content": {"join_rule": "invite"}});
    let received = house.receive(&room, &[&fork], closed).await;
    assert_eq!(received.verdict, Verdict::Accepted);
    assert_eq!(house.current(&room, "m.room.member", dave).await, None);
    same_as_tables(&house, &room).await;
    let client = house.database.connect().await.unwrap();
    let sql = "SELECT m.membership = 'l' FROM memberships m
               JOIN users_nid u ON u.nid = m.user_nid WHERE u.user_id = $1";
    let left: bool = client.query_one(sql, &[&dave]).await.unwrap().get(0);
    assert!(left, "who is not in the state is not in the room");
    house.say(&room, ALICE).await;
    assert_eq!(house.heads(&room).await.len(), 1);
}

#[tokio::test]
async fn what_refers_to_unknown_events_waits_for_them() {
    let house = House::open().await;
    let (room, fork) = moderated(&house, "11").await;
    let first = house.foreign(&room, &[&fork], message(BOB)).await;
    let rules = RoomVersionId::V11.rules().unwrap();
    let id = crate::seal::take_apart(&rules, first.clone()).unwrap().event_id;
    let second = house.receive(&room, &[&id], message(BOB)).await;
    assert_eq!(second.verdict, Verdict::Missing(vec![id.clone()]));
    house.rooms.owner.receive(&room, first).await.unwrap();
    let second = house.receive(&room, &[&id], message(BOB)).await;
    assert_eq!(second.verdict, Verdict::Accepted);
}

#[tokio::test]
async fn a_redaction_may_come_before_its_target() {
    let house = House::open().await;
    for (version, is_forgotten) in [("1", false), ("10", true), ("11", false), ("11", true)] {
        let (room, fork) = moderated(&house, version).await;
        let target = house.foreign(&room, &[&fork], message(BOB)).await;
        let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
        let id = crate::seal::take_apart(&rules, target.clone()).unwrap().event_id;
        let mut redaction =
            json!({"type": "m.room.redaction", "sender": BOB, "content": {"reason": "r"}});
        match rules.redaction.content_field_redacts {
            true => redaction["content"]["redacts"] = id.as_str().into(),
            false => redaction["redacts"] = id.as_str().into(),
        }
        let received = house.receive(&room, &[&fork], redaction).await;
        assert_eq!(received.verdict, Verdict::Accepted, "version {version}");
        if is_forgotten {
            house.rooms.owner.slot(&room).await.unwrap().kill();
        }
        house.rooms.owner.receive(&room, target).await.unwrap();
        let stored = chatd_storage::events::get_by_id(&house.pool, id.as_str()).await;
        let stored = stored.unwrap().unwrap();
        assert!(stored.is_redacted(), "version {version}");
        assert_eq!(stored.content.get(), "{}");
    }
}

#[tokio::test]
async fn local_and_foreign_events_at_the_same_time() {
    let house = House::open().await;
    let (room, fork) = moderated(&house, "12").await;
    let mut foreign = Vec::new();
    for number in 0..6 {
        let sender = if number % 2 == 0 { BOB } else { CAROL };
        foreign.push(house.foreign(&room, &[&fork], topic(sender, &number.to_string())).await);
    }
    let ours = futures::future::join_all((0..12).map(|_| house.say(&room, ALICE)));
    let theirs = foreign.into_iter().map(|event| house.rooms.owner.receive(&room, event));
    let (ours, theirs) = tokio::join!(ours, futures::future::join_all(theirs));
    assert_eq!(ours.len(), 12);
    assert!(theirs.iter().all(|received| received.as_ref().unwrap().verdict == Verdict::Accepted));
    house.say(&room, ALICE).await;
    assert_eq!(house.heads(&room).await.len(), 1);
    same_as_tables(&house, &room).await;
}
