//! The trees of spaces: `/hierarchy`, for clients and for other servers.

use chatd_kit::{
    Answer, Other, Server, Settings, Synapse, User,
    http::Request,
    other::{Reply, Room},
    path, scenario,
};
use serde_json::{Value, json};

const FAR: &str = "/_matrix/federation/v1/hierarchy/";

fn hierarchy(user: &User, room: &str) -> Request {
    user.get(path("/_matrix/client/v1/rooms/{}/hierarchy", &[room]))
}

/// Asks again as long as there have been too many questions.
async fn rooms(user: &User, room: &str, query: &[(&str, &str)]) -> Answer {
    loop {
        let request = hierarchy(user, room);
        let asked = query.iter().fold(request, |request, (name, value)| request.query(name, value));
        let answer = asked.await;
        if answer.status != 429 {
            return answer;
        }
    }
}

fn ids(answer: &Answer) -> Vec<String> {
    let rooms = answer.ok()["rooms"].as_array().expect("a list of rooms").iter();
    rooms.map(|room| room["room_id"].as_str().expect("an id").to_owned()).collect()
}

async fn space(user: &User, preset: &str) -> String {
    let create = json!({"type": "m.space"});
    user.create_room().preset(preset).with("creation_content", create).await
}

/// Puts a room into a space.
async fn put(user: &User, space: &str, room: &str, content: Value) {
    user.set_state(space, "m.space.child", room, &content).await.ok();
}

fn via(server: &str) -> Value {
    json!({"via": [server]})
}

/// Whoever is in `space` may join.
async fn restrict(user: &User, room: &str, space: &str) {
    let allow = json!([{"type": "m.room_membership", "room_id": space}]);
    let rules = json!({"join_rule": "restricted", "allow": allow});
    user.set_state(room, "m.room.join_rules", "", &rules).await.ok();
}

/// A space elsewhere with a room in it, in the memory of the other server.
fn far_space(other: &Other) -> (Room, Value) {
    let bob = other.user("bob");
    let room = other.create_room_with("11", &bob, &json!({"type": "m.space"}));
    let summary = json!({
        "room_id": room.id(), "num_joined_members": 3, "world_readable": false,
        "guest_can_join": false, "join_rule": "public", "room_type": "m.space", "name": "far",
    });
    (room, summary)
}

fn child_event(room: &str, server: &str, at: i64) -> Value {
    json!({
        "type": "m.space.child", "state_key": room, "content": via(server),
        "sender": format!("@bob:{server}"), "origin_server_ts": at,
    })
}

fn room_elsewhere(id: &str, rule: &str, allowed: &[&str]) -> Value {
    json!({
        "room_id": id, "num_joined_members": 1, "world_readable": false, "guest_can_join": false,
        "join_rule": rule, "allowed_room_ids": allowed,
    })
}

/// The other server in front of the one that is asked about `room`.
async fn asked(server: &Server, other: &Other, room: &str) -> Answer {
    other.get(&server.peer(), &format!("{FAR}{}", path("{}", &[room]))).await
}

