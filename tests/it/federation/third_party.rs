//! People who are invited by an address.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use chatd_kit::{
    Other, Server, Settings, Spread, User, eventually,
    fleet::public_socket,
    http::Http,
    other::{ACCESS_TOKEN, Reply, Seen, Vouching},
    path, scenario,
};
use futures::future::join_all;
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");
/// Made at once: the repeat of each comes to any of two instances.
const ROOMS: usize = 4;
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
    async fn an_address_is_invited_and_somebody_comes(server: Server) with (Settings::federating()) {
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
            alice.post(invite_path(&room), &by_address(&identity, "Carol@Example.org")).await.ok();
            let taken = vouching.taken();
            assert_eq!(taken.len(), before + 1);
            let letter = taken.last().expect("a letter");
            // Folded when it is looked up, written to as it was given.
            assert_eq!(letter["address"], "Carol@Example.org");
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

    async fn who_shows_what_was_signed_joins(server: Server) with (Settings::federating()) {
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

    async fn other_servers_exchange_what_was_signed(server: Server) with (Settings::federating()) {
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

    async fn what_was_signed_goes_to_the_server_that_has_invited(server: Server) with (Settings::federating()) {
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
        // What another server says of access tokens is not about the client's.
        let join = path("/join/{}", &[&room.id()]);
        let shown = json!({"third_party_signed": vouching.sign(&bob, &alice.id, "t")});
        for status in [401, 403] {
            other.always("PUT", target, Reply::refused(status, "M_UNKNOWN_TOKEN"));
            alice.post(&join, &shown).await.refused(502, "M_UNKNOWN");
        }
        other.go_away();
        server.request("PUT", ONBIND).json(&body).await.refused(502, "M_UNKNOWN");
    }

    async fn whoever_has_invited_hears_of_the_invite(server: Server) with (Settings::federating()) {
        let (identity, other) = (Other::start().await, Other::start().await);
        let vouching = identity.identify(&[]);
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let bob = other.user("bob");
        let room = alice.create_room().version("11").await;
        alice.post(invite_path(&room), &json!({"user_id": bob})).await.ok();
        let far = other.join(&server.peer(), &room, &bob).await;
        let pending =
            far.set(&bob, "m.room.third_party_invite", "t", Vouching::pending(&[&vouching]));
        other.deliver(&server.peer(), &[pending]).await;
        let body = json!({"invites": [vouching.bound(&room, &bob, &carol.id, "t")]});
        server.request("PUT", ONBIND).json(&body).await.ok();
        assert_eq!(membership(&alice, &room, &carol.id).await, "invite");
        let invite = other.until_pdu("the invite", |pdu| pdu["state_key"] == carol.id).await;
        assert_eq!(invite["sender"], bob);
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn who_has_come_meanwhile_is_not_put_out(server: Server) with (Settings::federating()) {
        let identity = Other::start().await;
        let vouching = identity.identify(&[]);
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let room = alice.create_room().await;
        alice.post(invite_path(&room), &by_address(&identity, "carol@example.org")).await.ok();
        let asked = "/_matrix/identity/v2/pubkey/isvalid";
        let valid = Reply::json(&json!({"valid": true}));
        identity.always("GET", asked, valid.after(Duration::from_secs(3)));
        let body = json!({"invites": [vouching.bound(&room, &alice.id, &carol.id, "token1")]});
        let bound = async {
            server.request("PUT", ONBIND).json(&body).await.ok();
        };
        let comes = async {
            identity.until("a question about the key", "GET", asked, |_| Some(())).await;
            alice.invite(&room, &carol).await.ok();
            carol.join(&room).await.ok();
        };
        futures::join!(bound, comes);
        assert_eq!(membership(&alice, &room, &carol.id).await, "join");
    }

    async fn one_key_that_counts_is_enough(server: Server) with (Settings::federating()) {
        let (first, second) = (Other::start().await, Other::start().await);
        let (revoked, good) = (first.identify(&[]), second.identify(&[]));
        revoked.revoke();
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let room = alice.create_room().await;
        let pending = Vouching::pending(&[&revoked, &good]);
        alice.set_state(&room, "m.room.third_party_invite", "t", &pending).await.ok();
        let mut told = revoked.bound(&room, &alice.id, &carol.id, "t");
        let bound = |told: &Value| server.request("PUT", ONBIND).json(&json!({"invites": [told]}));
        bound(&told).await.refused(403, "M_FORBIDDEN");
        told["signed"] = good.sign_too(told["signed"].clone());
        bound(&told).await.ok();
        assert_eq!(membership(&alice, &room, &carol.id).await, "invite");
    }

    async fn strangers_cannot_have_much_done(server: Server) with (Settings::federating()) {
        let (identity, other) = (Other::start().await, Other::start().await);
        let vouching = identity.identify(&[]);
        let (alice, bob) = (server.user("alice").await, other.user("bob"));
        let carol = server.user("carol").await;
        let target = "/_matrix/federation/v1/exchange_third_party_invite/";
        other.always("PUT", target, Reply::json(&json!({})));
        let all: Vec<Value> = (0..20)
            .map(|number| {
                let room = format!("!r{number}:{}", other.name());
                vouching.bound(&room, &bob, &alice.id, "t")
            })
            .collect();
        let bound = |all: &[Value]| server.request("PUT", ONBIND).json(&json!({"invites": all}));
        bound(&all).await.refused(403, "M_FORBIDDEN");
        assert_eq!(other.seen("PUT", target).len(), 10);
        let mut mixed = all[..2].to_vec();
        mixed[1]["mxid"] = bob.as_str().into();
        bound(&mixed).await.refused(400, "M_INVALID_PARAM");
        let mut much = all[0].clone();
        let room = carol.create_room().await;
        carol.set_state(&room, "m.room.third_party_invite", "t",
            &Vouching::pending(&[&vouching])).await.ok();
        much["room_id"] = room.as_str().into();
        much["sender"] = carol.id.as_str().into();
        for number in 0..20 {
            much["signed"]["signatures"]["a"][format!("ed25519:{number}")] = "AAAA".into();
        }
        bound(&[much]).await.refused(400, "M_BAD_JSON");
        let mut statuses = Vec::new();
        for _ in 0..100 {
            statuses.push(bound(&[]).await.status);
        }
        assert!(statuses.contains(&429), "{statuses:?}");
    }

    async fn users_found_by_their_address_are_invited_as_seldom_as_others(server: Server) with (Settings::federating().with("rc_invites", json!({
        "per_user": {"per_second": 0.001, "burst_count": 2}})))
    {
        let identity = Other::start().await;
        let (alice, dave) = (server.user("alice").await, server.user("dave").await);
        identity.identify(&[("dave@example.org", &dave.id)]);
        let invite = by_address(&identity, "dave@example.org");
        let room = alice.create_room().with("invite_3pid", json!([invite])).await;
        assert_eq!(membership(&alice, &room, &dave.id).await, "invite");
        let (second, third) = (alice.create_room().await, alice.create_room().await);
        alice.post(invite_path(&second), &invite).await.ok();
        alice.post(invite_path(&third), &invite).await.refused(429, "M_LIMIT_EXCEEDED");
        alice.get_state(&third, "m.room.member", &dave.id).await.refused(404, "M_NOT_FOUND");
    }

    async fn an_address_is_not_invited_by_who_may_not(server: Server) with (Settings::federating()) {
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

    async fn addresses_inside_are_not_asked(server: Server) with (Settings::federating()
        .with("ip_range_blocklist", json!(["127.0.0.0/8"])))
    {
        let identity = Other::start().await;
        let vouching = identity.identify(&[]);
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let invite = by_address(&identity, "dave@example.org");
        let refused = alice.post(invite_path(&room), &invite).await;
        // Where a name leads to inside is nobody's business.
        let why = refused.refused(403, "M_FORBIDDEN")["error"].clone();
        assert_eq!(why, "127.0.0.1 is not talked to");
        assert!(vouching.taken().is_empty());
        assert!(identity.seen("", "/_matrix/identity/").is_empty());
    }

    async fn addresses_may_not_be_invited_at_all(server: Server) with (Settings::federating().with("enable_3pid_lookup", false)) {
        let identity = Other::start().await;
        identity.identify(&[]);
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let invite = by_address(&identity, "dave@example.org");
        alice.post(invite_path(&room), &invite).await.refused(403, "M_FORBIDDEN");
        assert!(identity.seen("", "/_matrix/identity/").is_empty());
    }
}

/// Who makes rooms is killed while the second letter of each is written; the requests are made
/// again, of any instance that owns rooms: whoever is left is invited by the owner of the room.
#[tokio::test]
async fn a_new_room_that_is_asked_for_again_writes_each_letter_once() {
    let mut fleet = Server::fleet(BINARY, Settings::federating(), Spread::Random).await;
    let identity = Other::start().await;
    let vouching = identity.identify(&[]);
    let target = "/_matrix/identity/v2/store-invite";
    let hanging = Arc::new(AtomicBool::new(true));
    let hangs = hanging.clone();
    let is_second = |seen: &Seen| seen.body["address"] == "b@example.org";
    identity.on("POST", target, move |seen| {
        (is_second(seen) && hangs.load(Relaxed)).then(|| Reply::stuck("{"))
    });
    let worker = Http::on_socket(&public_socket(fleet.folder(), "sync1"));
    let alice = fleet.user("alice").await.at(&worker);
    let addresses = ["a@example.org", "b@example.org", "c@example.org"];
    let body = json!({"invite_3pid": addresses.map(|one| by_address(&identity, one))});
    let make = || async {
        loop {
            let answer = alice.post("/createRoom", &body).await;
            // Nobody may be there for a while.
            if answer.status != 503 {
                return answer.string("room_id");
            }
        }
    };
    let made = join_all([(); ROOMS].map(|()| make()));
    let killed = async {
        eventually("the second letter of each", || {
            let seen = identity.seen("POST", target);
            let count = seen.iter().filter(|one| is_second(one)).count();
            async move { if count >= ROOMS { Ok(()) } else { Err(count.to_string()) } }
        })
        .await;
        hanging.store(false, Relaxed);
        for persister in ["persister1", "persister2"] {
            fleet.members().instance(persister).kill9().expect("it can be killed");
        }
        fleet.members().launch().await.expect("they start again");
    };
    let (rooms, ()) = futures::join!(made, killed);
    for room in rooms {
        let taken = vouching.taken();
        for address in addresses {
            let letters =
                taken.iter().filter(|one| one["room_id"] == room && one["address"] == address);
            assert_eq!(letters.count(), 1, "{address}: {taken:#?}");
        }
        let state = alice.get(path("/rooms/{}/state", &[&room])).await;
        let pending = state.ok().as_array().into_iter().flatten();
        let pending = pending.filter(|event| event["type"] == "m.room.third_party_invite");
        assert_eq!(pending.count(), addresses.len(), "{state}");
    }
}
