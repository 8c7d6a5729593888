//! Known disputes in several room versions, and the property that a resolved state does not depend on the
//! order of the branches.

use proptest::prelude::*;
use serde_json::json;

use super::{
    lab::{ALICE, BOB, CAROL, Lab, VERSIONS},
    *,
};

#[test]
fn what_a_banned_user_did_meanwhile_is_undone() {
    for version in VERSIONS {
        let (mut lab, fork) = Lab::new(version);
        let old = lab.get(&lab.after[&fork].clone(), "m.room.topic", "");
        let topic = lab.add(&[fork], BOB, "m.room.topic", "", json!({"topic": "by Bob"}));
        let ban = lab.add(&[fork], ALICE, "m.room.member", BOB, json!({"membership": "ban"}));
        let merged = lab.merge(&[topic, ban]);
        assert_eq!(lab.get(&merged, "m.room.member", BOB), Some(ban), "version {version}");
        assert_eq!(lab.get(&merged, "m.room.topic", ""), old, "version {version}");
    }
}

#[test]
fn of_two_changes_of_power_the_one_with_more_power_goes_first() {
    for version in VERSIONS {
        let (mut lab, fork) = Lab::new(version);
        let by_bob = lab.levels(&[fork], BOB, json!({BOB: 50, CAROL: 50, "@dave:d.example": 50}));
        // Deeper, which is what counts in version 1.
        let step = lab.add(&[fork], ALICE, "m.room.name", "", json!({"name": "n"}));
        let by_alice = lab.levels(&[step], ALICE, json!({CAROL: 50}));
        for order in [[by_bob, by_alice], [by_alice, by_bob]] {
            let merged = lab.merge(&order);
            let levels = lab.get(&merged, "m.room.power_levels", "");
            assert_eq!(levels, Some(by_alice), "version {version}");
        }
    }
}

/// Though only one of them needs Bob's membership, nobody disputes that.
#[test]
fn of_two_changes_of_equal_power_the_later_one_stays() {
    for version in ["2", "6", "10", "11"] {
        let (mut lab, fork) = Lab::new(version);
        let fork = lab.levels(&[fork], ALICE, json!({BOB: 100}));
        let levels = |avatar: u32| {
            let users = json!({ALICE: 100, BOB: 100});
            json!({"users": users, "events": {"m.room.avatar": avatar}})
        };
        let by_bob = lab.add_at(100, &[fork], BOB, "m.room.power_levels", "", levels(1));
        let by_alice = lab.add_at(200, &[fork], ALICE, "m.room.power_levels", "", levels(2));
        for order in [[by_bob, by_alice], [by_alice, by_bob]] {
            let merged = lab.merge(&order);
            let levels = lab.get(&merged, "m.room.power_levels", "");
            assert_eq!(levels, Some(by_alice), "version {version}");
        }
    }
}

#[test]
fn of_two_topics_the_later_one_stays() {
    for version in VERSIONS {
        let (mut lab, fork) = Lab::new(version);
        let first = lab.add(&[fork], BOB, "m.room.topic", "", json!({"topic": "first"}));
        let step = lab.add(&[fork], CAROL, "m.room.name", "", json!({"name": "n"}));
        let second = lab.add(&[step], CAROL, "m.room.topic", "", json!({"topic": "second"}));
        let merged = lab.merge(&[second, first]);
        assert_eq!(lab.get(&merged, "m.room.topic", ""), Some(second), "version {version}");
        assert_eq!(lab.get(&merged, "m.room.name", ""), Some(step), "version {version}");
    }
}

#[test]
fn topics_under_newer_power_levels_win_whatever_their_clock_says() {
    for version in VERSIONS {
        let (mut lab, fork) = Lab::new(version);
        let late = lab.add_at(9_000, &[fork], BOB, "m.room.topic", "", json!({"topic": "late"}));
        let levels = lab.levels(&[fork], ALICE, json!({BOB: 50, CAROL: 51}));
        let early =
            lab.add_at(100, &[levels], CAROL, "m.room.topic", "", json!({"topic": "early"}));
        let merged = lab.merge(&[late, early]);
        assert_eq!(lab.get(&merged, "m.room.topic", ""), Some(early), "version {version}");
        assert_eq!(lab.get(&merged, "m.room.power_levels", ""), Some(levels));
    }
}

