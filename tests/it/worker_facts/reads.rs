//! What was written at one worker is read at another at once, with `chatd.fresh` as it is unless
//! somebody sets it.

use std::path::Path;

use chatd_kit::{Database, Fleet, Settings, Spread, path};
use serde_json::json;

use super::{BINARY, at, users};

const ROUNDS: u64 = 60;

#[tokio::test]
async fn what_one_worker_has_written_another_one_reads() {
    let database = Database::create(Path::new(BINARY)).await.unwrap();
    let fleet =
        Fleet::start(Path::new(BINARY), &Settings::new(), &database.config(), Spread::Random)
            .await
            .unwrap();
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
