//! Rooms as they are told to those who may enter them or look at them: what they are called, how
//! they can be entered, and which rooms a space has.

use std::collections::{BTreeSet, HashMap};

use chatd_base::{Result, UserNid};
use chatd_storage::directory::{self, Described, SpaceChild};
use chatd_streams::events::Membership;
use ruma_common::{RoomId, RoomVersionId, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    Reader,
    directory::{Listing, content, text},
};

/// State that a summary is made of.
const TOLD: &[&str] = &[
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.create",
    "m.room.encryption",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.name",
    "m.room.topic",
];
/// Rooms whose members may enter, of one room (R8).
const MOST_ALLOWED: usize = 100;
/// Children of one space (R8).
const MOST_CHILDREN: usize = 1_000;
/// Longest `order` of a child that counts.
const MOST_ORDER: usize = 50;

/// A room, as clients and other servers get it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Summary {
    #[serde(flatten)]
    pub listing: Listing,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_version: Option<String>,
    /// Whoever is in one of these rooms may enter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_room_ids: Vec<String>,
}

/// A room of a space, as the space names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Child {
    #[serde(rename = "type")]
    pub kind: String,
    pub state_key: String,
    pub content: Map<String, Value>,
    pub sender: String,
    pub origin_server_ts: i64,
}

/// A summary with the children of a space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceRoom {
    #[serde(flatten)]
    pub summary: Summary,
    #[serde(default)]
    pub children_state: Vec<Child>,
}

/// Who wants to know of a room.
#[derive(Clone, Copy, Debug)]
pub enum Visitor<'a> {
    User(UserNid),
    Server(&'a ServerName),
}

/// What a visitor is in rooms, by their ids.
pub type Memberships = HashMap<String, Membership>;

impl Child {
    /// Servers that know the room.
    pub fn via(&self) -> impl Iterator<Item = &str> {
        let via = self.content.get("via").and_then(Value::as_array);
        via.into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether it is one: it names a room, and a server that knows it.
    fn is_valid(&self) -> bool {
        self.kind == "m.space.child"
            && <&RoomId>::try_from(self.state_key.as_str()).is_ok()
            && self.via().next().is_some()
    }

    fn is_suggested(&self) -> bool {
        self.content.get("suggested").and_then(Value::as_bool) == Some(true)
    }

    /// Those with an `order` first, by that; then the oldest.
    fn sort_key(&self) -> (bool, &str, i64, &str) {
        let counts = |order: &&str| {
            order.len() <= MOST_ORDER && order.bytes().all(|letter| (b' '..=b'~').contains(&letter))
        };
        let order = self.content.get("order").and_then(Value::as_str).filter(counts);
        (order.is_none(), order.unwrap_or_default(), self.origin_server_ts, &self.state_key)
    }
}

/// The children of a space that count, in their order.
pub fn in_order(mut children: Vec<Child>, suggested_only: bool) -> Vec<Child> {
    children.retain(|child| child.is_valid() && (!suggested_only || child.is_suggested()));
    children.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    children.truncate(MOST_CHILDREN);
    children
}

impl Summary {
    fn of(room: &Described) -> Self {
        let mut listing = Listing::of(room);
        // Without a word the room would be taken for a public one.
        listing.join_rule.get_or_insert_with(|| "invite".to_owned());
        Self {
            encryption: text(room, "m.room.encryption", "algorithm"),
            room_version: Some(room.version.clone()),
            allowed_room_ids: allowed(room),
            listing,
        }
    }

    pub fn is_space(&self) -> bool {
        self.listing.room_type.as_deref() == Some("m.space")
    }

