-- Numbers, stream positions and shard ownership. Runs on an empty database.

CREATE TABLE users_nid (
    nid int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id text NOT NULL UNIQUE
);

CREATE TABLE state_keys (
    nid int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type text NOT NULL,
    state_key text NOT NULL,
    UNIQUE (type, state_key)
);

CREATE TABLE event_types (
    nid int4 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type text NOT NULL UNIQUE
);

-- Instances that write streams. Tokens name them by number.
CREATE TABLE writers (
    nid int2 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE
);

-- Written in the transaction that writes a stream's rows, so it is true whatever dies when.
CREATE TABLE stream_positions (
    stream int2 NOT NULL,
    writer int2 NOT NULL,
    position int8 NOT NULL,
    PRIMARY KEY (stream, writer)
) WITH (fillfactor = 20);

-- One value is one commit; its rows take positions value, value + 1 … below the next value.
CREATE SEQUENCE stream_events INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_to_device INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_account_data INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_receipts INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_presence INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_push_rules INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_device_lists INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_thread_subscriptions INCREMENT BY 10000 START 10000;
CREATE SEQUENCE stream_caches INCREMENT BY 10000 START 10000;

CREATE TABLE shards (
    shard int2 PRIMARY KEY,
    owner text NOT NULL DEFAULT '',
    epoch int8 NOT NULL DEFAULT 0
);
INSERT INTO shards (shard) SELECT generate_series(0, 63);

-- Held in shared mode by every commit in a shard, in exclusive mode by whoever takes it over.
CREATE FUNCTION chatd_fence(ids int2[], epochs int8[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    stale int2;
BEGIN
    FOR i IN 1 .. coalesce(array_length(ids, 1), 0) LOOP
        PERFORM pg_advisory_xact_lock_shared(1936221554, ids[i]);
    END LOOP;
    SELECT s.shard INTO stale
    FROM unnest(ids, epochs) AS mine(shard, epoch) JOIN shards s ON s.shard = mine.shard
    WHERE s.epoch <> mine.epoch LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'shard % belongs to another instance', stale USING ERRCODE = 'CH001';
    END IF;
END $$;

CREATE FUNCTION chatd_claim(ids int2[], new_owner text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    id int2;
BEGIN
    FOREACH id IN ARRAY (SELECT array_agg(i ORDER BY i) FROM unnest(ids) AS i) LOOP
        PERFORM pg_advisory_xact_lock(1936221554, id);
        UPDATE shards SET owner = new_owner, epoch = epoch + 1 WHERE shard = id;
    END LOOP;
END $$;
