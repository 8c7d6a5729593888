//! Push rules: the defaults, own rules, and what they change in the counts of a sync.

use chatd_kit::{User, scenario};
use serde_json::{Value, json};

async fn highlights(user: &User, room: &str) -> (u64, u64) {
    let synced = user.sync().await;
    let counts = &synced.room(room)["unread_notifications"];
    let count = |name: &str| counts[name].as_u64().unwrap_or_default();
    (count("notification_count"), count("highlight_count"))
}

fn ids(rules: &Value) -> Vec<&str> {
    rules.as_array().into_iter().flatten().filter_map(|rule| rule["rule_id"].as_str()).collect()
}

scenario! {
    async fn the_defaults_are_those_of_the_specification(server: Server) {
        let alice = server.user("alice").await;
        let rules = alice.get("/pushrules/").await;
        let rules = &rules.ok()["global"];
        let overrides = ids(&rules["override"]);
        for rule in [
            ".m.rule.master", ".m.rule.suppress_notices", ".m.rule.invite_for_me",
            ".m.rule.member_event", ".m.rule.is_user_mention", ".m.rule.is_room_mention",
            ".m.rule.tombstone", ".m.rule.reaction", ".m.rule.room.server_acl",
            ".m.rule.suppress_edits",
        ] {
            assert!(overrides.contains(&rule), "{rule} is not in {overrides:?}");
        }
        assert_eq!(overrides[0], ".m.rule.master");
        assert_eq!(rules["override"][0]["enabled"], false);
        for rule in [
            ".m.rule.call", ".m.rule.room_one_to_one", ".m.rule.message", ".m.rule.encrypted",
            ".m.rule.encrypted_room_one_to_one",
        ] {
            assert!(ids(&rules["underride"]).contains(&rule), "{rule}");
        }
        let part = alice.get("/pushrules/global/").await;
        assert_eq!(part.ok(), rules);
    }

    async fn own_rules_are_put_ordered_and_deleted(server: Server) {
        let alice = server.user("alice").await;
        let mut feed = alice.feed().await;
        let base = "/pushrules/global/content/";
        let rule = |pattern: &str| json!({"pattern": pattern, "actions": ["notify"]});
        alice.put(format!("{base}one"), &rule("cake")).await.ok();
        alice.put(format!("{base}two"), &rule("tea")).await.ok();
        alice.put(format!("{base}three"), &rule("jam")).query("after", "two").await.ok();
        alice.put(format!("{base}four"), &rule("pie")).query("before", "one").await.ok();
        let all = alice.get("/pushrules/").await;
        let order = ids(&all.ok()["global"]["content"]);
        let place = |id: &str| order.iter().position(|found| *found == id);
        assert!(place("two") < place("three") && place("three") < place("one"), "{order:?}");
        assert!(place("four") < place("one"), "{order:?}");
        feed.until("the rules", |synced| {
            synced
                .account_data()
                .into_iter()
                .find(|e| e["type"] == "m.push_rules" && e.to_string().contains("four"))
        })
        .await;

        let one = alice.get(format!("{base}one")).await;
        assert_eq!((&one.ok()["pattern"], &one.ok()["enabled"]), (&json!("cake"), &json!(true)));
        alice.put(format!("{base}one/enabled"), &json!({"enabled": false})).await.ok();
        assert_eq!(alice.get(format!("{base}one/enabled")).await.ok()["enabled"], false);
        alice.put(format!("{base}one/actions"), &json!({"actions": []})).await.ok();
        assert_eq!(alice.get(format!("{base}one/actions")).await.ok()["actions"], json!([]));
        alice.delete(format!("{base}one")).await.ok();
        alice.get(format!("{base}one")).await.refused(404, "M_NOT_FOUND");
        alice.delete(format!("{base}one")).await.refused(404, "M_NOT_FOUND");
    }

    async fn wrong_rules_are_refused(server: Server) {
        let alice = server.user("alice").await;
        let good = json!({"pattern": "x", "actions": []});
        for (path, body) in [
            ("/pushrules/global/content/.m.mine", good.clone()),
            ("/pushrules/global/content/x", json!({"actions": []})),
            ("/pushrules/global/content/x", json!({"pattern": "x", "actions": ["explode"]})),
            ("/pushrules/global/nonsense/x", good.clone()),
            ("/pushrules/global/override/x", json!({"actions": [], "conditions": "all"})),
        ] {
            let answer = alice.put(path, &body).await;
            assert!([400, 404].contains(&answer.status), "{path}: {answer}");
        }
        let answer = alice.put("/pushrules/global/content/x", &good).query("before", "nobody").await;
        assert!([400, 404].contains(&answer.status), "{answer}");
        let answer = alice.delete("/pushrules/global/override/.m.rule.master").await;
        assert!([400, 404].contains(&answer.status), "{answer}");
    }

    async fn rules_decide_what_counts(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let third = server.user("third").await;
        let room = alice.create_room().member(&bob).member(&third).await;
        let (base, _) = highlights(&bob, &room).await;
        let highlight = json!({
            "pattern": "cake", "actions": ["notify", {"set_tweak": "highlight"}],
        });
        bob.put("/pushrules/global/content/cake", &highlight).await.ok();
        alice.send(&room, "there is cake").await;
        assert_eq!(highlights(&bob, &room).await, (base + 1, 1));
        alice.send(&room, "there is none").await;
        assert_eq!(highlights(&bob, &room).await, (base + 2, 1));
        let notice = json!({"msgtype": "m.notice", "body": "a robot speaks"});
        alice.send_event(&room, "m.room.message", "n", &notice).await.ok();
        assert_eq!(highlights(&bob, &room).await, (base + 2, 1), "notices do not count");
        // A muted room.
        let muted = chatd_kit::path("/pushrules/global/room/{}", &[&room]);
        bob.put(muted, &json!({"actions": []})).await.ok();
        alice.send(&room, "unheard").await;
        assert_eq!(highlights(&bob, &room).await, (base + 2, 1));
        let master = "/pushrules/global/override/.m.rule.master/enabled";
        third.put(master, &json!({"enabled": true})).await.ok();
        let before = highlights(&third, &room).await;
        alice.send(&room, "cake again").await;
        assert_eq!(highlights(&third, &room).await, before);
    }

    async fn room_mentions_need_power(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().with("name", "k").member(&bob).await;
        let mention = json!({
            "msgtype": "m.text", "body": "@room", "m.mentions": {"room": true},
        });
        let before = highlights(&alice, &room).await.1;
        bob.send_event(&room, "m.room.message", "1", &mention).await.ok();
        assert_eq!(highlights(&alice, &room).await.1, before);
        let before = highlights(&bob, &room).await.1;
        alice.send_event(&room, "m.room.message", "2", &mention).await.ok();
        assert_eq!(highlights(&bob, &room).await.1, before + 1);
    }
}
