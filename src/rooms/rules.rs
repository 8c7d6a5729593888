//! What allows an event: ruma's rules, and what all other servers add to the letter of the spec, so
//! that nobody comes to another state here. `tests/synapse.rs` compares.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use chatd_base::EventNid;
use ruma_common::{OwnedEventId, UserId, room_version_rules::AuthorizationRules};
use ruma_events::{StateEventType, TimelineEventType};
use ruma_state_res::{
    check_state_dependent_auth_rules,
    events::{RoomCreateEvent, RoomPowerLevelsEvent, RoomPowerLevelsIntField},
};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use crate::pdu::Pdu;

/// Stands for the join rules of a room that has none.
static NO_RULES: LazyLock<OwnedEventId> = LazyLock::new(|| {
    OwnedEventId::try_from("$no-join-rules").expect("the literal above is an event id")
});

/// Signatures times keys that are tried for one invite (R8). Identity servers have two keys.
const MOST_TRIED: usize = 1_000;

/// Levels that stand for themselves, and have a default.
const LEVELS: [RoomPowerLevelsIntField; 7] = [
    RoomPowerLevelsIntField::UsersDefault,
    RoomPowerLevelsIntField::EventsDefault,
    RoomPowerLevelsIntField::StateDefault,
    RoomPowerLevelsIntField::Ban,
    RoomPowerLevelsIntField::Redact,
    RoomPowerLevelsIntField::Kick,
    RoomPowerLevelsIntField::Invite,
];

/// Whether the state that `fetch` reads allows an event.
pub(crate) fn check_by_state(
    rules: &AuthorizationRules,
    pdu: &Pdu,
    fetch: impl Fn(&StateEventType, &str) -> Option<Arc<Pdu>>,
) -> Result<(), String> {
    if pdu.kind == TimelineEventType::RoomMember {
        check_target(pdu, || fetch(&StateEventType::RoomCreate, ""))?;
        check_effort(pdu, |token| fetch(&StateEventType::RoomThirdPartyInvite, token))?;
        check_third_party_invite(pdu)?;
    }
    let mut pdu = Cow::Borrowed(pdu);
    if pdu.kind == TimelineEventType::RoomPowerLevels
        && let Some(current) = fetch(&StateEventType::RoomPowerLevels, "")
        && let Some(create) = fetch(&StateEventType::RoomCreate, "")
        && let Some(comparable) = check_unwritten(rules, &pdu, &current, &create)?
    {
        pdu = Cow::Owned(comparable);
    }
    let pdu = &*pdu;
    check_state_dependent_auth_rules(rules, pdu, |kind, key| match fetch(kind, key) {
        found if *kind != StateEventType::RoomJoinRules => found,
        Some(found) => Some(with_rule(&found).map_or(found, Arc::new)),
        None => Some(Arc::new(no_rules(pdu))),
    })
}

/// In a room that is not for other servers nobody of another one is a member, whoever says so.
fn check_target(pdu: &Pdu, create: impl Fn() -> Option<Arc<Pdu>>) -> Result<(), String> {
    let target = pdu.state_key.as_deref().and_then(|target| <&UserId>::try_from(target).ok());
    let (Some(target), Some(create)) = (target, create()) else { return Ok(()) };
    let is_far = target.server_name() != create.sender.server_name();
    if is_far && member(&create.content, "m.federate").is_some_and(|value| value.get() != "true") {
        return Err(format!("the room is not for users of other servers, and {target} is one"));
    }
    Ok(())
}

/// An invite that an identity server has signed: each signature is tried with each key of the
/// pending invite, and somebody may have made a great many of both (R8).
fn check_effort(pdu: &Pdu, pending: impl Fn(&str) -> Option<Arc<Pdu>>) -> Result<(), String> {
    let invite = member(&pdu.content, "third_party_invite").filter(|_| is_invite(pdu));
    let Some(invite) = invite else { return Ok(()) };
    let invite: Value = serde_json::from_str(invite.get()).map_err(|error| error.to_string())?;
    let signed = &invite["signed"];
    let servers = signed["signatures"].as_object().into_iter().flat_map(Map::values);
    let signatures: usize = servers.filter_map(Value::as_object).map(Map::len).sum();
    let Some(pending) = signed["token"].as_str().and_then(pending) else { return Ok(()) };
    let keys = member(&pending.content, "public_keys");
    let keys = keys.and_then(|keys| serde_json::from_str::<Vec<&RawValue>>(keys.get()).ok());
    let keys = keys.map_or(0, |keys| keys.len()) + 1;
    if signatures.saturating_mul(keys) > MOST_TRIED {
        return Err(format!("{signatures} signatures and {keys} keys are no identity server's"));
    }
    Ok(())
}

