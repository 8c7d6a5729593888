//! What must be true when the load is over, whatever was killed.

use std::collections::{BTreeMap, BTreeSet};

use chatd_kit::{User, path, say};
use serde_json::Value;

use super::{device::Device, load::World};

/// Everything.
pub async fn all(world: &World, devices: &[Device]) {
    let complaints = std::mem::take(&mut world.ledger.lock().unwrap().complaints);
    assert!(complaints.is_empty(), "{} wrong answers: {complaints:#?}", complaints.len());
    let mut events = 0;
    for room in &world.rooms {
        let order = one_order(world, room).await;
        events += order.len();
        every_message_once(world, room, &order).await;
        for device in devices {
            let seen = &device.rooms[room];
            same(seen, &ids(&order), &format!("the syncs of {} and {room}", device.user.id));
        }
        current_state(world, room).await;
    }
    for device in devices {
        whispers_once(world, device);
    }
    for member in &world.members {
        notes_and_receipts(world, member).await;
    }
    let whispers: usize = devices.iter().map(|device| device.whispers.len()).sum();
    say(format!("{events} events and {whispers} messages to devices are where they belong"));
}

/// All events of a room, in the order on which both directions and all members agree.
async fn one_order(world: &World, room: &str) -> Vec<Value> {
    let order = forwards(world.alice(), room).await;
    for member in &world.members {
        let backwards = member.history(room).await;
        same(&ids(&backwards), &ids(&order), &format!("{room} backwards for {}", member.id));
    }
    order
}

async fn forwards(user: &User, room: &str) -> Vec<Value> {
    let (mut events, mut from) = (Vec::new(), None::<String>);
    loop {
        let mut request = user.messages(room, "f").query("limit", 100);
        if let Some(from) = &from {
            request = request.query("from", from);
        }
        let answer = request.await;
        events.extend(answer.ok()["chunk"].as_array().unwrap().iter().cloned());
        match answer.ok()["end"].as_str() {
            Some(end) => from = Some(end.to_owned()),
            None => return events,
        }
    }
}

/// Each message that was acknowledged is there under the id that its sender was told, and none is
/// there twice, under whatever id.
async fn every_message_once(world: &World, room: &str, order: &[Value]) {
    let mut found = BTreeMap::new();
    for event in order.iter().filter(|event| event["type"] == "m.room.message") {
        let body = event["content"]["body"].as_str().unwrap().to_owned();
        let earlier = found.insert(body.clone(), event["event_id"].as_str().unwrap().to_owned());
        assert_eq!(earlier, None, "`{body}` is in {room} twice");
    }
    let ledger = world.ledger.lock().unwrap();
    let acknowledged = ledger.sent.iter().filter(|((of, _), _)| of == room);
    let acknowledged = acknowledged.map(|((_, body), event)| (body.clone(), event.clone()));
    assert_eq!(acknowledged.collect::<BTreeMap<_, _>>(), found, "messages of {room}");
}

async fn current_state(world: &World, room: &str) {
    let topic = world.alice().get_state(room, "m.room.topic", "").await;
    let members = world.alice().get(path("/rooms/{}/joined_members", &[room])).await;
    let ledger = world.ledger.lock().unwrap();
    if let Some(expected) = ledger.topics.get(room) {
        assert_eq!(topic.string("topic"), *expected, "the topic of {room}");
    }
    let is_there = members.ok()["joined"].get(&world.wanderer.id).is_some();
    if let Some(expected) = ledger.wanderer.get(room) {
        assert_eq!(is_there, *expected, "whether {} is in {room}", world.wanderer.id);
    }
}

fn whispers_once(world: &World, device: &Device) {
    let ledger = world.ledger.lock().unwrap();
    let sent = ledger.to_device.get(&device.user.id).cloned().unwrap_or_default();
    // Sent one after the other, so they come in this order too.
    same(&device.whispers, &sent.into_iter().collect::<Vec<_>>(), &device.user.id);
}

async fn notes_and_receipts(world: &World, user: &User) {
    let url = path("/user/{}/account_data/m.test", &[&user.id]);
    let notes = user.get(url).await;
    let first = user.sync().await;
    let ledger = world.ledger.lock().unwrap();
    if let Some(expected) = ledger.account_data.get(&user.id) {
        assert_eq!(notes.ok()["number"], *expected, "account data of {}", user.id);
    }
    for room in &world.rooms {
        let Some(read) = ledger.receipts.get(&(user.id.clone(), room.clone())) else { continue };
        let receipts = first.ephemeral_of(room, "m.receipt").unwrap_or_default();
        let at = receipts["content"]
            .as_object()
            .into_iter()
            .flatten()
            .find(|(_, kinds)| kinds["m.read"].get(&user.id).is_some());
        let (at, _) = at.unwrap_or_else(|| panic!("{} has no receipt in {room}", user.id));
        assert_eq!(at, read, "the receipt of {} in {room}", user.id);
    }
}

fn ids(events: &[Value]) -> Vec<String> {
    events.iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect()
}

/// Asserts that two lists are the same, and tells shortly where they are not.
fn same<T: Ord + Clone + std::fmt::Debug>(found: &[T], expected: &[T], what: &str) {
    if found == expected {
        return;
    }
    let (seen, wanted) = (found.iter().collect::<BTreeSet<_>>(), expected.iter().collect());
    let missing: Vec<_> = BTreeSet::difference(&wanted, &seen).collect();
    let surplus: Vec<_> = seen.difference(&wanted).collect();
    // Where each that came again has come first, and again.
    let mut at = BTreeMap::new();
    let again = found
        .iter()
        .enumerate()
        .filter_map(|(index, item)| at.insert(item, index).map(|before| (before, index)));
    let again: Vec<(usize, usize)> = again.collect();
    let first = found.iter().zip(expected).position(|(a, b)| a != b);
    panic!(
        "{what}: {} found, {} expected; missing {missing:?}, surplus {surplus:?}, twice {again:?}, \
         first difference at {first:?}",
        found.len(),
        expected.len()
    );
}
