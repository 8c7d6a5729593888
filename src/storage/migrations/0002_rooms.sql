-- Rooms, events and their state. Runs on an empty database.

CREATE TABLE rooms (
    nid int4 PRIMARY KEY,
    room_id text NOT NULL UNIQUE,
    version text NOT NULL,
    creator int4 NOT NULL,
    created_ts int8 NOT NULL,
    -- In the published directory of this server.
    is_public boolean NOT NULL DEFAULT false
);

-- Handed out before the commit; events and snapshots to room owners in blocks.
CREATE SEQUENCE room_nids;
CREATE SEQUENCE event_nids INCREMENT BY 10000 START 10000;
CREATE SEQUENCE snapshot_ids INCREMENT BY 10000 START 10000;

CREATE TABLE events (
    nid int8 NOT NULL,
    -- Stream position; 0 for events that are not in this server's timeline (outliers, backfill).
    pos int8 NOT NULL,
    -- State before the event; a message shares its predecessor's. 0 for outliers.
    snapshot int8 NOT NULL,
    depth int8 NOT NULL,
    origin_ts int8 NOT NULL,
    -- (type, state key) if it is a state event.
    key int8,
    -- For a state event: the event that it replaced, if any.
    replaces int8,
    room int4 NOT NULL,
    type int4 NOT NULL,
    sender int4 NOT NULL,
    writer int2 NOT NULL,
    -- Bits: 1 outlier, 2 rejected, 4 soft-failed, 8 redacted, 16 backfilled, 32 has a url.
    flags int2 NOT NULL,
    event_id text NOT NULL COLLATE "C",
    prev_ids int8[] NOT NULL,
    auth_ids int8[] NOT NULL,
    PRIMARY KEY (nid)
);
CREATE UNIQUE INDEX events_event_id ON events (event_id);
CREATE INDEX events_room_pos ON events (room, pos);

-- What the columns above do not say. `content` is JSON as clients get it (pruned once the event
-- is redacted); `rest` is the remainder of the federation format.
CREATE TABLE event_json (
    nid int8 PRIMARY KEY,
    -- The redaction event that pruned it.
    redacted_by int8,
    content text COMPRESSION lz4 NOT NULL,
    rest bytea COMPRESSION lz4 NOT NULL
);

-- Forward extremities of each room, and the state after each of them.
CREATE TABLE room_heads (
    room int4 PRIMARY KEY,
    events int8[] NOT NULL,
    snapshots int8[] NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE state_snapshots (
    room int4 NOT NULL,
    id int8 NOT NULL,
    -- Ancestors, nearest first, the last one being the root; empty for a root.
    chain int8[] NOT NULL,
    -- Entries that differ from the parent, packed (see storage/state.rs).
    delta bytea NOT NULL,
    -- For a root: packed entries, or digests of chunks if they are many.
    root bytea COMPRESSION lz4,
    entries int4 NOT NULL,
    PRIMARY KEY (room, id)
);

CREATE TABLE state_chunks (
    room int4 NOT NULL,
    -- First half of SHA-256 over `data`.
    digest uuid NOT NULL,
    data bytea COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (room, digest)
);

CREATE TABLE current_state (
    room int4 NOT NULL,
    key int8 NOT NULL,
    event int8 NOT NULL,
    PRIMARY KEY (room, key)
) WITH (fillfactor = 80);

-- Changes of the current state, each with its own event's position.
CREATE TABLE state_delta (
    room int4 NOT NULL,
    pos int8 NOT NULL,
    key int8 NOT NULL,
    -- NULL if state resolution removed the entry.
    event int8,
    previous int8,
    PRIMARY KEY (room, pos, key)
);

-- What a user is in a room now.
CREATE TABLE memberships (
    user_nid int4 NOT NULL,
    room int4 NOT NULL,
    -- 'j' join, 'i' invite, 'l' leave, 'b' ban, 'k' knock
    membership "char" NOT NULL,
    is_local boolean NOT NULL,
    forgotten boolean NOT NULL DEFAULT false,
    sender int4 NOT NULL,
    -- The member event and its position.
    event int8 NOT NULL,
    pos int8 NOT NULL,
    PRIMARY KEY (user_nid, room)
) WITH (fillfactor = 80);
CREATE INDEX memberships_room ON memberships (room, membership, user_nid);

-- Every change of a membership, so that a reader knows between which positions a user was in.
CREATE TABLE membership_history (
    user_nid int4 NOT NULL,
    room int4 NOT NULL,
    pos int8 NOT NULL,
    membership "char" NOT NULL,
    event int8 NOT NULL,
    PRIMARY KEY (user_nid, room, pos)
);
CREATE INDEX membership_history_pos ON membership_history (user_nid, pos);

-- Repeats of a client's request find their event here. Removed after a day.
CREATE TABLE event_txns (
    -- First half of SHA-256 over room, user, device and transaction id.
    digest uuid PRIMARY KEY,
    event int8 NOT NULL,
    added_ts int8 NOT NULL
);

CREATE TABLE event_relations (
    room int4 NOT NULL,
    -- Id of the event that is related to; it need not be known here.
    parent text NOT NULL COLLATE "C",
    rel_type text NOT NULL COLLATE "C",
    child int8 NOT NULL,
    PRIMARY KEY (room, parent, rel_type, child)
);

-- Redactions whose target has not arrived.
CREATE TABLE pending_redactions (
    room int4 NOT NULL,
    target text NOT NULL COLLATE "C",
    redaction int8 NOT NULL,
    PRIMARY KEY (room, target, redaction)
);

-- Whom an event leaves something unread: one row an event, four bytes a user.
CREATE TABLE event_notifications (
    room int4 NOT NULL,
    pos int8 NOT NULL,
    -- Event id of the thread's root; '' for the main timeline.
    thread text NOT NULL COLLATE "C",
    notify int4[] NOT NULL,
    -- Subset of `notify` whose count is a highlight.
    highlight int4[] NOT NULL,
    PRIMARY KEY (room, pos)
);

CREATE TABLE room_aliases (
    alias text PRIMARY KEY,
    room int4 NOT NULL,
    creator int4 NOT NULL
);
CREATE INDEX room_aliases_room ON room_aliases (room);
