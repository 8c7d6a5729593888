//! Rooms whose graph forks, in memory: known disputes in several room versions, and the property
//! that a resolved state does not depend on the order of the branches.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use ruma_common::{OwnedRoomId, OwnedUserId, RoomId, RoomVersionId};
use ruma_state_res::check_state_dependent_auth_rules;
use serde_json::{Value, json, value::to_raw_value};
use sha2::{Digest, Sha256};

use super::*;

pub(super) const VERSIONS: [&str; 6] = ["1", "2", "6", "10", "11", "12"];
pub(super) const ALICE: &str = "@alice:a.example";
pub(super) const BOB: &str = "@bob:b.example";
pub(super) const CAROL: &str = "@carol:c.example";

/// A room of which everything is in memory.
pub(super) struct Lab {
    pub(super) rules: RoomVersionRules,
    room_id: OwnedRoomId,
    pub(super) events: HashMap<EventNid, Arc<Pdu>>,
    edges: AuthEdges,
    pub(super) after: HashMap<EventNid, StateMap>,
    keys: HashMap<(String, String), KeyNid>,
}

impl Lab {
    /// A public room of Alice, in which Bob and Carol are moderators.
    pub(super) fn new(version: &str) -> (Self, EventNid) {
        let rules = RoomVersionId::try_from(version).unwrap().rules().unwrap();
        let mut lab = Self {
            room_id: RoomId::parse("!room:a.example").unwrap(),
            events: HashMap::new(),
            edges: HashMap::new(),
            after: HashMap::new(),
            keys: HashMap::new(),
            rules,
        };
        let mut at = lab.add(
            &[],
            ALICE,
            "m.room.create",
            "",
            json!({"room_version": version, "creator": ALICE}),
        );
        if lab.rules.authorization.room_create_event_id_as_room_id {
            lab.room_id =
                crate::seal::room_id_of_create(&lab.events[&at].event_id.clone()).unwrap();
        }
        at = lab.add(&[at], ALICE, "m.room.member", ALICE, json!({"membership": "join"}));
        at = lab.levels(&[at], ALICE, json!({BOB: 50, CAROL: 50}));
        at = lab.add(&[at], ALICE, "m.room.join_rules", "", json!({"join_rule": "public"}));
        for user in [BOB, CAROL] {
            at = lab.add(&[at], user, "m.room.member", user, json!({"membership": "join"}));
        }
        at = lab.add(&[at], ALICE, "m.room.topic", "", json!({"topic": "old"}));
        (lab, at)
    }

    fn levels(&mut self, prev: &[EventNid], sender: &str, mut users: Value) -> EventNid {
        if !self.rules.authorization.explicitly_privilege_room_creators {
            users[ALICE] = 100.into();
        }
        self.add(prev, sender, "m.room.power_levels", "", json!({"users": users}))
    }

    /// Adds a state event after `prev`, at a time that follows all others.
    pub(super) fn add(
        &mut self,
        prev: &[EventNid],
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> EventNid {
        let ts = i64::try_from(self.events.len()).unwrap();
        self.add_at(ts, prev, sender, kind, key, content)
    }

    /// Adds a state event at a time. One that is not allowed there is rejected.
    fn add_at(
        &mut self,
        origin_ts: i64,
        prev: &[EventNid],
        sender: &str,
        kind: &str,
        key: &str,
        content: Value,
    ) -> EventNid {
        let nid = EventNid(i64::try_from(self.events.len()).unwrap() + 1);
        let next_key = KeyNid(i64::try_from(self.keys.len()).unwrap() + 1);
        let key_nid = *self.keys.entry((kind.to_owned(), key.to_owned())).or_insert(next_key);
        let before = self.merge(prev);
        let depth = prev.iter().map(|prev| self.events[prev].depth).max().unwrap_or(0) + 1;
        let is_create = kind == "m.room.create";
        let has_hash_id = self.rules.authorization.room_create_event_id_as_room_id;
        let mut pdu = Pdu {
            nid,
            key: Some(key_nid),
            event_id: self.id(nid),
            room_id: (!(is_create && has_hash_id)).then(|| self.room_id.clone()),
            sender: OwnedUserId::try_from(sender).unwrap(),
            origin_ts,
            depth,
            kind: kind.into(),
            state_key: Some(key.to_owned()),
            content: to_raw_value(&content).unwrap(),
            prev_events: prev.iter().map(|prev| self.events[prev].event_id.clone()).collect(),
            auth_events: Vec::new(),
            redacts: None,
            rejected: false,
            hash: None,
        };
        let named = deciding_keys(&self.rules, [&Arc::new(pdu.clone())].into_iter());
        let deciding: HashMap<(String, String), Arc<Pdu>> = named
            .into_iter()
            .filter_map(|name| {
                let event = before.get(self.keys.get(&name)?)?;
                Some((name, self.events[event].clone()))
            })
            .collect();
        let auth: Vec<&Arc<Pdu>> = deciding
            .iter()
            .filter(|(name, _)| !(is_create || has_hash_id && name.0 == "m.room.create"))
            .map(|(_, pdu)| pdu)
            .collect();
        pdu.auth_events = auth.iter().map(|auth| auth.event_id.clone()).collect();
        let auth_nids = auth.iter().map(|auth| auth.nid).collect();
        pdu.rejected = !is_create
            && check_state_dependent_auth_rules(&self.rules.authorization, &pdu, |kind, key| {
                deciding.get(&(kind.to_string(), key.to_owned())).map(|pdu| (**pdu).clone())
            })
            .is_err();
        let mut after = before;
        if !pdu.rejected {
            after.insert(key_nid, nid);
        }
        self.after.insert(nid, after);
        self.edges.insert(nid, auth_nids);
        self.events.insert(nid, Arc::new(pdu));
        nid
    }

    fn id(&self, nid: EventNid) -> OwnedEventId {
        let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(nid.0.to_le_bytes()));
        let has_server = matches!(
            self.rules.event_id_format,
            ruma_common::room_version_rules::EventIdFormatVersion::V1
        );
        let server = if has_server { ":a.example" } else { "" };
        OwnedEventId::try_from(format!("${hash}{server}")).unwrap()
    }

    fn merge(&self, prev: &[EventNid]) -> StateMap {
        let states: Vec<StateMap> = prev.iter().map(|prev| self.after[prev].clone()).collect();
        self.merge_states(&states)
    }

    fn merge_states(&self, states: &[StateMap]) -> StateMap {
        let split = Split::of(states);
        if split.events().is_empty() {
            return split.agreed;
        }
        let common = common_chain(&self.edges, &split.agreed);
        let material = Material { pdus: self.events.clone(), edges: self.edges.clone(), common };
        resolve(&self.rules, &split, &material).unwrap()
    }

    /// The event that `state` has for a key.
    pub(super) fn get(&self, state: &StateMap, kind: &str, key: &str) -> Option<EventNid> {
        state.get(self.keys.get(&(kind.to_owned(), key.to_owned()))?).copied()
    }
}

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
