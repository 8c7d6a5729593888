//! Rooms of another server, for users of this one.

use chatd_kit::{Other, Settings, eventually, other::Reply, path, scenario, spawn};
use serde_json::{Value, json};

use super::{VERSIONS, is_state, join_by, until_in};

scenario! {
    async fn a_room_is_joined_and_left_and_joined_again(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let mut feed = alice.feed().await;
        for version in VERSIONS {
            let room = other.create_room(version, &bob);
            let id = room.id();
            room.set(&bob, "m.room.name", "", json!({"name": version}));
            let joined = join_by(&alice, &id, &other.name()).await;
            assert_eq!(joined.ok()["room_id"], id, "version {version}");
            assert_eq!(room.membership(&alice.id), "join");
            let told = until_in(&mut feed, "join", &id).await;
            let state = told["state"]["events"].as_array().expect("state");
            assert!(is_state(state, "m.room.name"), "version {version}: {told:#}");
            assert!(is_state(state, "m.room.create"), "version {version}");
            let again = join_by(&alice, &id, &other.name()).await;
            assert_eq!(again.ok()["room_id"], id);
            assert_eq!(other.seen("PUT", "/_matrix/federation/v2/send_join/").iter()
                .filter(|seen| seen.segment(4) == id).count(), 1, "a repeat has no effect");

            let sent = alice.send(&id, "from here").await;
            other.until_pdu("a text", |pdu| pdu["content"]["body"] == "from here"
                && pdu["room_id"] == id.as_str()).await;
            let answer = room.say(&bob, "from there");
            other.deliver(&server.peer(), std::slice::from_ref(&answer)).await;
            feed.until_event(&id, &answer.id).await;
            assert_ne!(sent, answer.id);

            alice.leave(&id).await.ok();
            other.until_pdu("a leave", |pdu| pdu["content"]["membership"] == "leave"
                && pdu["room_id"] == id.as_str()).await;
            until_in(&mut feed, "leave", &id).await;
            room.set(&bob, "m.room.topic", "", json!({"topic": "changed"}));
            join_by(&alice, &id, &other.name()).await.ok();
            let told = until_in(&mut feed, "join", &id).await;
            let topic = alice.get(path("/rooms/{}/state/m.room.topic", &[&id])).await;
            assert_eq!(topic.ok()["topic"], "changed", "{told:#}");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_server_that_knows_old_endpoints_only_lets_users_in(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let unknown = Reply::refused(404, "M_UNRECOGNIZED");
        other.always("PUT", "/_matrix/federation/v2/send_join/", unknown);
        let room = other.create_room("6", &bob);
        join_by(&alice, &room.id(), &other.name()).await.ok();
        assert_eq!(room.membership(&alice.id), "join");
        assert_eq!(other.seen("PUT", "/_matrix/federation/v1/send_join/").len(), 1);
    }

    async fn an_invite_is_taken_or_declined(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let mut feed = alice.feed().await;
        for version in VERSIONS {
            let (taken, declined) =
                (other.create_room(version, &bob), other.create_room(version, &bob));
            for room in [&taken, &declined] {
                room.set(&bob, "m.room.join_rules", "", json!({"join_rule": "invite"}));
                room.set(&bob, "m.room.name", "", json!({"name": version}));
                other.invite(&server.peer(), room, &bob, &alice.id).await.ok();
                let invite = until_in(&mut feed, "invite", &room.id()).await;
                let shown = invite["invite_state"]["events"].as_array().expect("events");
                assert!(is_state(shown, "m.room.name"), "version {version}: {invite:#}");
                let own = shown.iter().find(|event| event["state_key"] == alice.id.as_str());
                assert_eq!(own.map(|event| &event["sender"]), Some(&Value::from(bob.as_str())));
                for event in shown {
                    assert!(event.get("signatures").is_none(), "{event:#}");
                }
            }
            // Whoever has invited is asked, without a further word.
            alice.join(&taken.id()).await.ok();
            until_in(&mut feed, "join", &taken.id()).await;
            assert_eq!(taken.membership(&alice.id), "join");
            alice.leave(&declined.id()).await.ok();
            until_in(&mut feed, "leave", &declined.id()).await;
            assert_eq!(declined.membership(&alice.id), "leave", "version {version}");
        }
        // Nobody is there to hear it.
        let room = other.create_room("11", &bob);
        other.invite(&server.peer(), &room, &bob, &alice.id).await.ok();
        until_in(&mut feed, "invite", &room.id()).await;
        other.go_away();
        alice.leave(&room.id()).await.ok();
        until_in(&mut feed, "leave", &room.id()).await;
        let first = alice.sync().await;
        assert!(first.section("invite", &room.id()).is_null());
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_knock_is_heard_and_withdrawn(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let mut feed = alice.feed().await;
        let room = other.create_room("10", &bob);
        room.set(&bob, "m.room.join_rules", "", json!({"join_rule": "knock"}));
        room.set(&bob, "m.room.name", "", json!({"name": "closed"}));
        let knock = |reason: &str| {
            let target = path("/knock/{}?via={}", &[&room.id(), &other.name()]);
            alice.post(target, &json!({ "reason": reason }))
        };
        knock("please").await.ok();
        let told = until_in(&mut feed, "knock", &room.id()).await;
        let shown = told["knock_state"]["events"].as_array().expect("events");
        assert!(is_state(shown, "m.room.name"), "{told:#}");
        let member = room.state("m.room.member", &alice.id).expect("a knock");
        assert_eq!(member.json["content"]["reason"], "please");
        alice.leave(&room.id()).await.ok();
        until_in(&mut feed, "leave", &room.id()).await;
        assert_eq!(room.membership(&alice.id), "leave");
        // It knocks again and is let in.
        knock("again").await.ok();
        until_in(&mut feed, "knock", &room.id()).await;
        other.invite(&server.peer(), &room, &bob, &alice.id).await.ok();
        until_in(&mut feed, "invite", &room.id()).await;
        alice.join(&room.id()).await.ok();
        assert_eq!(room.membership(&alice.id), "join");
    }

    async fn a_restricted_room_is_joined_by_who_vouches(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for version in ["8", "10", "12"] {
            let room = other.create_room(version, &bob);
            let allow = json!([{"type": "m.room_membership", "room_id": "!elsewhere:there"}]);
            let rule = json!({"join_rule": "restricted", "allow": allow});
            room.set(&bob, "m.room.join_rules", "", rule);
            join_by(&alice, &room.id(), &other.name()).await.ok();
            let member = room.state("m.room.member", &alice.id).expect("a member");
            let content = &member.json["content"];
            assert_eq!(content["join_authorised_via_users_server"], bob, "version {version}");
            let signatures = member.json["signatures"].as_object().expect("signatures");
            assert_eq!(signatures.len(), 2, "both have signed");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn an_alias_leads_to_its_room(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("12", &bob);
        let answer = json!({"room_id": room.id(), "servers": [other.name()]});
        other.always("GET", "/_matrix/federation/v1/query/directory", Reply::json(&answer));
        let joined = alice.join(&format!("#somewhere:{}", other.name())).await;
        assert_eq!(joined.ok()["room_id"], room.id());
        other.always("GET", "/_matrix/federation/v1/query/directory",
            Reply::refused(404, "M_NOT_FOUND"));
        let lost = alice.join(&format!("#nowhere:{}", other.name())).await;
        lost.refused(404, "M_NOT_FOUND");
    }

    async fn another_server_is_asked_if_the_first_cannot_help(server: Server) with (Settings::federating()) {
        let (first, second) = (Other::start().await, Other::start().await);
        let (alice, bob) = (server.user("alice").await, second.user("bob"));
        let room = second.create_room("11", &bob);
        let via = |servers: &[&str]| {
            let via: Vec<String> = servers.iter().map(|s| path("via={}", &[s])).collect();
            path("/join/{}?", &[&room.id()]) + &via.join("&")
        };
        alice.post("/join/!nowhere:127.0.0.1:1", &json!({})).await.refused(502, "M_UNKNOWN");
        alice.post("/join/!aRoomOfVersionTwelve", &json!({})).await.refused(404, "M_NOT_FOUND");
        first.always("GET", "/_matrix/federation/v1/make_join/", Reply::refused(500, "M_UNKNOWN"));
        let names = [first.name(), second.name()];
        let both = via(&[&names[0], &names[1]]);
        // A refusal of the room itself is what the client is told.
        second.always("GET", "/_matrix/federation/v1/make_join/",
            Reply::refused(403, "M_FORBIDDEN"));
        alice.post(both.clone(), &json!({})).await.refused(403, "M_FORBIDDEN");
        second.behave();
        alice.post(both, &json!({})).await.ok();
        assert_eq!(room.membership(&alice.id), "join");
        assert!(!first.seen("GET", "/_matrix/federation/v1/make_join/").is_empty());
    }

    async fn what_is_said_while_somebody_comes_in_is_not_lost(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for is_told_first in [true, false] {
            let room = other.create_room("11", &bob);
            let (id, name) = (room.id(), other.name());
            let mut feed = alice.feed().await;
            // Instances remember for a while that they do not know the room.
            let strange = room.say(&bob, "nobody there yet");
            for _ in 0..12 {
                other.deliver(&server.peer(), std::slice::from_ref(&strange)).await;
            }
            other.hold_back();
            let joins = {
                let (alice, id) = (alice.clone(), id.clone());
                spawn(async move { join_by(&alice, &id, &name).await })
            };
            eventually("she is let in", || async {
                let is_in = room.membership(&alice.id) == "join";
                if is_in { Ok(()) } else { Err("not yet".to_owned()) }
            })
            .await;
            let said = room.say(&bob, "here she comes");
            let says = async {
                let answer = other.send(&server.peer(), std::slice::from_ref(&said), &[]).await;
                assert_eq!(answer.ok()["pdus"][&said.id], json!({}), "{answer}");
            };
            // Either their events wait for her, or their server is not kept waiting.
            if is_told_first {
                futures::join!(says, async { other.tell() });
            } else {
                says.await;
                assert!(!joins.is_finished());
                other.tell();
            }
            joins.await.ok();
            feed.until("what was said", |synced| {
                synced.timeline_ids(&id).contains(&said.id).then_some(())
            })
            .await;
        }
    }

    async fn many_who_join_at_once_are_all_in(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let bob = other.user("bob");
        let room = other.create_room("11", &bob);
        let mut users = Vec::new();
        for number in 0..6 {
            users.push(server.user(&format!("user{number}")).await);
        }
        let (name, id) = (other.name(), room.id());
        let joins = users.iter().map(|user| join_by(user, &id, &name));
        for joined in futures::future::join_all(joins).await {
            joined.ok();
        }
        let members = users[0].get(path("/rooms/{}/joined_members", &[&room.id()])).await;
        assert_eq!(members.ok()["joined"].as_object().map(serde_json::Map::len), Some(7));
    }
}
