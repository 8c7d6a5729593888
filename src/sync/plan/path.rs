//! What a user's steps in one room amount to.

use std::collections::BTreeMap;

use chatd_base::{Position, RoomNid};
use chatd_streams::events::Membership;

use crate::index::Step;

/// What a user's steps in one room amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Joined before and after, and in between.
    Stayed,
    /// Joined now, but not all the time; `was_known`: the client had the room as joined.
    Arrived { was_known: bool },
    /// Not joined any more since `at`; `was_known`: the client had the room as joined.
    Parted { at: Position, was_known: bool },
    /// Invited, or knocking.
    Previewed,
    /// Never in: an invite or a knock that is over, or a ban.
    Dismissed,
}

/// The rooms that the user of `steps` has come into, and those that it has left.
pub fn ways(steps: &[Step]) -> (Vec<RoomNid>, Vec<RoomNid>) {
    let mut by_room: BTreeMap<RoomNid, Vec<Step>> = BTreeMap::new();
    for step in steps {
        by_room.entry(step.room).or_default().push(step.clone());
    }
    let (mut arrived, mut parted) = (Vec::new(), Vec::new());
    for (room, steps) in by_room {
        match Path::of(&steps) {
            Path::Arrived { .. } => arrived.push(room),
            Path::Parted { .. } => parted.push(room),
            Path::Stayed | Path::Previewed | Path::Dismissed => {}
        }
    }
    (arrived, parted)
}

impl Path {
    pub(super) fn of(steps: &[Step]) -> Self {
        let joined = |membership: Option<Membership>| membership == Some(Membership::Join);
        let was_known = steps.first().is_some_and(|first| joined(first.before));
        let last = steps.last().map(|step| step.now);
        let way_out =
            steps.iter().rev().find(|step| joined(step.before) && !joined(Some(step.now)));
        match last {
            Some(Membership::Join) if was_known && way_out.is_none() => Self::Stayed,
            Some(Membership::Join) => Self::Arrived { was_known },
            Some(Membership::Invite | Membership::Knock) => Self::Previewed,
            _ => match way_out {
                Some(step) => Self::Parted { at: step.at, was_known },
                None => Self::Dismissed,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use chatd_base::{EventNid, WriterId};

    use super::*;

    fn path(from: Option<Membership>, through: &[Membership]) -> Path {
        let mut before = from;
        let steps: Vec<Step> = through
            .iter()
            .zip(1..)
            .map(|(now, at)| Step {
                room: RoomNid(1),
                room_id: "!r:x".try_into().unwrap(),
                writer: WriterId(1),
                at: Position(at),
                before: before.replace(*now),
                now: *now,
                event: EventNid(at),
                inviter: None,
                stripped: None,
                is_partial: false,
            })
            .collect();
        Path::of(&steps)
    }

    #[test]
    fn steps_amount_to_a_section() {
        use Membership::{Ban, Invite, Join, Knock, Leave};
        let parted = |at, was_known| Path::Parted { at: Position(at), was_known };
        let arrived = |was_known| Path::Arrived { was_known };
        let table: &[(Option<Membership>, &[Membership], Path)] = &[
            (Some(Join), &[Join], Path::Stayed),
            (None, &[Join], arrived(false)),
            (Some(Invite), &[Join, Join], arrived(false)),
            (Some(Join), &[Leave, Join], arrived(true)),
            (Some(Join), &[Leave], parted(1, true)),
            (Some(Join), &[Join, Leave, Ban], parted(2, true)),
            (None, &[Join, Ban], parted(2, false)),
            (Some(Join), &[Leave, Join, Leave], parted(3, true)),
            (Some(Join), &[Leave, Invite], Path::Previewed),
            (None, &[Knock], Path::Previewed),
            (Some(Invite), &[Leave], Path::Dismissed),
            (Some(Leave), &[Ban], Path::Dismissed),
        ];
        for (from, through, expected) in table {
            assert_eq!(path(*from, through), *expected, "{from:?} {through:?}");
        }
    }
}
