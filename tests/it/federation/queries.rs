//! What clients ask of other servers, through this one: profiles, aliases, room lists, keys.

use std::time::{Duration, Instant};

use chatd_kit::{Answer, Other, Settings, User, other::Reply, path, scenario};
use serde_json::{Value, json};

/// Until when instances have heard from each other.
const PATIENCE: Duration = Duration::from_secs(30);

const PROFILE: &str = "/_matrix/federation/v1/query/profile";
const DIRECTORY: &str = "/_matrix/federation/v1/query/directory";
const LIST: &str = "/_matrix/federation/v1/publicRooms";
const QUERY: &str = "/_matrix/federation/v1/user/keys/query";
const CLAIM: &str = "/_matrix/federation/v1/user/keys/claim";

async fn get(user: &User, path: &str) -> Answer {
    user.request("GET", path).await
}

scenario! {
    async fn profiles_of_other_servers_are_read_and_remembered(server: Server)
    with (Settings::federating())
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        let profile = json!({"displayname": "Bob", "avatar_url": null, "m.tz": "Europe/Paris"});
        other.on("GET", PROFILE, move |seen| {
            let known = seen.query("user_id").is_some_and(|user| user.starts_with("@bob:"));
            Some(if known { Reply::json(&profile) } else { Reply::refused(404, "M_NOT_FOUND") })
        });
        let bob = path("/profile/{}", &[&other.user("bob")]);
        let read = get(&alice, &bob).await;
        assert_eq!(*read.ok(), json!({"displayname": "Bob", "m.tz": "Europe/Paris"}));
        let name = get(&alice, &format!("{bob}/displayname")).await;
        assert_eq!(*name.ok(), json!({"displayname": "Bob"}));
        let nobody = path("/profile/{}", &[&other.user("nobody")]);
        get(&alice, &nobody).await.refused(404, "M_NOT_FOUND");
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn profiles_that_are_none_are_refused(server: Server) with (Settings::federating())
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        for (number, reply) in [
            Reply::json(&json!([])),
            Reply::bytes("no"),
            Reply::refused(401, "M_UNKNOWN_TOKEN"),
            Reply::refused(403, "M_UNKNOWN_TOKEN"),
            Reply::endless("{\"a\": \"", "aaaaaaaaaaaaaaaa"),
            Reply::redirect("http://127.0.0.1/"),
        ]
        .into_iter()
        .enumerate()
        {
            other.always("GET", PROFILE, reply);
            let user = other.user(&format!("user{number}"));
            get(&alice, &path("/profile/{}", &[&user])).await.refused(502, "M_UNKNOWN");
        }
        other.always("GET", PROFILE, Reply::refused(403, "M_FORBIDDEN"));
        get(&alice, &path("/profile/{}", &[&other.user("x")])).await.refused(403, "M_FORBIDDEN");
        let own = get(&alice, &path("/profile/{}", &[&alice.id])).await;
        own.ok();
    }

    async fn aliases_and_room_lists_of_other_servers_are_read(server: Server)
    with (Settings::federating())
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        let alias = format!("#room:{}", other.name());
        let place = json!({"room_id": format!("!r:{}", other.name()), "servers": [other.name()]});
        let (asked, answer) = (alias.clone(), place.clone());
        other.on("GET", DIRECTORY, move |seen| {
            let known = seen.query("room_alias") == Some(asked.clone());
            Some(if known { Reply::json(&answer) } else { Reply::refused(404, "M_NOT_FOUND") })
        });
        assert_eq!(*get(&alice, &path("/directory/room/{}", &[&alias])).await.ok(), place);
        let none = format!("#none:{}", other.name());
        get(&alice, &path("/directory/room/{}", &[&none])).await.refused(404, "M_NOT_FOUND");

        let page = json!({"chunk": [{"room_id": "!r:x", "num_joined_members": 1,
            "world_readable": true, "guest_can_join": false}]});
        let answer = page.clone();
        other.on("", LIST, move |seen| {
            let is_right = match seen.method.as_str() {
                "GET" => seen.query("limit").as_deref() == Some("5"),
                _ => seen.body["filter"]["generic_search_term"] == "x",
            };
            Some(if is_right { Reply::json(&answer) } else { Reply::refused(400, "M_UNKNOWN") })
        });
        let list = path("/publicRooms?server={}", &[&other.name()]);
        assert_eq!(*get(&alice, &format!("{list}&limit=5")).await.ok(), page);
        let search = json!({"filter": {"generic_search_term": "x"}});
        assert_eq!(*alice.request("POST", &list).json(&search).await.ok(), page);
    }

    async fn keys_of_other_servers_are_asked_for_at_the_same_time(server: Server)
    with (Settings::federating())
    {
        let (other, dead) = (Other::start().await, Other::start().await);
        dead.go_away();
        let alice = server.user("alice").await;
        let bob = other.user("bob");
        let keys = json!({
            "user_id": bob, "device_id": "B", "algorithms": [], "keys": {}, "signatures": {},
        });
        let master = json!({"user_id": bob, "usage": ["master"], "keys": {"ed25519:x": "x"}});
        other.always("POST", QUERY, Reply::json(&json!({
            "device_keys": {&bob: {"B": keys}, &alice.id: {"A": keys}},
            "master_keys": {&bob: master},
        })));
        let claimed = json!({"signed_curve25519:1": {"key": "k", "signatures": {}}});
        other.always("POST", CLAIM, Reply::json(&json!({
            "one_time_keys": {&bob: {"B": claimed}, &alice.id: {"A": claimed}},
        })));
        let gone = dead.user("carol");
        let wanted = json!({"device_keys": {&bob: [], &gone: [], &alice.id: []}, "timeout": 5000});
        let answer = alice.request("POST", "/keys/query").json(&wanted).await;
        assert_eq!(answer.ok()["device_keys"][&bob], json!({"B": keys}));
        assert_eq!(answer.ok()["master_keys"][&bob], master);
        assert_eq!(answer.ok()["device_keys"][&alice.id], json!({}), "nobody else speaks for her");
        failed_only(&answer, &dead.name());

        let wanted = json!({"one_time_keys": {
            &bob: {"B": "signed_curve25519"}, &gone: {"C": "signed_curve25519"},
        }});
        let answer = alice.request("POST", "/keys/claim").json(&wanted).await;
        assert_eq!(answer.ok()["one_time_keys"], json!({&bob: {"B": claimed}}));
        failed_only(&answer, &dead.name());
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_server_that_does_not_answer_is_left_alone_until_it_shows_signs_of_life(
        server: Server
    ) with (Settings::federating())
    {
        let (other, alice) = (Other::start().await, server.user("alice").await);
        other.always("POST", QUERY, Reply::json(&json!({})));
        other.go_away();
        let wanted = json!({"device_keys": {&other.user("bob"): []}});
        let query = async || alice.request("POST", "/keys/query").json(&wanted).await;
        failed_only(&query().await, &other.name());
        other.come_back().await;
        failed_only(&query().await, &other.name());
        assert_eq!(other.seen("POST", QUERY).len(), 0, "it is left alone");
        // A request of its own; the instances hear of it one after the other.
        other.get(&server.peer(), PROFILE).await;
        query_until_answered(query).await;
        assert_eq!(other.seen("POST", QUERY).len(), 1);
    }
}

/// Asks until it is answered: instances do not hear of each other at once.
async fn query_until_answered(query: impl AsyncFn() -> Answer) {
    let deadline = Instant::now() + PATIENCE;
    while query().await.ok()["failures"] != json!({}) {
        assert!(Instant::now() < deadline, "the other server is still left alone");
    }
}

#[track_caller]
fn failed_only(answer: &Answer, server: &str) {
    let failures = answer.ok()["failures"].as_object().map_or(Vec::new(), |failures| {
        failures.iter().map(|(server, why)| (server.as_str(), &why["status"])).collect()
    });
    assert_eq!(failures, [(server, &Value::from(503))], "{answer}");
}
