//! People who are invited by an address.

use chatd_kit::{
    Other, Settings, User,
    other::{ACCESS_TOKEN, Reply},
    path, scenario,
};
use serde_json::{Value, json};

const ONBIND: &str = "/_matrix/federation/v1/3pid/onbind";

/// An invite of `address` by the identity server `other`.
fn by_address(other: &Other, address: &str) -> Value {
    json!({
        "id_server": other.name(), "id_access_token": ACCESS_TOKEN,
        "medium": "email", "address": address,
    })
}

fn invite_path(room: &str) -> String {
    path("/rooms/{}/invite", &[room])
}

async fn membership(looker: &User, room: &str, user: &str) -> String {
    looker.get_state(room, "m.room.member", user).await.string("membership")
}

scenario! {
    async fn an_address_is_invited_and_somebody_comes(server: Server)
    in (monolith, random) with (Settings::federating()) {
        let identity = Other::start().await;
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let dave = server.user("dave").await;
        let vouching = identity.identify(&[("dave@example.org", &dave.id)]);
        for version in ["1", "10", "12"] {
            let room = alice.create_room().version(version).with("name", "a room").await;
            // One whose address is known is invited as ever.
            alice.post(invite_path(&room), &by_address(&identity, "Dave@Example.org")).await.ok();
            assert_eq!(membership(&alice, &room, &dave.id).await, "invite");
            let before = vouching.taken().len();
            alice.post(invite_path(&room), &by_address(&identity, "carol@example.org")).await.ok();
            let taken = vouching.taken();
            assert_eq!(taken.len(), before + 1);
            let letter = taken.last().expect("a letter");
            assert_eq!(letter["address"], "carol@example.org");
            assert_eq!((&letter["room_name"], &letter["sender"]), (&json!("a room"), &json!(alice.id)));
            let token = format!("token{}", taken.len());
            let pending = alice.get_state(&room, "m.room.third_party_invite", &token).await;
            let pending = pending.ok();
            assert_eq!(pending["public_keys"][0]["public_key"], vouching.public_key());
            assert_eq!(pending["display_name"], "c...@e...");

            // Nobody comes by what somebody else has signed, or for somebody else.
            let bound = |invites: &[Value]| {
                let body = json!({"address": "carol@example.org", "medium": "email",
                    "mxid": carol.id, "invites": invites});
                server.request("PUT", ONBIND).json(&body)
            };
            let good = vouching.bound(&room, &alice.id, &carol.id, &token);
            for (name, value) in [
                ("token", json!("token0")),
                ("mxid", json!(dave.id)),
                ("signatures", json!({identity.name(): {"ed25519:0": "AAAA"}})),
            ] {
                let mut lie = good.clone();
                lie["signed"][name] = value;
                bound(&[lie]).await.refused(403, "M_FORBIDDEN");
            }
            let mut stranger = good.clone();
            stranger["mxid"] = "@nobody:nowhere.example".into();
            bound(&[stranger]).await.refused(403, "M_FORBIDDEN");
            alice.get_state(&room, "m.room.member", &carol.id).await.refused(404, "M_NOT_FOUND");

            let mut feed = carol.feed().await;
            bound(std::slice::from_ref(&good)).await.ok();
            feed.until("an invite", |synced| {
                (!synced.section("invite", &room).is_null()).then_some(())
            }).await;
            bound(&[good]).await.ok();
            let member = alice.get_state(&room, "m.room.member", &carol.id).await;
            assert_eq!(member.ok()["third_party_invite"]["display_name"], "c...@e...");
            carol.join(&room).await.ok();
            assert_eq!(membership(&alice, &room, &carol.id).await, "join");
        }
    }

    async fn who_shows_what_was_signed_joins(server: Server)
    in (monolith) with (Settings::federating()) {
        let identity = Other::start().await;
        let vouching = identity.identify(&[]);
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let invite = by_address(&identity, "carol@example.org");
        let room = alice.create_room().with("invite_3pid", json!([invite])).await;
        let signed = vouching.sign(&alice.id, &carol.id, "token1");
        let join = path("/join/{}", &[&room]);
        carol.post(&join, &json!({})).await.refused(403, "M_FORBIDDEN");
        carol.post(&join, &json!({"third_party_signed": signed})).await.ok();
        assert_eq!(membership(&alice, &room, &carol.id).await, "join");
        // Whoever was let in once is not put out by a repeat.
        let again = json!({"invites": [vouching.bound(&room, &alice.id, &carol.id, "token1")]});
        server.request("PUT", ONBIND).json(&again).await.ok();
        assert_eq!(membership(&alice, &room, &carol.id).await, "join");

        let dave = server.user("dave").await;
        alice.post(invite_path(&room), &by_address(&identity, "dave@example.org")).await.ok();
        vouching.revoke();
        let late = json!({"invites": [vouching.bound(&room, &alice.id, &dave.id, "token2")]});
        server.request("PUT", ONBIND).json(&late).await.refused(403, "M_FORBIDDEN");
    }

    async fn other_servers_exchange_what_was_signed(server: Server)
    in (monolith, random) with (Settings::federating()) {
        let (identity, other) = (Other::start().await, Other::start().await);
        let vouching = identity.identify(&[]);
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        for version in ["5", "11", "12"] {
            let room = alice.create_room().version(version).await;
            alice.post(invite_path(&room), &by_address(&identity, "bob@example.org")).await.ok();
            let token = format!("token{}", vouching.taken().len());
            let event = |user: &str, token: &str| json!({
                "type": "m.room.member", "room_id": room, "sender": alice.id, "state_key": user,
                "content": {"membership": "invite", "third_party_invite": {
                    "signed": vouching.sign(&alice.id, user, token)}},
            });
            let target = path("/_matrix/federation/v1/exchange_third_party_invite/{}", &[&room]);
            let ask = async |body: Value| {
                other.ask(&server.peer(), "PUT", &target, Some(&body)).await
            };
            ask(event(&bob, "token0")).await.refused(403, "M_FORBIDDEN");
            ask(event(&bob, &token)).await.ok();
            assert_eq!(membership(&alice, &room, &bob).await, "invite");
            let seen = other.seen("PUT", "/_matrix/federation/v2/invite/");
            let invite = &seen.last().expect("an invite").body["event"];
            assert_eq!(invite["content"]["third_party_invite"]["signed"]["token"], token);
            let far = other.join(&server.peer(), &room, &bob).await;
            assert_eq!(far.membership(&bob), "join");
        }
        let nowhere = path("/_matrix/federation/v1/exchange_third_party_invite/{}",
            &["!nowhere:here"]);
        let lost = json!({"room_id": "!nowhere:here", "sender": alice.id, "state_key": bob,
            "content": {"third_party_invite": {"signed": {"token": "t"}}}});
        let answer = other.ask(&server.peer(), "PUT", &nowhere, Some(&lost)).await;
        answer.refused(404, "M_NOT_FOUND");
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn what_was_signed_goes_to_the_server_that_has_invited(server: Server)
    in (monolith, random) with (Settings::federating()) {
        let (identity, other) = (Other::start().await, Other::start().await);
        let vouching = identity.identify(&[]);
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let room = other.create_room("11", &bob);
        let target = "/_matrix/federation/v1/exchange_third_party_invite/";
        other.always("PUT", target, Reply::json(&json!({})));
        let body = json!({"invites": [vouching.bound(&room.id(), &bob, &alice.id, "t")]});
        server.request("PUT", ONBIND).json(&body).await.ok();
        let seen = other.seen("PUT", target);
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].body["state_key"], alice.id);
        let signed = &seen[0].body["content"]["third_party_invite"]["signed"];
        assert_eq!(signed["mxid"], alice.id);
        other.always("PUT", target, Reply::refused(403, "M_FORBIDDEN"));
        server.request("PUT", ONBIND).json(&body).await.refused(403, "M_FORBIDDEN");
        other.go_away();
        server.request("PUT", ONBIND).json(&body).await.refused(502, "M_UNKNOWN");
    }

    async fn an_address_is_not_invited_by_who_may_not(server: Server)
    in (monolith) with (Settings::federating()) {
        let identity = Other::start().await;
        let vouching = identity.identify(&[]);
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let room = alice.create_room().preset("public_chat").await;
        let invite = by_address(&identity, "dave@example.org");
        carol.post(invite_path(&room), &invite).await.refused(403, "M_FORBIDDEN");
        carol.join(&room).await.ok();
        carol.post(invite_path(&room), &invite).await.refused(403, "M_FORBIDDEN");
        let mut bad = invite.clone();
        bad["id_access_token"] = "wrong".into();
        alice.post(invite_path(&room), &bad).await.refused(403, "M_UNAUTHORIZED");
        bad["id_access_token"] = Value::Null;
        alice.post(invite_path(&room), &bad).await.refused(400, "M_BAD_JSON");
        let mut nobody = invite.clone();
        nobody["id_server"] = "127.0.0.1:1".into();
        alice.post(invite_path(&room), &nobody).await.refused(502, "M_UNKNOWN");
        nobody["id_server"] = "not/a/host".into();
        alice.post(invite_path(&room), &nobody).await.refused(400, "M_BAD_JSON");
        assert!(vouching.taken().is_empty());
        identity.always("POST", "/_matrix/identity/v2/store-invite",
            Reply::endless("{\"token\": \"", "x".repeat(1 << 16)));
        alice.post(invite_path(&room), &invite).await.refused(502, "M_UNKNOWN");
        identity.always("POST", "/_matrix/identity/v2/store-invite",
            Reply::redirect("https://127.0.0.1:1/"));
        alice.post(invite_path(&room), &invite).await.refused(502, "M_UNKNOWN");
    }

    async fn addresses_inside_are_not_asked(server: Server)
    in (monolith) with (Settings::federating()
        .with("ip_range_blocklist", json!(["127.0.0.0/8"])))
    {
        let identity = Other::start().await;
        let vouching = identity.identify(&[]);
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let invite = by_address(&identity, "dave@example.org");
        alice.post(invite_path(&room), &invite).await.refused(403, "M_FORBIDDEN");
        assert!(vouching.taken().is_empty());
        assert!(identity.seen("", "/_matrix/identity/").is_empty());
    }

    async fn addresses_may_not_be_invited_at_all(server: Server)
    in (monolith) with (Settings::federating().with("enable_3pid_lookup", false)) {
        let identity = Other::start().await;
        identity.identify(&[]);
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let invite = by_address(&identity, "dave@example.org");
        alice.post(invite_path(&room), &invite).await.refused(403, "M_FORBIDDEN");
        assert!(identity.seen("", "/_matrix/identity/").is_empty());
    }
}
