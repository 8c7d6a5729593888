//! Events as clients get them. The content is spliced in as it is stored; nothing is parsed.

use std::{collections::HashMap, sync::Arc};

use chatd_base::{EventNid, UserNid};
use chatd_storage::events::StoredEvent;
use chatd_streams::events::Membership;
use ruma_common::OwnedEventId;
use serde::Serialize;

/// Who looks, and when: the part of the format that is the same for all events of an answer.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub user: UserNid,
    /// The device that asks; its own events carry their transaction id.
    pub device: Option<&'a str>,
    pub now_ms: u64,
    /// Whether events name their room; those of a sync do not.
    pub with_room_id: bool,
}

/// What is told of one event besides itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extras<'a> {
    /// The viewer's membership when the event happened.
    pub membership: Option<Membership>,
    /// The redaction that pruned it.
    pub redacted_because: Option<&'a StoredEvent>,
    pub relations: Option<&'a Relations>,
}

/// What relates to an event, bundled with it.
#[derive(Clone, Debug, Default)]
pub struct Relations {
    /// The latest valid edit.
    pub replace: Option<Arc<StoredEvent>>,
    /// Ids of events that refer to it.
    pub references: Vec<OwnedEventId>,
    pub thread: Option<Thread>,
}

/// Summary of a thread, for its root.
#[derive(Clone, Debug)]
pub struct Thread {
    pub latest: Arc<StoredEvent>,
    /// The latest edit of `latest`.
    pub latest_edit: Option<Arc<StoredEvent>>,
    pub count: i64,
    pub participated: bool,
}

impl Relations {
    pub fn is_empty(&self) -> bool {
        self.replace.is_none() && self.references.is_empty() && self.thread.is_none()
    }
}

/// Further facts of a set of events, see [`crate::bundle::load`].
#[derive(Clone, Debug, Default)]
pub struct Bundles {
    /// What relates to an event.
    pub relations: HashMap<EventNid, Relations>,
    /// Redactions, by the event that each pruned.
    pub redactions: HashMap<EventNid, Arc<StoredEvent>>,
}

impl Bundles {
    /// What there is about `event`.
    pub fn extras(&self, event: &StoredEvent, membership: Option<Membership>) -> Extras<'_> {
        Extras {
            membership,
            redacted_because: self.redactions.get(&event.nid).map(|event| &**event),
            relations: self.relations.get(&event.nid),
        }
    }
}

/// Appends `event` as a JSON object.
pub fn write(out: &mut Vec<u8>, event: &StoredEvent, viewer: &Viewer<'_>, extras: &Extras<'_>) {
    out.extend_from_slice(b"{\"content\":");
    write_content(out, event);
    member(out, "event_id", &event.event_id);
    member(out, "origin_server_ts", &event.origin_ts);
    if let Some(redacts) = redacts(event) {
        member(out, "redacts", &redacts);
    }
    if viewer.with_room_id {
        member(out, "room_id", &event.room_id);
    }
    member(out, "sender", &event.sender);
    if let Some(state_key) = &event.state_key {
        member(out, "state_key", &**state_key);
    }
    member(out, "type", &*event.kind);
    out.extend_from_slice(b",\"unsigned\":");
    write_unsigned(out, event, viewer, extras);
    out.push(b'}');
}

/// As [`write`], into a buffer of its own.
pub fn to_json(event: &StoredEvent, viewer: &Viewer<'_>, extras: &Extras<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(event.content.get().len() + 512);
    write(&mut out, event, viewer, extras);
    out
}

/// Appends the parts of an event that someone outside of the room may see: sender, type, state
/// key and content.
pub fn write_stripped(out: &mut Vec<u8>, event: &StoredEvent) {
    out.extend_from_slice(b"{\"content\":");
    out.extend_from_slice(event.content.get().as_bytes());
    member(out, "sender", &event.sender);
    member(out, "state_key", event.state_key.as_deref().unwrap_or(""));
    member(out, "type", &*event.kind);
    out.push(b'}');
}

/// Appends `events` as a JSON array.
pub fn write_array<'a>(
    out: &mut Vec<u8>,
    events: impl IntoIterator<Item = &'a StoredEvent>,
    mut one: impl FnMut(&mut Vec<u8>, &StoredEvent),
) {
    out.push(b'[');
    for (index, event) in events.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        one(out, event);
    }
    out.push(b']');
}

/// What a redaction redacts: a member of the event before room version 11, of its content since.
/// Clients find it in both places, whatever the version.
fn redacts(event: &StoredEvent) -> Option<OwnedEventId> {
    #[derive(serde::Deserialize)]
    struct Content {
        redacts: Option<OwnedEventId>,
    }
    if &*event.kind != "m.room.redaction" {
        return None;
    }
    event.redacts.clone().or_else(|| {
        serde_json::from_str::<Content>(event.content.get()).ok().and_then(|c| c.redacts)
    })
}