/// Whoever is invited by an address is invited in no other way, whatever stands there of it.
fn check_third_party_invite(pdu: &Pdu) -> Result<(), String> {
    match member(&pdu.content, "third_party_invite").filter(|_| is_invite(pdu)) {
        Some(value) if value.get() == "null" => Err("`third_party_invite` is null".to_owned()),
        _ => Ok(()),
    }
}

fn is_invite(pdu: &Pdu) -> bool {
    pdu.content_str("membership").as_deref() == Some("invite")
}

/// Levels that the event writes where none was, or strikes out. With Synapse the one that is written
/// may be no more than the sender has; ruma says the same of what counts where nothing is written.
/// If such levels are allowed, the event as ruma has to see it, with these levels as they are now.
fn check_unwritten(
    rules: &AuthorizationRules,
    pdu: &Pdu,
    current: &Pdu,
    create: &Pdu,
) -> Result<Option<Pdu>, String> {
    let creators = RoomCreateEvent::new(create).creators(rules)?;
    if rules.explicitly_privilege_room_creators && creators.contains(&pdu.sender) {
        return Ok(None);
    }
    let (old, new) = (RoomPowerLevelsEvent::new(current), RoomPowerLevelsEvent::new(pdu));
    let own = old.user_power_level(&pdu.sender, rules)?;
    let mut kept = Vec::new();
    for field in LEVELS {
        let (is, becomes) = (old.get_as_int(field, rules)?, new.get_as_int(field, rules)?);
        let ((Some(written), None) | (None, Some(written))) = (is, becomes) else { continue };
        if written > own {
            return Err(format!("the sender has not enough power to change `{field}`"));
        }
        kept.push((field, is));
    }
    if kept.is_empty() {
        return Ok(None);
    }
    let mut content: Map<String, Value> =
        serde_json::from_str(pdu.content.get()).map_err(|error| error.to_string())?;
    for (field, is) in kept {
        match is {
            Some(level) => drop(content.insert(field.to_string(), i64::from(level).into())),
            None => drop(content.remove(field.as_str())),
        }
    }
    let content = to_raw_value(&content).map_err(|error| error.to_string())?;
    Ok(Some(Pdu { content, ..pdu.clone() }))
}

/// The event as state resolution sees it. `names_rules` says whether it names the join rules among
/// what allows it.
pub(crate) fn for_resolution(pdu: &Pdu, names_rules: impl Fn() -> bool) -> Pdu {
    let needs_rules = pdu.kind == TimelineEventType::RoomMember
        && pdu.content_str("membership").is_some_and(|word| word != "leave" && word != "ban");
    let mut seen = match pdu.kind {
        TimelineEventType::RoomJoinRules => with_rule(pdu).unwrap_or_else(|| pdu.clone()),
        _ => pdu.clone(),
    };
    if needs_rules && !names_rules() {
        seen.auth_events.push(NO_RULES.clone());
    }
    seen
}

/// What `id` stands for if it is no event of any room but what [`for_resolution`] has added.
pub(crate) fn made_up(id: &ruma_common::EventId, any: Option<&Arc<Pdu>>) -> Option<Pdu> {
    (*id == **NO_RULES).then(|| any.map(|pdu| no_rules(pdu))).flatten()
}

/// The join rules of the room of `pdu` if there are none: who is invited may come.
fn no_rules(pdu: &Pdu) -> Pdu {
    Pdu {
        nid: EventNid(0),
        key: None,
        event_id: NO_RULES.clone(),
        kind: TimelineEventType::RoomJoinRules,
        state_key: Some(String::new()),
        content: invite(),
        prev_events: Vec::new(),
        auth_events: Vec::new(),
        redacts: None,
        rejected: false,
        hash: None,
        ..pdu.clone()
    }
}

/// Join rules that do not say which, as they are meant.
fn with_rule(rules: &Pdu) -> Option<Pdu> {
    let has_rule = member(&rules.content, "join_rule").is_some();
    (!has_rule).then(|| Pdu { content: invite(), ..rules.clone() })
}

fn invite() -> Box<RawValue> {
    to_raw_value(&serde_json::json!({"join_rule": "invite"})).expect("the literal is JSON")
}

fn member<'a>(content: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    let members: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(content.get()).ok()?;
    members.get(name).copied()
}
