//! What a server that is behind gets next.
//!
//! Rooms are told in the order of the stream, fifty events at a time. Where much is missing the
//! newest event goes first: so the server knows soon what the room is like, and can ask for what it
//! misses while the rest comes.

use std::collections::BTreeMap;

use chatd_base::{Position, Result, RoomNid};
use chatd_config::Config;
use chatd_storage::{
    Pool,
    sending::{self, ToSend},
};
use ruma_common::ServerName;

use super::{
    destination::{CaughtUp, Owed},
    routing,
    transaction::MOST_PDUS,
};

/// Rooms that are looked at for one transaction.
pub(super) const MOST_ROOMS: usize = 50;
/// With more events than that a room is told newest first.
const FAR: i64 = 500;
/// Events that are looked at for one transaction: some may not be for the server.
const MOST_LOOKED_AT: usize = 2 * MOST_PDUS;

/// Events that are read of each of so many rooms: enough for a transaction, and not much more.
fn of_room(rooms: usize) -> usize {
    (2 * MOST_LOOKED_AT / rooms.max(1)).clamp(4, MOST_PDUS)
}

/// What goes out next, and what is owed when it has been taken.
#[derive(Debug, Default)]
pub(super) struct Next {
    pub events: Vec<ToSend>,
    pub then: CaughtUp,
}

/// Works out what `server` gets next of what it is owed.
pub(super) async fn next(
    pool: &Pool,
    config: &Config,
    server: &ServerName,
    owed: &[(RoomNid, Owed)],
) -> Result<Next> {
    if owed.is_empty() {
        return Ok(Next::default());
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
    let events: Vec<ToSend> = found.into_iter().map(|(event, _)| event).collect();
    oldest(pool, config, server, owed, events).await
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
    Ok(Next { events, then: CaughtUp { rooms, devices: None } })
}

/// The oldest events of all rooms together.
async fn oldest(
    pool: &Pool,
    config: &Config,
    server: &ServerName,
    owed: &[(RoomNid, Owed)],
    mut events: Vec<ToSend>,
) -> Result<Next> {
    let mut read: BTreeMap<RoomNid, usize> = BTreeMap::new();
    for event in &events {
        *read.entry(event.room).or_default() += 1;
    }
    let had: BTreeMap<RoomNid, Owed> = owed.iter().copied().collect();
    let is_ahead =
        |event: &ToSend| had.get(&event.room).is_some_and(|owed| owed.ahead == Some(event.pos));
    events.truncate(MOST_LOOKED_AT);
    let looked_at = events.clone();
    events.retain(|event| !is_ahead(event));
    let mut events = routing::for_server(pool, config, server, events).await?;
    // What is beyond the last one that fits in is left for the next time.
    let end = events.get(MOST_PDUS).map(|event| event.pos);
    events.truncate(MOST_PDUS);
    let passed: Vec<&ToSend> =
        looked_at.iter().filter(|event| end.is_none_or(|end| event.pos < end)).collect();
    let most = of_room(owed.len());
    let rooms = owed.iter().map(|(room, owed)| {
        let passed: Vec<&&ToSend> = passed.iter().filter(|event| event.room == *room).collect();
        let all = read.get(room).copied().unwrap_or_default();
        if passed.len() == all && all < most {
            return (*room, None);
        }
        let since = passed.last().map_or(owed.since, |last| Position(last.pos.0 + 1));
        (*room, Some(Owed { since, ..*owed }))
    });
    let rooms = rooms.collect();
    Ok(Next { events, then: CaughtUp { rooms, devices: None } })
}
