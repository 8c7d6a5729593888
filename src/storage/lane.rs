//! The commit of a room owner: all rows of a batch of events as arrays, one round trip.

use std::collections::BTreeMap;

use chatd_base::{EventNid, KeyNid, Position, RoomNid, ShardId, SnapshotId, TypeNid, UserNid};
use uuid::Uuid;

use crate::{
    Batch, effects, gaps, params,
    partial::{self, Rebase},
    positions::{self, Seat},
    shards,
    snapshots::NewSnapshot,
    statement::statements,
};

/// Bits of `events.flags`.
pub mod flags {
    pub const OUTLIER: i16 = 1;
    pub const REJECTED: i16 = 2;
    pub const SOFT_FAILED: i16 = 4;
    pub const REDACTED: i16 = 8;
    pub const BACKFILLED: i16 = 16;
    /// The content has a `url`, until it is redacted.
    pub const HAS_URL: i16 = 32;
    /// This server is the one that sends it to the others in the room.
    pub const TO_SEND: i16 = 64;
    /// Has named a predecessor that had no place; that may have come since.
    pub const BEHIND_GAP: i16 = 128;
}

statements! {
    /// An event that was known without a place is given one.
    INSERT_EVENTS = "INSERT INTO events (nid, pos, snapshot, depth, origin_ts, key, replaces, room, type,
                                         sender, writer, flags, event_id, prev_ids, auth_ids)
                     SELECT nid, currval('stream_events') + o, snapshot, depth, ts, key, replaces, room,
                            type, sender, $14, flags, event_id, prev::int8[], auth::int8[]
                     FROM unnest($1::int8[], $2::int8[], $3::int8[], $4::int8[], $5::int8[], $6::int8[],
                                 $7::int8[], $8::int4[], $9::int4[], $10::int4[], $11::text[],
                                 $12::text[], $13::text[], $15::int2[])
                          AS t(nid, o, snapshot, depth, ts, key, replaces, room, type, sender, event_id,
                               prev, auth, flags)
                     ON CONFLICT (nid) DO UPDATE
                     SET pos = excluded.pos, snapshot = excluded.snapshot, replaces = excluded.replaces,
                         writer = excluded.writer, flags = excluded.flags,
                         prev_ids = excluded.prev_ids, auth_ids = excluded.auth_ids
                     WHERE events.flags & 1 <> 0";
    /// An outlier that takes its place has its JSON already.
    INSERT_EVENT_JSON = "INSERT INTO event_json (nid, content, rest)
                         SELECT * FROM unnest($1::int8[], $2::text[], $3::bytea[])
                         ON CONFLICT (nid) DO UPDATE SET rest = excluded.rest";
    INSERT_ROOMS = "INSERT INTO rooms (nid, room_id, version, creator, created_ts, is_public)
                    SELECT * FROM unnest($1::int4[], $2::text[], $3::text[], $4::int4[], $5::int8[],
                                         $6::bool[])";
    INSERT_ALIASES = "INSERT INTO room_aliases (alias, room, creator)
                      SELECT * FROM unnest($1::text[], $2::int4[], $3::int4[])";
    UPSERT_HEADS = "INSERT INTO room_heads (room, events, snapshots, state)
                    SELECT room, events::int8[], snapshots::int8[], state
                    FROM unnest($1::int4[], $2::text[], $3::text[], $4::int8[])
                         AS t(room, events, snapshots, state)
                    ON CONFLICT (room)
                    DO UPDATE SET events = excluded.events, snapshots = excluded.snapshots,
                                  state = excluded.state";
    INSERT_SNAPSHOTS = "INSERT INTO state_snapshots (room, id, chain, delta, root, entries)
                        SELECT room, id, chain::int8[], delta, root, entries
                        FROM unnest($1::int4[], $2::int8[], $3::text[], $4::bytea[], $5::bytea[], $6::int4[])
                             AS t(room, id, chain, delta, root, entries)";
    INSERT_CHUNKS = "INSERT INTO state_chunks (room, digest, data)
                     SELECT DISTINCT ON (room, digest) room, digest, data
                     FROM unnest($1::int4[], $2::uuid[], $3::bytea[]) AS t(room, digest, data)
                     ON CONFLICT DO NOTHING";
    UPSERT_CURRENT_STATE = "INSERT INTO current_state (room, key, event)
                            SELECT * FROM unnest($1::int4[], $2::int8[], $3::int8[])
                            ON CONFLICT (room, key) DO UPDATE SET event = excluded.event";
    DELETE_CURRENT_STATE = "DELETE FROM current_state c
                            USING unnest($1::int4[], $2::int8[]) AS t(room, key)
                            WHERE c.room = t.room AND c.key = t.key";
    INSERT_STATE_DELTA = "INSERT INTO state_delta (room, pos, key, event, previous)
                          SELECT room, currval('stream_events') + o, key, event, previous
                          FROM unnest($1::int4[], $2::int8[], $3::int8[], $4::int8[], $5::int8[])
                               AS t(room, o, key, event, previous)";
    UPSERT_MEMBERSHIPS = "INSERT INTO memberships
                              (user_nid, room, membership, is_local, sender, event, pos)
                          SELECT u, room, m, local, sender, event, currval('stream_events') + o
                          FROM unnest($1::int4[], $2::int4[], $3::\"char\"[], $4::bool[], $5::int4[],
                                      $6::int8[], $7::int8[]) AS t(u, room, m, local, sender, event, o)
                          ON CONFLICT (user_nid, room)
                          DO UPDATE SET membership = excluded.membership, forgotten = false,
                                        sender = excluded.sender, event = excluded.event,
                                        pos = excluded.pos";
    INSERT_MEMBERSHIP_HISTORY = "INSERT INTO membership_history (user_nid, room, pos, membership, event)
                                 SELECT u, room, currval('stream_events') + o, m, event
                                 FROM unnest($1::int4[], $2::int4[], $3::int8[], $4::\"char\"[], $5::int8[])
                                      AS t(u, room, o, m, event)";
    UPSERT_INVITE_STATE = "INSERT INTO invite_state (user_nid, room, pos, state)
                           SELECT u, room, currval('stream_events') + o, state
                           FROM unnest($1::int4[], $2::int4[], $3::int8[], $4::text[])
                                AS t(u, room, o, state)
                           ON CONFLICT (user_nid, room)
                           DO UPDATE SET pos = excluded.pos, state = excluded.state";
    INSERT_EVENT_TXNS = "INSERT INTO event_txns (digest, event, added_ts, device_id, txn_id)
                         SELECT * FROM unnest($1::uuid[], $2::int8[], $3::int8[], $4::text[],
                                              $5::text[])";
    INSERT_RELATIONS = "INSERT INTO event_relations (room, parent, rel_type, child)
                        SELECT * FROM unnest($1::int4[], $2::text[], $3::text[], $4::int8[])
                        ON CONFLICT DO NOTHING";
    INSERT_NOTIFICATIONS = "INSERT INTO event_notifications (room, pos, thread, notify, highlight)
                            SELECT room, currval('stream_events') + o, thread, n::int4[], h::int4[]
                            FROM unnest($1::int4[], $2::int8[], $3::text[], $4::text[], $5::text[])
                                 AS t(room, o, thread, n, h)";
    REDACT_JSON = "UPDATE event_json j SET content = t.content, redacted_by = t.by
                   FROM unnest($1::int8[], $2::text[], $3::int8[]) AS t(nid, content, by)
                   WHERE j.nid = t.nid";
    REDACT_EVENTS = "UPDATE events SET flags = flags | 8 WHERE nid = ANY($1::int8[])";
    INSERT_PENDING_REDACTIONS = "INSERT INTO pending_redactions (room, target, redaction)
                                 SELECT * FROM unnest($1::int4[], $2::text[], $3::int8[])
                                 ON CONFLICT DO NOTHING";
    DELETE_PENDING_REDACTIONS = "DELETE FROM pending_redactions p
                                 USING unnest($1::int4[], $2::text[]) AS t(room, target)
                                 WHERE p.room = t.room AND p.target = t.target";
    DELETE_REDACTED_RELATIONS = "DELETE FROM event_relations r USING events e
                                 WHERE e.nid = ANY($1::int8[]) AND r.room = e.room AND r.child = e.nid";
}