scenario! {
    async fn a_tree_is_told_depth_first_in_the_order_of_its_spaces(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let (top, below) = (space(&alice, "public_chat").await, space(&alice, "public_chat").await);
        let mut leaves = Vec::new();
        for _ in 0..4 {
            leaves.push(alice.public_room().await);
        }
        let here = server.name().to_owned();
        put(&alice, &top, &leaves[0], via(&here)).await;
        put(&alice, &top, &below, json!({"via": [here], "order": "b", "suggested": true})).await;
        put(&alice, &top, &leaves[1], json!({"via": [here], "order": "a", "suggested": true})).await;
        put(&alice, &below, &leaves[2], via(&here)).await;
        put(&alice, &below, &leaves[0], via(&here)).await;
        put(&alice, &below, &top, via(&here)).await;
        put(&alice, &top, &leaves[3], json!({})).await;

        let all = rooms(&bob, &top, &[]).await;
        let expected = [&top, &leaves[1], &below, &leaves[2], &leaves[0]];
        assert_eq!(ids(&all), expected.map(ToOwned::to_owned));
        assert!(all.ok()["next_batch"].is_null(), "{all}");
        let first = &all.ok()["rooms"][0];
        assert_eq!((&first["room_type"], &first["num_joined_members"]), (&json!("m.space"), &json!(1)));
        assert_eq!((&first["join_rule"], &first["room_version"]), (&json!("public"), &json!("12")));
        let told: Vec<_> = first["children_state"].as_array().expect("children").iter()
            .map(|child| child["state_key"].as_str().unwrap_or_default()).collect();
        assert_eq!(told, [&leaves[1], &below, &leaves[0]]);
        assert_eq!(first["children_state"][1]["content"]["order"], "b");
        assert_eq!(first["children_state"][1]["sender"], alice.id);
        assert_eq!(all.ok()["rooms"][1]["children_state"], json!([]));

        for (query, expected) in [
            (vec![("max_depth", "0")], vec![&top]),
            (vec![("max_depth", "1")], vec![&top, &leaves[1], &below, &leaves[0]]),
            (vec![("suggested_only", "true")], vec![&top, &leaves[1], &below]),
        ] {
            let told = rooms(&bob, &top, &query).await;
            assert_eq!(ids(&told).iter().collect::<Vec<_>>(), expected, "{query:?}");
        }

        let (mut pages, mut from) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("limit", "2")];
            if !from.is_empty() {
                query.push(("from", from.as_str()));
            }
            let page = rooms(&bob, &top, &query).await;
            pages.push(ids(&page));
            match page.ok()["next_batch"].as_str() {
                Some(next) => from = next.to_owned(),
                None => break,
            }
        }
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(pages.concat(), expected.map(ToOwned::to_owned));
        for query in [
            vec![("from", from.as_str()), ("max_depth", "3")],
            vec![("from", from.as_str()), ("suggested_only", "true")],
            vec![("from", "what")],
            vec![("limit", "0")],
            vec![("limit", "-1")],
            vec![("max_depth", "-1")],
        ] {
            rooms(&bob, &top, &query).await.refused(400, "M_INVALID_PARAM");
        }
    }

    async fn a_user_is_told_of_rooms_that_are_open_to_them(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let here = server.name().to_owned();
        let top = space(&alice, "public_chat").await;
        let closed = alice.create_room().await;
        let invited = alice.create_room().invite(&bob).await;
        let joined = alice.create_room().member(&bob).await;
        let restricted = alice.create_room().await;
        restrict(&alice, &restricted, &top).await;
        let knock = alice.create_room().await;
        alice.set_state(&knock, "m.room.join_rules", "", &json!({"join_rule": "knock"})).await.ok();
        let readable = json!({"history_visibility": "world_readable"});
        let readable = alice.create_room().state("m.room.history_visibility", readable).await;
        let banned = alice.public_room().await;
        alice.change("ban", &banned, &bob).await.ok();
        let all = [&closed, &invited, &joined, &restricted, &knock, &readable, &banned];
        for (number, room) in all.iter().enumerate() {
            put(&alice, &top, room, json!({"via": [here], "order": number.to_string()})).await;
        }
        let told = |rooms: &[&String]| -> Vec<String> {
            [&top].into_iter().chain(rooms.iter().copied()).cloned().collect()
        };
        let outside = rooms(&bob, &top, &[]).await;
        assert_eq!(ids(&outside), told(&[&invited, &joined, &knock, &readable]));
        bob.join(&top).await.ok();
        let inside = rooms(&bob, &top, &[]).await;
        assert_eq!(ids(&inside), told(&[&invited, &joined, &restricted, &knock, &readable]));
        let entry = inside.ok()["rooms"].as_array().expect("rooms").iter()
            .find(|room| room["room_id"] == restricted.as_str()).expect("the restricted room");
        assert_eq!(entry["allowed_room_ids"], json!([top]));
        assert_eq!(entry["join_rule"], "restricted");
        let own = rooms(&alice, &top, &[]).await;
        assert_eq!(ids(&own), told(&all));
        rooms(&bob, &closed, &[]).await.refused(403, "M_FORBIDDEN");
        rooms(&bob, &banned, &[]).await.refused(403, "M_FORBIDDEN");
        let none = format!("!none:{here}");
        rooms(&bob, &none, &[]).await.refused(403, "M_FORBIDDEN");
    }

    async fn whoever_asks_too_often_waits(server: Server) {
        let alice = server.user("alice").await;
        let room = alice.create_room().await;
        let asking = (0..30).map(|_| async { hierarchy(&alice, &room).await.status });
        let statuses = futures::future::join_all(asking).await;
        assert!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
    }

    async fn other_servers_are_told_what_is_open_to_them(server: Server)
    with (Settings::federating())
    {
        let alice = server.user("alice").await;
        let (other, stranger) = (Other::start().await, Other::start().await);
        let here = server.name().to_owned();
        let top = space(&alice, "public_chat").await;
        let (open, closed) = (alice.public_room().await, alice.create_room().await);
        let restricted = alice.create_room().await;
        restrict(&alice, &restricted, &top).await;
        for (number, room) in [&open, &closed, &restricted].into_iter().enumerate() {
            put(&alice, &top, room, json!({"via": [here], "order": number.to_string()})).await;
        }
        put(&alice, &top, "!elsewhere:example.org", via("example.org")).await;
        other.join(&server.peer(), &top, &other.user("bob")).await;
        let children = |answer: &Answer| -> Vec<Value> {
            let all = answer.ok()["children"].as_array().expect("a list").iter();
            all.map(|room| room["room_id"].clone()).collect()
        };
        let told = asked(&server, &other, &top).await;
        assert_eq!(told.ok()["room"]["room_id"], top.as_str());
        assert_eq!(told.ok()["room"]["children_state"].as_array().map(Vec::len), Some(4));
        assert_eq!(children(&told), [json!(open), json!(restricted)]);
        assert_eq!(told.ok()["inaccessible_children"], json!([closed]));
        let told = asked(&server, &stranger, &top).await;
        assert_eq!(children(&told), [json!(open)]);
        assert_eq!(told.ok()["inaccessible_children"].as_array().map(Vec::len), Some(2));
        asked(&server, &stranger, &closed).await.refused(404, "M_NOT_FOUND");
        asked(&server, &stranger, "!none:example.org").await.refused(404, "M_NOT_FOUND");
        let route = format!("{FAR}{}?suggested_only=true", path("{}", &[&top]));
        let told = other.get(&server.peer(), &route).await;
        assert_eq!((children(&told), told.ok()["room"]["children_state"].clone()), (vec![], json!([])));
    }

    /// By each instance; as `random`, any may be asked.
    async fn rooms_elsewhere_are_asked_for_once(server: Server) in (monolith, fleet) with (Settings::federating())
    {
        let (alice, other) = (server.user("alice").await, Other::start().await);
        let dead = Other::start().await;
        dead.go_away();
        let there = other.name();
        let top = space(&alice, "public_chat").await;
        let (far, summary) = far_space(&other);
        let named = |name: &str| format!("!{name}:{there}");
        let (open, secret, own, closed) =
            (named("open"), named("secret"), named("own"), named("closed"));
        let told = {
            let mut room = summary.clone();
            room["children_state"] = [&open, &secret, &own, &closed, &top].into_iter().zip(1..)
                .map(|(room, at)| child_event(room, &there, at)).collect();
            json!({
                "room": room,
                "children": [
                    room_elsewhere(&open, "public", &[]), room_elsewhere(&secret, "invite", &[]),
                    room_elsewhere(&own, "restricted", &[&top]),
                ],
                "inaccessible_children": [closed],
            })
        };
        other.always("GET", FAR, Reply::json(&told));
        put(&alice, &top, &far.id(), json!({"via": [server.name(), dead.name(), there]})).await;
        put(&alice, &top, "!gone:example.org", via(&dead.name())).await;
        let found = rooms(&alice, &top, &[]).await;
        assert_eq!(ids(&found), [&top, &far.id(), &open, &own].map(ToOwned::to_owned));
        assert_eq!(found.ok()["rooms"][1]["name"], "far");
        assert_eq!(other.seen("GET", FAR).len(), 1);
        assert_eq!(ids(&rooms(&alice, &top, &[]).await).len(), 4);
        assert_eq!(ids(&rooms(&alice, &top, &[("limit", "3")]).await).len(), 3);
        let asked = other.seen("GET", FAR);
        // On a fleet, each instance remembers for itself.
        assert!(asked.len() <= 3 && asked.iter().all(|seen| seen.segment(4) == far.id()));
        assert!(other.problems().is_empty(), "{:?}", other.problems());
    }

    async fn a_space_elsewhere_hides_no_room_of_others(server: Server) with (Settings::federating())
    {
        let (alice, other) = (server.user("alice").await, Other::start().await);
        let there = other.name();
        let (top, below) = (space(&alice, "public_chat").await, space(&alice, "public_chat").await);
        let leaf = alice.create_room().await;
        let (far, mut room) = far_space(&other);
        room["children_state"] = json!([child_event(&leaf, &there, 1)]);
        other.always("GET", FAR, Reply::json(&json!({
            "room": room, "children": [], "inaccessible_children": [leaf],
        })));
        put(&alice, &top, &far.id(), json!({"via": [there], "order": "a"})).await;
        put(&alice, &top, &below, json!({"via": [server.name()], "order": "b"})).await;
        put(&alice, &below, &leaf, via(server.name())).await;
        let mut told = ids(&rooms(&alice, &top, &[]).await);
        let mut expected = [top, far.id(), leaf, below];
        told.sort();
        expected.sort();
        assert_eq!(told, expected);
    }

    async fn what_is_no_hierarchy_is_left_out(server: Server) with (Settings::federating())
    {
        let alice = server.user("alice").await;
        for reply in [
            Reply::json(&json!([])),
            Reply::json(&json!({"room": {"room_id": "!other:x", "join_rule": "public"}})),
            Reply::refused(404, "M_NOT_FOUND"),
            Reply::endless("{\"room\": \"", "aaaaaaaaaaaaaaaa"),
            Reply::redirect("http://127.0.0.1/"),
        ] {
            let other = Other::start().await;
            let top = space(&alice, "public_chat").await;
            put(&alice, &top, &format!("!x:{}", other.name()), via(&other.name())).await;
            other.always("GET", FAR, reply);
            assert_eq!(ids(&rooms(&alice, &top, &[]).await), [top]);
            assert_eq!(other.seen("GET", FAR).len(), 1);
        }
    }
}

