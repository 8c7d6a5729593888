//! From a draft to an event that is complete for federation: canonical JSON, content hash,
//! signature, and the id that follows from them.

use std::borrow::Cow;

use chatd_base::{
    Refusal, Result,
    event_form::{MAX_EVENT_BYTES, as_signed},
    json::MAX_INTEGER,
};
use ed25519_dalek::{Signer as _, SigningKey};
use ruma_common::{
    AnyKeyName, CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId,
    OwnedServerName, OwnedSigningKeyId, OwnedUserId, RoomId, RoomVersionId,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
    serde::Base64,
};
use ruma_signatures::{
    JsonError, KeyPair, PublicKeyMap, PublicKeySet, Signature, hash_and_sign_event, reference_hash,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::shape;

/// Longest `type`, `state_key`, `sender`, `room_id` and event id.
pub const MAX_FIELD_BYTES: usize = 255;

/// This server's name and signing key.
pub struct Signer {
    pub server_name: OwnedServerName,
    key_id: OwnedSigningKeyId<AnyKeyName>,
    key: SigningKey,
}

impl Signer {
    /// `version` is what follows `ed25519:` in the key's id.
    pub fn new(server_name: OwnedServerName, version: &str, seed: &[u8; 32]) -> Result<Self> {
        let key_id = OwnedSigningKeyId::try_from(format!("ed25519:{version}"))
            .map_err(chatd_base::Error::internal)?;
        Ok(Self { server_name, key_id, key: SigningKey::from_bytes(seed) })
    }

    /// What others check this server's signatures with.
    pub fn public_keys(&self) -> PublicKeyMap {
        let key = Base64::new(self.key.verifying_key().to_bytes().to_vec());
        let keys = PublicKeySet::from([(self.key_id.to_string(), key)]);
        PublicKeyMap::from([(self.server_name.to_string(), keys)])
    }
}

impl KeyPair for Signer {
    fn sign(&self, message: &[u8]) -> Signature {
        Signature::new(self.key_id.clone(), self.key.sign(message).to_bytes().to_vec())
    }
}

/// How other servers get an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Route {
    /// It was made here, and this server sends it.
    #[default]
    Made,
    /// It came from the server that sends it.
    Received,
    /// Another server has made it here (a join, for instance), and this one sends it.
    Forwarded,
}

/// What a user wants to add to a room. References, depth and signatures come from the owner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draft {
    pub sender: OwnedUserId,
    pub kind: String,
    pub state_key: Option<String>,
    pub content: Map<String, Value>,
    pub redacts: Option<OwnedEventId>,
    /// Milliseconds; set only by application services.
    pub origin_ts: Option<i64>,
    /// Device and transaction id of the request, which make a repeat have one effect.
    pub txn: Option<(String, String)>,
    /// The same for what has no transaction id and is asked for by another instance.
    pub key: Option<Uuid>,
    /// Who tells the other servers of it.
    #[serde(default)]
    pub route: Route,
    /// Part of something large, which must not delay what people wait for.
    pub is_bulk: bool,
}

impl Draft {
    /// A message event.
    pub fn message(
        sender: OwnedUserId,
        kind: impl Into<String>,
        content: Map<String, Value>,
    ) -> Self {
        Self {
            sender,
            kind: kind.into(),
            state_key: None,
            content,
            redacts: None,
            origin_ts: None,
            txn: None,
            key: None,
            route: Route::Made,
            is_bulk: false,
        }
    }

    /// A state event.
    pub fn state(
        sender: OwnedUserId,
        kind: impl Into<String>,
        state_key: impl Into<String>,
        content: Map<String, Value>,
    ) -> Self {
        Self { state_key: Some(state_key.into()), ..Self::message(sender, kind, content) }
    }

    /// The same draft as part of something large.
    #[must_use]
    pub fn bulk(mut self) -> Self {
        self.is_bulk = true;
        self
    }

    /// The same draft as part of a request with a transaction id.
    #[must_use]
    pub fn transaction(mut self, device: Option<&str>, txn_id: &str) -> Self {
        self.txn = Some((device.unwrap_or_default().to_owned(), txn_id.to_owned()));
        self
    }
}

