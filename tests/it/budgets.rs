//! What a request may cost: statements and round trips, as the server counts them. A shared
//! commit is not the request's; what is asserted here is what each request adds to it. Not as `random`:
//! there another instance would be warm.

use chatd_kit::{Answer, Cost, User, path, scenario};
use serde_json::{Value, json};

/// One statement in one round trip.
const ONE: Cost = Cost { statements: 1, round_trips: 1 };

/// What a request costs once everything that it needs is warm.
async fn warm(mut request: impl AsyncFnMut() -> Answer) -> Cost {
    for _ in 0..2 {
        request().await.ok();
    }
    request().await.cost()
}

/// Asserts that a request costs at most `most` once it is warm.
#[track_caller]
fn within(what: &str, cost: Cost, most: Cost) {
    assert!(
        cost.statements <= most.statements && cost.round_trips <= most.round_trips,
        "{what} cost {cost:?}, more than {most:?}"
    );
}

/// A filter without presence, which comes when it likes.
fn quiet() -> Value {
    json!({"presence": {"types": []}})
}

/// A sync that goes on from `since`, and moves it.
async fn sync(user: &User, since: &mut String, filter: &Value) -> Answer {
    let synced = user.sync().since(since).filter(filter).await;
    *since = synced.next_batch();
    (*synced).clone()
}

/// What an initial sync of `rooms` rooms costs, each with another member and a message.
async fn initial_sync_cost(alice: &User, bob: &User, rooms: usize, filter: &Value) -> Cost {
    for number in 0..rooms {
        let room = alice.create_room().member(bob).await;
        bob.send(&room, &format!("text {number}")).await;
    }
    warm(async || (*alice.sync().filter(filter).await).clone()).await
}

