//! What is noted with events of the past, so that the rows that decide everywhere who sees what
//! (`visibility`) decide it for them: the room's history visibility, and what users of this server
//! were at the time.

use std::{collections::HashMap, sync::Arc};

use chatd_base::{EventNid, KeyNid, Position, Result, UserNid};
use chatd_storage::{
    history::{PastMembership, Setting as Entry},
    snapshots::StateMap,
};
use chatd_streams::events::Membership;

use crate::{import::membership_of, place::Scene};

/// The state before and after the event at a position.
type Around<'a> = (Position, &'a Arc<StateMap>, &'a Arc<StateMap>);

/// Entries of the state, by key.
pub(super) type Standing = HashMap<KeyNid, EventNid>;

/// Where the entries with these keys change. What an event changes counts from its position on;
/// what the one before it does not explain, from the position below. `standing` is what counts
/// below all of them; nothing does at the beginning of what is known, and even that is noted.
/// Behind the last `above` counts of those of the keys that are with it, in which nothing is noted
/// there yet.
pub(super) fn entries<'a>(
    states: impl Iterator<Item = Around<'a>>,
    keys: &[KeyNid],
    standing: Option<&Standing>,
    (top, above): (Position, (&[KeyNid], &Standing)),
) -> Vec<Entry> {
    let mut notes = Notes { entries: Vec::new(), now: HashMap::new() };
    if let Some(standing) = standing {
        notes.now.extend(keys.iter().map(|key| (*key, standing.get(key).copied())));
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
    let (keys, above) = above;
    notes.take(Position(top.0 - 1), keys, |key| above.get(key).copied());
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
        standing: Option<&[(i64, i64)]>,
        (top, keys, above): (i64, &[i64], &[(i64, i64)]),
    ) -> Vec<(i64, i64, Option<i64>)> {
        let states = states.iter().map(|(pos, before, after)| (Position(*pos), *before, *after));
        let map = |entries: &[(i64, i64)]| -> Standing {
            entries.iter().map(|(key, event)| (KeyNid(*key), EventNid(*event))).collect()
        };
        let keys: Vec<KeyNid> = keys.iter().map(|key| KeyNid(*key)).collect();
        let behind = (Position(top), (&*keys, &map(above)));
        let noted = entries(states, &[KeyNid(1), KeyNid(3)], standing.map(map).as_ref(), behind);
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
        assert_eq!(noted(&states, None, (0, &[], &[])), expected);
    }

    #[test]
    fn what_fills_a_gap_changes_nothing_around_it() {
        let (before, inside) = (state(&[(1, 10)]), state(&[(1, 11)]));
        let states = [(50, &before, &inside), (52, &inside, &inside)];
        let expected = [(50, 1, Some(11)), (53, 1, Some(10))];
        let around = [(1, 10)];
        assert_eq!(noted(&states, Some(&around), (54, &[1, 3], &around)), expected);
        let one = [(52, &before, &before)];
        assert_eq!(noted(&one, Some(&around), (54, &[1, 3], &around)), []);
        let expected = [(51, 1, Some(10)), (51, 3, None), (53, 1, Some(9)), (53, 3, Some(8))];
        let around = [(1, 9), (3, 8)];
        assert_eq!(noted(&one, Some(&around), (54, &[1, 3], &around)), expected);
    }

    /// What was told before stands behind it, by the state there.
    #[test]
    fn what_fills_the_rest_of_a_gap_changes_nothing_behind_it() {
        let (before, inside) = (state(&[(1, 10)]), state(&[(1, 11)]));
        let states = [(50, &before, &inside)];
        let around = [(1, 10)];
        for (keys, above, expected) in [
            (&[1, 3][..], [(1, 12)], &[(50, 1, Some(11)), (51, 1, Some(12))][..]),
            (&[1, 3], [(1, 11)], &[(50, 1, Some(11))]),
            (&[1, 3], [(3, 8)], &[(50, 1, Some(11)), (51, 1, None), (51, 3, Some(8))]),
            (&[3], [(1, 12)], &[(50, 1, Some(11))]),
        ] {
            assert_eq!(noted(&states, Some(&around), (52, keys, &above)), expected);
        }
    }
}
