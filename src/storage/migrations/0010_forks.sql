-- The state of a room with several forward extremities: what state resolution makes of the states
-- after them. NULL (rows of the release before) stands for the first of `snapshots`. Instant.

ALTER TABLE room_heads ADD COLUMN state int8;
