//! Requests that a server has signed.

use chatd_base::SignedRequest;
use ed25519_dalek::Signer;
use proptest::prelude::*;
use ruma_common::server_name;

use super::*;
use crate::{key_document::ServerKeys, signed_request::verdict};

const BODY: &str = r#"{"pdus":[{"a":1.5,"ü":"\"\\u0001"}]}"#;

/// The header for what `json` says, signed with the key of the vectors.
fn header(json: &str, more: &str) -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&signing_key("1").seed);
    let signature = key.sign(json.as_bytes()).to_bytes();
    let signature = Base64::<ruma_common::serde::base64::Standard, _>::new(signature).encode();
    format!("X-Matrix origin=domain,key=\"ed25519:1\",sig=\"{signature}\"{more}")
}

/// Whether it is taken as a request of `domain` to `us`.
fn check(method: &str, uri: &str, body: &str, headers: &[&str], at_ms: u64) -> Result<(), String> {
    let mut keys = ServerKeys::default();
    keys.add_document(&document("domain", NOW_MS), NOW_MS);
    let authorization: Vec<&[u8]> = headers.iter().map(|header| header.as_bytes()).collect();
    let request =
        SignedRequest { method, uri, authorization: &authorization, body: body.as_bytes() };
    verdict(&request, server_name!("us"), &keys, at_ms)
        .map(drop)
        .map_err(|refusal| format!("{} {}", refusal.status, refusal.message))
}

fn signed(body: Option<&str>) -> String {
    let content = body.map(|body| format!("\"content\":{body},")).unwrap_or_default();
    header(
        &format!(
            "{{{content}\"destination\":\"us\",\"method\":\"PUT\",\"origin\":\"domain\",\
             \"uri\":\"/a?b=%20\"}}"
        ),
        ",destination=us",
    )
}

#[test]
fn a_request_is_taken_as_it_was_signed_and_in_no_other_way() {
    let good = signed(Some(BODY));
    let check = |method: &str, uri: &str, body: &str, header: &str| {
        check(method, uri, body, &[header], NOW_MS)
    };
    check("PUT", "/a?b=%20", BODY, &good).unwrap();
    let spaced = BODY.replace(':', " : ").replace('{', "{\n ");
    check("PUT", "/a?b=%20", &spaced, &good).unwrap();
    check("PUT", "/a?b=%20", "", &signed(None)).unwrap();
    let wrong = [
        ("POST", "/a?b=%20", BODY, &good),
        ("PUT", "/a?b=%21", BODY, &good),
        ("PUT", "/a?b= ", BODY, &good),
        ("PUT", "/a?b=%20", "{}", &good),
        ("PUT", "/a?b=%20", "", &good),
        ("PUT", "/a?b=%20", "[]", &signed(Some("[]"))),
        ("PUT", "/a?b=%20", BODY, &signed(None)),
        ("PUT", "/a?b=%20", BODY, &good.replace("ed25519:1", "ed25519:2")),
        ("PUT", "/a?b=%20", BODY, &good.replace("destination=us", "destination=you")),
    ];
    for (method, uri, body, header) in wrong {
        let refused = check(method, uri, body, header).unwrap_err();
        assert!(refused.starts_with("401 "), "{method} {uri} {body} {header}: {refused}");
    }
}

#[test]
fn one_good_key_of_several_is_enough_but_servers_are_not_mixed() {
    let good = signed(None);
    let unknown = good.replace("ed25519:1", "ed25519:2");
    check("PUT", "/a?b=%20", "", &[&unknown, &good, "Bearer abc"], NOW_MS).unwrap();
    check("PUT", "/a?b=%20", "", &[&unknown], NOW_MS).unwrap_err();
    let other = good.replace("origin=domain", "origin=other");
    let refused = check("PUT", "/a?b=%20", "", &[&good, &other], NOW_MS).unwrap_err();
    assert!(refused.contains("different servers"), "{refused}");
    check("PUT", "/a?b=%20", "", &[], NOW_MS).unwrap_err();
}

#[test]
fn a_key_that_has_expired_signs_no_requests() {
    let good = signed(None);
    let refused = check("PUT", "/a?b=%20", "", &[&good], NOW_MS + WEEK_MS).unwrap_err();
    assert!(refused.contains("no key ed25519:1 that is good now"), "{refused}");
}

proptest! {
    #[test]
    fn no_body_passes_for_another(body in "[ -~]{0,60}", cut in 0_usize..200) {
        let good = signed(Some(BODY));
        prop_assume!(body.trim() != BODY);
        prop_assert!(check("PUT", "/a?b=%20", &body, &[&good], NOW_MS).is_err());
        // Everything that was signed, cut where the body could seem to end.
        let all = format!("{BODY},\"destination\":\"us\",\"method\":\"PUT\"");
        let cut = cut.min(all.len());
        prop_assume!(all.is_char_boundary(cut) && cut != BODY.len());
        prop_assert!(check("PUT", "/a?b=%20", &all[..cut], &[&good], NOW_MS).is_err());
    }
}
