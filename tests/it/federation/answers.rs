//! What other servers ask about rooms and users that they share with this one.

use chatd_kit::{Answer, Other, Server, Settings, other::Pdu, path, scenario};
use serde_json::{Value, json};

use super::shared::{Shared, shared};

const V1: &str = "/_matrix/federation/v1";

impl Shared {
    async fn get(&self, server: &Server, route: &str, arguments: &[&str]) -> Answer {
        self.other.get(&server.peer(), &path(&format!("{V1}{route}"), arguments)).await
    }
}

fn ids(answer: &Answer, name: &str) -> Vec<String> {
    let all = answer.ok()[name].as_array().expect("a list").iter();
    all.map(|id| id.as_str().expect("an id").to_owned()).collect()
}

scenario! {
    async fn events_state_and_history_are_told_as_they_were_signed(server: Server)
    with (Settings::federating())
    {
        for version in ["1", "6", "11", "12"] {
            let shared = shared(&server, version).await;
            let (room, rules) = (&shared.room, shared.far.rules());
            let texts = ["one", "two", "three"];
            let mut sent = Vec::new();
            for text in texts {
                sent.push(shared.alice.send(room, text).await);
            }
            let last = &sent[2];
            let event = shared.get(&server, "/event/{}", &[last]).await;
            let pdu = Pdu::of(event.ok()["pdus"][0].clone(), &rules);
            shared.other.check_pdu(&pdu, &rules).await.expect("signed and hashed");
            assert_eq!((&pdu.id, &pdu.json["content"]["body"]), (last, &json!("three")));

            let at = format!("?event_id={}", path("{}", &[last]));
            let names = shared.get(&server, &format!("/state_ids/{{}}{at}"), &[room]).await;
            let state = shared.get(&server, &format!("/state/{{}}{at}"), &[room]).await;
            let pdu_ids = ids(&names, "pdu_ids");
            assert_eq!(pdu_ids.len(), shared.far.current().len(), "version {version}");
            for (list, of) in [("pdus", pdu_ids), ("auth_chain", ids(&names, "auth_chain_ids"))] {
                let pdus = state.ok()[list].as_array().expect("a list").iter();
                let pdus: Vec<Pdu> = pdus.map(|pdu| Pdu::of(pdu.clone(), &rules)).collect();
                let mut found: Vec<_> = pdus.iter().map(|pdu| pdu.id.clone()).collect();
                let mut named = of;
                found.sort();
                named.sort();
                assert_eq!(found, named, "version {version}: {list}");
                for pdu in &pdus {
                    shared.other.check_pdu(pdu, &rules).await.expect("signed and hashed");
                }
            }
            let chain = shared.get(&server, "/event_auth/{}/{}", &[room, last]).await;
            // In version 12 the create event is in no list.
            assert!(chain.ok()["auth_chain"].as_array().expect("a list").len() >= 2);

            let back = format!("/backfill/{{}}?limit=2&v={}", path("{}", &[last]));
            let back = shared.get(&server, &back, &[room]).await;
            let back: Vec<&Value> = back.ok()["pdus"].as_array().expect("a list").iter().collect();
            let bodies: Vec<_> = back.iter().map(|pdu| &pdu["content"]["body"]).collect();
            assert_eq!(bodies, ["three", "two"], "version {version}");

            let question = json!({"earliest_events": [sent[0]], "latest_events": [last]});
            let route = path(&format!("{V1}/get_missing_events/{{}}"), &[room]);
            let missing = shared.other.ask(&server.peer(), "POST", &route, Some(&question)).await;
            let missing = missing.ok()["events"].as_array().expect("a list");
            assert_eq!(missing.len(), 1);
            assert_eq!(missing[0]["content"]["body"], "two", "version {version}");
            assert!(shared.other.problems().is_empty(), "{:?}", shared.other.problems());
        }
    }

    async fn strangers_and_servers_that_are_kept_out_learn_nothing(server: Server)
    with (Settings::federating())
    {
        let shared = shared(&server, "11").await;
        let text = shared.alice.send(&shared.room, "secret").await;
        let stranger = Other::start().await;
        let routes = [
            path(&format!("{V1}/event/{{}}"), &[&text]),
            path(&format!("{V1}/state_ids/{{}}?event_id={{}}"), &[&shared.room, &text]),
            path(&format!("{V1}/backfill/{{}}?limit=1&v={{}}"), &[&shared.room, &text]),
            path(&format!("{V1}/event_auth/{{}}/{{}}"), &[&shared.room, &text]),
            path(&format!("{V1}/state/{{}}?event_id={{}}"), &["!none:example.org", &text]),
        ];
        for route in &routes {
            stranger.get(&server.peer(), route).await.refused(403, "M_FORBIDDEN");
        }
        shared.other.get(&server.peer(), &routes[0]).await.ok();
        let none = path(&format!("{V1}/event/{{}}"), &["$none"]);
        shared.other.get(&server.peer(), &none).await.refused(404, "M_NOT_FOUND");
        let list = json!({"allow": ["*"], "deny": ["127.0.0.*"], "allow_ip_literals": true});
        shared.alice.set_state(&shared.room, "m.room.server_acl", "", &list).await.ok();
        for route in &routes[..4] {
            shared.other.get(&server.peer(), route).await.refused(403, "M_FORBIDDEN");
        }
    }

    async fn what_was_said_before_a_server_came_may_be_hidden(server: Server)
    with (Settings::federating())
    {
        let alice = server.user("alice").await;
        let hidden = json!({"history_visibility": "joined"});
        let room = alice.create_room().preset("public_chat").state("m.room.history_visibility", hidden).await;
        let before = alice.send(&room, "before").await;
        let other = Other::start().await;
        other.join(&server.peer(), &room, &other.user("bob")).await;
        let after = alice.send(&room, "after").await;
        for (id, content) in [(before, json!({})), (after, json!({"body": "after", "msgtype": "m.text"}))] {
            let event = other.get(&server.peer(), &path(&format!("{V1}/event/{{}}"), &[&id])).await;
            assert_eq!(event.ok()["pdus"][0]["content"], content);
        }
    }

    async fn users_aliases_and_keys_are_told(server: Server)
    with (Settings::federating().with("allow_public_rooms_over_federation", false))
    {
        let shared = shared(&server, "11").await;
        let (alice, peer) = (&shared.alice, server.peer());
        let alias = format!("#here:{}", server.name());
        let route = path("/directory/room/{}", &[&alias]);
        alice.put(route, &json!({"room_id": shared.room})).await.ok();
        let found = shared.get(&server, "/query/directory?room_alias={}", &[&alias]).await;
        assert_eq!(found.ok()["room_id"], shared.room.as_str());
        assert_eq!(found.ok()["servers"], json!([server.name(), shared.other.name()]));
        let none = format!("#none:{}", server.name());
        let none = shared.get(&server, "/query/directory?room_alias={}", &[&none]).await;
        none.refused(404, "M_NOT_FOUND");

        let profile = shared.get(&server, "/query/profile?user_id={}", &[&alice.id]).await;
        assert_eq!(profile.ok()["displayname"], alice.name.as_str());
        let field = "/query/profile?field=avatar_url&user_id={}";
        assert_eq!(*shared.get(&server, field, &[&alice.id]).await.ok(), json!({}));
        let nobody = format!("@nobody:{}", server.name());
        for user in [&nobody, &shared.bob] {
            let answer = shared.get(&server, "/query/profile?user_id={}", &[user]).await;
            answer.refused(404, "M_NOT_FOUND");
            let answer = shared.get(&server, "/user/devices/{}", &[user]).await;
            answer.refused(404, "M_NOT_FOUND");
        }

        let device = &alice.device;
        let keys = json!({
            "user_id": alice.id, "device_id": device, "algorithms": ["m.olm"],
            "keys": {format!("ed25519:{device}"): "AAAA"},
            "signatures": {&alice.id: {format!("ed25519:{device}"): "AAAA"}},
        });
        let upload = json!({"device_keys": keys, "one_time_keys": {"curve25519:one": "BBBB"}});
        alice.post("/keys/upload", &upload).await.ok();
        let devices = shared.get(&server, "/user/devices/{}", &[&alice.id]).await;
        assert_eq!(devices.ok()["devices"], json!([{"device_id": device, "keys": keys}]));
        assert!(devices.ok()["stream_id"].as_u64().is_some_and(|id| id > 0), "{devices}");
        let ask = |route: &str, body: Value| {
            let (other, peer, route) = (shared.other.clone(), peer.clone(), format!("{V1}{route}"));
            async move { other.ask(&peer, "POST", &route, Some(&body)).await }
        };
        let wanted = json!({"device_keys": {&alice.id: [], &shared.bob: []}});
        let told = ask("/user/keys/query", wanted).await;
        assert_eq!(told.ok()["device_keys"], json!({&alice.id: {device: keys}}));
        let wanted = json!({"one_time_keys": {&alice.id: {device: "curve25519"}}});
        let told = ask("/user/keys/claim", wanted.clone()).await;
        let claimed = &told.ok()["one_time_keys"][&alice.id][device];
        assert_eq!(*claimed, json!({"curve25519:one": "BBBB"}));
        assert_eq!(ask("/user/keys/claim", wanted).await.ok()["one_time_keys"], json!({}));
        let closed = shared.get(&server, "/publicRooms", &[]).await;
        closed.refused(403, "M_FORBIDDEN");
    }

    async fn the_directory_is_told_where_that_is_allowed(server: Server)
    with (Settings::federating().with("allow_public_rooms_over_federation", true))
    {
        let alice = server.user("alice").await;
        let room = alice.create_room().preset("public_chat").with("visibility", "public").await;
        let other = Other::start().await;
        let route = format!("{V1}/publicRooms");
        let told = other.get(&server.peer(), &route).await;
        assert_eq!(told.ok()["chunk"][0]["room_id"], room.as_str());
        let body = json!({"limit": 1, "filter": {"generic_search_term": "no such room"}});
        let told = other.ask(&server.peer(), "POST", &route, Some(&body)).await;
        assert_eq!(told.ok()["chunk"], json!([]));
    }
}