fn write_content(out: &mut Vec<u8>, event: &StoredEvent) {
    let content = event.content.get();
    let Some(redacts) = event.redacts.as_ref().filter(|_| !content.contains("\"redacts\"")) else {
        out.extend_from_slice(content.as_bytes());
        return;
    };
    out.push(b'{');
    first_member(out, "redacts", redacts);
    let rest = content.trim_start().trim_start_matches('{').trim_start();
    if !rest.starts_with('}') {
        out.push(b',');
    }
    out.extend_from_slice(rest.as_bytes());
}

/// The member `unsigned` by itself.
pub(crate) fn unsigned(event: &StoredEvent, viewer: &Viewer<'_>, extras: &Extras<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    write_unsigned(&mut out, event, viewer, extras);
    out
}

fn write_unsigned(
    out: &mut Vec<u8>,
    event: &StoredEvent,
    viewer: &Viewer<'_>,
    extras: &Extras<'_>,
) {
    out.push(b'{');
    let now = i64::try_from(viewer.now_ms).unwrap_or(i64::MAX);
    first_member(out, "age", &now.saturating_sub(event.origin_ts));
    if let Some(membership) = extras.membership {
        member(out, "membership", membership.as_str());
    }
    if let Some(replaced) = &event.replaced {
        member(out, "prev_content", &replaced.content);
        member(out, "prev_sender", &replaced.sender);
        member(out, "replaces_state", &replaced.event_id);
    }
    if let Some(redaction) = extras.redacted_because {
        out.extend_from_slice(b",\"redacted_because\":");
        write(out, redaction, viewer, &Extras::default());
    }
    if let Some(txn) = &event.txn
        && txn.user == viewer.user
        && Some(&*txn.device_id) == viewer.device
    {
        member(out, "transaction_id", &txn.txn_id);
    }
    if let Some(relations) = extras.relations.filter(|relations| !relations.is_empty()) {
        out.extend_from_slice(b",\"m.relations\":");
        write_relations(out, relations, viewer);
    }
    out.push(b'}');
}

fn write_relations(out: &mut Vec<u8>, relations: &Relations, viewer: &Viewer<'_>) {
    #[derive(Serialize)]
    struct Reference<'a> {
        event_id: &'a OwnedEventId,
    }
    #[derive(Serialize)]
    struct References<'a> {
        chunk: Vec<Reference<'a>>,
    }
    let start = out.len();
    if !relations.references.is_empty() {
        let chunk =
            relations.references.iter().map(|event_id| Reference { event_id }).collect::<Vec<_>>();
        member(out, "m.reference", &References { chunk });
    }
    if let Some(edit) = &relations.replace {
        out.extend_from_slice(b",\"m.replace\":");
        write(out, edit, viewer, &Extras::default());
    }
    if let Some(thread) = &relations.thread {
        out.extend_from_slice(b",\"m.thread\":{");
        first_member(out, "count", &thread.count);
        member(out, "current_user_participated", &thread.participated);
        out.extend_from_slice(b",\"latest_event\":");
        let edit = Relations { replace: thread.latest_edit.clone(), ..Relations::default() };
        write(out, &thread.latest, viewer, &Extras { relations: Some(&edit), ..Extras::default() });
        out.push(b'}');
    }
    // Each part begins with a comma; the first one becomes the opening brace.
    out[start] = b'{';
    out.push(b'}');
}

fn member(out: &mut Vec<u8>, name: &str, value: &(impl Serialize + ?Sized)) {
    out.push(b',');
    first_member(out, name, value);
}

fn first_member(out: &mut Vec<u8>, name: &str, value: &(impl Serialize + ?Sized)) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
    serde_json::to_writer(&mut *out, value).expect("strings and numbers always serialise");
}

#[cfg(test)]
mod tests {
    use chatd_base::{KeyNid, Position, RoomNid, SnapshotId};
    use chatd_storage::events::{ReplacedEvent, Transaction};
    use serde_json::{Value, json, value::RawValue};

    use super::*;

    fn event(id: &str, kind: &str, content: &str) -> StoredEvent {
        StoredEvent {
            nid: EventNid(1),
            pos: Position(1),
            snapshot: SnapshotId(0),
            depth: 1,
            origin_ts: 1000,
            room: RoomNid(1),
            room_id: "!r:x".try_into().unwrap(),
            event_id: id.try_into().unwrap(),
            sender: "@a:x".try_into().unwrap(),
            sender_nid: UserNid(1),
            kind: kind.into(),
            state_key: None,
            key: None,
            content: RawValue::from_string(content.to_owned()).unwrap().into(),
            redacts: None,
            flags: 0,
            redacted_by: None,
            replaced: None,
            txn: None,
        }
    }

