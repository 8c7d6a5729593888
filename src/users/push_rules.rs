//! Push rules: the server's defaults with what a user changed laid over them.
//!
//! Users who never changed a rule have no row and share one [`UserRules`], so that whoever
//! evaluates an event for a whole room can treat them together. The cache is kept fresh by a fold
//! on the stream, and a set of users is loaded in one query.

use std::sync::Arc;

use chatd_base::{Cache, Error, Refusal, Requester, Result, UserNid};
use chatd_storage::push_rules;
use chatd_streams::{
    Raw, Writer,
    push_rules::{PushRules as PushRulesStream, PushRulesRow},
};
use parking_lot::Mutex;
use ruma_common::{
    OwnedRoomId, OwnedUserId, UserId,
    push::{
        Action, InsertPushRuleError, NewConditionalPushRule, NewPatternedPushRule, NewPushRule,
        NewSimplePushRule, PushCondition, RemovePushRuleError, RuleKind, Ruleset,
    },
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::to_raw_value};

mod succession;

use crate::{Deps, locks::UserLocks};

/// Users whose rules are remembered (R8).
const CACHED_USERS: usize = 100_000;
/// Most rules that a user may have, the defaults included (R8).
const MAX_RULES: usize = 2_000;
/// The kinds of rules, in the order in which they are tried.
const KINDS: [&str; 5] = ["override", "content", "room", "sender", "underride"];

/// The rules of one user.
#[derive(Debug)]
pub struct UserRules {
    /// The user has the server's defaults, which differ between users only in the user id that
    /// two of the rules name; `ruleset` is then empty.
    pub is_default: bool,
    pub ruleset: Ruleset,
}

/// What has been loaded; the number counts changes, so that a load which a change overtook is
/// not remembered.
struct Loaded {
    rules: Cache<UserNid, Arc<UserRules>>,
    changes: Mutex<u64>,
}

/// Push rules of this server's users.
pub struct PushRules {
    deps: Deps,
    writer: Writer<PushRulesStream>,
    loaded: Arc<Loaded>,
    default: Arc<UserRules>,
    locks: UserLocks,
}

impl PushRules {
    pub(crate) fn new(deps: &Deps) -> Arc<Self> {
        let streams = &deps.streams;
        let writer = Writer::open(streams, &streams.push_rules, &deps.pool, &deps.stop);
        let loaded = Arc::new(Loaded {
            rules: Cache::new("push_rules", CACHED_USERS),
            changes: Mutex::default(),
        });
        let view = loaded.clone();
        streams.push_rules.on_rows(move |frame| {
            let mut changes = view.changes.lock();
            *changes += 1;
            for (_, row) in frame.rows.iter() {
                match serde_json::from_str(row.rules.get()) {
                    Ok(ruleset) => view
                        .rules
                        .insert(row.user, Arc::new(UserRules { is_default: false, ruleset })),
                    Err(_) => drop(view.rules.remove(&row.user)),
                }
            }
        });
        let view = loaded.clone();
        streams.push_rules.on_skipped(move |_, _| {
            *view.changes.lock() += 1;
            view.rules.clear();
        });
        let default = Arc::new(UserRules { is_default: true, ruleset: Ruleset::new() });
        let locks = UserLocks::new();
        Arc::new(Self { deps: deps.clone(), writer, loaded, default, locks })
    }

    /// Rules of `users`, in their order. No query if all are in memory, else one.
    pub async fn rulesets(&self, users: &[(UserNid, &UserId)]) -> Result<Vec<Arc<UserRules>>> {
        let cached: Vec<_> = users.iter().map(|(user, _)| self.loaded.rules.get(user)).collect();
        let missing: Vec<_> =
            users.iter().zip(&cached).filter(|(_, c)| c.is_none()).map(|(user, _)| *user).collect();
        if missing.is_empty() {
            return Ok(cached.into_iter().flatten().collect());
        }
        let mut found = self.load(&missing).await?;
        let rules = users.iter().zip(cached).map(|((user, _), cached)| {
            cached.or_else(|| found.remove(user)).unwrap_or_else(|| self.default.clone())
        });
        Ok(rules.collect())
    }

