//! What another server sends.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use chatd_kit::{Other, Settings, other::Reply, scenario};
use serde_json::{Value, json};

use super::shared::{Shared, shared};

const MISSING: &str = "/_matrix/federation/v1/get_missing_events/";
const STATE: &str = "/_matrix/federation/v1/state_ids/";
const DEVICES: &str = "/_matrix/federation/v1/user/devices/";
/// Messages to devices of one transaction.
const MESSAGES: usize = 50;

scenario! {
    async fn what_waits_outlives_a_crash(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let mut feed = alice.feed().await;
        let late = Reply::json(&json!({"events": []})).after(std::time::Duration::from_secs(60));
        other.always("POST", MISSING, late);
        far.say(&bob, "never sent");
        let last = far.say(&bob, "sent");
        other.deliver(&server.peer(), std::slice::from_ref(&last)).await;
        other.until("it is asked", "POST", MISSING, |_| Some(())).await;
        server.kill9().expect("it is killed");
        other.behave();
        server.restart().await.expect("it starts again");
        feed.until_event(&room, &last.id).await;
    }

    /// A server that answers that it is not well is asked until it is.
    async fn what_waits_waits_for_a_server_that_is_not_well(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let mut feed = alice.feed().await;
        other.always("POST", MISSING, Reply::refused(503, "M_UNKNOWN"));
        other.always("GET", STATE, Reply::refused(503, "M_UNKNOWN"));
        far.say(&bob, "never sent");
        let last = far.say(&bob, "sent");
        other.deliver(&server.peer(), std::slice::from_ref(&last)).await;
        chatd_kit::eventually("it is asked again", || async {
            let asked = other.seen("POST", MISSING).len();
            if asked > 2 { Ok(()) } else { Err(format!("{asked} times")) }
        })
        .await;
        other.behave();
        other.send(&server.peer(), &[], &[]).await.ok();
        feed.until_event(&room, &last.id).await;
    }

    async fn circles_and_endless_answers_are_contained(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "1").await;
        let mut feed = alice.feed().await;
        let name = |id: &str| format!("${id}:{}", other.name());
        let after = |id: &str, prev: &str| {
            let draft = far.draft(&bob, "m.room.message", json!({"body": id}));
            draft.after(&[name(prev)]).with("event_id", name(id)).make()
        };
        let circle = [after("a", "b"), after("b", "a")];
        let events: Vec<&Value> = circle.iter().map(|pdu| &pdu.json).collect();
        other.always("POST", MISSING, Reply::json(&json!({"events": events})));
        other.always("GET", STATE, Reply::refused(404, "M_NOT_FOUND"));
        other.deliver(&server.peer(), &[after("c", "a")]).await;
        other.until("the state is asked for", "GET", STATE, |_| Some(())).await;
        alice.send(&room, "nobody is held up").await;
        // Where the answer does not end, what has come counts for nothing.
        other.behave();
        other.always("POST", MISSING, Reply::endless("{\"events\":[", "1,"));
        far.say(&bob, "never sent");
        let last = far.say(&bob, "sent");
        other.deliver(&server.peer(), std::slice::from_ref(&last)).await;
        feed.until_event(&room, &last.id).await;
        let asked = other.seen("POST", MISSING).len();
        assert!(asked < 20, "it was asked {asked} times");
    }

    async fn many_branches_leave_few_heads(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "10").await;
        let fork = far.heads();
        for _ in 0..3 {
            let branch = |n| {
                far.draft(&bob, "m.room.message", json!({"body": n})).after(&fork).make()
            };
            let branches: Vec<_> = (0..50).map(branch).collect();
            other.deliver(&server.peer(), &branches).await;
        }
        let client = server.database().connect().await.expect("a connection");
        let sql = "SELECT max(array_length(events, 1)) FROM room_heads";
        let most: i32 = client.query_one(sql, &[]).await.expect("heads").get(0);
        assert!(most <= 11, "{most} heads");
        alice.send(&room, "one").await;
        let most: i32 = client.query_one(sql, &[]).await.expect("heads").get(0);
        assert_eq!(most, 1);
    }

    async fn an_event_of_another_server_is_seen(server: Server) with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let mut feed = alice.feed().await;
        let text = far.say(&bob, "hello");
        let peer = server.peer();
        let first = other.send_as(&peer, "one", std::slice::from_ref(&text), &[]).await;
        assert_eq!(first.ok()["pdus"], json!({ &text.id: {} }));
        let seen = feed.until_event(&room, &text.id).await;
        assert_eq!(seen["sender"], bob);
        let again = other.send_as(&peer, "one", std::slice::from_ref(&text), &[]).await;
        assert_eq!(again.ok(), first.ok());
        let other_way = other.send(&peer, std::slice::from_ref(&text), &[]).await;
        assert_eq!(other_way.ok(), first.ok(), "known by another transaction");
        let history = alice.history(&room).await;
        assert_eq!(history.iter().filter(|event| event["event_id"] == text.id).count(), 1);
        // Redacted where the content is not what was hashed.
        let changed = far.say(&bob, "true");
        let changed = changed.forged(&far.rules(), |event| event["content"]["body"] = "no".into());
        other.deliver(&peer, std::slice::from_ref(&changed)).await;
        let seen = feed.until_event(&room, &changed.id).await;
        assert_eq!(seen["content"], json!({}));
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn what_lies_between_is_fetched(server: Server) with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "10").await;
        let mut feed = alice.feed().await;
        let texts: Vec<_> = (0..25).map(|n| far.say(&bob, &n.to_string())).collect();
        let last = texts.last().expect("the last");
        other.deliver(&server.peer(), std::slice::from_ref(last)).await;
        feed.until_event(&room, &last.id).await;
        let history = alice.history(&room).await;
        let ids: Vec<&Value> = history.iter().map(|event| &event["event_id"]).collect();
        for text in &texts {
            assert!(ids.contains(&&text.id.as_str().into()), "{ids:#?}");
        }
    }

    async fn the_state_is_fetched_where_too_much_is_missing(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let mut feed = alice.feed().await;
        other.always("POST", "/_matrix/federation/v1/get_missing_events/",
            Reply::json(&json!({"events": []})));
        let carol = other.user("carol");
        let member = json!({"membership": "join"});
        far.set(&carol, "m.room.member", &carol, member);
        far.say(&bob, "never sent");
        let last = far.say(&carol, "sent");
        other.deliver(&server.peer(), std::slice::from_ref(&last)).await;
        feed.until_event(&room, &last.id).await;
        let members = alice.get(chatd_kit::path("/_matrix/client/v3/rooms/{}/joined_members", &[&room]));
        let members = members.await;
        assert!(members.ok()["joined"][&carol].is_object(), "{members}");
        // What was missing comes after all, and has its place.
        other.behave();
        let next = far.say(&bob, "next");
        other.deliver(&server.peer(), std::slice::from_ref(&next)).await;
        feed.until_event(&room, &next.id).await;
    }

    async fn lies_are_refused(server: Server) with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let peer = server.peer();
        let error = |answer: &chatd_kit::Answer, id: &str| {
            answer.ok()["pdus"][id]["error"].as_str().unwrap_or_default().to_owned()
        };
        // In the name of a user of another server.
        let forged = far.draft(&alice.id, "m.room.message", json!({"body": "I, Alice"})).make();
        let answer = other.send(&peer, std::slice::from_ref(&forged), &[]).await;
        assert!(!error(&answer, &forged.id).is_empty(), "{answer}");
        // Too large by one byte and more.
        let large = far.draft(&bob, "m.room.message", json!({"body": "x"})).make();
        let large = large.forged(&far.rules(), |event| {
            event["content"]["body"] = "x".repeat(65_537).into();
        });
        let answer = other.send(&peer, std::slice::from_ref(&large), &[]).await;
        assert!(answer.ok()["pdus"][&large.id] != json!({}), "{answer}");
        // Too many.
        let many: Vec<_> = (0..51).map(|_| forged.clone()).collect();
        other.send(&peer, &many, &[]).await.refused(400, "M_TOO_LARGE");
        let edus = vec![json!({"edu_type": "m.typing", "content": {}}); 101];
        other.send(&peer, &[], &edus).await.refused(400, "M_TOO_LARGE");
        // Of a room that nobody here knows.
        let elsewhere = other.create_room("11", &bob).say(&bob, "where am I?");
        let answer = other.send(&peer, std::slice::from_ref(&elsewhere), &[]).await;
        assert_ne!(answer.ok()["pdus"][&elsewhere.id], json!({}), "{answer}");
        // Without the power that it needs: kept, and not seen.
        let levels = json!({"users": {&bob: 100}});
        let coup = far.draft(&bob, "m.room.power_levels", levels).state("").make();
        other.send(&peer, std::slice::from_ref(&coup), &[]).await.ok();
        let now = alice.get_state(&room, "m.room.power_levels", "").await;
        assert!(now.ok()["users"][&bob].is_null(), "{now}");
        // A server that the room keeps out.
        let list = json!({"allow": ["*"], "deny": [other.name().split(':').next()]});
        alice.set_state(&room, "m.room.server_acl", "", &list).await.ok();
        let late = far.say(&bob, "let me in");
        let answer = other.send(&peer, std::slice::from_ref(&late), &[]).await;
        assert!(!error(&answer, &late.id).is_empty(), "{answer}");
        alice.send(&room, "we are alone").await;
    }

    async fn edus_reach_clients(server: Server) with (Settings::federating()) {
        let Shared { alice, other, bob, room, far: _ } = shared(&server, "11").await;
        let peer = server.peer();
        let mut feed = alice.feed().await;
        let event = alice.send(&room, "read me").await;
        let edu = |kind: &str, content: Value| json!({"edu_type": kind, "content": content});
        let stranger = "@carol:elsewhere.example";
        let receipt = json!({"data": {"ts": 1_700_000_000_000_i64}, "event_ids": [&event]});
        let device = json!({
            "user_id": bob, "device_id": "PHONE", "algorithms": [], "keys": {}, "signatures": {},
        });
        let list = json!({
            "user_id": bob, "stream_id": 7,
            "devices": [{"device_id": "PHONE", "keys": device, "device_display_name": "phone"}],
        });
        other.always("GET", DEVICES, Reply::json(&list));
        let edus = [
            edu("m.typing", json!({"room_id": room, "user_id": bob, "typing": true})),
            edu("m.typing", json!({"room_id": room, "user_id": stranger, "typing": true})),
            edu("m.receipt", json!({ &room: { "m.read": { &bob: receipt } } })),
            edu("m.presence", json!({"push": [{
                "user_id": bob, "presence": "online", "last_active_ago": 10, "status_msg": "here",
            }]})),
            edu("m.direct_to_device", json!({
                "sender": bob, "type": "org.example.ping", "message_id": "m1",
                "messages": { &alice.id: { "*": {"n": 1} } },
            })),
            edu("m.device_list_update", json!({
                "user_id": bob, "device_id": "PHONE", "stream_id": 5, "prev_id": [4],
            })),
        ];
        other.send(&peer, &[], &edus).await.ok();
        other.send(&peer, &[], &edus).await.ok();
        let mut open: Vec<&str> = vec!["typing", "receipt", "presence", "message", "devices"];
        let mut messages = 0;
        feed.until("all that was sent", |synced| {
            let has = |kind: &str| synced.ephemeral_of(&room, kind);
            let typing = has("m.typing").is_some_and(|typing| {
                typing["content"]["user_ids"] == json!([bob])
            });
            let read = has("m.receipt")
                .is_some_and(|receipt| receipt["content"][&event]["m.read"][&bob].is_object());
            let present = synced.presence().iter().any(|presence| {
                presence["sender"] == bob && presence["content"]["status_msg"] == "here"
            });
            let got = synced.to_device().len();
            messages += got;
            let changed = synced.ok()["device_lists"]["changed"].to_string().contains(&bob);
            let found = [
                ("typing", typing), ("receipt", read), ("presence", present), ("message", got > 0),
                ("devices", changed),
            ];
            open.retain(|name| !found.iter().any(|(other, found)| other == name && *found));
            open.is_empty().then_some(())
        })
        .await;
        assert_eq!(messages, 1, "a repeat has no effect");
        other.until("the list is fetched", "GET", DEVICES, |_| Some(())).await;
    }

    /// Servers tell in one transaction of an event and of who has read it.
    async fn a_receipt_may_come_with_its_event(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, room, far } = shared(&server, "11").await;
        let said = far.say(&bob, "read by who has said it");
        let receipt = json!({"data": {"ts": 1_700_000_000_000_i64}, "event_ids": [&said.id]});
        let content = json!({ &room: { "m.read": { &bob: receipt } } });
        let receipt = json!({"edu_type": "m.receipt", "content": content});
        other.send(&server.peer(), std::slice::from_ref(&said), &[receipt]).await.ok();
        let synced = alice.sync().await;
        let receipts = synced.ephemeral_of(&room, "m.receipt").unwrap_or_default();
        let of_event = &receipts["content"][&said.id]["m.read"];
        assert!(of_event[&bob].is_object(), "{receipts}");
    }

    /// Verification and the exchange of keys are talks, in which each step has its turn.
    async fn messages_to_devices_stay_in_their_order(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, .. } = shared(&server, "11").await;
        let mut feed = alice.feed().await;
        let message = |number: usize| json!({
            "edu_type": "m.direct_to_device",
            "content": {
                "sender": bob, "type": "org.example.step", "message_id": number.to_string(),
                "messages": { &alice.id: { "*": {"step": number} } },
            },
        });
        let messages: Vec<Value> = (0..MESSAGES).map(message).collect();
        other.send(&server.peer(), &[], &messages).await.ok();
        let mut steps = Vec::new();
        feed.until("all messages", |synced| {
            steps.extend(synced.to_device().iter().map(|event| event["content"]["step"].clone()));
            (steps.len() >= MESSAGES).then_some(())
        })
        .await;
        assert_eq!(json!(steps), json!((0..MESSAGES).collect::<Vec<_>>()));
    }

    /// What is told of a list of devices while it is fetched may be newer than what comes.
    async fn a_device_is_known_that_comes_while_the_list_is_fetched(server: Server)
    with (Settings::federating()) {
        let Shared { alice, other, bob, .. } = shared(&server, "11").await;
        let device = |id: &str| json!({"device_id": id, "keys": {
            "user_id": bob, "device_id": id, "algorithms": [], "keys": {}, "signatures": {},
        }});
        let list = |id: u64, devices: &[&str]| {
            let devices: Vec<Value> = devices.iter().copied().map(device).collect();
            Reply::json(&json!({"user_id": bob, "stream_id": id, "devices": devices}))
        };
        let (old, new) = (list(5, &["PHONE"]), list(6, &["PHONE", "TABLET"]));
        let is_first = AtomicBool::new(true);
        other.on("GET", DEVICES, move |_| {
            let is_first = is_first.swap(false, Ordering::Relaxed);
            Some(if is_first { old.clone().after(Duration::from_secs(3)) } else { new.clone() })
        });
        let update = |id: &str, stream_id: u64| {
            let mut content = device(id);
            content["user_id"] = json!(bob);
            content["stream_id"] = stream_id.into();
            content["prev_id"] = json!([stream_id - 1]);
            json!({"edu_type": "m.device_list_update", "content": content})
        };
        other.send(&server.peer(), &[], &[update("PHONE", 5)]).await.ok();
        other.until("the list is fetched", "GET", DEVICES, |_| Some(())).await;
        other.send(&server.peer(), &[], &[update("TABLET", 6)]).await.ok();
        let query = json!({"device_keys": {&bob: []}});
        chatd_kit::eventually("the list is known", || async {
            let answer = alice.post("/keys/query", &query).await;
            let devices = answer.ok()["device_keys"][&bob].clone();
            let is_known = devices["PHONE"].is_object() && devices["TABLET"].is_object();
            if is_known { Ok(()) } else { Err(answer.to_string()) }
        })
        .await;
    }

    /// What is told of somebody who is in no room yet is looked at a moment later. By the instance that
    /// was told: as `random`, two may have been, and then the later look counts.
    async fn of_what_is_told_too_early_the_newest_counts(server: Server) in (monolith, fleet)
    with (Settings::federating()) {
        let alice = server.user("alice").await;
        let room = alice.create_room().preset("public_chat").version("11").await;
        let other = Other::start().await;
        let (bob, peer) = (other.user("bob"), server.peer());
        for status in ["just here", "gone for lunch"] {
            let push = json!([{"user_id": bob, "presence": "online", "status_msg": status}]);
            let edu = json!({"edu_type": "m.presence", "content": {"push": push}});
            other.send(&peer, &[], &[edu]).await.ok();
        }
        let mut feed = alice.feed().await;
        other.join(&peer, &room, &bob).await;
        feed.until("what was told last", |synced| {
            let all = synced.presence();
            let of_bob = all.iter().filter(|presence| presence["sender"] == bob);
            of_bob.map(|presence| &presence["content"]["status_msg"])
                .any(|status| status == "gone for lunch")
                .then_some(())
        })
        .await;
    }
}
