//! Rooms that are too large for a server.

use chatd_kit::{Other, Server, Settings, User, other::Reply, path, scenario};
use serde_json::json;

const TOO_MUCH: &str = "M_RESOURCE_LIMIT_EXCEEDED";

fn limited() -> Settings {
    let limit =
        json!({"enabled": true, "complexity": 0.03, "complexity_error": "that is too much"});
    Settings::federating()
        .with("user_agent_suffix", "(of the test)")
        .with("limit_remote_rooms", limit)
}

/// The same with a word on whether admins may do what others may not.
fn admins_can_join(can: bool) -> Settings {
    let limit = json!({"enabled": true, "complexity": 0.03, "admins_can_join": can});
    Settings::federating().with("limit_remote_rooms", limit)
}

/// A room of another server that is too large, whether or not that server says so.
fn large_room(other: &Other, says_it: bool) -> String {
    let told =
        if says_it { Reply::json(&json!({"v1": 7.5})) } else { Reply::refused(404, "M_NOT_FOUND") };
    other.always("GET", "/_matrix/federation/unstable/rooms/", told);
    let bob = other.user("bob");
    let room = other.create_room("10", &bob);
    for number in 0..20 {
        room.set(&bob, "org.example.state", &number.to_string(), json!({}));
    }
    room.id()
}

/// A user, and another one who is an admin.
async fn user_and_admin(server: &Server) -> (User, User) {
    let (alice, root) = (server.user("alice").await, server.user("root").await);
    let database = server.database().connect().await.expect("a connection");
    let made = "UPDATE users SET is_admin = true WHERE localpart = 'root'";
    assert_eq!(database.execute(made, &[]).await.expect("an admin"), 1);
    // Who one is is read with the token.
    (alice, root.another_device().await)
}

scenario! {
    async fn rooms_that_are_too_complex_are_not_joined(server: Server) with (limited()) {
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
        assert_eq!(large.membership(&alice.id), "leave");
        // Nobody stays who cannot leave.
        other.always("GET", "/_matrix/federation/v1/make_leave/", Reply::refused(404, "M_NOT_FOUND"));
        for _ in 0..2 {
            join(&large.id()).await.refused(400, TOO_MUCH);
        }
        let rooms = alice.get("/joined_rooms").await;
        let mut rooms = rooms.ok()["joined_rooms"].as_array().cloned().unwrap_or_default();
        let mut joined = vec![json!(told.id()), json!(small.id())];
        rooms.sort_by_key(ToString::to_string);
        joined.sort_by_key(ToString::to_string);
        assert_eq!(rooms, joined);
    }

    async fn admins_join_rooms_of_any_size_if_they_may(server: Server) with (admins_can_join(true)) {
        let (other, (alice, root)) = (Other::start().await, user_and_admin(&server).await);
        for says_it in [true, false] {
            let room = large_room(&other, says_it);
            alice.join_via(&room, &other.name()).await.refused(400, TOO_MUCH);
            root.join_via(&room, &other.name()).await.ok();
            let state = root.get_state(&room, "org.example.state", "19").await;
            assert_eq!(*state.ok(), json!({}));
            // It is not of another server any more: whoever comes next makes it no larger here.
            alice.join(&room).await.ok();
        }
    }

    async fn admins_are_like_all_others_unless_it_is_said(server: Server) with (admins_can_join(false)) {
        let (other, (_, root)) = (Other::start().await, user_and_admin(&server).await);
        for says_it in [true, false] {
            let room = large_room(&other, says_it);
            root.join_via(&room, &other.name()).await.refused(400, TOO_MUCH);
        }
    }

    async fn other_servers_are_told_how_complex_a_room_is(server: Server) with (Settings::federating()) {
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
