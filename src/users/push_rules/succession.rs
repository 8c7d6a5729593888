//! Rules about a room go on with the one that takes its place.

use chatd_base::{Error, Result};
use chatd_config::StreamName;
use chatd_streams::Streams;
use ruma_common::{
    RoomId,
    push::{
        ConditionalPushRule, NewConditionalPushRule, NewPushRule, NewSimplePushRule, PushCondition,
        RuleKind, Ruleset,
    },
};
use serde_json::Value;

use super::{Place, PushRules, insert};
use crate::succession::{Estate, Succession};

impl Estate for PushRules {
    const STREAM: StreamName = StreamName::PushRules;
    const CALL: &str = "users.inherit_push_rules";

    fn streams(&self) -> &Streams {
        &self.deps.streams
    }

    async fn hand_on(&self, one: &Succession) -> Result<()> {
        let _line = self.locks.of(one.user).await;
        let mut rules = self.of_user(one.user, &one.user_id).await?;
        if succeed(&mut rules, &one.old, &one.new)? {
            self.write(one.user, &rules).await?;
        }
        Ok(())
    }
}

/// A rule that goes on, and the one that it comes from.
struct Successor {
    of: String,
    kind: RuleKind,
    rule: NewPushRule,
    is_enabled: bool,
}

/// Puts behind each rule about `old` one about `new`, unless there is one; whether that adds any.
/// What may not be added stays away.
fn succeed(rules: &mut Ruleset, old: &RoomId, new: &RoomId) -> Result<bool> {
    let mut has_changed = false;
    for Successor { of, kind, rule, is_enabled } in successors(rules, old, new)? {
        let id = rule.rule_id().to_owned();
        if rules.get(kind.clone(), &id).is_some() {
            continue;
        }
        let place = Place { before: None, after: Some(&of) };
        if let Err(error) = insert(rules, rule, place) {
            tracing::info!(room.id = %new, %error, "a push rule does not go with an upgraded room");
            continue;
        }
        rules.set_enabled(kind, &id, is_enabled).map_err(Error::internal)?;
        has_changed = true;
    }
    Ok(has_changed)
}

fn successors(rules: &Ruleset, old: &RoomId, new: &RoomId) -> Result<Vec<Successor>> {
    let mut all = Vec::new();
    let mut add = |of: &str, kind, rule, is_enabled| {
        all.push(Successor { of: of.to_owned(), kind, rule, is_enabled });
    };
    for rule in rules.override_.iter().filter(|rule| !rule.default) {
        if let Some(new) = successor(rule, old, new)?.map(NewPushRule::Override) {
            add(&rule.rule_id, RuleKind::Override, new, rule.enabled);
        }
    }
    for rule in rules.underride.iter().filter(|rule| !rule.default) {
        if let Some(new) = successor(rule, old, new)?.map(NewPushRule::Underride) {
            add(&rule.rule_id, RuleKind::Underride, new, rule.enabled);
        }
    }
    for rule in rules.room.iter().filter(|rule| rule.rule_id == *old) {
        let new = NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
        add(rule.rule_id.as_str(), RuleKind::Room, NewPushRule::Room(new), rule.enabled);
    }
    Ok(all)
}

/// The same rule about `new`, if it is about `old`. Each has an id of its own, and always the same
/// one.
fn successor(
    rule: &ConditionalPushRule,
    old: &RoomId,
    new: &RoomId,
) -> Result<Option<NewConditionalPushRule>> {
    let mut is_about_old = false;
    let mut conditions: Vec<PushCondition> = Vec::new();
    for condition in rule.conditions.iter() {
        let mut value = serde_json::to_value(condition).map_err(Error::internal)?;
        let names = |member: &str, text: &str| {
            value.get(member).and_then(Value::as_str).is_some_and(|found| found == text)
        };
        if names("key", "room_id") && names("pattern", old.as_str()) {
            value["pattern"] = new.as_str().into();
            is_about_old = true;
        }
        conditions.push(serde_json::from_value(value).map_err(Error::internal)?);
    }
    if !is_about_old {
        return Ok(None);
    }
    let id = match rule.rule_id.contains(old.as_str()) {
        true => rule.rule_id.replace(old.as_str(), new.as_str()),
        false => format!("{new}:{}", rule.rule_id),
    };
    Ok(Some(NewConditionalPushRule::new(id, conditions, rule.actions.clone())))
}

