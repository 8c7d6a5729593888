//! What a server that is behind gets next.
//!
//! Rooms are told in the order of the stream, fifty events at a time; what goes into several
//! transactions is read together. Where much is missing the newest event goes first: so the server
//! knows soon what the room is like, and can ask for what it misses while the rest comes.

use std::collections::{BTreeMap, VecDeque};

use chatd_base::{Position, Result, RoomNid};
use chatd_config::Config;
use chatd_storage::{
    Pool,
    sending::{self, ToSend},
};
use ruma_common::ServerName;

use super::{
    delivery::Content,
    destination::{CaughtUp, Owed},
    routing,
    transaction::MOST_PDUS,
};

/// Rooms that are looked at together.
pub(super) const MOST_ROOMS: usize = 50;
/// With more events than that a room is told newest first.
const FAR: i64 = 500;
/// Events that are looked at together: ten transactions, if all are for the server.
const MOST_LOOKED_AT: usize = 10 * MOST_PDUS;

/// Events that are read of each of so many rooms.
fn of_room(rooms: usize) -> usize {
    (MOST_LOOKED_AT / rooms.max(1)).clamp(4, MOST_LOOKED_AT)
}

/// What goes out next, one transaction after the other, each with what is owed when it has been
/// taken; at least one.
pub(super) type Next = VecDeque<Content>;

fn content(events: &[ToSend], rooms: Vec<(RoomNid, Option<Owed>)>) -> Content {
    Content {
        events: events.iter().map(|event| (event.nid, event.room)).collect(),
        then: CaughtUp { rooms, devices: None },
        ..Content::default()
    }
}

/// Works out what `server` gets next of what it is owed.
pub(super) async fn next(
    pool: &Pool,
    config: &Config,
    server: &ServerName,
    owed: &[(RoomNid, Owed)],
) -> Result<Next> {
    if owed.is_empty() {
        return Ok(Next::from([Content::default()]));
    }
    let since: Vec<(RoomNid, Position)> =
        owed.iter().map(|(room, owed)| (*room, owed.since)).collect();
    let limit = i64::try_from(of_room(owed.len())).unwrap_or(i64::MAX);
    let found = sending::list_owed_events(pool, &since, limit, FAR).await?;
    let is_far = |room: RoomNid| found.iter().any(|(event, far)| event.room == room && *far);
    let far: Vec<(RoomNid, Owed)> =
        owed.iter().filter(|(room, owed)| owed.ahead.is_none() && is_far(*room)).copied().collect();
    if !far.is_empty() {
        return newest(pool, config, server, &far).await;
    }
    let found: Vec<ToSend> = found.into_iter().map(|(event, _)| event).collect();
    let had: BTreeMap<RoomNid, Owed> = owed.iter().copied().collect();
    let is_ahead =
        |event: &&ToSend| had.get(&event.room).is_some_and(|owed| owed.ahead == Some(event.pos));
    let new = found.iter().filter(|event| !is_ahead(event)).cloned().collect();
    let events = routing::for_server(pool, config, server, new).await?;
    Ok(oldest(owed, &found, &events))
}

/// The newest event of each room that is far behind.
async fn newest(
    pool: &Pool,
    config: &Config,
    server: &ServerName,
    far: &[(RoomNid, Owed)],
) -> Result<Next> {
    let rooms: Vec<RoomNid> = far.iter().map(|(room, _)| *room).collect();
    let newest = sending::list_newest(pool, &rooms).await?;
    let at: BTreeMap<RoomNid, Position> =
        newest.iter().map(|event| (event.room, event.pos)).collect();
    let rooms = far.iter().map(|(room, owed)| {
        let ahead = at.get(room).copied().or(Some(Position(0)));
        (*room, Some(Owed { ahead, ..*owed }))
    });
    let rooms = rooms.collect();
    let events = routing::for_server(pool, config, server, newest).await?;
    Ok(Next::from([content(&events, rooms)]))
}