/// An earlier event that a new one refers to.
#[derive(Clone, Debug)]
pub struct Reference {
    pub event_id: OwnedEventId,
    /// Reference hash; needed by room versions 1 and 2 only.
    pub hash: Option<String>,
}

/// A draft with its place in the room, before it has an id.
pub struct Unsealed<'a> {
    pub draft: &'a Draft,
    /// Absent for the create event of a room whose id is that event's hash.
    pub room_id: Option<&'a RoomId>,
    pub origin_ts: i64,
    pub depth: i64,
    pub prev_events: &'a [Reference],
    pub auth_events: &'a [Reference],
}

/// A complete event.
#[derive(Clone, Debug)]
pub struct SealedJson {
    pub event_id: OwnedEventId,
    /// Canonical JSON of the content.
    pub content: String,
    /// What the columns and the content do not say, as a JSON object.
    pub rest: Vec<u8>,
    /// Reference hash, where later events need it (room versions 1 and 2).
    pub hash: Option<String>,
}

/// Hashes and signs. Refuses content that is not canonical JSON, and what is too large.
pub fn seal(signer: &Signer, rules: &RoomVersionRules, event: &Unsealed<'_>) -> Result<SealedJson> {
    take_apart(rules, sign(signer, rules, event)?)
}

/// The same in the form in which servers exchange it.
pub fn sign(
    signer: &Signer,
    rules: &RoomVersionRules,
    event: &Unsealed<'_>,
) -> Result<CanonicalJsonObject> {
    let mut object = unsigned(rules, event)?;
    complete(signer, rules, &mut object)?;
    Ok(object)
}

/// Gives an event what [`unsigned`] leaves out.
pub fn complete(
    signer: &Signer,
    rules: &RoomVersionRules,
    object: &mut CanonicalJsonObject,
) -> Result<()> {
    if rules.event_id_format == EventIdFormatVersion::V1 {
        let id = EventId::new_v1(&signer.server_name);
        object.insert("event_id".to_owned(), id.as_str().into());
    }
    hash_and_sign(signer, rules, object)
}

/// Hashes and signs an event that is complete otherwise; signatures of others stay.
pub fn hash_and_sign(
    signer: &Signer,
    rules: &RoomVersionRules,
    object: &mut CanonicalJsonObject,
) -> Result<()> {
    if matches!(as_signed(object, &rules.redaction), Cow::Owned(_)) {
        return Err(Refusal::bad_json("`third_party_invite` has to be an object").into());
    }
    // What is hashed lacks the signatures, so the limit of its own that ruma has for it lets
    // everything pass that fits below.
    hash_and_sign_event(signer.server_name.as_str(), signer, object, &rules.redaction).map_err(
        |error| match error {
            JsonError::PduTooLarge => too_large("the event is too large", MAX_EVENT_BYTES),
            error => Refusal::bad_json(format!("the event cannot be signed: {error}")),
        },
    )?;
    let bytes = serde_json::to_vec(&*object).map_err(chatd_base::Error::internal)?;
    if bytes.len() > MAX_EVENT_BYTES {
        return Err(
            too_large(&format!("the event has {} bytes", bytes.len()), MAX_EVENT_BYTES).into()
        );
    }
    Ok(())
}

/// An event that lacks its hashes, its signatures and, where it has one, its id.
pub fn unsigned(rules: &RoomVersionRules, event: &Unsealed<'_>) -> Result<CanonicalJsonObject> {
    let draft = event.draft;
    check_lengths(event)?;
    shape::check(&draft.kind, draft.state_key.as_deref(), &draft.content)?;
    let content = canonical(&draft.content)?;
    let has_v1_ids = rules.event_id_format == EventIdFormatVersion::V1;
    let mut object = CanonicalJsonObject::new();
    let mut put = |key: &str, value: CanonicalJsonValue| {
        object.insert(key.to_owned(), value);
    };
    put("auth_events", references(event.auth_events, has_v1_ids));
    put("prev_events", references(event.prev_events, has_v1_ids));
    put("content", CanonicalJsonValue::Object(content));
    put("depth", integer(event.depth));
    put("origin_server_ts", integer(event.origin_ts));
    put("sender", draft.sender.as_str().into());
    put("type", draft.kind.as_str().into());
    if let Some(room_id) = event.room_id {
        put("room_id", room_id.as_str().into());
    }
    if let Some(state_key) = &draft.state_key {
        put("state_key", state_key.as_str().into());
    }
    if let Some(redacts) = draft.redacts.as_ref().filter(|_| !rules.redaction.content_field_redacts)
    {
        put("redacts", redacts.as_str().into());
    }
    Ok(object)
}