scenario! {
    async fn a_room_is_summarised_for_those_who_could_enter(server: Server)
    with (Settings::federating())
    {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let open = alice.create_room().preset("public_chat").with("room_alias_name", "open")
            .with("name", "Open").await;
        let closed = alice.create_room().invite(&bob).await;
        let top = space(&alice, "public_chat").await;
        let restricted = alice.create_room().await;
        restrict(&alice, &restricted, &top).await;
        let url = |room: &str| path("/_matrix/client/v1/room_summary/{}", &[room]);
        let alias = format!("#open:{}", server.name());
        for room in [open.as_str(), alias.as_str()] {
            let told = bob.get(url(room)).await;
            assert_eq!((told.string("room_id"), told.string("name")), (open.clone(), "Open".into()));
            assert!(told.ok()["membership"].is_null() && told.ok()["children_state"].is_null());
            let told = alice.get(url(room)).await;
            assert_eq!(told.string("membership"), "join");
            let told = server.request("GET", url(room)).await;
            assert_eq!((told.string("room_id"), told.string("join_rule")), (open.clone(), "public".into()));
        }
        assert_eq!(bob.get(url(&closed)).await.string("membership"), "invite");
        server.request("GET", url(&closed)).await.refused(404, "M_NOT_FOUND");
        for stranger in [&restricted, &format!("#none:{}", server.name())] {
            bob.get(url(stranger)).await.refused(404, "M_NOT_FOUND");
        }
        bob.join(&top).await.ok();
        assert_eq!(bob.get(url(&restricted)).await.string("join_rule"), "restricted");
    }

    async fn a_room_elsewhere_is_summarised_by_its_servers(server: Server) with (Settings::federating())
    {
        let (alice, other) = (server.user("alice").await, Other::start().await);
        let (far, summary) = far_space(&other);
        let mut room = summary.clone();
        room["children_state"] = json!([]);
        other.always("GET", FAR, Reply::json(&json!({
            "room": room, "children": [], "inaccessible_children": [],
        })));
        let url = path("/_matrix/client/v1/room_summary/{}", &[&far.id()]);
        let nobody = server.request("GET", &url).query("via", other.name()).await;
        nobody.refused(404, "M_NOT_FOUND");
        assert!(other.seen("GET", FAR).is_empty(), "nobody asks on behalf of nobody");
        for asked in [alice.get(&url), alice.get(&url).query("via", other.name())] {
            let told = asked.await;
            let (name, kind) = (told.string("name"), told.string("room_type"));
            assert_eq!((name.as_str(), kind.as_str()), ("far", "m.space"));
        }
        let asked = other.seen("GET", FAR).len();
        assert!(asked <= server.instances(), "asked {asked} times");
        // The id of a newer room names no server.
        let (bob, space) = (other.user("bob"), json!({"type": "m.space"}));
        let newer = other.create_room_with("12", &bob, &space);
        room["room_id"] = json!(newer.id());
        other.always("GET", FAR, Reply::json(&json!({"room": room, "children": []})));
        let url = path("/_matrix/client/v1/room_summary/{}", &[&newer.id()]);
        alice.get(&url).await.refused(404, "M_NOT_FOUND");
        let told = alice.get(&url).query("via", other.name()).await;
        assert_eq!(told.string("room_id"), newer.id());
    }

    async fn the_top_of_a_tree_may_be_elsewhere(server: Server) with (Settings::federating())
    {
        let (alice, carol) = (server.user("alice").await, server.user("carol").await);
        let (other, second) = (Other::start().await, Other::start().await);
        let (far, summary) = far_space(&other);
        let leaf = format!("!leaf:{}", other.name());
        let told = |rule: &str| {
            let mut room = summary.clone();
            room["join_rule"] = rule.into();
            room["children_state"] = json!([child_event(&leaf, &other.name(), 1)]);
            let children = [room_elsewhere(&leaf, "public", &[])];
            Reply::json(&json!({"room": room, "children": children, "inaccessible_children": []}))
        };
        // The server of its id does not know it any more, another one does.
        other.always("GET", FAR, Reply::refused(404, "M_NOT_FOUND"));
        second.always("GET", FAR, told("public"));
        rooms(&alice, &far.id(), &[]).await.refused(403, "M_FORBIDDEN");
        let both = [far.id(), leaf.clone()];
        let there = second.name();
        for name in ["via", "org.matrix.msc4235.via"] {
            let found = rooms(&alice, &far.id(), &[(name, &there)]).await;
            assert_eq!(ids(&found), both);
        }
        // A second page is of the same tree.
        let first = rooms(&alice, &far.id(), &[("via", &there), ("limit", "1")]).await;
        assert_eq!(ids(&first), [far.id()]);
        let next = first.string("next_batch");
        let query = [("via", there.as_str()), ("limit", "1"), ("from", &next)];
        let second_page = rooms(&alice, &far.id(), &query).await;
        assert_eq!(ids(&second_page), std::slice::from_ref(&leaf));

        // Whoever is invited looks at what others do not see, by the server of who has invited.
        let (closed, by) = (other.create_room("11", &other.user("bob")), other.user("bob"));
        let mut room = summary.clone();
        room["room_id"] = json!(closed.id());
        room["join_rule"] = json!("invite");
        room["children_state"] = json!([]);
        other.always("GET", FAR, Reply::json(&json!({"room": room, "children": []})));
        other.invite(&server.peer(), &closed, &by, &carol.id).await.ok();
        rooms(&alice, &closed.id(), &[]).await.refused(403, "M_FORBIDDEN");
        assert_eq!(ids(&rooms(&carol, &closed.id(), &[]).await), [closed.id()]);
    }
}

