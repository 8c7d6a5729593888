-- Which process an instance is: two processes of the same name cannot both write (R6), and a
-- commit that was thought to be lost cannot come in late. Runs at once; locks nothing for long.

-- Goes up whenever a process starts as this instance.
ALTER TABLE writers ADD COLUMN term int8 NOT NULL DEFAULT 0;

-- Makes the caller the only process that may write as the instance `called`. Waits for commits
-- of the one before it; what that one sends later is refused. Streams have numbers below 32.
CREATE FUNCTION chatd_take_seat(called text) RETURNS TABLE (seat_writer int2, seat_term int8)
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO writers (name) SELECT called
    WHERE NOT EXISTS (SELECT 1 FROM writers WHERE name = called) ON CONFLICT DO NOTHING;
    PERFORM pg_advisory_xact_lock(stream, w.nid)
    FROM writers w, generate_series(1, 31) AS stream WHERE w.name = called;
    RETURN QUERY UPDATE writers SET term = term + 1 WHERE name = called RETURNING nid, term;
END $$;

-- Begins a commit: takes the writer's lock of the stream, so that whoever asks what became of
-- the commit waits for it; refuses processes that have lost their seat (CH004) and commits that
-- do not follow the one that the process has seen last (CH003); returns a block of positions.
CREATE FUNCTION chatd_begin_commit(stream_no int2, writer_no int2, my_term int8, after_pos int8,
                                   seq text) RETURNS int8 LANGUAGE plpgsql AS $$
DECLARE
    stands_at int8;
BEGIN
    stands_at := chatd_settled(stream_no, writer_no, my_term);
    IF stands_at <> after_pos THEN
        RAISE EXCEPTION 'stream % stands at %, not at %', stream_no, stands_at, after_pos
        USING ERRCODE = 'CH003';
    END IF;
    RETURN nextval(seq::regclass);
END $$;

-- The writer's durable position, after any commit of it that is under way.
CREATE FUNCTION chatd_settled(stream_no int2, writer_no int2, my_term int8) RETURNS int8
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(stream_no, writer_no);
    PERFORM 1 FROM writers WHERE nid = writer_no AND term = my_term;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another process has taken over' USING ERRCODE = 'CH004';
    END IF;
    RETURN coalesce((SELECT position FROM stream_positions
                     WHERE stream = stream_no AND writer = writer_no), 0);
END $$;