/// A complete event in the form in which it is stored.
pub fn take_apart(rules: &RoomVersionRules, object: CanonicalJsonObject) -> Result<SealedJson> {
    take_apart_for(rules, object, false)
}

/// The same for an event whose predecessors may not be known: it keeps their ids itself.
pub fn take_apart_alone(
    rules: &RoomVersionRules,
    object: CanonicalJsonObject,
) -> Result<SealedJson> {
    take_apart_for(rules, object, true)
}

fn take_apart_for(
    rules: &RoomVersionRules,
    mut object: CanonicalJsonObject,
    keeps_prev: bool,
) -> Result<SealedJson> {
    object.remove("unsigned");
    let (event_id, hash) = id_and_hash(rules, &object)?;
    let has_v1_ids = rules.event_id_format == EventIdFormatVersion::V1;
    let hash = has_v1_ids.then_some(hash);
    Ok(SealedJson {
        content: take_content(&mut object)?,
        rest: rest(object, hash.as_deref(), keeps_prev)?,
        event_id,
        hash,
    })
}

/// The id of a complete event of a room of that version; refuses what cannot have one.
pub fn event_id(version: &RoomVersionId, event: &CanonicalJsonObject) -> Result<OwnedEventId> {
    let rules = version.rules().ok_or_else(|| {
        Refusal::unsupported_room_version(format!("room version {version} is not known"))
    })?;
    id_and_hash(&rules, event).map(|(id, _)| id)
}

fn id_and_hash(
    rules: &RoomVersionRules,
    object: &CanonicalJsonObject,
) -> Result<(OwnedEventId, String)> {
    let hash = reference_hash(&as_signed(object, &rules.redaction), rules)
        .map_err(|error| Refusal::bad_json(format!("the event cannot be hashed: {error}")))?;
    let has_v1_ids = rules.event_id_format == EventIdFormatVersion::V1;
    let event_id = match object.get("event_id").filter(|_| has_v1_ids) {
        Some(event_id) => OwnedEventId::try_from(event_id.as_str().unwrap_or_default())
            .map_err(|_| Refusal::bad_json("`event_id` of the event is not valid"))?,
        None => EventId::new_v2_or_v3(&hash).map_err(chatd_base::Error::internal)?,
    };
    Ok((event_id, hash))
}

/// The id of the room that a create event of room version 12 makes.
pub fn room_id_of_create(event_id: &EventId) -> Result<OwnedRoomId> {
    RoomId::new_v2(event_id.as_str().trim_start_matches('$')).map_err(chatd_base::Error::internal)
}

/// Bytes count, not characters: room versions before 11 let both pass, but servers that count
/// bytes would refuse what is made here.
fn check_lengths(event: &Unsealed<'_>) -> Result<(), Refusal> {
    let draft = event.draft;
    let fields = [
        ("type", Some(draft.kind.as_str())),
        ("state_key", draft.state_key.as_deref()),
        ("sender", Some(draft.sender.as_str())),
        ("room_id", event.room_id.map(RoomId::as_str)),
    ];
    for (name, value) in fields {
        if value.is_some_and(|value| value.len() > MAX_FIELD_BYTES) {
            return Err(too_large(&format!("`{name}` is too long"), MAX_FIELD_BYTES));
        }
    }
    Ok(())
}

fn too_large(what: &str, limit: usize) -> Refusal {
    Refusal::too_large(format!("{what}; at most {limit} bytes are allowed"))
}

/// The content in canonical form; numbers must be integers that fit.
pub fn canonical(content: &Map<String, Value>) -> Result<CanonicalJsonObject, Refusal> {
    match CanonicalJsonValue::try_from(Value::Object(content.clone())) {
        Ok(CanonicalJsonValue::Object(object)) => Ok(object),
        Ok(_) => Err(Refusal::bad_json("the content of an event must be an object")),
        Err(error) => Err(Refusal::bad_json(format!(
            "the content is not canonical JSON (numbers must be integers of at most {MAX_INTEGER}): {error}"
        ))),
    }
}