    /// Reads the rules of `users` and remembers them, also that somebody has none.
    async fn load(
        &self,
        users: &[(UserNid, &UserId)],
    ) -> Result<std::collections::HashMap<UserNid, Arc<UserRules>>> {
        let changes = *self.loaded.changes.lock();
        let nids: Vec<UserNid> = users.iter().map(|(user, _)| *user).collect();
        let mut found = std::collections::HashMap::new();
        for (user, text) in push_rules::list(&self.deps.pool, &nids).await? {
            let Some((_, user_id)) = users.iter().find(|(nid, _)| *nid == user) else { continue };
            let mut ruleset: Ruleset = serde_json::from_str(&text).map_err(Error::internal)?;
            ruleset.update_with_server_default(Ruleset::server_default(user_id));
            found.insert(user, Arc::new(UserRules { is_default: false, ruleset }));
        }
        let now = self.loaded.changes.lock();
        if *now == changes {
            for user in nids {
                let rules = found.get(&user).unwrap_or(&self.default);
                self.loaded.rules.insert(user, rules.clone());
            }
        }
        drop(now);
        Ok(found)
    }

    /// All rules of one user, defaults included.
    pub async fn of_user(&self, user: UserNid, user_id: &UserId) -> Result<Ruleset> {
        let rules = self.rulesets(&[(user, user_id)]).await?;
        Ok(match rules.first() {
            Some(rules) if !rules.is_default => rules.ruleset.clone(),
            _ => Ruleset::server_default(user_id),
        })
    }

    /// The content of a user's `m.push_rules`: `{"global": {…}}`.
    pub async fn content(&self, user: UserNid, user_id: &UserId) -> Result<Raw> {
        let global = to_json(&self.of_user(user, user_id).await?)?;
        Ok(to_raw_value(&json!({ "global": global })).map_err(Error::internal)?.into())
    }

    /// One rule as clients see it; refuses with 404 if there is none.
    pub async fn get(&self, who: &Requester, kind: &str, rule_id: &str) -> Result<Value> {
        let mut all = to_json(&self.of_user(who.user, &who.user_id).await?)?;
        known_kind(kind)?;
        let rules = all.remove(kind).and_then(|rules| match rules {
            Value::Array(rules) => Some(rules),
            _ => None,
        });
        rules
            .into_iter()
            .flatten()
            .find(|rule| rule.get("rule_id").and_then(Value::as_str) == Some(rule_id))
            .ok_or_else(|| no_such_rule().into())
    }

    /// Adds or replaces a rule of the user's own. On return it is durable.
    pub async fn put(
        &self,
        who: &Requester,
        kind: &str,
        rule_id: &str,
        body: NewRule,
        place: Place<'_>,
    ) -> Result<()> {
        let rule = body.into_rule(known_kind(kind)?, rule_id)?;
        self.change(who, |rules| insert(rules, rule, place)).await
    }

    /// Removes a rule of the user's own.
    pub async fn delete(&self, who: &Requester, kind: &str, rule_id: &str) -> Result<()> {
        let kind = known_kind(kind)?;
        self.change(who, |rules| match rules.remove(kind, rule_id) {
            Ok(()) => Ok(()),
            Err(RemovePushRuleError::ServerDefault) => {
                Err(Refusal::not_found("a rule of the server cannot be deleted, only disabled"))
            }
            Err(_) => Err(no_such_rule()),
        })
        .await
    }

    /// Switches a rule on or off, one of the server's too.
    pub async fn set_enabled(
        &self,
        who: &Requester,
        kind: &str,
        rule_id: &str,
        enabled: bool,
    ) -> Result<()> {
        let kind = known_kind(kind)?;
        self.change(who, |r| r.set_enabled(kind, rule_id, enabled).map_err(|_| no_such_rule()))
            .await
    }

    /// Gives a rule other actions, one of the server's too.
    pub async fn set_actions(
        &self,
        who: &Requester,
        kind: &str,
        rule_id: &str,
        actions: &[Value],
    ) -> Result<()> {
        let kind = known_kind(kind)?;
        let actions = known_actions(actions)?;
        self.change(who, |r| r.set_actions(kind, rule_id, actions).map_err(|_| no_such_rule()))
            .await
    }

