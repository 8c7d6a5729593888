//! The directory of published rooms, and the aliases of rooms.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use chatd_base::{Refusal, Result, UserNid};
use chatd_storage::directory::{self, Described};
use chatd_streams::events::{EventRow, Extent, Membership};
use ruma_common::{RoomAliasId, RoomId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::Reader;

/// A published room, as clients get it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listing {
    pub room_id: String,
    pub num_joined_members: i64,
    pub world_readable: bool,
    pub guest_can_join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
}

/// Which part of the directory is wanted: also as clients and servers write it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Body")]
pub struct ListingQuery {
    /// Text that the name, the topic or the alias must contain.
    pub search_term: Option<String>,
    /// Types that a room may have; `None` in the list stands for rooms without a type.
    pub room_types: Option<Vec<Option<String>>>,
    /// All that is left by default.
    pub limit: Option<usize>,
    pub since: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    limit: Option<usize>,
    since: Option<String>,
    #[serde(default)]
    filter: Filter,
}

#[derive(Default, Deserialize)]
struct Filter {
    generic_search_term: Option<String>,
    #[serde(alias = "org.matrix.msc3827.room_types")]
    room_types: Option<Vec<Option<String>>>,
}

impl From<Body> for ListingQuery {
    fn from(body: Body) -> Self {
        let Body { limit, since, filter } = body;
        let Filter { generic_search_term: search_term, room_types } = filter;
        Self { search_term, room_types, limit, since }
    }
}

/// A page of the directory.
#[derive(Debug, Default, Serialize)]
pub struct ListingPage {
    pub chunk: Vec<Listing>,
    pub total_room_count_estimate: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prev_batch: Option<String>,
}

/// The whole directory, largest rooms first, as of the last change of anything that it shows.
#[derive(Default)]
pub(super) struct Listings {
    /// Goes up with each such change.
    changes: AtomicU64,
    known: Mutex<Option<(u64, Arc<[Listing]>)>>,
}

/// State that a listing is made of.
const SHOWN: &[&str] = &[
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.create",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.name",
    "m.room.topic",
];

impl Listings {
    /// Takes note of a live event.
    pub(super) fn see(&self, row: &EventRow) {
        let is_shown = row.membership.is_some() || SHOWN.contains(&&*row.kind);
        if row.is_current && is_shown || row.extent == Extent::Completed {
            self.change();
        }
    }

