//! Which events go where, and how.

use chatd_kit::{Other, Settings, scenario};
use serde_json::json;

use super::{SEND, shared_room, taken, texts_of, until_text};

scenario! {
    /// Events of local users come to each server in the room, each once, in their order.
    async fn events_reach_the_servers_in_the_room(server: Server) with (Settings::federating()) {
        let (here, there, nowhere) =
            (Other::start().await, Other::start().await, Other::start().await);
        let alice = server.user("alice").await;
        let alone = alice.public_room().await;
        let room = shared_room(&mut server, &alice, &[&here, &there]).await;
        for number in 0..120 {
            alice.send(&room, &format!("m{number}")).await;
            alice.send(&alone, "nobody else's affair").await;
        }
        let expected: Vec<String> = (0..120).map(|number| format!("m{number}")).collect();
        for other in [&here, &there] {
            until_text(other, "m119").await;
            assert_eq!(taken(other, |_| true), expected);
            let sent = other.seen("PUT", SEND);
            assert!(sent.iter().all(|seen| texts_of(seen).len() <= 50));
            assert!(other.problems().is_empty(), "{:?}", other.problems());
        }
        assert!(nowhere.seen("", "").is_empty());
    }

    /// Whoever is banned hears of it, and of nothing after it.
    async fn who_is_put_out_hears_no_more(server: Server)
    with (Settings::federating()) {
        let (here, there) = (Other::start().await, Other::start().await);
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here, &there]).await;
        let ban = json!({ "membership": "ban" });
        alice.set_state(&room, "m.room.member", &here.user("bob"), &ban).send().await.unwrap().ok();
        alice.send(&room, "without him").await;
        until_text(&there, "without him").await;
        here.until_pdu("the ban", |pdu| pdu["content"]["membership"] == "ban").await;
        alice.send(&room, "still without him").await;
        until_text(&there, "still without him").await;
        assert_eq!(taken(&here, |_| true), Vec::<String>::new());
    }
}
