-- Tables behind the streams that belong to users. Runs on an empty database.

-- Messages that wait for a device. A row goes when the device has come back with a token that
-- covers it.
CREATE TABLE to_device_inbox (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    pos int8 NOT NULL,
    -- {"sender", "type", "content"} as the client gets it.
    message text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, device_id, pos)
);

-- Repeats of PUT /sendToDevice and of other requests with a transaction id. Removed after a day.
CREATE TABLE request_txns (
    digest uuid PRIMARY KEY,
    added_ts int8 NOT NULL
);

-- Account data and tags; `room` is 0 for global data. A deleted entry keeps its row with '{}'.
CREATE TABLE account_data (
    user_nid int4 NOT NULL,
    room int4 NOT NULL,
    type text NOT NULL,
    pos int8 NOT NULL,
    content text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, room, type)
);
CREATE INDEX account_data_pos ON account_data (user_nid, pos);

-- The latest receipt of each kind. `thread` is '' for an unthreaded receipt, else 'main' or the
-- root's event id.
CREATE TABLE receipts (
    room int4 NOT NULL,
    user_nid int4 NOT NULL,
    -- 'r' m.read, 'p' m.read.private
    kind "char" NOT NULL,
    thread text NOT NULL,
    pos int8 NOT NULL,
    event_id text NOT NULL,
    -- Stream position of that event; what is at or below it is read.
    event_pos int8 NOT NULL,
    ts int8 NOT NULL,
    PRIMARY KEY (room, user_nid, kind, thread)
) WITH (fillfactor = 80);
CREATE INDEX receipts_room_pos ON receipts (room, pos);

CREATE TABLE presence (
    user_nid int4 PRIMARY KEY,
    pos int8 NOT NULL,
    -- 'o' online, 'u' unavailable, 'f' offline, 'b' busy
    state "char" NOT NULL,
    currently_active boolean NOT NULL,
    last_active_ts int8 NOT NULL,
    status_msg text
) WITH (fillfactor = 80);
CREATE INDEX presence_pos ON presence (pos);

-- A user's push rules as one JSON object, ruma's `Ruleset`. Absent: the server's defaults.
CREATE TABLE push_rules (
    user_nid int4 PRIMARY KEY,
    pos int8 NOT NULL,
    rules text COMPRESSION lz4 NOT NULL
) WITH (fillfactor = 80);

-- When a user's devices or cross-signing keys last changed; one row a user and device.
-- `device_id` is '' for a change of cross-signing keys.
CREATE TABLE device_list_changes (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    pos int8 NOT NULL,
    PRIMARY KEY (user_nid, device_id)
) WITH (fillfactor = 80);
CREATE INDEX device_list_changes_pos ON device_list_changes (pos);