/// The oldest events of all rooms together: of those that were `found`, the `events` that go to
/// the server.
fn oldest(owed: &[(RoomNid, Owed)], found: &[ToSend], events: &[ToSend]) -> Next {
    let most = of_room(owed.len());
    // How far each room has been passed, and how many events of it are left.
    let mut rooms: BTreeMap<RoomNid, (Owed, usize, bool)> =
        owed.iter().map(|(room, owed)| (*room, (*owed, 0, true))).collect();
    for event in found {
        if let Some((_, left, _)) = rooms.get_mut(&event.room) {
            *left += 1;
        }
    }
    for (_, left, is_all) in rooms.values_mut() {
        *is_all = *left < most;
    }
    let mut ahead = found.iter().peekable();
    let mut parts = Next::new();
    let mut chunks = events.chunks(MOST_PDUS).peekable();
    loop {
        let chunk = chunks.next().unwrap_or_default();
        let end = chunks.peek().and_then(|next| next.first()).map(|event| event.pos);
        let mut passed: BTreeMap<RoomNid, Option<Owed>> = BTreeMap::new();
        if parts.is_empty() {
            // Rooms of which nothing is left at all.
            let empty = rooms.iter().filter(|(_, (_, left, is_all))| *left == 0 && *is_all);
            passed.extend(empty.map(|(room, _)| (*room, None)));
        }
        while let Some(event) = ahead.next_if(|event| end.is_none_or(|end| event.pos < end)) {
            if let Some((owed, left, is_all)) = rooms.get_mut(&event.room) {
                owed.since = Position(event.pos.0 + 1);
                *left -= 1;
                passed.insert(event.room, (*left > 0 || !*is_all).then_some(*owed));
            }
        }
        parts.push_back(content(chunk, passed.into_iter().collect()));
        if end.is_none() {
            return parts;
        }
    }
}

#[cfg(test)]
mod tests {
    use chatd_base::{EventNid, WriterId};

    use super::*;

    fn event(pos: i64, room: i32) -> ToSend {
        ToSend {
            nid: EventNid(pos),
            pos: Position(pos),
            writer: WriterId(1),
            room: RoomNid(room),
            sender: "@a:a.example".to_owned(),
            member: None,
        }
    }

    fn owed(since: i64) -> Owed {
        Owed { since: Position(since), ahead: None }
    }

    /// What is owed after each transaction, rooms by number; `None`: nothing.
    fn rooms(part: &Content) -> Vec<(i32, Option<i64>)> {
        let one = |(room, owed): &(RoomNid, Option<Owed>)| (room.0, owed.map(|owed| owed.since.0));
        part.then.rooms.iter().map(one).collect()
    }

    #[test]
    fn what_is_read_together_is_owed_until_its_own_transaction_is_taken() {
        let of = [(RoomNid(1), owed(1)), (RoomNid(2), owed(2)), (RoomNid(3), owed(3))];
        let found: Vec<ToSend> = (1..=120).map(|pos| event(pos, 1 + i32::from(pos > 70))).collect();
        let parts = oldest(&of, &found, &found);
        let counts: Vec<usize> = parts.iter().map(|part| part.events.len()).collect();
        assert_eq!(counts, [50, 50, 20]);
        assert_eq!(rooms(&parts[0]), [(1, Some(51)), (3, None)]);
        assert_eq!(rooms(&parts[1]), [(1, None), (2, Some(101))]);
        assert_eq!(rooms(&parts[2]), [(2, None)]);
    }

    #[test]
    fn what_is_not_for_the_server_is_passed_over() {
        let found: Vec<ToSend> = (1..=60).map(|pos| event(pos, 1)).collect();
        let parts = oldest(&[(RoomNid(1), owed(1))], &found, &[]);
        assert_eq!((parts.len(), parts[0].events.len()), (1, 0));
        assert_eq!(rooms(&parts[0]), [(1, None)]);
        let parts = oldest(&[(RoomNid(1), owed(1))], &[], &[]);
        assert_eq!(rooms(&parts[0]), [(1, None)]);
    }

    #[test]
    fn a_room_of_which_there_may_be_more_is_not_settled() {
        let found: Vec<ToSend> = (1..=500).map(|pos| event(pos, 1)).collect();
        let parts = oldest(&[(RoomNid(1), owed(1))], &found, &found);
        assert_eq!((parts.len(), rooms(&parts[9])), (10, vec![(1, Some(501))]));
    }
}
