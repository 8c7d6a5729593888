//! What event authorisation never allows, whatever a client or another server sends.

use proptest::{collection::btree_map, prelude::*};
use serde_json::{Map, Value, json};

use super::{
    EventNid,
    lab::{ALICE, BOB, CAROL, Lab, VERSIONS},
};

const EVE: &str = "@eve:e.example";
const USERS: [&str; 4] = [ALICE, BOB, CAROL, EVE];

/// Levels in force after an event, and how much each user has.
struct Levels(Map<String, Value>);

impl Levels {
    fn after(lab: &Lab, at: EventNid) -> Self {
        let state = &lab.after[&at];
        let event = lab.get(state, "m.room.power_levels", "").expect("the room has levels");
        let content: Value = serde_json::from_str(lab.events[&event].content.get()).unwrap();
        Self(content["users"].as_object().cloned().unwrap_or_default())
    }

    /// The level of a user; `None` for a creator of a room version in which nobody is above one.
    fn of(&self, lab: &Lab, user: &str) -> Option<i64> {
        if lab.rules.authorization.explicitly_privilege_room_creators && user == ALICE {
            return None;
        }
        Some(self.0.get(user).and_then(Value::as_i64).unwrap_or(0))
    }
}

fn membership(lab: &Lab, at: EventNid, user: &str) -> Option<String> {
    let event = lab.get(&lab.after[&at], "m.room.member", user)?;
    let content: Value = serde_json::from_str(lab.events[&event].content.get()).unwrap();
    Some(content["membership"].as_str().unwrap().to_owned())
}

/// Synapse lets nobody in, or out, whose server the room is not for, though the spec only speaks of
/// senders.
#[test]
fn rooms_for_one_server_have_members_of_no_other() {
    let dave = "@dave:a.example";
    for version in VERSIONS {
        for federates in [false, true] {
            let mut lab = Lab::empty(version);
            let create =
                json!({"room_version": version, "creator": ALICE, "m.federate": federates});
            let mut at = lab.add(&[], ALICE, "m.room.create", "", create);
            at = lab.add(&[at], ALICE, "m.room.member", ALICE, json!({"membership": "join"}));
            at = lab.levels(&[at], ALICE, json!({}));
            for (user, is_in) in [(dave, true), (BOB, federates)] {
                for word in ["invite", "ban"] {
                    let content = json!({ "membership": word });
                    let next = lab.add(&[at], ALICE, "m.room.member", user, content);
                    let rejected = lab.events[&next].rejected;
                    assert_eq!(rejected, !is_in, "{word} of {user}, version {version}");
                }
            }
        }
    }
}

/// Each signature of a redeemed invite is tried with each key of the pending one.
#[test]
fn invites_of_a_great_many_signatures_and_keys_are_refused() {
    for (keys, signatures, is_too_much) in [(20, 40, false), (1_000, 2, true)] {
        let (mut lab, mut at) = Lab::new("11");
        let key = json!({"public_key": "AAAA"});
        let pending = json!({"display_name": "e", "public_keys": vec![key; keys]});
        at = lab.add(&[at], ALICE, "m.room.third_party_invite", "t", pending);
        let signed: Map<String, Value> =
            (0..signatures).map(|at| (format!("ed25519:{at}"), json!("AAAA"))).collect();
        let signed = json!({"mxid": EVE, "token": "t", "signatures": {"id.example": signed}});
        let invite = json!({"membership": "invite", "third_party_invite": {"signed": signed}});
        at = lab.add(&[at], ALICE, "m.room.member", EVE, invite);
        let why = &lab.refused[&at];
        assert_eq!(why.ends_with("no identity server's"), is_too_much, "{why}");
    }
}

