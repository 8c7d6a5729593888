//! Documents in which servers tell their keys.

use ruma_common::server_name;
use serde_json::{Value, json};

use super::*;
use crate::key_document::ServerKeys;

fn as_known(document: &Document) -> ServerKeys {
    let mut keys = ServerKeys::default();
    keys.add_document(document, NOW_MS);
    keys
}

#[test]
fn what_is_told_is_read_back_and_stored() {
    let document = document("domain", NOW_MS);
    let keys = as_known(&document);
    let day_ms = 24 * 60 * 60 * 1000;
    assert!(keys.find("ed25519:1", NOW_MS + day_ms).is_some());
    assert!(keys.find("ed25519:1", NOW_MS + day_ms + 1).is_none());
    assert!(keys.may_change("ed25519:1", NOW_MS + day_ms + 1));
    assert!(keys.find("ed25519:old", NOW_MS - 1_000).is_some());
    assert!(keys.find("ed25519:old", NOW_MS).is_none());
    assert!(!keys.may_change("ed25519:old", NOW_MS), "an old key does not come back");
    assert!(!keys.is_half_over("ed25519:1", NOW_MS + day_ms / 3));
    assert!(keys.is_half_over("ed25519:1", NOW_MS + day_ms * 2 / 3));

    let mut read = ServerKeys::default();
    document.to_stored(NOW_MS).keys.into_iter().for_each(|row| read.add_row(row));
    assert_eq!(read, keys);
}

#[test]
fn keys_are_taken_for_a_week_at_most() {
    let config =
        Keys { refresh_interval: std::time::Duration::from_secs(1 << 32), ..Keys::default() };
    let json = own_keys("domain", &config).document(NOW_MS).unwrap();
    let object = serde_json::from_slice(&json).unwrap();
    let document = Document::parse(server_name!("domain"), &object, NOW_MS).unwrap();
    assert_eq!(as_known(&document).valid_until_ms(), NOW_MS + WEEK_MS);
}

#[test]
fn what_the_server_has_not_signed_itself_is_not_believed() {
    let json = own_keys("domain", &with_old_key()).document(NOW_MS).unwrap();
    let good: Value = serde_json::from_slice(&json).unwrap();
    type Case = (&'static str, fn(&mut Value));
    let changes: [Case; 6] = [
        ("server_name", |document| document["server_name"] = "other".into()),
        ("signature", |document| document["valid_until_ts"] = 1.into()),
        ("has not signed", |document| document["signatures"] = json!({})),
        ("signature", |document| {
            document["old_verify_keys"] = document["verify_keys"].take();
        }),
        ("valid_until_ts", |document| document["valid_until_ts"] = "soon".into()),
        ("101 keys", |document| {
            for number in 0..100 {
                document["verify_keys"][format!("ed25519:{number}x")] =
                    document["verify_keys"]["ed25519:1"].clone();
            }
            document["old_verify_keys"] = json!({});
        }),
    ];
    for (told, change) in changes {
        let mut changed = good.clone();
        change(&mut changed);
        let wrong = Document::parse(server_name!("domain"), &object(changed), NOW_MS).unwrap_err();
        assert!(wrong.contains(told), "{told}: {wrong}");
    }
    let other = Document::parse(server_name!("other"), &object(good), NOW_MS).unwrap_err();
    assert!(other.contains("server_name"), "{other}");
}

#[test]
fn a_newer_document_counts_whatever_comes_first() {
    let told = |at_ms: u64, old: bool| {
        let config = if old { with_old_key() } else { Keys::default() };
        let json = own_keys("domain", &config).document(at_ms).unwrap();
        let object = serde_json::from_slice(&json).unwrap();
        Document::parse(server_name!("domain"), &object, NOW_MS).unwrap()
    };
    let (older, newer) = (told(NOW_MS - 5_000, false), told(NOW_MS, true));
    let mut one = as_known(&older);
    one.add_document(&newer, NOW_MS);
    let mut two = as_known(&newer);
    two.add_document(&older, NOW_MS);
    assert_eq!(one, two);
}

#[test]
fn the_same_document_is_told_until_half_of_its_time_is_over() {
    let keys = own_keys("domain", &Keys::default());
    let first = keys.document(NOW_MS).unwrap();
    let half_ms = 12 * 60 * 60 * 1000;
    assert_eq!(keys.document(NOW_MS + half_ms - 1).unwrap(), first);
    assert_ne!(keys.document(NOW_MS + half_ms).unwrap(), first);
}
