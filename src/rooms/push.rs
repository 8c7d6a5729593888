//! Whom an event leaves something unread, by their push rules.
//!
//! Most users have the default rules, and for them the outcome is the same unless the event
//! speaks of them: so it is worked out once for a user whom it does not mention, and one by one
//! only for those whom it may mention, or whose rules differ.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chatd_base::{
    UserNid,
    event_form::{event_id, is_name},
};
use chatd_users::push_rules::UserRules;
use futures::FutureExt;
use js_int::UInt;
use ruma_common::{
    OwnedEventId, UserId, owned_user_id,
    push::{Action, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset},
    serde::Raw,
};
use ruma_events::room::power_levels::{
    RoomPowerLevels, RoomPowerLevelsEventContent, RoomPowerLevelsSource,
};
use ruma_state_res::events::RoomCreateEvent;
use serde_json::{Map, Value, json};

use crate::{
    live::{Live, Member},
    seal::Draft,
};

/// Push rules of those of a room's local members who have changed theirs.
pub type Rules = HashMap<UserNid, Arc<UserRules>>;

/// Users with something to read, and those of them whose count is a highlight.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub notify: Vec<UserNid>,
    pub highlight: Vec<UserNid>,
}

/// Evaluates the rules of every local member but the sender, and those who do not want to hear
/// from the sender.
pub fn unread(live: &Live, draft: &Draft, rules: &Rules, deaf: &HashSet<UserNid>) -> Unread {
    let mut unread = Unread::default();
    let others = live.members.iter().filter(|member| member.user_id != draft.sender);
    let others = others.filter(|member| !deaf.contains(&member.user));
    let mut others = others.peekable();
    if others.peek().is_none() {
        return unread;
    }
    let evaluation = Evaluation::new(live, draft);
    let mut unmentioned = None;
    for member in others {
        let outcome = match rules.get(&member.user) {
            Some(rules) => evaluation.of(&rules.ruleset, member),
            None if evaluation.may_mention(member) => {
                evaluation.of(&Ruleset::server_default(&member.user_id), member)
            }
            None => *unmentioned.get_or_insert_with(|| evaluation.of_unmentioned()),
        };
        if outcome.notify {
            unread.notify.push(member.user);
            if outcome.highlight {
                unread.highlight.push(member.user);
            }
        }
    }
    unread
}

#[derive(Clone, Copy)]
struct Counts {
    notify: bool,
    highlight: bool,
}

/// One event as the rules see it.
struct Evaluation<'a> {
    live: &'a Live,
    draft: &'a Draft,
    event: Raw<Value>,
    levels: Option<PushConditionPowerLevelsCtx>,
    /// Users in `m.mentions`; absent if the event does not say.
    mentions: Option<Vec<&'a str>>,
    body: String,
}

impl<'a> Evaluation<'a> {
    fn new(live: &'a Live, draft: &'a Draft) -> Self {
        let mut event = json!({
            "type": draft.kind,
            "sender": draft.sender,
            "room_id": live.room_id,
            "content": draft.content,
        });
        if let (Some(state_key), Some(members)) = (&draft.state_key, event.as_object_mut()) {
            members.insert("state_key".to_owned(), state_key.as_str().into());
        }
        let event = serde_json::value::to_raw_value(&event)
            .map(Raw::from_json)
            .expect("a JSON value serialises");
        let mentions = draft.content.get("m.mentions").map(mentioned_users);
        let body = draft.content.get("body").and_then(Value::as_str).unwrap_or_default();
        let speaks_to_room = body.contains("@room")
            || draft.content.get("m.mentions").and_then(|m| m.get("room")).is_some();
        let levels = if speaks_to_room { power_levels(live) } else { None };
        Self { live, draft, event, levels, mentions, body: body.to_lowercase() }
    }

    /// Whether the default rules could treat this member other than one who is not mentioned.
    fn may_mention(&self, member: &Member) -> bool {
        if self.draft.state_key.as_deref() == Some(member.user_id.as_str()) {
            return true;
        }
        match &self.mentions {
            Some(users) => users.contains(&member.user_id.as_str()),
            None => {
                let name = member.display_name.to_lowercase();
                self.body.contains(&member.user_id.localpart().to_lowercase())
                    || !name.is_empty() && self.body.contains(&name)
            }
        }
    }

    fn of_unmentioned(&self) -> Counts {
        // No user can have this id: an empty host is not a server name.
        let nobody = owned_user_id!("@\u{1}nobody:invalid.invalid");
        self.evaluate(&Ruleset::server_default(&nobody), &nobody, "\u{1}nobody")
    }

    fn of(&self, rules: &Ruleset, member: &Member) -> Counts {
        self.evaluate(rules, &member.user_id, &member.display_name)
    }

    fn evaluate(&self, rules: &Ruleset, user: &UserId, display_name: &str) -> Counts {
        let joined = u32::try_from(self.live.joined).unwrap_or(u32::MAX);
        let mut context = PushConditionRoomCtx::new(
            self.live.room_id.clone(),
            UInt::from(joined),
            user.to_owned(),
            display_name.to_owned(),
        );
        context.power_levels.clone_from(&self.levels);
        // Nothing in the conditions that the server supports waits for anything.
        let actions = rules.get_actions(&self.event, &context).now_or_never().unwrap_or_default();
        Counts {
            notify: actions.iter().any(Action::should_notify),
            highlight: actions.iter().any(Action::is_highlight),
        }
    }
}

fn mentioned_users(mentions: &Value) -> Vec<&str> {
    let users = mentions.get("user_ids").and_then(Value::as_array);
    users.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn power_levels(live: &Live) -> Option<PushConditionPowerLevelsCtx> {
    let rules = &live.rules.authorization;
    let create = live.body("m.room.create", "")?;
    let creators = RoomCreateEvent::new(&**create).creators(rules).ok()?;
    let source = match live.body("m.room.power_levels", "") {
        Some(levels) => {
            let content: RoomPowerLevelsEventContent =
                serde_json::from_str(levels.content.get()).ok()?;
            RoomPowerLevelsSource::Original(content)
        }
        None => RoomPowerLevelsSource::None,
    };
    Some(RoomPowerLevels::new(source, rules, creators).into())
}

/// `m.relates_to` of an event's content: (relation type, event id). What can be neither is no
/// relation: nobody has checked it, and it is to be kept.
pub fn relation(content: &Map<String, Value>) -> Option<(&str, OwnedEventId)> {
    let relates = content.get("m.relates_to")?;
    let rel_type = relates.get("rel_type")?.as_str().filter(|rel_type| is_name(rel_type))?;
    Some((rel_type, event_id(relates.get("event_id")?.as_str()?)?))
}