#[tokio::test]
async fn trees_go_through_synapse_and_back() {
    let synapse = Synapse::shared().await;
    let server = Server::start(env!("CARGO_BIN_EXE_chatd"), Settings::federating()).await;
    let (alice, bob) = (server.user("alice").await, synapse.user("bob").await);
    let (here, there) = (space(&alice, "public_chat").await, space(&bob, "public_chat").await);
    let (ours, theirs) = (alice.public_room().await, bob.public_room().await);
    let closed = bob.create_room().await;
    put(&alice, &here, &ours, via(server.name())).await;
    put(&bob, &there, &closed, via(synapse.name())).await;
    put(&bob, &there, &theirs, via(synapse.name())).await;
    put(&alice, &here, &there, via(synapse.name())).await;
    assert_eq!(
        ids(&rooms(&alice, &here, &[]).await),
        [&here, &ours, &there, &theirs].map(Clone::clone)
    );
    // Nobody here is in it.
    let by = synapse.name();
    let from_outside = rooms(&alice, &there, &[("via", by)]).await;
    assert_eq!(ids(&from_outside), [&there, &theirs].map(Clone::clone));
    rooms(&alice, &closed, &[("via", by)]).await.refused(403, "M_FORBIDDEN");
    put(&bob, &there, &here, via(server.name())).await;
    let all = [&there, &closed, &theirs, &here, &ours].map(Clone::clone);
    assert_eq!(ids(&rooms(&bob, &there, &[]).await), all);
}
