//! What was written at one worker is read at another at once, with `chatd.fresh` as it is unless
//! somebody sets it; and what an initial sync shows of it where it has not been heard of yet.

use std::collections::BTreeSet;

use chatd_kit::{Settings, eventually, path, say};
use futures::future::join_all;
use rand::Rng;
use serde_json::json;

use super::{at, fleet, users};
use crate::faults::{bus::BadBus, plan};

const ROUNDS: u64 = 60;
/// Rooms, which both persisters own, and people who come into them.
const ROOMS: usize = 8;
const NEWCOMERS: usize = 30;

#[tokio::test]
async fn what_one_worker_has_written_another_one_reads() {
    let (fleet, _database) = fleet(&Settings::new()).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = alice.create_room().member(&bob).await;
    let workers = ["sync1", "sync2", "persister1", "stream2", "main"];
    for round in 0..ROUNDS {
        let number = usize::try_from(round).unwrap();
        let here = alice.at(&at(fleet.folder(), workers[number % workers.len()]));
        let there = bob.at(&at(fleet.folder(), workers[(number + 1 + number / 5) % workers.len()]));
        let event = here.send(&room, &format!("round {round}")).await;
        let page = there.messages(&room, "b").query("limit", 1).await;
        assert_eq!(page.ok()["chunk"][0]["event_id"], *event, "round {round}");
        assert_eq!(there.event(&room, &event).await.string("event_id"), event);
        let url = path("/rooms/{}/context/{}", &[&room, &event]);
        assert_eq!(there.get(url).await.ok()["event"]["event_id"], *event);

        let topic = json!({"topic": format!("round {round}")});
        here.set_state(&room, "m.room.topic", "", &topic).await.ok();
        assert_eq!(*there.get_state(&room, "m.room.topic", "").await.ok(), topic);
        let away = alice.at(&at(fleet.folder(), "sync2"));
        here.set_account_data("m.test", &topic).await.ok();
        let url = path("/user/{}/account_data/m.test", &[&alice.id]);
        assert_eq!(*away.get(url).await.ok(), topic);
        let name = json!({"displayname": format!("Alice {round}")});
        let url = path("/profile/{}/displayname", &[&alice.id]);
        here.put(url.as_str(), &name).await.ok();
        assert_eq!(*there.get(url).await.ok(), name);
    }
}

/// Receipts, account data and presence are overwritten in place: a worker that is behind must not
/// take the new one for none at all.
#[tokio::test]
async fn what_a_worker_has_not_heard_of_yet_hides_nothing() {
    let (mut fleet, _database) = fleet(&Settings::new()).await;
    let [alice, bob] = users(&fleet, ["alice", "bob"]).await;
    let room = alice.create_room().member(&bob).await;
    let here = alice.at(&at(fleet.folder(), "sync1"));
    let there = alice.at(&at(fleet.folder(), "sync2"));
    eventually("the other worker knows the room", || async {
        let first = there.sync().await;
        if first.room(&room).is_object() { Ok(()) } else { Err(first.to_string()) }
    })
    .await;
    // Workers that hear nothing ask the database, which takes them a moment.
    fleet.redis().kill9();
    let mut behind = 0;
    for round in 0..ROUNDS {
        let event = here.send(&room, &format!("round {round}")).await;
        here.read(&room, &event).await.ok();
        let number = json!({"number": round});
        here.set_account_data("m.test", &number).await.ok();
        let status = json!({"presence": "online", "status_msg": format!("round {round}")});
        here.put(path("/presence/{}/status", &[&alice.id]), &status).await.ok();

        let first = there.sync().await;
        let receipts = first.ephemeral_of(&room, "m.receipt").unwrap_or_default();
        let own = receipts["content"].as_object().into_iter().flatten();
        let own = own.filter(|(_, kinds)| kinds["m.read"].get(&alice.id).is_some());
        assert_eq!(
            own.map(|(at, _)| at).collect::<Vec<_>>(),
            [&event],
            "round {round}: {}",
            *first
        );
        let notes = first.account_data().into_iter().find(|entry| entry["type"] == "m.test");
        assert_eq!(notes.unwrap_or_default()["content"], number, "round {round}: {}", *first);
        let told = first.presence().into_iter().find(|entry| entry["sender"] == *alice.id);
        let told = told.unwrap_or_default()["content"]["status_msg"].clone();
        assert_eq!(told, status["status_msg"], "round {round}: {}", *first);
        let is_behind = !first.timeline_ids(&room).contains(&event);
        behind += u64::from(is_behind);
    }
    say(format!("the other worker was behind in {behind} of {ROUNDS} rounds"));
    assert!(behind > 0, "the other worker was never behind");
}

/// A worker may hear of one owner of rooms later than of another. What it tells of a room that
/// somebody has just come into is not new a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_is_new_once_for_who_has_come_into_it() {
    let (_, mut random) = plan();
    let mut bus = BadBus::new();
    let (mut fleet, _database) = fleet(&bus.settings()).await;
    bus.start(&mut fleet, random.random());
    let [alice] = users(&fleet, ["alice"]).await;
    let mut rooms = Vec::new();
    for _ in 0..ROOMS {
        rooms.push(alice.create_room().preset("public_chat").await);
    }
    for round in 0..NEWCOMERS {
        let [carol] = users(&fleet, [format!("carol{round}").as_str()]).await;
        let here = carol.at(&at(fleet.folder(), "sync1"));
        let there = carol.at(&at(fleet.folder(), "sync2"));
        let room = &rooms[round % ROOMS];
        let comes = async { here.join(room).await.ok().clone() };
        let says = rooms.iter().map(|room| alice.send(room, "something"));
        futures::join!(comes, join_all(says));
        let (mut seen, mut has_joined) = (BTreeSet::new(), false);
        let mut since = None::<String>;
        while !has_joined {
            let answer = match &since {
                Some(since) => there.sync().since(since).timeout_ms(10_000).await,
                None => there.sync().await,
            };
            for event in answer.timeline(room) {
                has_joined |= event["state_key"] == *carol.id;
                let is_new = seen.insert(event["event_id"].to_string());
                assert!(is_new, "round {round}: {event} is told twice: {}", *answer);
            }
            since = Some(answer.next_batch());
        }
    }
}
