-- What comes from other servers: holes in the graph of rooms, events that wait for what they refer
-- to, and device lists that are followed. Adds only.

-- Predecessors that an event names and that are missing here, or have no place (outliers).
CREATE TABLE event_gaps (
    room int4 NOT NULL,
    missing text NOT NULL COLLATE "C",
    event int8 NOT NULL,
    PRIMARY KEY (room, missing, event)
);

-- Events that were accepted and wait for others. Their servers have been told that they are here.
CREATE TABLE inbound_events (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    room_id text NOT NULL,
    event_id text NOT NULL COLLATE "C",
    -- Who has sent it, and is asked for what is missing.
    origin text NOT NULL,
    added_ts int8 NOT NULL,
    -- Canonical JSON; signatures and hashes have been checked.
    event text COMPRESSION lz4 NOT NULL,
    UNIQUE (room_id, event_id)
);

-- Users of other servers whose devices are known here, in `devices`, `device_keys` and
-- `cross_signing_keys`.
CREATE TABLE remote_device_lists (
    user_nid int4 PRIMARY KEY,
    -- Of the last update that was taken in.
    stream_id int8 NOT NULL,
    -- An update was missed: the list has to be fetched as a whole.
    is_stale boolean NOT NULL DEFAULT false
) WITH (fillfactor = 80);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (user_nid) WHERE is_stale;
