//! What was said before a server came: fetched when somebody scrolls back, shown to whom it may
//! be.

use chatd_kit::{Other, Server, Settings, Synapse, scenario};
use serde_json::json;

use super::acts::until_member;

/// The texts among these events, in order.
fn texts(events: &[serde_json::Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

scenario! {
    async fn history_of_another_server_is_read_to_its_beginning(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for version in ["1", "11", "12"] {
            let room = other.create_room(version, &bob);
            let said: Vec<String> = (0..500).map(|n| n.to_string()).collect();
            for text in &said {
                room.say(&bob, text);
            }
            alice.join_via(&room.id(), &other.name()).await.ok();
            let history = alice.history(&room.id()).await;
            assert_eq!(texts(&history), said, "version {version}");
            let first = &history[0];
            assert_eq!(first["type"], "m.room.create", "version {version}: {first}");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn history_is_shown_to_whom_it_may_be(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        room.say(&bob, "for everybody in the room, ever");
        let joined = json!({"history_visibility": "joined"});
        room.set(&bob, "m.room.history_visibility", "", joined);
        room.say(&bob, "for those who are here");
        alice.join_via(&room.id(), &other.name()).await.ok();
        let history = alice.history(&room.id()).await;
        assert_eq!(texts(&history), ["for everybody in the room, ever"]);
    }

    async fn a_server_that_cannot_answer_ends_no_history(server: Server)
        with (Settings::federating())
    {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        room.say(&bob, "unheard");
        alice.join_via(&room.id(), &other.name()).await.ok();
        other.go_away();
        let page = alice.messages(&room.id(), "b").await;
        page.ok();
        other.come_back().await;
        chatd_kit::eventually("the history", || async {
            let history = alice.history(&room.id()).await;
            let heard = texts(&history) == ["unheard"];
            if heard { Ok(()) } else { Err(format!("{history:#?}")) }
        })
        .await;
    }
}

#[tokio::test]
async fn history_of_synapse_is_read_to_its_beginning() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    let room = bob.create_room().preset("public_chat").await;
    let said: Vec<String> = (0..250).map(|n| n.to_string()).collect();
    for text in &said {
        bob.send(&room, text).await;
    }
    alice.join_via(&room, synapse.name()).await.ok();
    assert_eq!(texts(&alice.history(&room).await), said);

    let room = alice.create_room().preset("public_chat").await;
    for text in &said {
        alice.send(&room, text).await;
    }
    bob.join_via(&room, server.name()).await.ok();
    until_member(&alice, &room, &bob, "join").await;
    assert_eq!(texts(&bob.history(&room).await), said);
}
