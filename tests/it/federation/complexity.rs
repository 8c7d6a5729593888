//! Rooms that are too large for a server.

use chatd_kit::{Other, Settings, other::Reply, path, scenario};
use serde_json::json;

const TOO_MUCH: &str = "M_RESOURCE_LIMIT_EXCEEDED";

fn limited() -> Settings {
    Settings::federating().with("user_agent_suffix", "(of the test)").with(
        "limit_remote_rooms",
        json!({
            "enabled": true, "complexity": 0.03, "complexity_error": "that is too much"}),
    )
}

scenario! {
    async fn rooms_that_are_too_complex_are_not_joined(server: Server)
    in (monolith, random) with (limited()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let asked = "/_matrix/federation/unstable/rooms/";
        let join = |room: &str| alice.join_via(room, &other.name());

        // A server that says it is asked before anything is done.
        let told = other.create_room("10", &bob);
        other.always("GET", asked, Reply::json(&json!({"v1": 7.5})));
        let refused = join(&told.id()).await;
        assert_eq!(refused.refused(400, TOO_MUCH)["error"], "that is too much");
        assert!(other.seen("GET", "/_matrix/federation/v1/make_join/").is_empty());
        let agent = &other.seen("GET", asked)[0].headers["user-agent"];
        assert!(agent.starts_with("chatd/") && agent.ends_with(" (of the test)"), "{agent}");
        other.always("GET", asked, Reply::json(&json!({"v1": 0.03})));
        join(&told.id()).await.ok();

        // If none says it, the room is looked at.
        other.always("GET", asked, Reply::refused(404, "M_NOT_FOUND"));
        let (small, large) = (other.create_room("10", &bob), other.create_room("10", &bob));
        for number in 0..20 {
            large.set(&bob, "org.example.state", &number.to_string(), json!({}));
        }
        join(&small.id()).await.ok();
        join(&large.id()).await.refused(400, TOO_MUCH);
        other.until_pdu("a leave", |pdu| pdu["room_id"] == large.id()
            && pdu["content"]["membership"] == "leave").await;
        let rooms = alice.get("/joined_rooms").await;
        let mut rooms = rooms.ok()["joined_rooms"].as_array().cloned().unwrap_or_default();
        let mut joined = vec![json!(told.id()), json!(small.id())];
        rooms.sort_by_key(ToString::to_string);
        joined.sort_by_key(ToString::to_string);
        assert_eq!(rooms, joined);
    }

    async fn other_servers_are_told_how_complex_a_room_is(server: Server)
    in (monolith, random) with (Settings::federating()) {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        let (open, closed) = (alice.public_room().await, alice.create_room().await);
        for number in 0..50 {
            let kind = format!("org.example.state{number}");
            alice.set_state(&open, &kind, "", &json!({})).await.ok();
        }
        let ask = async |room: &str| {
            let target = path("/_matrix/federation/unstable/rooms/{}/complexity", &[room]);
            other.get(&server.peer(), &target).await
        };
        let told = ask(&open).await;
        let v1 = told.ok()["v1"].as_f64().expect("a number");
        assert!((0.1..0.2).contains(&v1), "{v1}");
        ask(&closed).await.refused(404, "M_NOT_FOUND");
        ask("!nowhere:here").await.refused(404, "M_NOT_FOUND");
    }
}
