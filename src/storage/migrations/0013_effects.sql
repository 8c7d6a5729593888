-- What one instance has done for another. The key is committed together with the effect, so that
-- whoever has not heard the answer asks again and gets the same. Kept for a day. Adds only.
CREATE TABLE effects (
    key uuid PRIMARY KEY,
    -- Where rows were put on a stream: by whom, and the position of the last.
    writer int2,
    position int8,
    -- What was made: the id of a room.
    result text,
    added_ts int8 NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::int8
);