fn integer(number: i64) -> CanonicalJsonValue {
    let number = number.clamp(-MAX_INTEGER, MAX_INTEGER);
    CanonicalJsonValue::Integer(number.try_into().expect("clamped to what canonical JSON allows"))
}

fn references(to: &[Reference], with_hashes: bool) -> CanonicalJsonValue {
    let one = |reference: &Reference| -> CanonicalJsonValue {
        let id: CanonicalJsonValue = reference.event_id.as_str().into();
        match &reference.hash {
            Some(hash) if with_hashes => {
                let hashes =
                    CanonicalJsonObject::from([("sha256".to_owned(), hash.as_str().into())]);
                CanonicalJsonValue::Array(vec![id, CanonicalJsonValue::Object(hashes)])
            }
            _ => id,
        }
    };
    CanonicalJsonValue::Array(to.iter().map(one).collect())
}

fn take_content(object: &mut CanonicalJsonObject) -> Result<String> {
    let content = object.remove("content");
    serde_json::to_string(&content).map_err(chatd_base::Error::internal)
}

/// Members that the columns say too, or that `content` holds.
const IN_COLUMNS: [&str; 8] = [
    "auth_events",
    "prev_events",
    "depth",
    "origin_server_ts",
    "sender",
    "type",
    "room_id",
    "state_key",
];

/// Key in `rest` for the reference hash; not part of the event.
pub const HASH_KEY: &str = "_hash";

fn rest(mut object: CanonicalJsonObject, hash: Option<&str>, keeps_prev: bool) -> Result<Vec<u8>> {
    for member in IN_COLUMNS {
        let is_pair = hash.is_some() && member.ends_with("_events");
        if !(is_pair || keeps_prev && member == "prev_events") {
            object.remove(member);
        }
    }
    if let Some(hash) = hash {
        object.insert(HASH_KEY.to_owned(), hash.into());
        object.remove("event_id");
    }
    serde_json::to_vec(&object).map_err(chatd_base::Error::internal)
}

/// What is left of `content` when the event is redacted.
pub fn redacted_content(kind: &str, content: &str, rules: &RoomVersionRules) -> Result<String> {
    let mut content: CanonicalJsonObject =
        serde_json::from_str(content).map_err(chatd_base::Error::internal)?;
    ruma_common::canonical_json::redact_content_in_place(&mut content, &rules.redaction, kind);
    serde_json::to_string(&content).map_err(chatd_base::Error::internal)
}

#[cfg(test)]
mod tests {
    use ruma_common::{RoomVersionId, owned_server_name, owned_user_id, room_id};
    use serde_json::json;

    use super::*;

    fn seal_one(version: &str, draft: &Draft) -> Result<SealedJson> {
        let signer = Signer::new(owned_server_name!("test.local"), "a_key", &[7; 32])?;
        let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
        let unsealed = Unsealed {
            draft,
            room_id: Some(room_id!("!room:test.local")),
            origin_ts: 1_700_000_000_000,
            depth: 9,
            prev_events: &[],
            auth_events: &[],
        };
        seal(&signer, &rules, &unsealed)
    }

    fn text(letters: usize) -> Draft {
        let content = json!({ "body": "x".repeat(letters) }).as_object().unwrap().clone();
        Draft::message(owned_user_id!("@alice:test.local"), "m.room.message", content)
    }

    #[test]
    fn an_event_may_have_65536_bytes_and_not_one_more() {
        for version in 1..=12 {
            let version = version.to_string();
            // The largest that passes, found by halving; its federation form must be at the limit.
            let (mut fits, mut fails) = (0, MAX_EVENT_BYTES);
            while fails - fits > 1 {
                let middle = fits.midpoint(fails);
                match seal_one(&version, &text(middle)) {
                    Ok(_) => fits = middle,
                    Err(error) => {
                        assert_eq!(error.errcode(), Some("M_TOO_LARGE"), "{error}");
                        fails = middle;
                    }
                }
            }
            assert_eq!(full_size(&version, &text(fits)), MAX_EVENT_BYTES, "version {version}");
        }
    }

