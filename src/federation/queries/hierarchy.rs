//! The tree of a space, wherever its rooms are: from the tables, and from other servers where
//! nobody here is in a room.
//!
//! The tree is walked from the top, depth first, and read from the tables in rounds: each reads
//! all rooms at once that the page may have and of which nothing is known yet. A page is named by
//! the number of rooms before it, so that any instance can go on.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Error, Refusal, Requester, Result};
use chatd_rooms::read::{SpaceRoom, Summary, Visitor};
use futures::{StreamExt, stream};
use ruma_common::{OwnedServerName, RoomId};
use serde::Serialize;
use tokio::time::Instant;

use super::{MOST_SERVERS, Queries};

/// Rooms of one page.
const MOST_ROOMS: usize = 50;
/// Rooms of the tree that one request looks at (R8).
const MOST_LOOKED_AT: usize = 2_000;
const MOST_ROUNDS: usize = 64;
/// Rooms for which one request asks other servers, how many at a time, and for how long.
const MOST_ASKED: usize = 50;
const AT_A_TIME: usize = 8;
const ALL_WITHIN: Duration = Duration::from_secs(20);

/// Which part of a space's tree is wanted.
#[derive(Clone, Debug, Default)]
pub struct HierarchyQuery {
    pub suggested_only: bool,
    pub limit: Option<usize>,
    /// How far below the space; everything by default.
    pub max_depth: Option<usize>,
    /// The token of the page, of the one before.
    pub from: Option<String>,
    /// Servers that may know the room at the top.
    pub via: Vec<OwnedServerName>,
}

/// A page of a space's tree.
#[derive(Debug, Serialize)]
pub struct HierarchyPage {
    pub rooms: Vec<Arc<SpaceRoom>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
}

/// What is known of the tree.
#[derive(Default)]
struct Tree {
    /// Rooms that were looked at; `None` for those that the user is not told of.
    rooms: HashMap<String, Option<Arc<SpaceRoom>>>,
    /// What another server has said of the children of its space; `None` of those that it does not
    /// tell of. It speaks for no other space.
    hints: HashMap<Edge, Option<Summary>>,
    /// Where a child is that nothing else is known of than that it is hidden there.
    closed: HashSet<Edge>,
    /// Rooms for which another server was asked.
    asked: usize,
}

/// A space and a child of it.
type Edge = (String, String);

/// A room of the tree of which nothing is known yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    room: String,
    /// The space as a child of which it was met; empty for the top.
    parent: String,
    via: Vec<OwnedServerName>,
    depth: usize,
}

/// One way through the tree.
struct Walk {
    found: Vec<Arc<SpaceRoom>>,
    /// What has to be known before it is the right way.
    unknown: Vec<Wanted>,
    is_more: bool,
}

impl Queries {
    /// A page of the tree below a room. Refuses rooms that the user may not look at, or that no
    /// server tells of.
    pub async fn hierarchy(
        &self,
        who: &Requester,
        root: &RoomId,
        query: &HierarchyQuery,
    ) -> Result<HierarchyPage> {
        let skipped = query.skipped()?;
        let limit = query.limit.unwrap_or(MOST_ROOMS).min(MOST_ROOMS);
        let deadline = Instant::now() + ALL_WITHIN;
        let mut tree = Tree::default();
        let top = Wanted::top(root);
        self.look_at(who, query, &mut tree, vec![top], deadline).await?;
        if !matches!(tree.rooms.get(root.as_str()), Some(Some(_))) {
            let message = "you are not in this room, and it cannot be looked at from outside";
            return Err(Refusal::forbidden(message).into());
        }
        let most = skipped + limit;
        for _ in 0..MOST_ROUNDS {
            let walk = tree.walk(root, query.max_depth, most, &self.config.server_name);
            let looked_at = tree.rooms.len() + tree.closed.len();
            if walk.unknown.is_empty() || looked_at > MOST_LOOKED_AT {
                break;
            }
            self.look_at(who, query, &mut tree, walk.unknown, deadline).await?;
        }
        let walk = tree.walk(root, query.max_depth, most, &self.config.server_name);
        let is_more = walk.is_more && most < MOST_LOOKED_AT;
        Ok(HierarchyPage {
            next_batch: is_more.then(|| query.token(most)),
            rooms: walk.found.into_iter().skip(skipped).collect(),
        })
    }

