//! `outbound_federation_restricted_to`: instances that are not named run in network namespaces
//! without a route, so all that a fleet wants of other servers goes through the named ones, or not
//! at all. Skipped, with a word, where namespaces may not be made.

use chatd_kit::{
    Other, Server, Settings, Spread, User, other::ACCESS_TOKEN, path, process::may_confine,
};
use serde_json::json;

use super::acts::{comes, same_state, says, until_event, until_member};

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");
/// Those that speak with other servers.
const NAMED: [&str; 2] = ["sync1", "sync2"];
const CONFINED: [&str; 5] = ["main", "persister1", "persister2", "stream1", "stream2"];

/// A fleet of which only [`NAMED`] have a way to others, and another server.
struct Stage {
    fleet: Server,
    far: Server,
    alice: User,
    bob: User,
}

impl Stage {
    async fn set() -> Option<Self> {
        if !may_confine() {
            chatd_kit::say("skipped: network namespaces may not be made here");
            return None;
        }
        let settings = Settings::federating()
            .with("outbound_federation_restricted_to", json!(NAMED))
            .confining(&CONFINED);
        let mut fleet = Server::fleet(BINARY, settings, Spread::Random).await;
        for process in fleet.members().instances() {
            let is_named = NAMED.contains(&process.name());
            let pid = process.pid().expect("it runs");
            assert_eq!(has_an_address(pid), is_named, "{}", process.name());
        }
        let far = Server::start(BINARY, Settings::federating()).await;
        let (alice, bob) = (fleet.user("alice").await, far.user("bob").await);
        Some(Self { fleet, far, alice, bob })
    }

    /// Alice asks for something of Bob's server that nobody here can know.
    async fn alias_of_bob(&self, name: &str) -> u16 {
        let alias = format!("#{name}:{}", self.far.name());
        self.alice.get(path("/directory/room/{}", &[&alias])).await.status
    }
}

/// Whether the kernel has any IPv4 address where this process runs.
fn has_an_address(pid: u32) -> bool {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/fib_trie"));
    table.expect("it runs").contains("LOCAL")
}

#[tokio::test]
async fn rooms_are_shared_through_the_named_instances() {
    let Some(stage) = Stage::set().await else { return };
    let (alice, bob) = (&stage.alice, &stage.bob);
    // Each of several, so that each instance has its turn.
    for number in 0..6 {
        let open = bob.create_room().preset("public_chat").await;
        let before = bob.send(&open, "before alice came").await;
        alice.join_via(&open, stage.far.name()).await.ok();
        until_member(bob, &open, alice, "join").await;
        says(alice, &[bob], &open, &format!("from the fleet, {number}")).await;
        says(bob, &[alice], &open, &format!("to the fleet, {number}")).await;
        let history = alice.history(&open).await;
        assert!(history.iter().any(|event| event["event_id"] == before.as_str()), "{history:#?}");
        same_state(&[alice, bob], &open).await;
        alice.leave(&open).await.ok();
        until_member(bob, &open, alice, "leave").await;
    }
    for (host, guest) in [(alice, bob), (bob, alice)] {
        let closed = host.create_room().version("11").await;
        comes(host, guest, &closed).await;
        says(host, &[guest], &closed, "come in").await;
        says(guest, &[host], &closed, "I am in").await;
        same_state(&[alice, bob], &closed).await;
    }
}

#[tokio::test]
async fn everything_asked_of_others_goes_through_the_named_instances() {
    let Some(mut stage) = Stage::set().await else { return };
    let room = stage.bob.create_room().preset("public_chat").await;
    let here = stage.alice.public_room().await;
    let (alice, bob) = (stage.alice.clone(), stage.bob.clone());
    // Others each time: answers are remembered for a while.
    for number in 0..6 {
        let name = format!("n{number}");
        let other = stage.far.user(&name).await;
        let profile = alice.get(path("/profile/{}", &[&other.id])).await;
        assert_eq!(profile.ok()["displayname"], name.as_str());
        let alias = format!("#{name}:{}", stage.far.name());
        bob.put(path("/directory/room/{}", &[&alias]), &json!({"room_id": room})).await.ok();
        let found = alice.get(path("/directory/room/{}", &[&alias])).await;
        assert_eq!(found.ok()["room_id"], room.as_str());
        let query = json!({"device_keys": {&other.id: []}});
        let keys = alice.post("/keys/query", &query).await;
        assert_eq!(keys.ok()["failures"], json!({}), "{keys}");
        let list = alice.get(path("/publicRooms?server={}", &[stage.far.name()])).await;
        assert!(list.ok()["chunk"].is_array(), "{list}");
    }
    // Identity servers too.
    let identity = Other::start().await;
    let vouching = identity.identify(&[]);
    for number in 1..=6 {
        let invite = json!({"id_server": identity.name(), "id_access_token": ACCESS_TOKEN,
            "medium": "email", "address": "carol@example.org"});
        let room = alice.create_room().await;
        alice.post(path("/rooms/{}/invite", &[&room]), &invite).await.ok();
        let carol = stage.fleet.user(&format!("carol{number}")).await;
        let signed = vouching.sign(&alice.id, &carol.id, &format!("token{number}"));
        let join = path("/join/{}", &[&room]);
        carol.post(join, &json!({"third_party_signed": signed})).await.ok();
    }
    // What is told without being asked for: over the same way.
    bob.join_via(&here, stage.fleet.name()).await.ok();
    until_member(&alice, &here, &bob, "join").await;
    let mut feed = bob.feed().await;
    alice.to_device("kit.ping", "1", &bob, &json!({"n": 1})).await.ok();
    feed.until("a message to a device", |synced| (!synced.to_device().is_empty()).then_some(()))
        .await;

    // One of the two is enough.
    stage.fleet.members().instance("sync1").kill9().expect("it can be killed");
    for number in 0..6 {
        assert_eq!(stage.alias_of_bob(&format!("n{number}")).await, 200);
    }
    let event = alice.send(&here, "one is enough").await;
    until_event(&bob, &here, &event).await;

    // Without them nobody is asked, and what was said waits until one is there.
    stage.fleet.members().instance("sync2").kill9().expect("it can be killed");
    assert!(stage.alias_of_bob("n0").await >= 500);
    let event = alice.send(&here, "nobody hears this yet").await;
    assert_eq!(bob.event(&here, &event).await.status, 404);
    stage.fleet.members().launch().await.expect("they start again");
    until_event(&bob, &here, &event).await;
    chatd_kit::eventually("the far server is asked again", || async {
        match stage.alias_of_bob("n0").await {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    })
    .await;
}