/// A row of `events` and `event_json`.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub nid: EventNid,
    pub snapshot: SnapshotId,
    pub depth: i64,
    pub origin_ts: i64,
    pub key: Option<KeyNid>,
    pub replaces: Option<EventNid>,
    pub room: RoomNid,
    pub kind: TypeNid,
    pub sender: UserNid,
    pub flags: i16,
    pub event_id: String,
    pub prev_ids: Vec<EventNid>,
    pub auth_ids: Vec<EventNid>,
    pub content: String,
    pub rest: Vec<u8>,
    pub txn: Option<NewTransaction>,
    /// (parent event id, relation type).
    pub relation: Option<(String, String)>,
    pub notifications: Option<NewNotifications>,
    pub redaction: Option<NewRedaction>,
    /// Memberships that change with it: its own, and what state resolution makes of others.
    pub memberships: Vec<NewMembership>,
    /// Changes of the current state (key, new event, previous event).
    pub state_changes: Vec<(KeyNid, Option<EventNid>, Option<EventNid>)>,
    /// Snapshots that are made with it.
    pub snapshots: Vec<NewSnapshot>,
    /// Predecessors that are missing; `None` for an event that was made here.
    pub gaps: Option<Vec<String>>,
    /// With it the members of the room are known.
    pub rebase: Option<Rebase>,
}