    /// Finds out what the user is told of rooms.
    async fn look_at(
        &self,
        who: &Requester,
        query: &HierarchyQuery,
        tree: &mut Tree,
        wanted: Vec<Wanted>,
        deadline: Instant,
    ) -> Result<()> {
        let ids: Vec<&str> = wanted.iter().map(|wanted| wanted.room.as_str()).collect();
        let mut rooms = self.reader.summaries(&ids, Some(query.suggested_only)).await?;
        let here: HashSet<String> =
            rooms.iter().map(|room| room.summary.listing.room_id.clone()).collect();
        let elsewhere = wanted.iter().filter(|wanted| !here.contains(&wanted.room));
        let mut elsewhere: Vec<Wanted> = elsewhere.cloned().collect();
        for top in elsewhere.iter_mut().filter(|wanted| wanted.depth == 0) {
            let room = <&RoomId>::try_from(top.room.as_str()).map_err(Error::internal)?;
            top.via = self.servers_that_know(who, room, &query.via).await?;
        }
        rooms.extend(self.look_elsewhere(query, tree, elsewhere, deadline).await);
        let summaries = rooms.iter().map(|room| &room.summary);
        let visitor = Visitor::User(who.user);
        let memberships = self.reader.memberships_for(visitor, summaries).await?;
        let wanted = wanted.into_iter().filter(|wanted| !tree.closed.contains(&wanted.edge()));
        let wanted: Vec<String> = wanted.map(|wanted| wanted.room).collect();
        tree.rooms.extend(wanted.into_iter().map(|room| (room, None)));
        for room in rooms.into_iter().filter(|room| room.summary.is_open_to(&memberships)) {
            tree.rooms.insert(room.summary.listing.room_id.clone(), Some(Arc::new(room)));
        }
        Ok(())
    }

    /// What other servers say of rooms that nobody here is in.
    async fn look_elsewhere(
        &self,
        query: &HierarchyQuery,
        tree: &mut Tree,
        wanted: Vec<Wanted>,
        deadline: Instant,
    ) -> Vec<SpaceRoom> {
        let mut found = Vec::new();
        let mut to_ask = Vec::new();
        for wanted in wanted {
            let is_last = query.max_depth.is_some_and(|most| wanted.depth >= most);
            match tree.hints.get(&wanted.edge()) {
                Some(None) => drop(tree.closed.insert(wanted.edge())),
                Some(Some(hint)) if is_last || !hint.is_space() => {
                    found.push(SpaceRoom { summary: hint.clone(), children_state: Vec::new() });
                }
                _ if wanted.via.is_empty() || tree.asked >= MOST_ASKED => {}
                _ => {
                    tree.asked += 1;
                    to_ask.push(wanted);
                }
            }
        }
        let asking = stream::iter(to_ask)
            .map(|wanted| self.space_elsewhere(wanted.room, wanted.via, query.suggested_only))
            .buffer_unordered(AT_A_TIME)
            .take_until(tokio::time::sleep_until(deadline));
        let answers: Vec<_> = asking.collect().await;
        for answer in answers.into_iter().flatten() {
            found.push(answer.room.clone());
            let space = &answer.room.summary.listing.room_id;
            let hidden = answer.inaccessible_children.iter().map(|id| (id, None));
            let told = answer.children.iter().map(|room| (&room.listing.room_id, Some(room)));
            for (id, hint) in hidden.chain(told) {
                tree.hints.insert((space.clone(), id.clone()), hint.cloned());
            }
        }
        found
    }
}