    /// Size of the federation form, put together without [`seal`].
    fn full_size(version: &str, draft: &Draft) -> usize {
        let signer = Signer::new(owned_server_name!("test.local"), "a_key", &[7; 32]).unwrap();
        let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
        let mut event = json!({
            "auth_events": [], "prev_events": [], "content": draft.content, "depth": 9,
            "origin_server_ts": 1_700_000_000_000_i64, "sender": draft.sender,
            "type": draft.kind, "room_id": "!room:test.local",
        });
        if rules.event_id_format == EventIdFormatVersion::V1 {
            event["event_id"] = EventId::new_v1(&signer.server_name).as_str().into();
        }
        let CanonicalJsonValue::Object(mut event) = CanonicalJsonValue::try_from(event).unwrap()
        else {
            panic!("not an object")
        };
        hash_and_sign_event("test.local", &signer, &mut event, &rules.redaction).unwrap();
        serde_json::to_vec(&event).unwrap().len()
    }

    #[test]
    fn type_and_state_key_may_have_255_bytes_and_not_one_more() {
        let alice = owned_user_id!("@alice:test.local");
        let state = |kind: &str, key: &str| Draft::state(alice.clone(), kind, key, Map::new());
        let cases = [
            ("k".repeat(255), true),
            ("k".repeat(256), false),
            // 254 bytes, and 256 in 128 characters.
            ("ü".repeat(127), true),
            ("ü".repeat(128), false),
        ];
        for version in ["1", "6", "10", "11", "12"] {
            for (word, fits) in &cases {
                for draft in [state(word, ""), state("org.example", word)] {
                    let sealed = seal_one(version, &draft);
                    let errcode = sealed.as_ref().err().and_then(|error| error.errcode());
                    assert_eq!(errcode, (!fits).then_some("M_TOO_LARGE"), "{} bytes", word.len());
                }
            }
        }
    }

    /// Any JSON object whose numbers are all integers, and the same with one number that is not
    /// allowed.
    fn content() -> impl proptest::strategy::Strategy<Value = Value> {
        use proptest::prelude::*;
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-MAX_INTEGER..=MAX_INTEGER).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        let tree = leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        });
        proptest::collection::btree_map(any::<String>(), tree, 0..6)
            .prop_map(|map| Value::Object(map.into_iter().collect()))
    }

    /// Whether keys are in the order of their code points everywhere.
    fn is_sorted(value: &Value, text: &str) -> bool {
        let again: Value = serde_json::from_str(text).unwrap();
        again == *value && serde_json::to_string(&sorted(value)).unwrap() == text
    }

    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let keys: std::collections::BTreeMap<_, _> = map.iter().collect();
                let pairs = keys.into_iter().map(|(key, value)| (key.clone(), sorted(value)));
                Value::Object(pairs.collect())
            }
            Value::Array(list) => list.iter().map(sorted).collect(),
            other => other.clone(),
        }
    }

    proptest::proptest! {
        #[test]
        fn canonical_json_says_the_same_in_one_way(value in content()) {
            let Value::Object(map) = &value else { panic!("not an object") };
            let text = serde_json::to_string(&canonical(map).unwrap()).unwrap();
            proptest::prop_assert!(is_sorted(&value, &text), "{}", text);
            // Another order of the same members gives the same bytes.
            let reversed: Map<String, Value> =
                map.iter().rev().map(|(key, value)| (key.clone(), value.clone())).collect();
            proptest::prop_assert_eq!(serde_json::to_string(&canonical(&reversed).unwrap()).unwrap(), text);
        }

        #[test]
        fn numbers_that_are_no_small_integers_are_refused(
            value in content(),
            float in proptest::num::f64::NORMAL,
            above in 1_i64..1_000,
            is_float in proptest::bool::ANY,
        ) {
            let Value::Object(mut map) = value else { panic!("not an object") };
            let number = if is_float { json!(float) } else { json!(MAX_INTEGER + above) };
            map.insert("deep".to_owned(), json!([{ "in": number }]));
            let refused = canonical(&map).unwrap_err();
            proptest::prop_assert_eq!(refused.errcode, "M_BAD_JSON");
        }
    }
}
