//! Rooms of this server, for users of another one.

use chatd_kit::{Other, Settings, other::Reply, path, scenario};
use serde_json::json;

use super::{VERSIONS, until_in};

scenario! {
    async fn another_server_comes_and_goes(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let mut feed = alice.feed().await;
        for version in VERSIONS {
            let room = alice.create_room().preset("public_chat").version(version).await;
            let far = other.join(&peer, &room, &bob).await;
            feed.until("bob's join", |synced| {
                synced.timeline(&room).into_iter().find(|e| e["state_key"] == bob.as_str())
            }).await;
            let text = far.say(&bob, "hello");
            other.deliver(&peer, std::slice::from_ref(&text)).await;
            feed.until_event(&room, &text.id).await;
            other.leave(&peer, &room, &bob).await.ok();
            let member = alice.get_state(&room, "m.room.member", &bob).await;
            assert_eq!(member.ok()["membership"], "leave", "version {version}");
            other.join(&peer, &room, &bob).await;
            let member = alice.get_state(&room, "m.room.member", &bob).await;
            assert_eq!(member.ok()["membership"], "join", "version {version}");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_join_that_was_refused_is_refused_again(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let room = alice.create_room().preset("public_chat").version("11").await;
        let made = other.make(&peer, "join", &room, &bob).await;
        let join = other.seal(&made);
        alice.post(path("/rooms/{}/ban", &[&room]), &json!({"user_id": bob})).await.ok();
        for _ in 0..2 {
            // Kept the first time, for what refers to it: it opens nothing.
            let answer = other.send_made(&peer, "join", &room, &join).await;
            answer.refused(403, "M_FORBIDDEN");
        }
        let member = alice.get_state(&room, "m.room.member", &bob).await;
        assert_eq!(member.ok()["membership"], "ban");
    }

    async fn a_user_of_another_server_is_invited(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        for version in VERSIONS {
            let room = alice.create_room().version(version).await;
            let refused = other.make(&peer, "join", &room, &bob).await;
            refused.refused(403, "M_FORBIDDEN");
            let invite = alice.post(
                path("/rooms/{}/invite", &[&room]), &json!({"user_id": bob})).await;
            invite.ok();
            let seen = other.seen("PUT", "/_matrix/federation/v2/invite/");
            let body = &seen.last().expect("an invite").body;
            assert_eq!(body["room_version"], *version);
            assert!(body["invite_room_state"].as_array().is_some_and(|state| !state.is_empty()));
            let member = alice.get_state(&room, "m.room.member", &bob).await;
            assert_eq!(member.ok()["membership"], "invite", "version {version}");
            let again = alice.post(
                path("/rooms/{}/invite", &[&room]), &json!({"user_id": bob})).await;
            again.ok();
            assert_eq!(other.seen("PUT", "/_matrix/federation/v2/invite/").len(), seen.len());
            other.join(&peer, &room, &bob).await;
        }
        // One that its server does not want does not become part of the room.
        let room = alice.create_room().await;
        other.always("PUT", "/_matrix/federation/v2/invite/", Reply::refused(403, "M_FORBIDDEN"));
        let carol = other.user("carol");
        let invite = alice.post(
            path("/rooms/{}/invite", &[&room]), &json!({"user_id": carol})).await;
        invite.refused(403, "M_FORBIDDEN");
        alice.get_state(&room, "m.room.member", &carol).await.refused(404, "M_NOT_FOUND");
        other.behave();
        let room = alice.create_room().with("invite", json!([carol])).await;
        let member = alice.get_state(&room, "m.room.member", &carol).await;
        assert_eq!(member.ok()["membership"], "invite", "of a new room");
        other.leave(&peer, &room, &carol).await.ok();
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_knock_of_another_server_is_seen(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let mut feed = alice.feed().await;
        let room = alice.create_room().version("7").with("name", "closed")
            .state("m.room.join_rules", json!({"join_rule": "knock"})).await;
        let answer = other.knock(&peer, &room, &bob).await;
        let shown = answer.ok()["knock_room_state"].as_array().expect("state");
        assert!(shown.iter().any(|event| event["type"] == "m.room.name"), "{answer}");
        feed.until("a knock", |synced| {
            let knock = |e: &serde_json::Value| e["content"]["membership"] == "knock";
            synced.timeline(&room).into_iter().find(knock)
        }).await;
        let old = alice.create_room().version("6").await;
        other.make(&peer, "knock", &old, &bob).await.refused(403, "M_FORBIDDEN");
    }

    async fn a_restricted_room_lets_members_of_others_in(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        for version in ["8", "11", "12"] {
            let space = alice.create_room().preset("public_chat").version(version).await;
            let allow = json!([{"type": "m.room_membership", "room_id": space}]);
            let rule = json!({"join_rule": "restricted", "allow": allow});
            let room = alice.create_room().version(version)
                .state("m.room.join_rules", rule).await;
            other.make(&peer, "join", &room, &bob).await.refused(403, "M_FORBIDDEN");
            other.join(&peer, &space, &bob).await;
            let far = other.join(&peer, &room, &bob).await;
            let member = far.state("m.room.member", &bob).expect("a member");
            let content = &member.json["content"];
            assert_eq!(content["join_authorised_via_users_server"], alice.id, "{version}");
            // Rooms that this server cannot look into.
            let allow = json!([{"type": "m.room_membership", "room_id": "!else:where"}]);
            let rule = json!({"join_rule": "restricted", "allow": allow});
            let room = alice.create_room().version(version)
                .state("m.room.join_rules", rule).await;
            let made = other.make(&peer, "join", &room, &bob).await;
            made.refused(400, "M_UNABLE_TO_AUTHORISE_JOIN");
        }
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn what_another_server_must_not_do_is_refused(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let room = alice.create_room().preset("public_chat").version("11").await;
        // Another's user; a version that it does not know; a room that there is not.
        other.make(&peer, "join", &room, "@carol:elsewhere.example").await
            .refused(403, "M_FORBIDDEN");
        let old = path("/_matrix/federation/v1/make_join/{}/{}?ver=1", &[&room, &bob]);
        let refused = other.get(&peer, &old).await;
        assert_eq!(refused.refused(400, "M_INCOMPATIBLE_ROOM_VERSION")["room_version"], "11");
        other.make(&peer, "join", "!nothing:127.0.0.1", &bob).await.refused(404, "M_NOT_FOUND");
        // A join under another id, one of another kind, and one with a wrong hash.
        let made = other.seal(&other.make(&peer, "join", &room, &bob).await);
        let wrong = path("/_matrix/federation/v2/send_join/{}/{}", &[&room, "$other"]);
        other.ask(&peer, "PUT", &wrong, Some(&made.json)).await.refused(400, "M_INVALID_PARAM");
        other.send_made(&peer, "leave", &room, &made).await.refused(400, "M_INVALID_PARAM");
        let rules = chatd_kit::other::rules_of("11");
        let forged = made.forged(&rules, |event| event["content"]["displayname"] = "x".into());
        let refused = other.send_made(&peer, "join", &room, &forged).await;
        assert!(refused.status == 400 || refused.status == 403, "{refused}");
        // A server that the room keeps out.
        let acl = json!({"allow": ["*"], "deny": ["127.0.0.1"]});
        let closed = alice.create_room().preset("public_chat")
            .state("m.room.server_acl", acl).await;
        other.make(&peer, "join", &closed, &bob).await.refused(403, "M_FORBIDDEN");
        let member = alice.get_state(&room, "m.room.member", &bob).await;
        member.refused(404, "M_NOT_FOUND");
    }

    async fn an_answer_may_leave_members_out(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let room = alice.create_room().preset("public_chat").version("11").await;
        for number in 0..5 {
            server.user(&format!("user{number}")).await.join(&room).await.ok();
        }
        let made = other.seal(&other.make(&peer, "join", &room, &bob).await);
        let target = path("/_matrix/federation/v2/send_join/{}/{}?omit_members=true",
            &[&room, &made.id]);
        let answer = other.ask(&peer, "PUT", &target, Some(&made.json)).await;
        let answer = answer.ok();
        assert_eq!(answer["members_omitted"], true);
        assert_eq!(answer["servers_in_room"].as_array().map(Vec::len), Some(2));
        let is_member = |event: &&serde_json::Value| event["type"] == "m.room.member";
        let members = |name: &str| {
            answer[name].as_array().expect("events").iter().filter(is_member).count()
        };
        assert_eq!(members("state") + members("auth_chain"), 1, "only who made the room");

        // What allows the join is told as well.
        let closed = alice.create_room().version("11").await;
        let carol = other.user("carol");
        let invite = alice.post(
            path("/rooms/{}/invite", &[&closed]), &json!({"user_id": carol})).await;
        invite.ok();
        let made = other.seal(&other.make(&peer, "join", &closed, &carol).await);
        let target = path("/_matrix/federation/v2/send_join/{}/{}?omit_members=true",
            &[&closed, &made.id]);
        let answer = other.ask(&peer, "PUT", &target, Some(&made.json)).await;
        let told = |name: &str| answer.ok()[name].as_array().cloned().unwrap_or_default();
        let all = [told("state"), told("auth_chain")].concat();
        let is_invite = |event: &&serde_json::Value| event["state_key"] == carol.as_str()
            && event["content"]["membership"] == "invite";
        assert_eq!(all.iter().filter(is_invite).count(), 1, "{answer}");
    }

    async fn invites_are_checked(server: Server) with (Settings::federating()) {
        let other = Other::start().await;
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let peer = server.peer();
        let room = other.create_room("11", &bob);
        let nobody = format!("@nobody:{}", server.name());
        other.invite(&peer, &room, &bob, &nobody).await.refused(403, "M_FORBIDDEN");
        let far = other.user("far");
        other.invite(&peer, &room, &bob, &far).await.refused(400, "M_INVALID_PARAM");
        let mut feed = alice.feed().await;
        other.invite(&peer, &room, &bob, &alice.id).await.ok();
        until_in(&mut feed, "invite", &room.id()).await;
    }
}