impl Tree {
    /// Goes through the tree until `most` rooms are found, or wait to be known.
    fn walk(
        &self,
        root: &RoomId,
        max_depth: Option<usize>,
        most: usize,
        here: &ruma_common::ServerName,
    ) -> Walk {
        let mut walk = Walk { found: Vec::new(), unknown: Vec::new(), is_more: false };
        let mut seen: HashSet<String> = HashSet::new();
        // The next one is the last.
        let mut open = vec![Wanted::top(root)];
        while let Some(next) = open.pop() {
            let is_closed =
                || !self.rooms.contains_key(&next.room) && self.closed.contains(&next.edge());
            if seen.contains(&next.room) || is_closed() {
                continue;
            }
            if walk.found.len() + walk.unknown.len() >= most {
                // Of rooms that are known to be hidden nobody has to be told that there are more.
                walk.is_more |= !matches!(self.rooms.get(&next.room), Some(None));
                continue;
            }
            seen.insert(next.room.clone());
            match self.rooms.get(&next.room) {
                None => walk.unknown.push(next),
                Some(None) => {}
                Some(Some(room)) => {
                    walk.found.push(room.clone());
                    if max_depth.is_none_or(|most| next.depth < most) {
                        open.extend(children(room, next.depth + 1, here));
                    }
                }
            }
        }
        walk
    }
}

impl Wanted {
    fn top(room: &RoomId) -> Self {
        Self { room: room.to_string(), parent: String::new(), via: Vec::new(), depth: 0 }
    }

    fn edge(&self) -> Edge {
        (self.parent.clone(), self.room.clone())
    }
}

/// The children of a space, the first one last.
fn children(
    room: &SpaceRoom,
    depth: usize,
    here: &ruma_common::ServerName,
) -> impl Iterator<Item = Wanted> {
    room.children_state.iter().rev().map(move |child| {
        let via = child.via().filter_map(|name| OwnedServerName::try_from(name).ok());
        let via = via.filter(|server| server != here).take(MOST_SERVERS).collect();
        let parent = room.summary.listing.room_id.clone();
        Wanted { room: child.state_key.clone(), parent, via, depth }
    })
}

impl HierarchyQuery {
    /// The token of the page that begins behind so many rooms.
    fn token(&self, skipped: usize) -> String {
        let depth = self.max_depth.map(|depth| depth.to_string()).unwrap_or_default();
        format!("{skipped}_{}_{depth}", if self.suggested_only { "s" } else { "a" })
    }

    /// How many rooms are before the page; refuses a token that is none, or of another query.
    fn skipped(&self) -> Result<usize> {
        let Some(from) = &self.from else { return Ok(0) };
        let skipped = from.split('_').next().and_then(|number| number.parse().ok());
        let is_ours = |skipped: &usize| *skipped < MOST_LOOKED_AT && self.token(*skipped) == *from;
        let skipped = skipped.filter(is_ours);
        let message = "`from` is no token of this hierarchy; suggested_only and max_depth stay";
        skipped.ok_or_else(|| Refusal::invalid_param(message).into())
    }
}

#[cfg(test)]
mod tests {
    use chatd_rooms::read::{Child, in_order};
    use serde_json::json;

    use super::*;

    fn room(id: &str, children: &[&str]) -> SpaceRoom {
        let child = |(at, id): (usize, &&str)| Child {
            kind: "m.space.child".to_owned(),
            state_key: (*id).to_owned(),
            content: json!({"via": ["here", "there"]}).as_object().cloned().unwrap(),
            sender: "@a:x".to_owned(),
            origin_server_ts: i64::try_from(at).unwrap(),
        };
        let children = children.iter().enumerate().map(child).collect();
        let mut room =
            SpaceRoom { children_state: in_order(children, false), ..Default::default() };
        room.summary.listing.room_id = id.to_owned();
        room
    }

