-- Instances, shards that move between them, and writers that stand still. Adds only.

-- Who is there. An instance that has not beaten for some seconds counts as dead.
CREATE TABLE instances (
    name text PRIMARY KEY,
    role text NOT NULL,
    writer int2 NOT NULL,
    term int8 NOT NULL,
    -- Whether it may own shards of rooms.
    owns_rooms bool NOT NULL,
    -- Where its replication listener is, as JSON; for those whose configuration does not say.
    address text,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When the positions were read that it has taken in last, in microseconds.
    knows_us int8 NOT NULL
) WITH (fillfactor = 50);

-- Where the writer's last commit began. Tells a commit from a position that was moved forward
-- without one.
ALTER TABLE stream_positions ADD COLUMN base int8 NOT NULL DEFAULT 0;

-- As chatd_claim, but leaves alone what has another epoch than the caller has seen.
CREATE FUNCTION chatd_take_over(ids int2[], epochs int8[], new_owner text) RETURNS SETOF int2
LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1 .. coalesce(array_length(ids, 1), 0) LOOP
        PERFORM pg_advisory_xact_lock(1936221554, ids[i]);
        RETURN QUERY UPDATE shards SET owner = new_owner, epoch = epoch + 1
                     WHERE shard = ids[i] AND epoch = epochs[i] RETURNING shard;
    END LOOP;
END $$;

-- As chatd_settled, and where the last commit began.
CREATE FUNCTION chatd_fate(stream_no int2, writer_no int2, my_term int8)
RETURNS TABLE (stands_at int8, began_at int8) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM chatd_settled(stream_no, writer_no, my_term);
    RETURN QUERY SELECT p.position, p.base FROM stream_positions p
                 WHERE p.stream = stream_no AND p.writer = writer_no;
END $$;

-- Moves a writer's position to that of the furthest writer of the stream: after any commit of it
-- that is under way, so that none of its rows is passed over. Whatever it commits later is further.
CREATE FUNCTION chatd_catch_up(stream_no int2, writer_no int2)
RETURNS TABLE (stood_at int8, stands_at int8) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(stream_no, writer_no);
    RETURN QUERY
        WITH old AS (SELECT p.position FROM stream_positions p
                     WHERE p.stream = stream_no AND p.writer = writer_no),
        furthest AS (SELECT max(p.position) AS position FROM stream_positions p
                     WHERE p.stream = stream_no),
        moved AS (UPDATE stream_positions p SET position = furthest.position FROM furthest
                  WHERE p.stream = stream_no AND p.writer = writer_no
                        AND p.position < furthest.position)
        SELECT old.position, furthest.position FROM old, furthest;
END $$;
