-- Work that one instance does for all: who does it at the moment. Adds only.
CREATE TABLE leases (
    task text PRIMARY KEY,
    holder text NOT NULL,
    -- Goes up with each change of hands.
    epoch int8 NOT NULL
) WITH (fillfactor = 50);
