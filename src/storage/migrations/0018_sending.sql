-- What goes to other servers. Adds only. The two indexes are built under locks that let nobody
-- write to `users_nid` and `events`: about a second for a million rows of each.

-- Which users are of which server.
CREATE INDEX users_nid_server ON users_nid (substr(user_id, strpos(user_id, ':') + 1));

-- Bit 64 of `flags`: this server is the one that sends the event to others.
CREATE INDEX events_to_send ON events (pos) WHERE flags & 64 <> 0;

-- Where the user's list was before the change; 0 if nobody knows.
ALTER TABLE device_list_changes ADD COLUMN previous int8 NOT NULL DEFAULT 0;

-- Servers that do not answer. One that is not here is well, as far as anybody knows.
CREATE TABLE destinations (
    server text COLLATE "C" PRIMARY KEY,
    -- Milliseconds since the epoch.
    failing_since int8 NOT NULL,
    retry_at int8 NOT NULL,
    interval_ms int8 NOT NULL
) WITH (fillfactor = 70);

-- Servers hash to these shards. Everything up to the tokens has reached the servers of the shard,
-- or is noted in the tables below.
CREATE TABLE sending_shards (
    shard int2 PRIMARY KEY,
    -- Goes up with each change of hands.
    epoch int8 NOT NULL DEFAULT 0,
    events text NOT NULL DEFAULT '0',
    device_lists text NOT NULL DEFAULT '0'
) WITH (fillfactor = 30);
INSERT INTO sending_shards (shard, device_lists)
SELECT generate_series(0, 15),
       (SELECT coalesce(max(position), 0) FROM stream_positions WHERE stream = 8)::text;

-- Rooms of which a server has missed events, from that position on.
CREATE TABLE sending_rooms (
    server text COLLATE "C" NOT NULL,
    room int4 NOT NULL,
    since int8 NOT NULL,
    -- A later event that it has been given already.
    ahead int8,
    PRIMARY KEY (server, room)
);

-- Servers that have missed changes of device lists, after that token.
CREATE TABLE sending_device_lists (
    server text COLLATE "C" PRIMARY KEY,
    since text NOT NULL
);

-- Messages to devices of other servers' users, each until its server has taken it.
CREATE TABLE sending_to_device (
    server text COLLATE "C" NOT NULL,
    pos int8 NOT NULL,
    -- Content of the `m.direct_to_device`.
    content text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (server, pos)
);

-- Holds the shards until the end of the transaction; fails if one of them has changed hands.
CREATE FUNCTION chatd_fence_sending(ids int2[], epochs int8[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    held int;
BEGIN
    SELECT count(*) INTO held FROM (
        SELECT s.shard FROM sending_shards s
        JOIN unnest(ids, epochs) AS mine(shard, epoch)
             ON s.shard = mine.shard AND s.epoch = mine.epoch
        ORDER BY s.shard FOR UPDATE OF s) AS locked;
    IF held <> coalesce(array_length(ids, 1), 0) THEN
        RAISE EXCEPTION 'another instance sends to these servers' USING ERRCODE = 'CH001';
    END IF;
END $$;
