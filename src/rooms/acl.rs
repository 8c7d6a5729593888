//! `m.room.server_acl`: which servers may take part in a room.
//! <https://spec.matrix.org/latest/client-server-api/#server-access-control-lists-acls-for-rooms>

use ruma_common::ServerName;
use ruma_events::room::server_acl::RoomServerAclEventContent;
use serde_json::Value;

/// Whether a list with this content lets `server` take part. What is not of the form of a list has
/// no entries; a list without entries lets nobody in.
pub fn admits(content: &str, server: &ServerName) -> bool {
    let content: Value = serde_json::from_str(content).unwrap_or_default();
    let entries = |name: &str| -> Vec<String> {
        let all = content.get(name).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let literals = content.get("allow_ip_literals").and_then(Value::as_bool).unwrap_or(true);
    let list = RoomServerAclEventContent::new(literals, entries("allow"), entries("deny"));
    list.is_allowed(server)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(content: &Value, server: &str) -> bool {
        admits(&content.to_string(), <&ServerName>::try_from(server).unwrap())
    }

    #[test]
    fn the_list_decides_by_host_whatever_its_case() {
        let list = json!({"allow": ["*"], "deny": ["*.evil.com", "Evil.com", "b?d.org", 7]});
        let table = [
            ("good.com", true),
            ("evil.com", false),
            ("EVIL.com:8448", false),
            ("a.b.eViL.com", false),
            ("notevil.com", true),
            ("bad.org", false),
            ("baad.org", true),
            ("1.2.3.4", true),
            ("[2001:db8::1]:80", true),
        ];
        for (server, expected) in table {
            assert_eq!(check(&list, server), expected, "{server}");
        }
        let literals = json!({"allow": ["*"], "allow_ip_literals": false});
        for server in ["1.2.3.4", "1.2.3.4:8448", "[2001:db8::1]", "[2001:db8::1]:80"] {
            assert!(!check(&literals, server), "{server}");
        }
        assert!(check(&literals, "good.com"));
        assert!(check(&json!({"allow": ["*"], "allow_ip_literals": "no"}), "1.2.3.4"));
        assert!(check(&json!({"allow": ["*"], "deny": "*"}), "good.com"));
        for nobody in [json!({}), json!([]), json!({"allow": []}), json!({"allow": "*"})] {
            assert!(!check(&nobody, "good.com"), "{nobody}");
        }
    }

    proptest! {
        #[test]
        fn case_makes_no_difference_and_a_denial_wins(name in "[a-z]{1,8}", upper in any::<bool>()) {
            let server = format!("{name}.example");
            let pattern = if upper { server.to_uppercase() } else { server.clone() };
            let asked = if upper { server.clone() } else { server.to_uppercase() };
            let (allowed, denied) =
                (json!({"allow": [pattern]}), json!({"allow": ["*"], "deny": [pattern]}));
            prop_assert!(check(&allowed, &asked) && !check(&denied, &asked));
        }

        #[test]
        fn any_content_has_an_answer(content in "\\PC{0,60}") {
            admits(&content, <&ServerName>::try_from("a.example").unwrap());
        }
    }
}
