-- Rooms that were joined without their members. Adds only.

CREATE TABLE partial_rooms (
    room int4 PRIMARY KEY,
    -- The join. The state before it is what has to be fetched.
    joined text NOT NULL COLLATE "C",
    -- What the join follows.
    prev text[] NOT NULL,
    -- Those that were in the room then; the one that has let us in comes first.
    servers text[] NOT NULL,
    added_ts int8 NOT NULL,
    -- From this position on the members are known. The row stays: what was said before goes to
    -- `servers`.
    whole_pos int8,
    -- Whose position that is.
    whole_writer int2
);
CREATE INDEX partial_rooms_open ON partial_rooms (room) WHERE whole_pos IS NULL;