/// The request that makes an event.
#[derive(Clone, Debug)]
pub struct NewTransaction {
    /// Over room, user, device and transaction id; a repeat fails the commit.
    pub digest: Uuid,
    pub device_id: String,
    pub txn_id: String,
}

#[derive(Clone, Debug)]
pub struct NewNotifications {
    pub thread: String,
    pub notify: Vec<UserNid>,
    pub highlight: Vec<UserNid>,
}

/// What an event has to do with redactions.
#[derive(Clone, Debug)]
pub enum NewRedaction {
    /// `by` prunes `target`, of which `content` is left. Either may be the event itself.
    Prune { target: EventNid, content: String, by: EventNid },
    /// The event redacts one that has not come yet.
    Pending { target: String },
}

/// Forward extremities of a room after a commit.
#[derive(Clone, Debug, Default)]
pub struct NewHeads {
    /// Each with the snapshot after it.
    pub events: Vec<(EventNid, SnapshotId)>,
    /// The state that the next event finds.
    pub state: SnapshotId,
}

#[derive(Clone, Debug)]
pub struct NewMembership {
    pub user: UserNid,
    /// The member event that is in force now, and who sent it.
    pub event: EventNid,
    pub sender: UserNid,
    pub membership: i8,
    pub is_local: bool,
    /// JSON array of stripped state, for an invited or knocking local user.
    pub stripped: Option<String>,
}

/// A row of `rooms`.
#[derive(Clone, Debug)]
pub struct NewRoom {
    pub nid: RoomNid,
    pub room_id: String,
    pub version: String,
    pub creator: UserNid,
    pub created_ts: i64,
    pub is_public: bool,
    pub alias: Option<String>,
    /// Of the request that makes it; a repeat fails the commit.
    pub key: Option<Uuid>,
}

/// Everything that one commit of a room owner writes.
pub struct LaneCommit<'a> {
    /// Shards of all rooms in it with their epochs, sorted, without repeats.
    pub fence: Vec<(ShardId, i64)>,
    pub rooms: Vec<&'a NewRoom>,
    /// In stream order.
    pub events: Vec<&'a NewEvent>,
    /// Final heads of each room.
    pub heads: BTreeMap<RoomNid, &'a NewHeads>,
    pub now_ms: i64,
}

/// The batch of a writer that stands at `after`, and the index of its first statement for
/// [`positions::base_of`].
pub fn batch(commit: &LaneCommit<'_>, seat: Seat, after: Position) -> (Batch, usize) {
    let mut batch = Batch::new();
    let begun = positions::begin(&mut batch, positions::EVENTS, seat, after);
    shards::fence(&mut batch, &commit.fence);
    add_rooms(&mut batch, commit);
    add_events(&mut batch, commit, seat);
    add_heads(&mut batch, commit);
    add_snapshots(&mut batch, commit);
    add_state(&mut batch, commit);
    add_memberships(&mut batch, commit);
    add_extras(&mut batch, commit);
    let redactions = commit.events.iter().filter_map(|event| {
        Some((event.room, event.nid, event.event_id.as_str(), event.redaction.as_ref()?))
    });
    add_redactions(&mut batch, redactions);
    gaps::note(&mut batch, &commit.events);
    let rebased: Vec<(RoomNid, i64, &Rebase)> = commit
        .events
        .iter()
        .zip(0_i64..)
        .filter_map(|(event, offset)| Some((event.room, offset, event.rebase.as_ref()?)))
        .collect();
    partial::end(&mut batch, seat.writer, &rebased);
    positions::advance(&mut batch, positions::EVENTS, seat.writer, commit.events.len());
    (batch, begun)
}

/// An array literal; `unnest` cannot take arrays of different lengths in one array.
pub(crate) fn literal<N: std::fmt::Display>(numbers: impl IntoIterator<Item = N>) -> String {
    let mut out = String::from("{");
    for (index, number) in numbers.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        out.push_str(&number.to_string());
    }
    out.push('}');
    out
}