    /// Whether a visitor may enter, knock, or look inside.
    pub fn is_open_to(&self, memberships: &Memberships) -> bool {
        match memberships.get(&self.listing.room_id) {
            Some(Membership::Join | Membership::Invite) => return true,
            _ if self.listing.world_readable => return true,
            Some(Membership::Ban) => return false,
            _ => {}
        }
        let is_allowed = || {
            let mut allowed = self.allowed_room_ids.iter();
            allowed.any(|room| memberships.get(room) == Some(&Membership::Join))
        };
        let version = self.room_version.as_deref().and_then(|id| RoomVersionId::try_from(id).ok());
        // Servers do not always tell the version: then its rules are taken to be known there.
        let rules = version.and_then(|version| version.rules()).map(|rules| rules.authorization);
        match self.listing.join_rule.as_deref() {
            None | Some("public") => true,
            Some("knock") => rules.is_none_or(|rules| rules.knocking),
            Some("knock_restricted") => rules.is_none_or(|rules| rules.knock_restricted_join_rule),
            Some("restricted") => {
                rules.is_none_or(|rules| rules.restricted_join_rule) && is_allowed()
            }
            Some(_) => false,
        }
    }

    /// The rooms in which a visitor's membership decides. What is no room id is passed over: nobody
    /// has checked what other servers say.
    pub fn deciding(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.listing.room_id)
            .chain(self.allowed_room_ids.iter().take(MOST_ALLOWED))
            .map(String::as_str)
            .filter(|room| <&RoomId>::try_from(*room).is_ok())
    }
}

/// Rooms whose members the join rules let in.
fn allowed(room: &Described) -> Vec<String> {
    let Some(rules) = content(room, "m.room.join_rules") else { return Vec::new() };
    let rule = rules.get("join_rule").and_then(Value::as_str);
    if !matches!(rule, Some("restricted" | "knock_restricted")) {
        return Vec::new();
    }
    let conditions = rules.get("allow").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition["type"] == "m.room_membership")
        .filter_map(|condition| condition["room_id"].as_str())
        .filter(|room| <&RoomId>::try_from(*room).is_ok())
        .take(MOST_ALLOWED)
        .map(str::to_owned)
        .collect()
}

impl Reader {
    /// Those of `rooms` that this server is in, whoever asks, with the children of spaces if
    /// `suggested_only` says which. Two statements at most.
    pub async fn summaries(
        &self,
        rooms: &[&str],
        suggested_only: Option<bool>,
    ) -> Result<Vec<SpaceRoom>> {
        let described = directory::list_described(&self.pool, TOLD, rooms).await?;
        let summaries: Vec<Summary> = described.iter().map(Summary::of).collect();
        let spaces: Vec<&str> = summaries
            .iter()
            .filter(|summary| suggested_only.is_some() && summary.is_space())
            .map(|summary| summary.listing.room_id.as_str())
            .collect();
        let mut children: HashMap<String, Vec<Child>> = HashMap::new();
        if !spaces.is_empty() {
            for row in directory::list_space_children(&self.pool, &spaces).await? {
                let of_room = children.entry(row.room_id.clone()).or_default();
                of_room.extend(child(row));
            }
        }
        let room = |summary: Summary| {
            let own = children.remove(&summary.listing.room_id).unwrap_or_default();
            let children_state = in_order(own, suggested_only == Some(true));
            SpaceRoom { summary, children_state }
        };
        Ok(summaries.into_iter().map(room).collect())
    }

    /// What a visitor is in the rooms that decide who is told of `summaries`. One statement.
    pub async fn memberships_for(
        &self,
        visitor: Visitor<'_>,
        summaries: impl Iterator<Item = &Summary> + Send,
    ) -> Result<Memberships> {
        let rooms: BTreeSet<&str> = summaries.flat_map(Summary::deciding).collect();
        let rooms: Vec<&str> = rooms.into_iter().collect();
        if rooms.is_empty() {
            return Ok(Memberships::new());
        }
        Ok(match visitor {
            Visitor::User(user) => {
                let rows = directory::list_memberships(&self.pool, user, &rooms).await?;
                let known = |(room, letter)| Some((room, Membership::from_letter(letter)?));
                rows.into_iter().filter_map(known).collect()
            }
            Visitor::Server(server) => {
                let rows = directory::list_server_memberships(&self.pool, server.as_str(), &rooms);
                let membership = |is_in| if is_in { Membership::Join } else { Membership::Invite };
                rows.await?.into_iter().map(|(room, is_in)| (room, membership(is_in))).collect()
            }
        })
    }
}