    /// Reads, changes and writes the rules of one user, one change after the other.
    async fn change(
        &self,
        who: &Requester,
        change: impl FnOnce(&mut Ruleset) -> Result<(), Refusal>,
    ) -> Result<()> {
        let _line = self.locks.of(who.user).await;
        let mut rules = self.of_user(who.user, &who.user_id).await?;
        change(&mut rules)?;
        self.write(who.user, &rules).await
    }

    async fn write(&self, user: UserNid, rules: &Ruleset) -> Result<()> {
        let rules = to_raw_value(rules).map_err(Error::internal)?.into();
        self.writer.append(PushRulesRow { user, rules }).await?;
        Ok(())
    }
}

/// Where a rule goes among those of its kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// Just before, that is, more important than, this rule.
    pub before: Option<&'a str>,
    /// Just after this rule.
    pub after: Option<&'a str>,
}

/// The body of a request that adds a rule.
#[derive(Debug, Deserialize)]
pub struct NewRule {
    actions: Option<Vec<Value>>,
    conditions: Option<Vec<PushCondition>>,
    pattern: Option<String>,
}

impl NewRule {
    fn into_rule(self, kind: RuleKind, rule_id: &str) -> Result<NewPushRule, Refusal> {
        let actions = self.actions.ok_or_else(|| Refusal::missing_param("no actions"))?;
        let actions = known_actions(&actions)?;
        let id = rule_id.to_owned();
        let conditions = self.conditions;
        let conditional = |conditions: Option<_>| match conditions {
            Some(conditions) => {
                Ok(NewConditionalPushRule::new(id.clone(), conditions, actions.clone()))
            }
            None => Err(Refusal::missing_param("no conditions")),
        };
        Ok(match kind {
            RuleKind::Override => NewPushRule::Override(conditional(conditions)?),
            RuleKind::Underride => NewPushRule::Underride(conditional(conditions)?),
            RuleKind::Content => {
                let pattern = self.pattern.ok_or_else(|| Refusal::missing_param("no pattern"))?;
                NewPushRule::Content(NewPatternedPushRule::new(id, pattern, actions))
            }
            RuleKind::Room => {
                let room = OwnedRoomId::try_from(id)
                    .map_err(|_| Refusal::invalid_param("rule_id is not a room id"))?;
                NewPushRule::Room(NewSimplePushRule::new(room, actions))
            }
            _ => {
                let user = OwnedUserId::try_from(id)
                    .map_err(|_| Refusal::invalid_param("rule_id is not a user id"))?;
                NewPushRule::Sender(NewSimplePushRule::new(user, actions))
            }
        })
    }
}

fn insert(rules: &mut Ruleset, rule: NewPushRule, place: Place<'_>) -> Result<(), Refusal> {
    if rules.iter().count() >= MAX_RULES {
        return Err(Refusal::unknown(format!("a user may have {MAX_RULES} push rules")));
    }
    rules.insert(rule, place.after, place.before).map_err(|error| match error {
        InsertPushRuleError::UnknownRuleId => {
            Refusal::unknown("the rule in before or after does not exist")
        }
        other => Refusal::unknown(other.to_string()),
    })
}

fn known_kind(kind: &str) -> Result<RuleKind, Refusal> {
    if KINDS.contains(&kind) {
        Ok(RuleKind::from(kind))
    } else {
        Err(Refusal::unrecognized(format!("{kind} is not a kind of push rules")))
    }
}

/// The actions of a rule. Refuses those that no client and no pusher knows; the two that old
/// clients still send and that mean nothing are left out.
fn known_actions(actions: &[Value]) -> Result<Vec<Action>, Refusal> {
    let wrong = |action: &Value| Refusal::bad_json(format!("{action} is not an action"));
    let mut known = Vec::with_capacity(actions.len());
    for action in actions {
        match action {
            Value::String(name) if name == "notify" => known.push(Action::Notify),
            Value::String(name) if ["dont_notify", "coalesce"].contains(&&**name) => {}
            Value::Object(tweak) if tweak.get("set_tweak").is_some_and(Value::is_string) => {
                known.push(serde_json::from_value(action.clone()).map_err(|_| wrong(action))?);
            }
            _ => return Err(wrong(action)),
        }
    }
    Ok(known)
}