fn add_rooms(batch: &mut Batch, commit: &LaneCommit<'_>) {
    let rooms = &commit.rooms;
    if rooms.is_empty() {
        return;
    }
    batch.add(
        &INSERT_ROOMS,
        params![
            rooms.iter().map(|r| r.nid.0).collect::<Vec<_>>(),
            rooms.iter().map(|r| r.room_id.clone()).collect::<Vec<_>>(),
            rooms.iter().map(|r| r.version.clone()).collect::<Vec<_>>(),
            rooms.iter().map(|r| r.creator.0).collect::<Vec<_>>(),
            rooms.iter().map(|r| r.created_ts).collect::<Vec<_>>(),
            rooms.iter().map(|r| r.is_public).collect::<Vec<_>>(),
        ],
    );
    let keys = rooms.iter().filter_map(|room| Some((room.key?, room.room_id.clone())));
    effects::insert_results(batch, keys.collect());
    let with_alias: Vec<_> = rooms.iter().filter(|r| r.alias.is_some()).collect();
    if !with_alias.is_empty() {
        batch.add(
            &INSERT_ALIASES,
            params![
                with_alias.iter().filter_map(|r| r.alias.clone()).collect::<Vec<_>>(),
                with_alias.iter().map(|r| r.nid.0).collect::<Vec<_>>(),
                with_alias.iter().map(|r| r.creator.0).collect::<Vec<_>>(),
            ],
        );
    }
}

fn add_events(batch: &mut Batch, commit: &LaneCommit<'_>, seat: Seat) {
    let events = &commit.events;
    batch.add(
        &INSERT_EVENTS,
        params![
            events.iter().map(|e| e.nid.0).collect::<Vec<_>>(),
            (0..events.len() as i64).collect::<Vec<_>>(),
            events.iter().map(|e| e.snapshot.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.depth).collect::<Vec<_>>(),
            events.iter().map(|e| e.origin_ts).collect::<Vec<_>>(),
            events.iter().map(|e| e.key.map(|key| key.0)).collect::<Vec<_>>(),
            events.iter().map(|e| e.replaces.map(|nid| nid.0)).collect::<Vec<_>>(),
            events.iter().map(|e| e.room.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.kind.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.sender.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.event_id.clone()).collect::<Vec<_>>(),
            events.iter().map(|e| literal(e.prev_ids.iter())).collect::<Vec<_>>(),
            events.iter().map(|e| literal(e.auth_ids.iter())).collect::<Vec<_>>(),
            seat.writer.0,
            events.iter().map(|e| e.flags).collect::<Vec<_>>(),
        ],
    );
    batch.add(
        &INSERT_EVENT_JSON,
        params![
            events.iter().map(|e| e.nid.0).collect::<Vec<_>>(),
            events.iter().map(|e| e.content.clone()).collect::<Vec<_>>(),
            events.iter().map(|e| e.rest.clone()).collect::<Vec<_>>(),
        ],
    );
}

fn add_heads(batch: &mut Batch, commit: &LaneCommit<'_>) {
    if commit.heads.is_empty() {
        return;
    }
    let heads = || commit.heads.values();
    batch.add(
        &UPSERT_HEADS,
        params![
            commit.heads.keys().map(|room| room.0).collect::<Vec<_>>(),
            heads().map(|h| literal(h.events.iter().map(|(e, _)| e))).collect::<Vec<_>>(),
            heads().map(|h| literal(h.events.iter().map(|(_, s)| s))).collect::<Vec<_>>(),
            heads().map(|h| h.state.0).collect::<Vec<_>>(),
        ],
    );
}

fn add_snapshots(batch: &mut Batch, commit: &LaneCommit<'_>) {
    let new: Vec<&NewSnapshot> =
        commit.events.iter().flat_map(|event| event.snapshots.iter()).collect();
    add_new_snapshots(batch, &new);
}

