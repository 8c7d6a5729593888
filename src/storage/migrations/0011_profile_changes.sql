-- Users whose profile has changed and may not have reached all their rooms. Instant.

CREATE TABLE profile_changes (
    user_nid int4 PRIMARY KEY,
    -- Goes up with each change, so that a later one is not taken for done.
    version int8 NOT NULL DEFAULT 1
);