fn child(row: SpaceChild) -> Option<Child> {
    Some(Child {
        kind: "m.space.child".to_owned(),
        content: serde_json::from_str(&row.content).ok()?,
        state_key: row.state_key,
        sender: row.sender,
        origin_server_ts: row.origin_ts,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn summary(version: Option<&str>, rule: &str, allowed: &[&str]) -> Summary {
        Summary {
            listing: Listing {
                room_id: "!r:x".to_owned(),
                join_rule: Some(rule.to_owned()),
                ..Listing::default()
            },
            room_version: version.map(str::to_owned),
            allowed_room_ids: allowed.iter().map(|room| (*room).to_owned()).collect(),
            ..Summary::default()
        }
    }

    fn known(memberships: &[(&str, Membership)]) -> Memberships {
        memberships.iter().map(|(room, membership)| ((*room).to_owned(), *membership)).collect()
    }

    #[test]
    fn rooms_are_told_to_those_who_could_enter() {
        use Membership::{Ban, Invite, Join, Leave};
        type Known = &'static [(&'static str, Membership)];
        let none: Known = &[];
        for (version, rule, memberships, expected) in [
            (Some("12"), "public", none, true),
            (Some("12"), "public", &[("!r:x", Leave)], true),
            (Some("12"), "public", &[("!r:x", Ban)], false),
            (Some("12"), "invite", none, false),
            (Some("12"), "invite", &[("!r:x", Join)], true),
            (Some("12"), "invite", &[("!r:x", Invite)], true),
            (Some("12"), "invite", &[("!r:x", Leave)], false),
            (Some("12"), "restricted", none, false),
            (Some("12"), "restricted", &[("!space:x", Join)], true),
            (Some("12"), "restricted", &[("!space:x", Invite)], false),
            (Some("7"), "restricted", &[("!space:x", Join)], false),
            (None, "restricted", &[("!space:x", Join)], true),
            (Some("6"), "knock", none, false),
            (Some("7"), "knock", none, true),
            (Some("9"), "knock_restricted", none, false),
            (Some("10"), "knock_restricted", none, true),
            (None, "knock_restricted", none, true),
            (Some("12"), "what is this", none, false),
        ] {
            let told = summary(version, rule, &["!space:x"]).is_open_to(&known(memberships));
            assert_eq!(told, expected, "{version:?} {rule} {memberships:?}");
        }
        let mut readable = summary(Some("12"), "invite", &[]);
        readable.listing.world_readable = true;
        assert!(readable.is_open_to(&known(&[("!r:x", Ban)])));
    }

    fn child(name: &str, at: i64, content: Value) -> Child {
        let content = content.as_object().cloned().unwrap_or_default();
        Child {
            kind: "m.space.child".to_owned(),
            state_key: format!("!{name}:x"),
            content,
            sender: "@a:x".to_owned(),
            origin_server_ts: at,
        }
    }

    #[test]
    fn children_have_an_order() {
        let via = |order: &str| json!({"via": ["x"], "order": order});
        let children = vec![
            child("late", 9, json!({"via": ["x"]})),
            child("early", 3, json!({"via": ["x"], "order": 5})),
            child("same-b", 4, json!({"via": ["x"]})),
            child("same-a", 4, json!({"via": ["x"]})),
            child("long", 2, via(&"a".repeat(51))),
            child("odd", 1, via("\u{1f600}")),
            child("b", 9, via("b")),
            child("a", 9, via("a")),
            child("B", 9, via("B")),
            child("gone", 0, json!({})),
            child("nowhere", 0, json!({"via": []})),
            child("not a room", 0, json!({"via": "x"})),
        ];
        let names: Vec<String> =
            in_order(children, false).into_iter().map(|child| child.state_key).collect();
        let expected = ["B", "a", "b", "odd", "long", "early", "same-a", "same-b", "late"];
        assert_eq!(names, expected.map(|name| format!("!{name}:x")));
    }

    #[test]
    fn only_suggested_children_where_they_are_asked_for() {
        let suggested = |value: Value| json!({"via": ["x"], "suggested": value});
        let children = vec![
            child("yes", 1, suggested(true.into())),
            child("no", 2, suggested(false.into())),
            child("odd", 3, suggested("true".into())),
        ];
        let told = in_order(children, true);
        assert_eq!((told.len(), told[0].state_key.as_str()), (1, "!yes:x"));
    }
}