/// Writes snapshots and those of their chunks that are new.
pub(crate) fn add_new_snapshots(batch: &mut Batch, new: &[&NewSnapshot]) {
    if new.is_empty() {
        return;
    }
    batch.add(
        &INSERT_SNAPSHOTS,
        params![
            new.iter().map(|s| s.room.0).collect::<Vec<_>>(),
            new.iter().map(|s| s.id.0).collect::<Vec<_>>(),
            new.iter().map(|s| literal(s.chain.iter())).collect::<Vec<_>>(),
            new.iter().map(|s| s.delta.clone()).collect::<Vec<_>>(),
            new.iter().map(|s| s.root.clone()).collect::<Vec<_>>(),
            new.iter().map(|s| s.entries).collect::<Vec<_>>(),
        ],
    );
    let chunks: Vec<(i32, Uuid, Vec<u8>)> = new
        .iter()
        .flat_map(|s| s.chunks.iter().map(|(digest, data)| (s.room.0, *digest, data.clone())))
        .collect();
    if !chunks.is_empty() {
        batch.add(
            &INSERT_CHUNKS,
            params![
                chunks.iter().map(|c| c.0).collect::<Vec<_>>(),
                chunks.iter().map(|c| c.1).collect::<Vec<_>>(),
                chunks.into_iter().map(|c| c.2).collect::<Vec<_>>(),
            ],
        );
    }
}

fn add_state(batch: &mut Batch, commit: &LaneCommit<'_>) {
    let mut last: BTreeMap<(i32, i64), Option<i64>> = BTreeMap::new();
    let (mut rooms, mut offsets, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut news, mut olds) = (Vec::new(), Vec::new());
    for (event, offset) in commit.events.iter().zip(0_i64..) {
        for (key, new, old) in &event.state_changes {
            last.insert((event.room.0, key.0), new.map(|nid| nid.0));
            rooms.push(event.room.0);
            offsets.push(offset);
            keys.push(key.0);
            news.push(new.map(|nid| nid.0));
            olds.push(old.map(|nid| nid.0));
        }
    }
    if rooms.is_empty() {
        return;
    }
    batch.add(&INSERT_STATE_DELTA, params![rooms, offsets, keys, news, olds]);
    let (mut set, mut gone) = ((Vec::new(), Vec::new(), Vec::new()), (Vec::new(), Vec::new()));
    for ((room, key), event) in last {
        if let Some(event) = event {
            set.0.push(room);
            set.1.push(key);
            set.2.push(event);
        } else {
            gone.0.push(room);
            gone.1.push(key);
        }
    }
    batch.add(&UPSERT_CURRENT_STATE, params![set.0, set.1, set.2]);
    if !gone.0.is_empty() {
        batch.add(&DELETE_CURRENT_STATE, params![gone.0, gone.1]);
    }
}

fn add_memberships(batch: &mut Batch, commit: &LaneCommit<'_>) {
    let changes: Vec<(&NewEvent, i64, &NewMembership)> = commit
        .events
        .iter()
        .zip(0_i64..)
        .flat_map(|(event, offset)| event.memberships.iter().map(move |m| (*event, offset, m)))
        .collect();
    if changes.is_empty() {
        return;
    }
    // Of several changes of one user in one room the last is the current one.
    let last: BTreeMap<(i32, i32), &(&NewEvent, i64, &NewMembership)> =
        changes.iter().map(|change| ((change.2.user.0, change.0.room.0), change)).collect();
    batch.add(
        &UPSERT_MEMBERSHIPS,
        params![
            last.keys().map(|(user, _)| *user).collect::<Vec<_>>(),
            last.keys().map(|(_, room)| *room).collect::<Vec<_>>(),
            last.values().map(|c| c.2.membership).collect::<Vec<_>>(),
            last.values().map(|c| c.2.is_local).collect::<Vec<_>>(),
            last.values().map(|c| c.2.sender.0).collect::<Vec<_>>(),
            last.values().map(|c| c.2.event.0).collect::<Vec<_>>(),
            last.values().map(|c| c.1).collect::<Vec<_>>(),
        ],
    );
    batch.add(
        &INSERT_MEMBERSHIP_HISTORY,
        params![
            changes.iter().map(|c| c.2.user.0).collect::<Vec<_>>(),
            changes.iter().map(|c| c.0.room.0).collect::<Vec<_>>(),
            changes.iter().map(|c| c.1).collect::<Vec<_>>(),
            changes.iter().map(|c| c.2.membership).collect::<Vec<_>>(),
            changes.iter().map(|c| c.2.event.0).collect::<Vec<_>>(),
        ],
    );
    let stripped: Vec<_> = last.values().filter(|c| c.2.stripped.is_some()).collect();
    if !stripped.is_empty() {
        batch.add(
            &UPSERT_INVITE_STATE,
            params![
                stripped.iter().map(|c| c.2.user.0).collect::<Vec<_>>(),
                stripped.iter().map(|c| c.0.room.0).collect::<Vec<_>>(),
                stripped.iter().map(|c| c.1).collect::<Vec<_>>(),
                stripped.iter().filter_map(|c| c.2.stripped.clone()).collect::<Vec<_>>(),
            ],
        );
    }
}