    /// Something that the directory shows has changed.
    pub(super) fn change(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

impl Reader {
    /// A page of the directory.
    pub async fn listings(&self, query: &ListingQuery) -> Result<ListingPage> {
        let all = self.all_listings().await?;
        let found: Vec<&Listing> = all.iter().filter(|room| is_wanted(room, query)).collect();
        let start = match &query.since {
            None => 0,
            Some(token) => offset(token)?,
        };
        let start = start.min(found.len());
        let end = query.limit.map_or(found.len(), |limit| (start + limit).min(found.len()));
        let limit = query.limit.unwrap_or(found.len());
        Ok(ListingPage {
            chunk: found[start..end].iter().map(|room| (*room).clone()).collect(),
            total_room_count_estimate: found.len(),
            next_batch: (end < found.len()).then(|| format!("o{end}")),
            prev_batch: (start > 0).then(|| format!("o{}", start.saturating_sub(limit))),
        })
    }

    /// The directory from memory if nothing has changed. One reader at a time asks the database.
    async fn all_listings(&self) -> Result<Arc<[Listing]>> {
        let mut known = self.listings.known.lock().await;
        let now = self.listings.changes.load(Ordering::SeqCst);
        if let Some((then, listings)) = &*known
            && *then == now
        {
            return Ok(listings.clone());
        }
        let rooms = directory::list_published(&self.pool, SHOWN).await?;
        let mut listings: Vec<Listing> = rooms.iter().filter_map(listing).collect();
        listings.sort_by(|a, b| {
            (b.num_joined_members, &a.room_id).cmp(&(a.num_joined_members, &b.room_id))
        });
        let listings: Arc<[Listing]> = listings.into();
        *known = Some((now, listings.clone()));
        Ok(listings)
    }

    /// The room that a local alias points to.
    pub async fn alias(&self, alias: &RoomAliasId) -> Result<String> {
        match directory::get_alias_owner(&self.pool, alias.as_str()).await? {
            Some((room_id, _)) => Ok(room_id),
            None => Err(Refusal::not_found(format!("room alias {alias} not found")).into()),
        }
    }

    /// Local aliases of a room, for its members and where anybody may look.
    pub async fn aliases(&self, user: UserNid, room: &RoomId) -> Result<Vec<String>> {
        let lens = self.lens(user, room).await?;
        if lens.now() != Some(Membership::Join) && !lens.may_peek() {
            return Err(Refusal::forbidden("you are not in this room").into());
        }
        Ok(directory::list_aliases(&self.pool, lens.room).await?)
    }

    /// Whether a room is published.
    pub async fn is_published(&self, room: &RoomId) -> Result<bool> {
        let published = directory::get_published(&self.pool, room.as_str()).await?;
        published.ok_or_else(|| Refusal::not_found("unknown room").into())
    }

    /// Lets the next reader of the directory see what was written to it.
    pub fn directory_changed(&self) {
        self.listings.change();
    }
}

fn offset(token: &str) -> Result<usize> {
    let number = token.strip_prefix('o').and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| Refusal::invalid_param("`since` is not a token of the directory").into())
}

fn is_wanted(room: &Listing, query: &ListingQuery) -> bool {
    let typed = query.room_types.as_ref().is_none_or(|types| types.contains(&room.room_type));
    let term = query.search_term.as_ref().map(|term| term.to_lowercase());
    let texts = [&room.name, &room.topic, &room.canonical_alias];
    typed
        && term.is_none_or(|term| {
            texts.into_iter().flatten().any(|text| text.to_lowercase().contains(&term))
        })
}

/// A published room's entry; none for rooms that nobody could enter or look at.
fn listing(room: &Described) -> Option<Listing> {
    let listing = Listing::of(room);
    let can_enter = matches!(
        listing.join_rule.as_deref(),
        Some("public" | "knock" | "restricted" | "knock_restricted")
    );
    (room.joined > 0 && (can_enter || listing.world_readable)).then_some(listing)
}

impl Listing {
    /// What the state of a room says.
    pub(super) fn of(room: &Described) -> Self {
        let text = |kind: &str, member: &str| text(room, kind, member);
        let visibility = text("m.room.history_visibility", "history_visibility");
        let guests = text("m.room.guest_access", "guest_access");
        Self {
            room_id: room.room_id.clone(),
            num_joined_members: room.joined,
            world_readable: visibility.as_deref() == Some("world_readable"),
            guest_can_join: guests.as_deref() == Some("can_join"),
            name: text("m.room.name", "name"),
            topic: text("m.room.topic", "topic"),
            canonical_alias: text("m.room.canonical_alias", "alias"),
            avatar_url: text("m.room.avatar", "url"),
            join_rule: text("m.room.join_rules", "join_rule"),
            room_type: text("m.room.create", "type"),
        }
    }
}

/// The content of a piece of state that was asked for.
pub(super) fn content(room: &Described, kind: &str) -> Option<Map<String, Value>> {
    let (_, content) = room.state.iter().find(|(name, _)| name == kind)?;
    serde_json::from_str(content).ok()
}

/// A text of such a content, if there is one.
pub(super) fn text(room: &Described, kind: &str, member: &str) -> Option<String> {
    let content = content(room, kind)?;
    let text = content.get(member)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(state: &[(&str, &str)]) -> Described {
        Described {
            room_id: "!r:x".to_owned(),
            version: "12".to_owned(),
            joined: 1,
            state: state.iter().map(|(k, c)| ((*k).to_owned(), (*c).to_owned())).collect(),
        }
    }

    #[test]
    fn only_rooms_that_can_be_entered_or_read_are_listed() {
        let rule = |rule: &str| format!(r#"{{"join_rule":"{rule}"}}"#);
        for (join_rule, expected) in [
            ("public", true),
            ("knock", true),
            ("restricted", true),
            ("invite", false),
            ("private", false),
        ] {
            let room = published(&[("m.room.join_rules", &rule(join_rule))]);
            assert_eq!(listing(&room).is_some(), expected, "{join_rule}");
        }
        let readable = r#"{"history_visibility":"world_readable"}"#;
        let room = published(&[("m.room.history_visibility", readable)]);
        assert!(listing(&room).unwrap().world_readable);
        let mut empty = published(&[("m.room.join_rules", &rule("public"))]);
        empty.joined = 0;
        assert_eq!(listing(&empty), None);
    }

    #[test]
    fn contents_of_the_wrong_type_are_left_out() {
        let room = published(&[
            ("m.room.join_rules", r#"{"join_rule":"public"}"#),
            ("m.room.name", r#"{"name":5}"#),
            ("m.room.topic", r#"{"topic":""}"#),
            ("m.room.create", r#"{"type":"m.space"}"#),
        ]);
        let listing = listing(&room).unwrap();
        assert_eq!((listing.name, listing.topic), (None, None));
        assert_eq!(listing.room_type.as_deref(), Some("m.space"));
    }

    #[test]
    fn a_search_looks_at_name_topic_and_alias() {
        let room = Listing { name: Some("Ärzte".to_owned()), ..Listing::default() };
        let query = |term: &str| ListingQuery {
            search_term: Some(term.to_owned()),
            ..ListingQuery::default()
        };
        assert!(is_wanted(&room, &query("ÄRZ")) && !is_wanted(&room, &query("x")));
        let types = |types| ListingQuery { room_types: Some(types), ..ListingQuery::default() };
        assert!(is_wanted(&room, &types(vec![None])));
        assert!(!is_wanted(&room, &types(vec![Some("m.space".to_owned())])));
    }
}