#[test]
fn who_joins_while_the_door_is_closed_stays_outside() {
    for version in VERSIONS {
        let (mut lab, fork) = Lab::new(version);
        let dave = "@dave:d.example";
        let closed = json!({"join_rule": "invite"});
        let closed = lab.add(&[fork], ALICE, "m.room.join_rules", "", closed);
        let join = lab.add(&[fork], dave, "m.room.member", dave, json!({"membership": "join"}));
        let merged = lab.merge(&[closed, join]);
        assert_eq!(lab.get(&merged, "m.room.join_rules", ""), Some(closed));
        // In version 1 a membership that only one branch knows is not in dispute.
        let expected = (version == "1").then_some(join);
        assert_eq!(lab.get(&merged, "m.room.member", dave), expected, "version {version}");
    }
}

/// Synapse takes a room without join rules, or with such as do not say which, for one of the invited.
#[test]
fn without_join_rules_who_is_invited_may_come() {
    let dave = "@dave:d.example";
    let member = |word: &str| json!({ "membership": word });
    for version in VERSIONS {
        for rules in [None, Some(json!({}))] {
            let mut lab = Lab::empty(version);
            let create = json!({"room_version": version, "creator": ALICE});
            let mut at = lab.add(&[], ALICE, "m.room.create", "", create);
            at = lab.add(&[at], ALICE, "m.room.member", ALICE, member("join"));
            at = lab.levels(&[at], ALICE, json!({}));
            if let Some(rules) = rules {
                at = lab.add(&[at], ALICE, "m.room.join_rules", "", rules);
            }
            let uninvited = lab.add(&[at], BOB, "m.room.member", BOB, member("join"));
            assert!(lab.events[&uninvited].rejected, "version {version}");
            let invite = lab.add(&[at], ALICE, "m.room.member", dave, member("invite"));
            let again = lab.add(&[invite], ALICE, "m.room.member", dave, member("invite"));
            let join = lab.add(&[invite], dave, "m.room.member", dave, member("join"));
            assert!(!lab.events[&join].rejected, "version {version}");
            // Also where branches meet.
            let levels = lab.levels(&[again], ALICE, json!({BOB: 1}));
            let merged = lab.merge(&[levels, join]);
            assert_eq!(lab.get(&merged, "m.room.member", dave), Some(join), "version {version}");
        }
    }
}

/// One step of a random room: who does what, on which branch.
#[derive(Clone, Debug)]
struct Step {
    branch: usize,
    sender: usize,
    action: usize,
    target: usize,
    number: i64,
}

fn step() -> impl Strategy<Value = Step> {
    (0..3_usize, 0..3_usize, 0..7_usize, 0..3_usize, 0..101_i64).prop_map(
        |(branch, sender, action, target, number)| Step { branch, sender, action, target, number },
    )
}

fn play(lab: &mut Lab, tips: &mut [EventNid; 3], step: &Step) {
    let users = [ALICE, BOB, CAROL];
    let (sender, target) = (users[step.sender], users[step.target]);
    let prev = [tips[step.branch]];
    let member = |word: &str| json!({"membership": word});
    let next = match step.action {
        0 => lab.add(&prev, sender, "m.room.topic", "", json!({"topic": step.number})),
        1 => lab.levels(&prev, sender, json!({BOB: step.number, CAROL: 50})),
        2 => lab.add(&prev, sender, "m.room.member", target, member("ban")),
        3 => lab.add(&prev, sender, "m.room.member", target, member("leave")),
        4 => lab.add(&prev, sender, "m.room.member", sender, member("join")),
        5 => {
            let rule = if step.number % 2 == 0 { "public" } else { "invite" };
            lab.add(&prev, sender, "m.room.join_rules", "", json!({"join_rule": rule}))
        }
        _ => {
            let tips = [tips[step.branch], tips[step.target]];
            lab.add(&tips, sender, "m.room.name", "", json!({"name": step.number}))
        }
    };
    tips[step.branch] = next;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_order_of_branches_does_not_matter(
        version in prop::sample::select(VERSIONS.to_vec()),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let (mut lab, fork) = Lab::new(version);
        let mut tips = [fork; 3];
        for step in &steps {
            play(&mut lab, &mut tips, step);
        }
        let [a, b, c] = tips;
        let merged = lab.merge(&[a, b, c]);
        for order in [[a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a]] {
            prop_assert_eq!(&lab.merge(&order), &merged, "version {}", version);
        }
        // The power to act is never lost or invented: whoever is in force was allowed somewhere.
        for event in merged.values() {
            prop_assert!(!lab.events[event].rejected);
        }
    }
}
