//! `/sync`: what comes in which section, filters, lazy members, gaps, waiting.

use chatd_kit::{
    Synced, User, path, scenario,
    sync::{events, has_type, ids},
};
use serde_json::{Value, json};

/// The state keys of the member events among `events`.
fn members(events: &[Value]) -> Vec<String> {
    let mut members: Vec<_> = events
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .map(|event| event["state_key"].as_str().unwrap_or_default().to_owned())
        .collect();
    members.sort_unstable();
    members
}

/// The content of the piece of state with this type among `events`.
fn content<'a>(events: &'a [Value], kind: &str) -> &'a Value {
    &events.iter().rfind(|event| event["type"] == kind).expect(kind)["content"]
}

/// A filter without presence: the first sync of a device is followed by its own.
fn quiet() -> Value {
    json!({"presence": {"types": []}})
}

async fn sync_with(user: &User, since: &str, filter: &Value) -> Synced {
    user.sync().since(since).filter(filter).await
}

scenario! {
    async fn a_first_sync_shows_state_and_timeline_once(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().with("name", "kitchen").member(&bob).await;
        let sent = alice.send(&room, "hello").await;
        let synced = bob.sync().await;
        let (state, timeline) = (synced.state(&room), synced.timeline(&room));
        assert_eq!(timeline.last().expect("a timeline")["event_id"], sent);
        let mut all = [state.clone(), timeline.clone()].concat();
        assert_eq!(all[0]["type"], "m.room.create");
        let mut seen = ids(&all);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all.len(), "nothing is both in state and in the timeline");
        all.retain(|event| event["type"] == "m.room.name");
        assert_eq!(all[0]["content"]["name"], "kitchen");
        assert!(content(&synced.account_data(), "m.push_rules")["global"].is_object());
    }

    async fn a_waiting_sync_gets_what_happens(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let waiting =
            bob.sync().since(&feed.since).filter(&quiet()).timeout_ms(60_000).start();
        let sent = alice.send(&room, "hello").await;
        let seen = waiting.await;
        assert_eq!(seen.timeline_ids(&room), [sent]);
        assert!(seen.state(&room).is_empty());
        assert_ne!(seen.room(&room)["timeline"]["limited"], true);
        feed.since = seen.next_batch();
        let nothing = feed.now().await;
        assert!(nothing.room(&room).is_null(), "{nothing:?}");
    }

    async fn a_sync_without_news_ends_with_its_timeout(server: Server) {
        let alice = server.user("alice").await;
        alice.create_room().await;
        let mut feed = alice.feed().await.filtered(quiet());
        let started = std::time::Instant::now();
        let nothing = feed.next(700).await;
        let waited = started.elapsed().as_millis();
        assert!((600..10_000).contains(&waited), "{waited} ms");
        assert_eq!(nothing.ok()["rooms"]["join"].as_object().map_or(0, |join| join.len()), 0);
    }

    async fn a_gap_is_told_and_its_state_is_sent(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let since = bob.sync().await.next_batch();
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "in the gap"})).await.ok();
        let mut sent = Vec::new();
        for number in 0..15 {
            sent.push(alice.send(&room, &number.to_string()).await);
        }
        let synced = bob.sync().since(&since).await;
        let timeline = &synced.room(&room)["timeline"];
        assert_eq!(timeline["limited"], true);
        assert_eq!(synced.timeline_ids(&room), &sent[5..], "ten unless the filter says otherwise");
        assert_eq!(content(&synced.state(&room), "m.room.topic")["topic"], "in the gap");
        let from = timeline["prev_batch"].as_str().expect("prev_batch");
        let page = bob.messages(&room, "b").query("from", from).query("to", &since).await;
        let page = page.ok()["chunk"].as_array().cloned().unwrap_or_default();
        assert_eq!(page.len(), 6, "the rest of the gap: five texts and the topic");
    }

    async fn state_after_is_the_state_at_the_end(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let since = bob.sync().await.next_batch();
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "new"})).await.ok();
        for flag in ["use_state_after", "org.matrix.msc4222.use_state_after"] {
            let synced = bob.sync().since(&since).with(flag, true).await;
            let name = flag.replace("use_", "");
            let state = events(&synced.room(&room)[&name]);
            assert_eq!(content(&state, "m.room.topic")["topic"], "new", "{flag}");
            assert!(synced.room(&room)["state"].is_null());
            assert!(has_type(&synced.timeline(&room), "m.room.topic"));
        }
        let plain = bob.sync().since(&since).await;
        assert!(plain.state(&room).is_empty(), "before the timeline nothing had changed");
    }

    async fn full_state_is_sent_when_asked_for(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().with("name", "kitchen").await;
        let since = alice.sync().await.next_batch();
        let synced = alice.sync().since(&since).with("full_state", true).await;
        assert!(has_type(&synced.state(&room), "m.room.create"));
        assert_eq!(content(&synced.state(&room), "m.room.name")["name"], "kitchen");
    }

    async fn invitations_show_a_stripped_room(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut feed = bob.feed().await;
        let room = alice.create_room().with("name", "kitchen").invite(&bob).await;
        let invited = feed
            .until("the invitation", |synced| {
                let state = events(&synced.section("invite", &room)["invite_state"]);
                (!state.is_empty()).then_some(state)
            })
            .await;
        assert_eq!(content(&invited, "m.room.name")["name"], "kitchen");
        assert!(has_type(&invited, "m.room.create") && has_type(&invited, "m.room.join_rules"));
        let mine = invited.iter().find(|event| event["state_key"] == bob.id);
        assert_eq!(mine.expect("the invitation itself")["content"]["membership"], "invite");
        let first = bob.sync().await;
        assert!(first.section("invite", &room).is_object(), "a first sync has it too");
        bob.leave(&room).await.ok();
        feed.until("the rejection", |synced| synced.section("leave", &room).as_object().cloned())
            .await;
    }

    async fn a_join_brings_the_whole_room(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.public_room().await;
        let before = alice.send(&room, "before").await;
        let mut feed = bob.feed().await;
        bob.join(&room).await.ok();
        let synced = feed
            .until("the room", |synced| synced.room(&room).is_object().then(|| synced.clone()))
            .await;
        let all = [synced.state(&room), synced.timeline(&room)].concat();
        assert!(has_type(&all, "m.room.create"));
        assert!(ids(&all).contains(&before), "history is shared");
        assert_eq!(members(&all), [&alice.id, &bob.id].map(String::as_str));
    }

    async fn leaving_shows_the_room_once_more(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let last = alice.send(&room, "the last").await;
        alice.change("kick", &room, &bob).await.ok();
        let hidden = alice.send(&room, "too late").await;
        let section = feed
            .until("the kick", |synced| synced.section("leave", &room).as_object().cloned())
            .await;
        let timeline = ids(&events(&section["timeline"]));
        assert!(timeline.contains(&last) && !timeline.contains(&hidden), "{timeline:?}");
        assert!(feed.now().await.section("leave", &room).is_null());
        let filter = json!({"room": {"include_leave": true}});
        let with_left = bob.sync().filter(&filter).await;
        assert!(with_left.section("leave", &room).is_object());
    }

    /// Each instance remembers which members it has told; as `random`, another one may be asked.
    async fn lazy_members_are_those_who_speak(server: Server) in (monolith, fleet) {
        let alice = server.user("alice").await;
        // Without a name the members that stand for it would be there too.
        let room = alice.create_room().preset("public_chat").with("name", "kitchen").await;
        let mut others = Vec::new();
        for number in 0..5 {
            let user = server.user(&format!("user{number}")).await;
            user.join(&room).await.ok();
            others.push(user);
        }
        for _ in 0..10 {
            others[3].send(&room, "only I speak").await;
        }
        let filter = json!({"room": {
            "state": {"lazy_load_members": true}, "timeline": {"limit": 5},
        }});
        let first = alice.sync().filter(&filter).await;
        let mut expected = [alice.id.clone(), others[3].id.clone()];
        expected.sort_unstable();
        let shown = members(&[first.state(&room), first.timeline(&room)].concat());
        assert!(shown.contains(&others[3].id), "{shown:?}");
        assert!(shown.len() <= 2, "{shown:?}, at most {expected:?}");
        let summary = &first.room(&room)["summary"];
        assert_eq!(summary["m.joined_member_count"], 6);

        others[4].send(&room, "I too").await;
        let next = sync_with(&alice, &first.next_batch(), &filter).await;
        assert_eq!(members(&next.state(&room)), [others[4].id.as_str()]);
        others[4].send(&room, "again").await;
        let last = sync_with(&alice, &next.next_batch(), &filter).await;
        assert!(members(&last.state(&room)).is_empty(), "redundant members are left out");
        let mut filter = filter;
        filter["room"]["state"]["include_redundant_members"] = json!(true);
        let last = sync_with(&alice, &next.next_batch(), &filter).await;
        assert_eq!(members(&last.state(&room)), [others[4].id.as_str()]);
    }

    async fn heroes_name_a_room_without_a_name(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).invite(&eve).await;
        let filter = json!({"room": {"state": {"lazy_load_members": true}}});
        let first = alice.sync().filter(&filter).await;
        let summary = &first.room(&room)["summary"];
        assert_eq!(summary["m.joined_member_count"], 2);
        assert_eq!(summary["m.invited_member_count"], 1);
        let mut heroes: Vec<_> =
            summary["m.heroes"].as_array().expect("heroes").iter().filter_map(Value::as_str).collect();
        heroes.sort_unstable();
        assert_eq!(heroes, [&bob.id, &eve.id].map(String::as_str));
    }

    async fn filters_choose_rooms_and_events(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (one, two) = (alice.create_room().member(&bob).await, alice.create_room().await);
        let since = alice.sync().await.next_batch();
        let mine = alice.send(&one, "mine").await;
        let his = bob.send(&one, "his").await;
        alice.send(&two, "elsewhere").await;
        alice.set_state(&one, "m.room.topic", "", &json!({"topic": "t"})).await.ok();

        let only_one = json!({"room": {"rooms": [one]}});
        let synced = sync_with(&alice, &since, &only_one).await;
        assert!(synced.room(&two).is_null() && synced.room(&one).is_object());
        let not_one = json!({"room": {"not_rooms": [one]}});
        let synced = sync_with(&alice, &since, &not_one).await;
        assert!(synced.room(&one).is_null() && synced.room(&two).is_object());
        let texts = json!({"room": {"timeline": {"types": ["m.room.message"]}}});
        let synced = sync_with(&alice, &since, &texts).await;
        assert_eq!(synced.timeline_ids(&one), [mine.clone(), his.clone()]);
        let not_mine = json!({"room": {"timeline": {
            "not_senders": [alice.id], "types": ["m.room.*"], "not_types": ["m.room.topic"],
        }}});
        assert_eq!(sync_with(&alice, &since, &not_mine).await.timeline_ids(&one), std::slice::from_ref(&his));
        let fields = json!({"event_fields": ["type", "content.body"], "room": {"rooms": [one]}});
        // Such an event is not what the schemas call one.
        let synced = alice.sync().since(&since).filter(&fields).unchecked().await;
        let first = synced.timeline(&one).swap_remove(0);
        assert_eq!(first, json!({"type": "m.room.message", "content": {"body": "mine"}}));
    }

    async fn a_stored_filter_is_used_by_its_id(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().await;
        for _ in 0..5 {
            alice.send(&room, "x").await;
        }
        let filter = json!({"room": {"timeline": {"limit": 2}}});
        let url = path("/user/{}/filter", &[&alice.id]);
        let id = alice.post(url.as_str(), &filter).await.string("filter_id");
        assert_eq!(alice.get(format!("{url}/{id}")).await.ok()["room"], filter["room"]);
        bob.get(format!("{url}/{id}")).await.refused(403, "M_FORBIDDEN");
        bob.post(url.as_str(), &filter).await.refused(403, "M_FORBIDDEN");
        alice.get(format!("{url}/999")).await.refused(404, "M_NOT_FOUND");
        let synced = alice.sync().with("filter", &id).await;
        assert_eq!(synced.timeline(&room).len(), 2);
        let wrong = alice.post(url, &json!({"room": {"timeline": {"limit": "many"}}})).await;
        assert_eq!(wrong.status, 400, "{wrong}");
    }

    async fn tokens_are_checked(server: Server) {
        let alice = server.user("alice").await;
        for wrong in ["nonsense", "s_", "%00"] {
            let answer = alice.sync().since(wrong).request().await;
            assert_eq!(answer.status, 400, "{wrong}: {answer}");
        }
        let answer = alice.sync().with("filter", "{not json").request().await;
        assert_eq!(answer.status, 400, "{answer}");
        let answer = alice.sync().with("timeout", "soon").request().await;
        assert_eq!(answer.status, 400, "{answer}");
        let answer = alice.sync().with("set_presence", "sleepy").request().await;
        assert_eq!(answer.status, 400, "{answer}");
    }

    async fn devices_of_one_user_sync_by_themselves(server: Server) {
        let alice = server.user("alice").await;
        let other = alice.another_device().await;
        let room = alice.create_room().await;
        let (mut one, mut two) = (alice.feed().await, other.feed().await);
        let sent = alice.send(&room, "hello").await;
        one.until_event(&room, &sent).await;
        two.until_event(&room, &sent).await;
    }

    async fn a_chain_of_syncs_is_the_room(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let mut seen = feed.first.timeline_ids(&room);
        for number in 0..20 {
            alice.send(&room, &format!("a {number}")).await;
            if number % 3 == 0 {
                seen.extend(feed.now().await.timeline_ids(&room));
            }
        }
        let last = alice.send(&room, "last").await;
        while seen.last() != Some(&last) {
            seen.extend(feed.next(2_000).await.timeline_ids(&room));
        }
        let history = ids(&alice.history(&room).await);
        assert_eq!(seen, &history[history.len() - seen.len()..]);
    }

    async fn an_old_token_works_after_a_restart(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let mut feed = bob.feed().await;
        let first = alice.send(&room, "before the restart").await;
        let status = server.sigterm().await.expect("it ends");
        assert!(status.success(), "{status}");
        server.restart().await.expect("it starts again");
        let second = alice.send(&room, "after the restart").await;
        let seen = feed.now().await;
        assert_eq!(seen.timeline_ids(&room), [first, second]);
    }
}
