//! What people on different servers do with each other, whichever servers these are.

use std::collections::{BTreeMap, BTreeSet};

use chatd_kit::{User, eventually};
use serde_json::{Value, json};

/// People on two servers. The first one makes the rooms.
pub struct Cast {
    /// Of the one server.
    pub host: User,
    /// Of the other server.
    pub guest: User,
    /// Of that server, too.
    pub third: User,
    /// The name of the first server.
    pub via: String,
}

/// Waits until `user` sees a piece of state that `is_it` recognises.
pub async fn until_state(
    user: &User,
    room: &str,
    (kind, key): (&str, &str),
    is_it: impl Fn(&Value) -> bool,
) {
    let what = format!("{} sees {kind} {key:?} of {room}", user.id);
    eventually(&what, || async {
        let answer = user.get_state(room, kind, key).await;
        let fits = answer.status == 200 && is_it(answer.json());
        if fits { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
}

/// Waits until `user` sees that `who` has this membership.
pub async fn until_member(user: &User, room: &str, who: &User, membership: &str) {
    until_state(user, room, ("m.room.member", &who.id), |c| c["membership"] == membership).await;
}

/// Waits until a sync of `user` has `room` in this section.
pub async fn until_section(user: &User, room: &str, section: &str) -> Value {
    let mut limit = 10;
    eventually(&format!("{} has {room} under {section}", user.id), || {
        // Synapse gives the answer of a moment ago to whoever asks for the same again.
        limit += 1;
        let filter = json!({"room": {"include_leave": true, "timeline": {"limit": limit}}});
        async move {
            let synced = user.sync().filter(&filter).await;
            match synced.section(section, room) {
                Value::Null => Err(synced.text.clone()),
                found => Ok(found.clone()),
            }
        }
    })
    .await
}

/// Waits until `user` sees an event; returns it.
pub async fn until_event(user: &User, room: &str, event: &str) -> Value {
    eventually(&format!("{} sees {event} of {room}", user.id), || async {
        let answer = user.event(room, event).await;
        if answer.status == 200 { Ok(answer.json().clone()) } else { Err(answer.to_string()) }
    })
    .await
}

/// `from` says something, and all of `to` see it; returns the event id.
pub async fn says(from: &User, to: &[&User], room: &str, text: &str) -> String {
    let event = from.send(room, text).await;
    for user in to {
        assert_eq!(until_event(user, room, &event).await["content"]["body"], text);
    }
    event
}

/// `guest` of another server is invited to `room`, and joins.
pub async fn comes(host: &User, guest: &User, room: &str) {
    host.invite(room, guest).await.ok();
    until_section(guest, room, "invite").await;
    // Where others of its server are in the room, the invitation may be there before the room has it.
    eventually("the guest may join", || async {
        let answer = guest.join(room).await;
        if answer.status == 200 { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    until_member(host, room, guest, "join").await;
}

/// A private room of `host`, in which `guest` of another server is.
pub async fn shared_room(host: &User, guest: &User, version: &str) -> String {
    let room = host.create_room().version(version).await;
    comes(host, guest, &room).await;
    room
}

/// Waits until all see the same current state of a room; returns it.
pub async fn same_state(users: &[&User], room: &str) -> BTreeMap<(String, String), String> {
    eventually(&format!("one state of {room}"), || async {
        let mut states = Vec::new();
        for user in users {
            states.push(state_of(user, room).await?);
        }
        let first = states.swap_remove(0);
        match states.iter().find(|state| **state != first) {
            None => Ok(first),
            Some(other) => Err(difference(&first, other)),
        }
    })
    .await
}

async fn state_of(user: &User, room: &str) -> Result<BTreeMap<(String, String), String>, String> {
    let answer = user.get(chatd_kit::path("/rooms/{}/state", &[room])).await;
    let events = answer.json().as_array().ok_or_else(|| answer.to_string())?;
    let text = |event: &Value, member: &str| event[member].as_str().unwrap_or_default().to_owned();
    let entry =
        |event: &Value| ((text(event, "type"), text(event, "state_key")), text(event, "event_id"));
    Ok(events.iter().map(entry).collect())
}

fn difference<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    one: &BTreeMap<K, V>,
    other: &BTreeMap<K, V>,
) -> String {
    let keys: BTreeSet<&K> = one.keys().chain(other.keys()).collect();
    let lines = keys
        .into_iter()
        .filter(|key| one.get(key) != other.get(key))
        .map(|key| format!("{key:?}: {:?} here, {:?} there", one.get(key), other.get(key)));
    lines.collect::<Vec<_>>().join("\n")
}

/// Waits until all see the same events in a room from `first` on, and at least `wanted`.
pub async fn same_timeline(
    users: &[&User],
    room: &str,
    first: &str,
    wanted: &[String],
) -> BTreeSet<String> {
    eventually(&format!("one timeline of {room}"), || async {
        let mut timelines = Vec::new();
        for user in users {
            let ids = chatd_kit::sync::ids(&user.history(room).await);
            let ids: BTreeSet<String> = ids.into_iter().skip_while(|id| id != first).collect();
            if let Some(missing) = wanted.iter().find(|id| !ids.contains(*id)) {
                return Err(format!("{} lacks {missing}", user.id));
            }
            timelines.push(ids);
        }
        let one = timelines.swap_remove(0);
        match timelines.iter().find(|timeline| **timeline != one) {
            None => Ok(one),
            Some(other) => {
                let lines: Vec<_> = one.symmetric_difference(other).collect();
                Err(format!("only one has {lines:?}"))
            }
        }
    })
    .await
}

/// Changes the content of a piece of state.
pub async fn change_state(user: &User, room: &str, kind: &str, change: impl FnOnce(&mut Value)) {
    let mut content = user.get_state(room, kind, "").await.ok().clone();
    change(&mut content);
    user.set_state(room, kind, "", &content).await.ok();
}

/// Gives `who` a power level.
pub async fn empower(user: &User, room: &str, who: &User, level: i64) {
    change_state(user, room, "m.room.power_levels", |content| {
        content["users"][&who.id] = json!(level);
    })
    .await;
}
