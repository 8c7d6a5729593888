//! Synapse, and the kit's other server: what the two agree on is what the scenarios rely on.

use chatd_kit::{Other, Synapse, other::VERSIONS};
use serde_json::{Value, json};

#[tokio::test]
async fn synapse_joins_rooms_of_the_kit() {
    let (synapse, other) = (Synapse::shared().await, Other::start().await);
    let (alice, bob) = (other.user("alice"), synapse.user("bob").await);
    for version in VERSIONS {
        let room = other.create_room(version, &alice);
        let url = chatd_kit::path("/join/{}", &[&room.id()]);
        bob.request("POST", url).query("server_name", other.name()).json(&json!({})).await.ok();
        assert_eq!(room.membership(&bob.id), "join", "version {version}");
        let text = bob.send(&room.id(), "from synapse").await;
        let is_it = |pdu: &Value| {
            pdu["content"]["body"] == "from synapse" && pdu["room_id"] == room.id().as_str()
        };
        assert_eq!(other.until_pdu("the text", is_it).await["sender"], bob.id.as_str());
        assert!(room.event(&text).is_some(), "version {version}: another event id");

        let mut feed = bob.feed().await;
        let answer = room.say(&alice, "from the kit");
        other.deliver(&synapse.peer(), std::slice::from_ref(&answer)).await;
        feed.until_event(&room.id(), &answer.id).await;
    }
    assert!(other.problems().is_empty(), "{:?}", other.problems());
}

#[tokio::test]
async fn the_kit_joins_rooms_of_synapse() {
    let (synapse, other) = (Synapse::shared().await, Other::start().await);
    let (alice, bob) = (synapse.user("alice").await, other.user("bob"));
    for version in VERSIONS {
        let id = alice.create_room().preset("public_chat").version(version).await;
        let room = other.join(&synapse.peer(), &id, &bob).await;
        let mut feed = alice.feed().await;
        let text = room.say(&bob, "from the kit");
        other.deliver(&synapse.peer(), std::slice::from_ref(&text)).await;
        feed.until_event(&id, &text.id).await;
    }
    assert!(other.problems().is_empty(), "{:?}", other.problems());
}