#[cfg(test)]
mod tests {
    use ruma_common::{owned_room_id, room_id, user_id};
    use serde_json::json;

    use super::{super::MAX_RULES, *};

    fn about(rules: &mut Ruleset, id: &str, room: &RoomId, place: Place<'_>) {
        let condition = json!({"kind": "event_match", "key": "room_id", "pattern": room});
        let conditions = vec![serde_json::from_value(condition).unwrap()];
        let rule = NewConditionalPushRule::new(id.to_owned(), conditions, Vec::new());
        insert(rules, NewPushRule::Override(rule), place).unwrap();
    }

    fn own(rules: &Ruleset) -> Vec<&str> {
        rules.override_.iter().filter(|rule| !rule.default).map(|rule| &*rule.rule_id).collect()
    }

    #[test]
    fn several_rules_go_on_in_their_order() {
        let (old, new, newer) =
            (room_id!("!old:here"), room_id!("!new:here"), room_id!("!newer:here"));
        let mut rules = Ruleset::server_default(user_id!("@a:here"));
        for (id, room) in [("low", old), ("other", room_id!("!x:y")), ("high", old)] {
            about(&mut rules, id, room, Place::default());
        }
        assert!(succeed(&mut rules, old, new).unwrap());
        let expected = ["high", "!new:here:high", "other", "low", "!new:here:low"];
        assert_eq!(own(&rules), expected);
        assert!(!succeed(&mut rules, old, new).unwrap(), "only once");
        assert!(succeed(&mut rules, new, newer).unwrap());
        let high = ["high", "!new:here:high", "!newer:here:high"];
        let low = ["low", "!new:here:low", "!newer:here:low"];
        assert_eq!(own(&rules), [&high[..], &["other"], &low].concat());
    }

    #[test]
    fn rules_without_room_for_successors_hold_nothing_up() {
        let (old, new) = (room_id!("!old:here"), room_id!("!new:here"));
        let mut rules = Ruleset::server_default(user_id!("@a:here"));
        about(&mut rules, "one", old, Place::default());
        about(&mut rules, "two", old, Place::default());
        let mut number = 0;
        while rules.iter().count() < MAX_RULES - 1 {
            about(&mut rules, &number.to_string(), room_id!("!x:y"), Place::default());
            number += 1;
        }
        assert!(succeed(&mut rules, old, new).unwrap());
        assert_eq!(rules.iter().count(), MAX_RULES);
        assert!(rules.override_.get("!new:here:two").is_some());
    }

    #[test]
    fn rules_about_a_room_go_on_with_its_successor() {
        let (old, new) = (owned_room_id!("!old:here"), owned_room_id!("!new:here"));
        let mut rules = Ruleset::server_default(user_id!("@a:here"));
        let given: NewConditionalPushRule = NewConditionalPushRule::new(
            old.to_string(),
            serde_json::from_value(json!([
                {"kind": "event_match", "key": "room_id", "pattern": old},
                {"kind": "event_match", "key": "type", "pattern": "m.room.message"},
            ]))
            .unwrap(),
            Vec::new(),
        );
        rules.insert(NewPushRule::Override(given), None, None).unwrap();
        rules
            .insert(NewPushRule::Room(NewSimplePushRule::new(old.clone(), vec![])), None, None)
            .unwrap();
        rules.set_enabled(RuleKind::Room, &old, false).unwrap();
        assert!(succeed(&mut rules, &old, &new).unwrap());
        let muted = rules.override_.get(new.as_str()).unwrap();
        let muted = serde_json::to_value(&muted.conditions).unwrap();
        assert_eq!(muted[0]["pattern"], new.as_str());
        assert_eq!(muted[1]["pattern"], "m.room.message");
        assert!(!rules.room.get(new.as_str()).unwrap().enabled);
        assert!(!succeed(&mut rules, &old, &new).unwrap(), "only once");
    }
}