scenario! {
    async fn what_everybody_asks_is_free(server: Server) in (monolith, fleet) {
        let alice = server.user("alice").await;
        for url in ["/_matrix/client/versions", "/account/whoami", "/capabilities"] {
            let cost = warm(async || alice.get(url).await).await;
            assert_eq!(cost, Cost::ZERO, "{url}");
        }
    }

    async fn a_warm_send_reads_nothing(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let cost = warm(async || alice.send_text(&room, "hello").await).await;
        assert_eq!(cost, Cost::ZERO);
        let other = alice.create_room().await;
        alice.send(&other, "the room is loaded").await;
        assert_eq!(alice.send_text(&other, "another room").await.cost(), Cost::ZERO);
    }

    async fn an_empty_sync_is_free(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        alice.create_room().member(&bob).await;
        for filter in [json!({}), json!({"room": {"state": {"lazy_load_members": true}}})] {
            let mut since = alice.sync().filter(&filter).await.next_batch();
            sync(&alice, &mut since, &filter).await;
            let cost = warm(async || sync(&alice, &mut since, &filter).await).await;
            assert_eq!(cost, Cost::ZERO, "{filter}");
        }
    }

    async fn news_come_from_memory(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut rooms = Vec::new();
        for _ in 0..10 {
            rooms.push(alice.create_room().member(&bob).await);
        }
        let mut lazy = quiet();
        lazy["room"] = json!({"state": {"lazy_load_members": true}});
        for filter in [quiet(), lazy] {
            let mut since = alice.sync().filter(&filter).await.next_batch();
            // Unread counts of each room are read once; bob's membership is sent once.
            for room in &rooms {
                bob.send(room, "hello").await;
            }
            sync(&alice, &mut since, &filter).await;
            sync(&alice, &mut since, &filter).await;
            for room in &rooms {
                bob.send(room, "hello again").await;
            }
            let synced = sync(&alice, &mut since, &filter).await;
            let joined = synced.ok()["rooms"]["join"].as_object().map_or(0, |join| join.len());
            assert_eq!(joined, rooms.len());
            assert_eq!(synced.cost(), Cost::ZERO, "{filter}");
        }
    }

    async fn lazy_senders_are_read_together(server: Server) in (monolith, fleet) {
        let alice = server.user("alice").await;
        let room = alice.create_room().preset("public_chat").with("name", "kitchen").await;
        let mut others = Vec::new();
        for number in 0..8 {
            let user = server.user(&format!("user{number}")).await;
            user.join(&room).await.ok();
            others.push(user);
        }
        let mut filter = quiet();
        filter["room"] =
            json!({"state": {"lazy_load_members": true}, "timeline": {"limit": 1}});
        let mut since = alice.sync().filter(&filter).await.next_batch();
        filter["room"]["timeline"]["limit"] = json!(20);
        let mut costs = Vec::new();
        // The last of them joins in the timeline of the first sync.
        for speakers in [&others[..2], &others[2..7]] {
            for user in speakers {
                user.send(&room, "hello").await;
            }
            let synced = sync(&alice, &mut since, &filter).await;
            let state = &synced.ok()["rooms"]["join"][&room]["state"]["events"];
            assert_eq!(state.as_array().map_or(0, Vec::len), speakers.len());
            costs.push(synced.cost());
        }
        within("a sync with new speakers", costs[1], Cost { statements: 2, round_trips: 2 });
    }

    async fn an_initial_sync_costs_the_same_for_any_number_of_rooms(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let lazy = json!({"room": {"state": {"lazy_load_members": true}}});
        for filter in [json!({}), lazy] {
            let few = initial_sync_cost(&alice, &bob, 2, &filter).await;
            let many = initial_sync_cost(&alice, &bob, 15, &filter).await;
            assert_eq!(few, many, "{filter}");
            within("an initial sync", many, Cost { statements: 9, round_trips: 9 });
        }
    }

    async fn a_page_of_history_costs_two_statements(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        for number in 0..20 {
            bob.send(&room, &format!("text {number}")).await;
        }
        let two = Cost { statements: 2, round_trips: 2 };
        let lazy = json!({"lazy_load_members": true});
        for filter in [json!({}), lazy] {
            let page = async || {
                bob.send(&room, "what happens does not make it dearer").await;
                alice.messages(&room, "b").query("limit", 100).query("filter", &filter).await
            };
            within("a page", warm(page).await, two);
        }
    }

    async fn state_and_members_cost_one_statement(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().with("name", "kitchen").member(&bob).await;
        let urls = [
            path("/rooms/{}/state/m.room.name", &[&room]),
            path("/rooms/{}/state/m.room.member/{}", &[&room, &bob.id]),
            path("/rooms/{}/state", &[&room]),
            path("/rooms/{}/members", &[&room]),
            path("/rooms/{}/joined_members", &[&room]),
        ];
        for url in urls {
            let cost = warm(async || {
                bob.send(&room, "what happens does not make it dearer").await;
                alice.get(url.as_str()).await
            });
            within(&url, cost.await, ONE);
        }
    }

    async fn what_is_typed_and_read_costs_a_look(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let room = alice.create_room().member(&bob).await;
        let typing = warm(async || alice.typing(&room, true).await).await;
        within("typing", typing, ONE);
        let receipt = warm(async || {
            let sent = bob.send(&room, "hello").await;
            alice.read(&room, &sent).await
        });
        within("a receipt", receipt.await, ONE);
        let url = path("/rooms/{}/read_markers", &[&room]);
        let markers = warm(async || {
            let sent = bob.send(&room, "hello").await;
            let all = json!({"m.fully_read": sent, "m.read": sent, "m.read.private": sent});
            alice.post(url.as_str(), &all).await
        });
        within("read markers", markers.await, Cost { statements: 3, round_trips: 3 });
    }

    async fn messages_to_devices_cost_a_look(server: Server) in (monolith, fleet) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let mut number = 0;
        let cost = warm(async || {
            number += 1;
            alice.to_device("org.example.ping", &number.to_string(), &bob, &json!({})).await
        });
        within("a message to a device", cost.await, ONE);
    }
}