/// What is nowhere written is not compared: whoever may change levels puts a level in and takes it
/// out, up to the own one, also where the default would be more than that.
#[test]
fn levels_that_are_not_written_are_compared_with_nothing() {
    for version in VERSIONS {
        for (before, after, is_allowed) in [
            (json!({}), json!({"ban": 0}), true),
            (json!({}), json!({"kick": 40, "redact": 39}), true),
            (json!({}), json!({"ban": 41}), false),
            (json!({}), json!({"ban": 50}), false),
            (json!({}), json!({"state_default": 40, "ban": 41}), false),
            (json!({"ban": 40}), json!({}), true),
            (json!({"ban": 41}), json!({}), false),
            (json!({"state_default": 50}), json!({}), false),
            (json!({"ban": 50}), json!({"ban": 40}), false),
            (json!({"ban": 30}), json!({"ban": 50}), false),
            (json!({"ban": 50}), json!({"ban": 50, "redact": 10}), true),
            (json!({}), json!({"users_default": 40, "ban": 0}), true),
            (json!({}), json!({"users_default": 41, "ban": 0}), false),
        ] {
            let (mut lab, mut at) = Lab::new(version);
            let mut users = json!({BOB: 40});
            if !lab.rules.authorization.explicitly_privilege_room_creators {
                users[ALICE] = 100.into();
            }
            let with = |levels: &Value| {
                let mut content = levels.clone();
                content["users"] = users.clone();
                content["events"] = json!({"m.room.power_levels": 40});
                content
            };
            let (before, after) = (with(&before), with(&after));
            at = lab.add(&[at], ALICE, "m.room.power_levels", "", before.clone());
            assert!(!lab.events[&at].rejected, "{before}, version {version}");
            let next = lab.add(&[at], BOB, "m.room.power_levels", "", after.clone());
            let rejected = lab.events[&next].rejected;
            assert_eq!(rejected, !is_allowed, "{before} to {after}, version {version}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Nobody gives anyone more power than they have, and nobody takes power from an equal.
    #[test]
    fn power_comes_only_from_above(
        steps in proptest::collection::vec(
            (0_usize..4, btree_map(0_usize..4, -10_i64..120, 0..4)),
            1..8,
        ),
        version in 0_usize..VERSIONS.len(),
    ) {
        let (mut lab, mut at) = Lab::new(VERSIONS[version]);
        for (sender, users) in steps {
            let sender = USERS[sender];
            let before = Levels::after(&lab, at);
            let names = users.iter().map(|(user, level)| (USERS[*user].to_owned(), json!(level)));
            // No creator may be listed where creators are above all levels.
            let is_over_all = lab.rules.authorization.explicitly_privilege_room_creators;
            let users: Map<String, Value> =
                names.filter(|(name, _)| !is_over_all || name != ALICE).collect();
            let next = lab.add(&[at], sender, "m.room.power_levels", "", json!({ "users": users }));
            if lab.events[&next].rejected {
                prop_assert_eq!(&Levels::after(&lab, next).0, &before.0);
                continue;
            }
            let after = Levels::after(&lab, next);
            let own = before.of(&lab, sender);
            prop_assert!(own.is_none_or(|own| own >= 50), "{} may not change levels", sender);
            prop_assert!(sender != EVE, "a stranger has changed levels");
            for user in USERS {
                let (Some(old), Some(new)) = (before.of(&lab, user), after.of(&lab, user)) else {
                    continue;
                };
                let Some(own) = own.filter(|_| old != new) else { continue };
                prop_assert!(new <= own, "{sender} ({own}) has given {user} {new}");
                prop_assert!(user == sender || old < own, "{sender} ({own}) has changed {user} ({old})");
            }
            at = next;
        }
    }

    /// Joins are one's own, a ban holds until it is lifted, and only the stronger kick and ban.
    #[test]
    fn memberships_change_only_as_they_may(
        steps in proptest::collection::vec((0_usize..4, 0_usize..4, 0_usize..4), 1..24),
        version in 0_usize..VERSIONS.len(),
    ) {
        let (mut lab, mut at) = Lab::new(VERSIONS[version]);
        for (sender, target, word) in steps {
            let (sender, target) = (USERS[sender], USERS[target]);
            let word = ["join", "leave", "ban", "invite"][word];
            let was = membership(&lab, at, target);
            let sender_was = membership(&lab, at, sender);
            let levels = Levels::after(&lab, at);
            let (own, others) = (levels.of(&lab, sender), levels.of(&lab, target));
            let next =
                lab.add(&[at], sender, "m.room.member", target, json!({ "membership": word }));
            if lab.events[&next].rejected {
                prop_assert_eq!(membership(&lab, next, target), was);
                continue;
            }
            at = next;
            let is_stronger = own.is_none_or(|own| others.is_some_and(|other| own >= 50 && other < own));
            let is_banned = was.as_deref() == Some("ban");
            match word {
                "join" => prop_assert!(sender == target && !is_banned),
                "invite" => prop_assert!(!is_banned && was.as_deref() != Some("join")),
                "leave" if sender == target => prop_assert!(!is_banned),
                _ => prop_assert!(is_stronger, "{sender} has done {word} to {target}"),
            }
            if word != "join" && sender != target {
                prop_assert_eq!(sender_was.as_deref(), Some("join"), "{} is not in the room", sender);
            }
        }
    }
}
