//! Events that servers have signed: the specification's vectors, and what must not pass.

use std::sync::Arc;

use ruma_common::{RoomVersionId, room_version_rules::RoomVersionRules};
use ruma_signatures::{
    KeyPair, add_content_hash_to_event, hash_and_sign_event, sign_event, sign_json,
};
use serde_json::json;

use super::*;
use crate::{
    Unsound, event_check::check_one, key_document::ServerKeys, keyring::Found, own_keys::Pair,
};

fn pair() -> impl KeyPair {
    Pair::new(&signing_key("1")).unwrap()
}

fn rules(version: u8) -> RoomVersionRules {
    RoomVersionId::try_from(version.to_string()).unwrap().rules().unwrap()
}

/// `domain` with its key, good from `NOW_MS` for a day.
fn known() -> Found {
    let mut keys = ServerKeys::default();
    keys.add_document(&document("domain", NOW_MS), NOW_MS);
    Found::from([("domain".try_into().unwrap(), Arc::new(keys))])
}

#[test]
fn the_vectors_of_the_specification_are_met() {
    let signature = |object: &CanonicalJsonObject| {
        object["signatures"].as_object().unwrap()["domain"].as_object().unwrap()["ed25519:1"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let table = [
        (
            json!({}),
            "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ",
        ),
        (
            json!({"one": 1, "two": "Two"}),
            "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
        ),
    ];
    for (value, expected) in table {
        let mut object = object(value);
        sign_json("domain", &pair(), &mut object).unwrap();
        assert_eq!(signature(&object), expected);
    }
    let minimal = json!({
        "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain",
        "origin_server_ts": 1_000_000, "signatures": {}, "hashes": {}, "type": "X", "content": {},
        "prev_events": [], "auth_events": [], "depth": 3, "unsigned": {"age_ts": 1_000_000},
    });
    let redactable = json!({
        "content": {"body": "Here is the message content"}, "event_id": "$0:domain",
        "hashes": {}, "origin": "domain", "origin_server_ts": 1_000_000, "signatures": {},
        "type": "m.room.message", "room_id": "!r:domain", "sender": "@u:domain",
        "unsigned": {"age_ts": 1_000_000},
    });
    let table = [
        (
            minimal,
            "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
            "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        ),
        (
            redactable,
            "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
            "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
        ),
    ];
    for (value, hash, expected) in table {
        let mut event = object(value);
        hash_and_sign_event("domain", &pair(), &mut event, &rules(1).redaction).unwrap();
        assert_eq!(event["hashes"].as_object().unwrap()["sha256"].as_str(), Some(hash));
        assert_eq!(signature(&event), expected);
    }
}

/// A complete event of `@a:domain`.
fn event(version: u8, change: impl Fn(&mut Value)) -> CanonicalJsonObject {
    let mut value = json!({
        "room_id": "!x:domain", "sender": "@a:domain", "origin_server_ts": NOW_MS,
        "type": "m.room.message", "content": {"body": "hello"}, "prev_events": [],
        "auth_events": [], "depth": 3,
    });
    if version < 3 {
        value["event_id"] = "$1:domain".into();
    }
    change(&mut value);
    let mut event = object(value);
    hash_and_sign_event("domain", &pair(), &mut event, &rules(version).redaction).unwrap();
    event
}

#[test]
fn a_third_party_invite_that_is_no_object_is_hashed_and_not_signed() {
    for (odd, version) in [(json!("x"), 11), (json!(null), 12)] {
        let mut whole = object(json!({
            "room_id": "!x:domain", "sender": "@a:domain", "origin_server_ts": NOW_MS,
            "type": "m.room.member", "state_key": "@a:domain", "prev_events": [], "depth": 3,
            "content": {"membership": "join", "third_party_invite": odd}, "auth_events": [],
        }));
        add_content_hash_to_event(&mut whole).unwrap();
        let mut lean = whole.clone();
        lean.insert("content".to_owned(), object(json!({"membership": "join"})).into());
        sign_event("domain", &pair(), &mut lean, &rules(version).redaction).unwrap();
        whole.insert("signatures".to_owned(), lean["signatures"].clone());
        assert_eq!(check(version, whole.clone()).unwrap(), whole);
        let mut changed = whole;
        let content = json!({"membership": "join", "third_party_invite": 5});
        changed.insert("content".to_owned(), object(content).into());
        assert_eq!(check(version, changed).unwrap(), lean, "redacted");
        assert_eq!(check(version, lean.clone()).unwrap(), lean);
    }
}

fn check(version: u8, event: CanonicalJsonObject) -> Result<CanonicalJsonObject, Unsound> {
    check_one(event, &known(), &rules(version))
}

fn forged(outcome: Result<CanonicalJsonObject, Unsound>) -> String {
    match outcome {
        Err(Unsound::Forged(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_signed_event_passes_as_it_is_in_every_room_version() {
    for version in 1..=11 {
        let mut event = event(version, |_| ());
        event.insert("unsigned".to_owned(), object(json!({"age": 7})).into());
        assert_eq!(check(version, event.clone()), Ok(event), "version {version}");
    }
}

#[test]
fn an_event_whose_content_was_changed_comes_back_redacted() {
    let mut changed = event(10, |_| ());
    changed.insert("content".to_owned(), object(json!({"body": "goodbye"})).into());
    let redacted = check(10, changed.clone()).unwrap();
    assert_eq!(redacted["content"], object(json!({})));
    assert_eq!(redacted["signatures"], changed["signatures"]);
    // What is not removed by a redaction is signed.
    changed.insert("depth".to_owned(), CanonicalJsonValue::Integer(4_u8.into()));
    forged(check(10, changed));
}

#[test]
fn whoever_has_to_sign_has_to_sign() {
    let why = forged(check(10, event(10, |event| event["sender"] = "@a:other".into())));
    assert!(why.contains("other has not signed"), "{why}");
    // In room versions 1 and 2, the server in the event's id as well.
    let elsewhere = |event: &mut Value| event["event_id"] = "$1:other".into();
    assert!(forged(check(1, event(1, elsewhere))).contains("other has not signed"));
    check(10, event(10, elsewhere)).unwrap();
    // The server that lets somebody in, where that is a thing.
    let authorised = |event: &mut Value| {
        event["type"] = "m.room.member".into();
        event["state_key"] = "@a:domain".into();
        event["content"] =
            json!({"membership": "join", "join_authorised_via_users_server": "@b:other"});
    };
    check(7, event(7, authorised)).unwrap();
    assert!(forged(check(8, event(8, authorised))).contains("other has not signed"));
    // Nobody, for an invite by a third party.
    let third_party = |event: &mut Value| {
        event["type"] = "m.room.member".into();
        event["sender"] = "@a:other".into();
        event["state_key"] = "@b:domain".into();
        event["content"] = json!({"membership": "invite", "third_party_invite": {"signed": {}}});
    };
    check(10, event(10, third_party)).unwrap();
}

#[test]
fn a_key_counts_for_the_time_of_the_event_from_version_5_on() {
    let later = |event: &mut Value| event["origin_server_ts"] = (NOW_MS + WEEK_MS).into();
    check(4, event(4, later)).unwrap();
    let outcome = check(5, event(5, later));
    assert!(matches!(outcome, Err(Unsound::NoKey(_))), "{outcome:?}");
    let sign_with_old = |version: u8, at_ms: u64| {
        let mut event = event(version, |event| event["origin_server_ts"] = at_ms.into());
        let signatures = json!({"domain": {"ed25519:old": "AAAA"}});
        event.insert("signatures".to_owned(), object(signatures).into());
        check(version, event)
    };
    assert!(forged(sign_with_old(5, NOW_MS)).contains("any more"));
    assert!(!forged(sign_with_old(5, NOW_MS - 2_000)).contains("any more"));
}

#[test]
fn what_is_no_event_is_refused_before_keys_are_looked_at() {
    let without = |member: &'static str| {
        let mut event = event(10, |_| ());
        event.remove(member);
        event
    };
    for member in [
        "sender",
        "type",
        "room_id",
        "depth",
        "prev_events",
        "origin_server_ts",
        "hashes",
        "signatures",
    ] {
        forged(check(10, without(member)));
    }
    let mut large = event(10, |_| ());
    large.insert("padding".to_owned(), CanonicalJsonValue::String("x".repeat(65_536)));
    forged(check(10, large));
    let long = event(10, |event| event["type"] = "x".repeat(256).into());
    forged(check(10, long));
}
