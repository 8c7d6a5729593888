//! What is noted with events of the past, so that the rows that decide everywhere who sees what
//! (`visibility`) decide it for them: the room's history visibility, and what users of this server
//! were at the time.

use std::{collections::HashMap, sync::Arc};

use chatd_base::{EventNid, KeyNid, Position, Result, UserNid};
use chatd_storage::{
    history::{PastMembership, Setting as Entry, Space},
    snapshots::StateMap,
};
use chatd_streams::events::Membership;

use crate::{import::membership_of, place::Scene};

/// The state before and after the event at a position.
type Around<'a> = (Position, &'a Arc<StateMap>, &'a Arc<StateMap>);

/// Where the entries with these keys change. What an event changes counts from its position on;
/// what the one before it does not explain, from the position below. `standing` is what counts
/// below all of them, and has to count again behind the last, if nothing is noted there yet.
pub(super) fn entries<'a>(
    states: impl Iterator<Item = Around<'a>>,
    keys: &[KeyNid],
    standing: &HashMap<KeyNid, EventNid>,
    space: Space,
) -> Vec<Entry> {
    let is_beginning = space.floor == Position(i64::MIN);
    let mut notes = Notes { entries: Vec::new(), now: HashMap::new() };
    for key in keys {
        // At the beginning of what is known nothing stands; even that is noted.
        if !is_beginning {
            notes.now.insert(*key, standing.get(key).copied());
        }
    }
    let mut last: Option<&Arc<StateMap>> = None;
    for (pos, before, after) in states {
        if !last.is_some_and(|last| Arc::ptr_eq(last, before)) {
            notes.take(Position(pos.0 - 1), keys, |key| before.get(key).copied());
        }
        if !Arc::ptr_eq(before, after) {
            notes.take(pos, keys, |key| after.get(key).copied());
        }
        last = Some(after);
    }
    if space.is_first && !is_beginning {
        notes.take(Position(space.top.0 - 1), keys, |key| standing.get(key).copied());
    }
    notes.entries
}

struct Notes {
    entries: Vec<Entry>,
    /// What counts behind the last entry, where it is known.
    now: HashMap<KeyNid, Option<EventNid>>,
}

impl Notes {
    fn take(
        &mut self,
        pos: Position,
        keys: &[KeyNid],
        value: impl Fn(&KeyNid) -> Option<EventNid>,
    ) {
        for key in keys {
            let event = value(key);
            let now = self.now.insert(*key, event);
            if now != Some(event) {
                let previous = now.flatten();
                self.entries.push(Entry { pos, key: *key, event, previous });
            }
        }
    }
}

/// What users of this server were, as their entries say.
pub(super) async fn memberships(
    scene: &mut Scene<'_>,
    users: &HashMap<KeyNid, UserNid>,
    entries: &[Entry],
) -> Result<Vec<PastMembership>> {
    scene.read(entries.iter().filter_map(|entry| entry.event)).await?;
    let one = |entry: &Entry| {
        let pdu = entry.event.and_then(|event| scene.pdus.get(&event));
        let membership = pdu.and_then(|pdu| membership_of(pdu));
        // Who has no entry at first has had nothing to do with the room.
        if membership.is_none() && entry.previous.is_none() {
            return None;
        }
        Some(PastMembership {
            user: *users.get(&entry.key)?,
            pos: entry.pos,
            membership: membership.unwrap_or(Membership::Leave).letter(),
            event: entry.event.unwrap_or_default(),
        })
    };
    Ok(entries.iter().filter_map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(entries: &[(i64, i64)]) -> Arc<StateMap> {
        Arc::new(entries.iter().map(|(key, event)| (KeyNid(*key), EventNid(*event))).collect())
    }

    fn noted(
        states: &[(i64, &Arc<StateMap>, &Arc<StateMap>)],
        standing: &[(i64, i64)],
        (floor, top): (i64, i64),
    ) -> Vec<(i64, i64, Option<i64>)> {
        let states = states.iter().map(|(pos, before, after)| (Position(*pos), *before, *after));
        let standing = state(standing).iter().map(|(key, event)| (*key, *event)).collect();
        let space = Space { top: Position(top), floor: Position(floor), is_first: true };
        let noted = entries(states, &[KeyNid(1), KeyNid(3)], &standing, space);
        noted.iter().map(|e| (e.pos.0, e.key.0, e.event.map(|event| event.0))).collect()
    }

    #[test]
    fn entries_are_noted_where_they_change() {
        let (first, second, other) = (state(&[(1, 10), (2, 20)]), state(&[(1, 11)]), state(&[]));
        let states = [
            (-8, &first, &first),
            (-6, &first, &second),
            (-4, &second, &second),
            (-2, &other, &first),
        ];
        let expected =
            [(-9, 1, Some(10)), (-9, 3, None), (-6, 1, Some(11)), (-3, 1, None), (-2, 1, Some(10))];
        assert_eq!(noted(&states, &[], (i64::MIN, 0)), expected);
    }

    #[test]
    fn what_fills_a_gap_changes_nothing_around_it() {
        let (before, inside) = (state(&[(1, 10)]), state(&[(1, 11)]));
        let states = [(50, &before, &inside), (52, &inside, &inside)];
        let expected = [(50, 1, Some(11)), (53, 1, Some(10))];
        assert_eq!(noted(&states, &[(1, 10)], (20, 54)), expected);
        assert_eq!(noted(&[(52, &before, &before)], &[(1, 10)], (20, 54)), []);
        let expected = [(51, 1, Some(10)), (53, 1, Some(9)), (53, 3, Some(8))];
        let standing = [(1, 9), (3, 8)];
        let noted = noted(&[(52, &before, &before)], &standing, (20, 54));
        let without_gone: Vec<_> = noted.into_iter().filter(|e| *e != (51, 3, None)).collect();
        assert_eq!(without_gone, expected);
    }
}