fn add_extras(batch: &mut Batch, commit: &LaneCommit<'_>) {
    let txns: Vec<_> =
        commit.events.iter().filter_map(|e| Some((e.nid.0, e.txn.as_ref()?))).collect();
    if !txns.is_empty() {
        batch.add(
            &INSERT_EVENT_TXNS,
            params![
                txns.iter().map(|(_, txn)| txn.digest).collect::<Vec<_>>(),
                txns.iter().map(|(event, _)| *event).collect::<Vec<_>>(),
                vec![commit.now_ms; txns.len()],
                txns.iter().map(|(_, txn)| txn.device_id.clone()).collect::<Vec<_>>(),
                txns.iter().map(|(_, txn)| txn.txn_id.clone()).collect::<Vec<_>>(),
            ],
        );
    }
    let related = commit.events.iter().filter_map(|e| Some((e.room, e.nid, e.relation.clone()?)));
    add_relations(batch, related.collect());
    let unread: Vec<_> = commit
        .events
        .iter()
        .zip(0_i64..)
        .filter_map(|(e, offset)| Some((e.room.0, offset, e.notifications.as_ref()?)))
        .collect();
    if !unread.is_empty() {
        batch.add(
            &INSERT_NOTIFICATIONS,
            params![
                unread.iter().map(|n| n.0).collect::<Vec<_>>(),
                unread.iter().map(|n| n.1).collect::<Vec<_>>(),
                unread.iter().map(|n| n.2.thread.clone()).collect::<Vec<_>>(),
                unread.iter().map(|n| literal(n.2.notify.iter())).collect::<Vec<_>>(),
                unread.iter().map(|n| literal(n.2.highlight.iter())).collect::<Vec<_>>(),
            ],
        );
    }
}

/// Notes what events relate to: (room, event, (parent event id, relation type)).
pub(crate) fn add_relations(
    batch: &mut Batch,
    related: Vec<(RoomNid, EventNid, (String, String))>,
) {
    if !related.is_empty() {
        batch.add(
            &INSERT_RELATIONS,
            params![
                related.iter().map(|(room, ..)| room.0).collect::<Vec<_>>(),
                related.iter().map(|(.., (parent, _))| parent.clone()).collect::<Vec<_>>(),
                related.iter().map(|(.., (_, kind))| kind.clone()).collect::<Vec<_>>(),
                related.iter().map(|(_, event, _)| event.0).collect::<Vec<_>>(),
            ],
        );
    }
}

/// Does what events have to do with redactions: (room, event, its id, what it does).
pub(crate) fn add_redactions<'a>(
    batch: &mut Batch,
    redactions: impl Iterator<Item = (RoomNid, EventNid, &'a str, &'a NewRedaction)>,
) {
    let mut pruned: BTreeMap<i64, (String, i64)> = BTreeMap::new();
    let (mut pending, mut settled) = (Vec::new(), Vec::new());
    for (room, event, event_id, redaction) in redactions {
        match redaction {
            NewRedaction::Prune { target, content, by } => {
                pruned.insert(target.0, (content.clone(), by.0));
                if *target == event {
                    settled.push((room.0, event_id.to_owned()));
                }
            }
            NewRedaction::Pending { target } => pending.push((room.0, target.clone(), event.0)),
        }
    }
    if !pruned.is_empty() {
        let targets: Vec<i64> = pruned.keys().copied().collect();
        let (contents, by): (Vec<String>, Vec<i64>) = pruned.into_values().unzip();
        batch.add(&REDACT_JSON, params![targets.clone(), contents, by]);
        batch.add(&REDACT_EVENTS, params![targets.clone()]);
        batch.add(&DELETE_REDACTED_RELATIONS, params![targets]);
    }
    if !pending.is_empty() {
        batch.add(
            &INSERT_PENDING_REDACTIONS,
            params![
                pending.iter().map(|p| p.0).collect::<Vec<_>>(),
                pending.iter().map(|p| p.1.clone()).collect::<Vec<_>>(),
                pending.iter().map(|p| p.2).collect::<Vec<_>>(),
            ],
        );
    }
    if !settled.is_empty() {
        let (rooms, targets): (Vec<i32>, Vec<String>) = settled.into_iter().unzip();
        batch.add(&DELETE_PENDING_REDACTIONS, params![rooms, targets]);
    }
}
