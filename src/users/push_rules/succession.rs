//! Rules about a room go on with the one that takes its place.

use std::sync::Arc;

use chatd_base::{Error, Refusal, Requester, Result, UserNid};
use chatd_config::StreamName;
use ruma_common::{
    OwnedRoomId, OwnedUserId, RoomId,
    push::{
        ConditionalPushRule, NewConditionalPushRule, NewPushRule, NewSimplePushRule, PushCondition,
        RuleKind, Ruleset,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Place, PushRules, insert};

const CALL: &str = "users.inherit_push_rules";

/// A room has taken the place of another for a user.
#[derive(Deserialize, Serialize)]
struct Succession {
    user: UserNid,
    user_id: OwnedUserId,
    old: OwnedRoomId,
    new: OwnedRoomId,
}

impl PushRules {
    /// Starts to answer the calls of other instances.
    pub(super) fn answer_calls(self: &Arc<Self>) {
        let rules = Arc::downgrade(self);
        self.deps.streams.calls.on(CALL, move |body| {
            let rules = rules.upgrade();
            async move {
                let rules = rules.ok_or_else(|| Refusal::not_owner(String::new()))?;
                let one = serde_json::from_slice(&body)
                    .map_err(|error| Refusal::bad_json(format!("no succession: {error}")))?;
                rules.inherit_here(&one).await.map(|()| Vec::from("{}"))
            }
        });
    }

    /// Gives `new` the user's rules about `old`, unless it has some. On return they are durable.
    /// The writer of push rules does it, so that no change of a client is lost.
    pub async fn inherit(&self, who: &Requester, old: &RoomId, new: &RoomId) -> Result<()> {
        let one = Succession {
            user: who.user,
            user_id: who.user_id.clone(),
            old: old.to_owned(),
            new: new.to_owned(),
        };
        let streams = &self.deps.streams;
        if streams.writes(StreamName::PushRules) {
            return self.inherit_here(&one).await;
        }
        let body = serde_json::to_vec(&one).map_err(Error::internal)?;
        streams.others.ask_writer(StreamName::PushRules, CALL, body.into()).await?;
        Ok(())
    }

    async fn inherit_here(&self, one: &Succession) -> Result<()> {
        let _line = self.locks.of(one.user).await;
        let mut rules = self.of_user(one.user, &one.user_id).await?;
        if succeed(&mut rules, &one.old, &one.new)? {
            self.write(one.user, &rules).await?;
        }
        Ok(())
    }
}

/// Adds to rules about `old` such about `new`; whether there are any.
fn succeed(rules: &mut Ruleset, old: &RoomId, new: &RoomId) -> Result<bool> {
    let mut added: Vec<(NewPushRule, RuleKind, bool)> = Vec::new();
    let conditional = |rule: &ConditionalPushRule| successor(rule, old, new);
    for rule in rules.override_.iter().filter(|rule| !rule.default) {
        let new = conditional(rule)?.map(NewPushRule::Override);
        added.extend(new.map(|new| (new, RuleKind::Override, rule.enabled)));
    }
    for rule in rules.underride.iter().filter(|rule| !rule.default) {
        let new = conditional(rule)?.map(NewPushRule::Underride);
        added.extend(new.map(|new| (new, RuleKind::Underride, rule.enabled)));
    }
    for rule in rules.room.iter().filter(|rule| rule.rule_id == *old) {
        let simple = NewSimplePushRule::new(new.to_owned(), rule.actions.clone());
        added.push((NewPushRule::Room(simple), RuleKind::Room, rule.enabled));
    }
    let mut has_changed = false;
    for (rule, kind, enabled) in added {
        let id = rule.rule_id().to_owned();
        if rules.get(kind.clone(), &id).is_some() {
            continue;
        }
        insert(rules, rule, Place::default())?;
        rules.set_enabled(kind, &id, enabled).map_err(Error::internal)?;
        has_changed = true;
    }
    Ok(has_changed)
}

/// The same rule about `new`, if it is about `old`.
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
        false => new.to_string(),
    };
    Ok(Some(NewConditionalPushRule::new(id, conditions, rule.actions.clone())))
}

#[cfg(test)]
mod tests {
    use ruma_common::{owned_room_id, user_id};
    use serde_json::json;

    use super::*;

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