    const VIEWER: Viewer<'static> =
        Viewer { user: UserNid(1), device: Some("D"), now_ms: 1500, with_room_id: true };

    fn seen(event: &StoredEvent, viewer: &Viewer<'_>, extras: &Extras<'_>) -> Value {
        serde_json::from_slice(&to_json(event, viewer, extras)).unwrap()
    }

    #[test]
    fn a_message_has_what_the_spec_says_and_nothing_else() {
        let message = event("$1", "m.room.message", r#"{"body":"h\u00e9"}"#);
        let extras = Extras { membership: Some(Membership::Join), ..Extras::default() };
        assert_eq!(
            seen(&message, &VIEWER, &extras),
            json!({
                "content": {"body": "hé"}, "event_id": "$1", "origin_server_ts": 1000,
                "room_id": "!r:x", "sender": "@a:x", "type": "m.room.message",
                "unsigned": {"age": 500, "membership": "join"},
            })
        );
        let in_sync = Viewer { with_room_id: false, ..VIEWER };
        assert_eq!(seen(&message, &in_sync, &extras).get("room_id"), None);
    }

    #[test]
    fn only_the_device_that_sent_it_gets_the_transaction_id() {
        let mut message = event("$1", "m.room.message", "{}");
        message.txn =
            Some(Transaction { user: UserNid(1), device_id: "D".into(), txn_id: "t".into() });
        let id = |viewer: &Viewer<'_>| {
            seen(&message, viewer, &Extras::default())["unsigned"]["transaction_id"].clone()
        };
        assert_eq!(id(&VIEWER), "t");
        assert_eq!(id(&Viewer { device: Some("E"), ..VIEWER }), Value::Null);
        assert_eq!(id(&Viewer { user: UserNid(2), ..VIEWER }), Value::Null);
    }

    #[test]
    fn a_state_event_tells_what_it_replaced() {
        let mut topic = event("$2", "m.room.topic", r#"{"topic":"b"}"#);
        (topic.state_key, topic.key) = (Some("".into()), Some(KeyNid(1)));
        topic.replaced = Some(ReplacedEvent {
            event_id: "$1".try_into().unwrap(),
            sender: "@b:x".try_into().unwrap(),
            content: RawValue::from_string(r#"{"topic":"a"}"#.to_owned()).unwrap().into(),
        });
        let seen = seen(&topic, &VIEWER, &Extras::default());
        assert_eq!(seen["state_key"], "");
        assert_eq!(
            seen["unsigned"],
            json!({"age": 500, "prev_content": {"topic": "a"}, "prev_sender": "@b:x",
                   "replaces_state": "$1"})
        );
    }

    #[test]
    fn redactions_name_their_target_in_both_places() {
        let v11 = event("$2", "m.room.redaction", r#"{"redacts":"$1"}"#);
        let mut old = event("$2", "m.room.redaction", r#"{"reason":"x"}"#);
        old.redacts = Some("$1".try_into().unwrap());
        let mut bare = old.clone();
        bare.content = RawValue::from_string("{}".to_owned()).unwrap().into();
        for redaction in [v11, old, bare] {
            let seen = seen(&redaction, &VIEWER, &Extras::default());
            assert_eq!(
                (&seen["redacts"], &seen["content"]["redacts"]),
                (&json!("$1"), &json!("$1"))
            );
        }
    }

    #[test]
    fn relations_are_bundled() {
        let root = event("$1", "m.room.message", "{}");
        let reply = Arc::new(event("$2", "m.room.message", "{}"));
        let edit = Arc::new(event("$3", "m.room.message", "{}"));
        let relations = Relations {
            replace: Some(edit.clone()),
            references: vec!["$4".try_into().unwrap()],
            thread: Some(Thread {
                latest: reply,
                latest_edit: Some(edit),
                count: 2,
                participated: true,
            }),
        };
        let extras = Extras { relations: Some(&relations), ..Extras::default() };
        let bundle = seen(&root, &VIEWER, &extras)["unsigned"]["m.relations"].clone();
        assert_eq!(bundle["m.reference"], json!({"chunk": [{"event_id": "$4"}]}));
        assert_eq!(bundle["m.replace"]["event_id"], "$3");
        assert_eq!(bundle["m.thread"]["count"], 2);
        assert_eq!(bundle["m.thread"]["current_user_participated"], true);
        let latest = &bundle["m.thread"]["latest_event"];
        assert_eq!(latest["event_id"], "$2");
        assert_eq!(latest["unsigned"]["m.relations"]["m.replace"]["event_id"], "$3");
        let none = Relations::default();
        let extras = Extras { relations: Some(&none), ..Extras::default() };
        assert_eq!(seen(&root, &VIEWER, &extras)["unsigned"].get("m.relations"), None);
    }
}