fn no_such_rule() -> Refusal {
    Refusal::not_found("there is no such push rule")
}

/// The rules as clients see them, with empty lists too.
pub fn to_json(rules: &Ruleset) -> Result<Map<String, Value>> {
    let Value::Object(mut all) = serde_json::to_value(rules).map_err(Error::internal)? else {
        return Err(Error::internal("a rule set is not a JSON object"));
    };
    for kind in KINDS {
        all.entry(kind).or_insert_with(|| json!([]));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use ruma_common::user_id;

    use super::*;

    fn defaults() -> Ruleset {
        Ruleset::server_default(user_id!("@a:x"))
    }

    fn add(rules: &mut Ruleset, id: &str, place: Place<'_>) -> Result<(), Refusal> {
        let body = json!({ "actions": ["notify"], "conditions": [] });
        let body: NewRule = serde_json::from_value(body).unwrap();
        insert(rules, body.into_rule(RuleKind::Override, id)?, place)
    }

    fn own(rules: &Ruleset) -> Vec<&str> {
        rules.override_.iter().filter(|r| !r.default).map(|r| r.rule_id.as_str()).collect()
    }

    #[test]
    fn rules_go_where_they_are_put() {
        let mut rules = defaults();
        add(&mut rules, "a", Place::default()).unwrap();
        add(&mut rules, "b", Place::default()).unwrap();
        assert_eq!(own(&rules), ["b", "a"]);
        add(&mut rules, "c", Place { after: Some("b"), before: None }).unwrap();
        add(&mut rules, "d", Place { after: None, before: Some("b") }).unwrap();
        assert_eq!(own(&rules), ["d", "b", "c", "a"]);
        add(&mut rules, "a", Place { after: None, before: Some("c") }).unwrap();
        assert_eq!(own(&rules), ["d", "b", "a", "c"]);
        assert_eq!(rules.override_[0].rule_id, ".m.rule.master");
        assert_eq!(rules.override_[1].rule_id, "d");
    }

    #[test]
    fn rules_that_cannot_be_are_refused() {
        let mut rules = defaults();
        for id in [".mine", "a/b", "a\\b"] {
            assert_eq!(add(&mut rules, id, Place::default()).unwrap_err().status, 400, "{id}");
        }
        for place in [
            Place { after: Some("nowhere"), before: None },
            Place { after: None, before: Some(".m.rule.master") },
        ] {
            assert_eq!(add(&mut rules, "x", place).unwrap_err().status, 400, "{place:?}");
        }
        let nameless = NewRule { actions: Some(vec![]), conditions: None, pattern: None };
        assert_eq!(nameless.into_rule(RuleKind::Room, "lobby").unwrap_err().status, 400);
        for action in [json!("explode"), json!(7), json!({}), json!({"set_tweak": 7}), json!(null)]
        {
            assert_eq!(known_actions(&[action]).unwrap_err().errcode, "M_BAD_JSON");
        }
        let good = [json!("notify"), json!("dont_notify"), json!({"set_tweak": "highlight"})];
        assert_eq!(known_actions(&good).unwrap().len(), 2);
        assert_eq!(known_kind("global").unwrap_err().errcode, "M_UNRECOGNIZED");
    }

    #[test]
    fn new_defaults_reach_those_who_changed_old_ones() {
        let mut old = defaults();
        old.set_enabled(RuleKind::Override, ".m.rule.suppress_notices", false).unwrap();
        add(&mut old, "mine", Place::default()).unwrap();
        old.override_.shift_remove(".m.rule.suppress_edits");
        old.update_with_server_default(defaults());
        let edits = old.get(RuleKind::Override, ".m.rule.suppress_edits").unwrap();
        let notices = old.get(RuleKind::Override, ".m.rule.suppress_notices").unwrap();
        assert!(edits.enabled() && !notices.enabled());
        assert_eq!(own(&old), ["mine"]);
    }
}