    /// `!hidden` is not shown, `!a` and `!b` are circles.
    fn tree() -> Tree {
        let mut tree = Tree::default();
        for room in [
            room("!top", &["!a", "!hidden", "!b", "!leaf"]),
            room("!a", &["!top", "!b", "!far"]),
            room("!b", &["!a", "!leaf"]),
            room("!leaf", &[]),
        ] {
            tree.rooms.insert(room.summary.listing.room_id.clone(), Some(Arc::new(room)));
        }
        tree.rooms.insert("!hidden".to_owned(), None);
        tree
    }

    fn walk(
        tree: &Tree,
        max_depth: Option<usize>,
        most: usize,
    ) -> (Vec<String>, Vec<String>, bool) {
        let (root, here) = (RoomId::parse("!top").unwrap(), ruma_common::server_name!("here"));
        let walk = tree.walk(&root, max_depth, most, here);
        let found = walk.found.iter().map(|room| room.summary.listing.room_id.clone()).collect();
        let unknown = walk.unknown.iter().map(|wanted| wanted.room.clone()).collect();
        (found, unknown, walk.is_more)
    }

    #[test]
    fn a_tree_is_walked_depth_first_and_each_room_is_met_once() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let mut tree = tree();
        for (max_depth, most, found, unknown, is_more) in [
            (None, 50, &["!top", "!a", "!b", "!leaf"][..], &["!far"][..], false),
            (Some(0), 50, &["!top"], &[], false),
            (Some(1), 50, &["!top", "!a", "!b", "!leaf"], &[], false),
            (None, 3, &["!top", "!a", "!b"], &[], true),
            (Some(1), 4, &["!top", "!a", "!b", "!leaf"], &[], false),
        ] {
            let expected = (names(found), names(unknown), is_more);
            assert_eq!(walk(&tree, max_depth, most), expected, "{max_depth:?} {most}");
        }
        tree.rooms.insert("!far".to_owned(), None);
        let all = (names(&["!top", "!a", "!b", "!leaf"]), vec![], false);
        assert_eq!(walk(&tree, None, 4), all, "what is hidden is no further page");
    }

    #[test]
    fn a_space_hides_no_room_of_others() {
        let mut tree = tree();
        let hide = |tree: &mut Tree, space: &str| {
            tree.closed.insert((space.to_owned(), "!far".to_owned()));
        };
        hide(&mut tree, "!a");
        assert!(walk(&tree, None, 50).1.is_empty());
        tree.rooms.insert("!leaf".to_owned(), Some(Arc::new(room("!leaf", &["!far"]))));
        assert_eq!(walk(&tree, None, 50).1, ["!far"]);
        hide(&mut tree, "!leaf");
        assert!(walk(&tree, None, 50).1.is_empty());
        tree.rooms.insert("!far".to_owned(), Some(Arc::new(room("!far", &[]))));
        assert!(walk(&tree, None, 50).0.contains(&"!far".to_owned()));
    }

    #[test]
    fn servers_of_a_child_are_others() {
        let here = ruma_common::server_name!("here");
        let all: Vec<Wanted> = children(&room("!a", &["!b"]), 1, here).collect();
        let via = vec![OwnedServerName::try_from("there").unwrap()];
        let (room, parent) = ("!b".to_owned(), "!a".to_owned());
        assert_eq!(all, [Wanted { room, parent, via, depth: 1 }]);
    }

    #[test]
    fn a_token_is_of_one_query() {
        let query = |suggested_only, max_depth, from: Option<String>| HierarchyQuery {
            suggested_only,
            max_depth,
            from,
            limit: None,
            via: Vec::new(),
        };
        let token = query(true, Some(3), None).token(50);
        assert_eq!(query(true, Some(3), Some(token.clone())).skipped().unwrap(), 50);
        for other in [query(false, Some(3), None), query(true, None, None)] {
            let other = HierarchyQuery { from: Some(token.clone()), ..other };
            assert!(other.skipped().is_err());
        }
        for odd in ["", "x", "50", "-1_s_3", "99999_s_3", "050_s_3"] {
            assert!(query(true, Some(3), Some(odd.to_owned())).skipped().is_err(), "{odd}");
        }
    }
}
