-- What /sync needs beside the tables of rooms and streams. Runs on an empty database.

-- Stripped state that came with an invite to, or a knock of, a user of this server. A row is
-- replaced by the next invite or knock; it means nothing once the membership is another one.
CREATE TABLE invite_state (
    user_nid int4 NOT NULL,
    room int4 NOT NULL,
    -- Position of the invite or knock.
    pos int8 NOT NULL,
    -- JSON array of stripped events, as it goes into the answer.
    state text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, room)
) WITH (fillfactor = 80);

-- How far a device's inbox has been put into responses made for that device. Messages above it
-- are delivered whatever token the device shows; those at or below it go when it comes back
-- with a token that covers them.
CREATE TABLE to_device_delivered (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    pos int8 NOT NULL,
    PRIMARY KEY (user_nid, device_id)
) WITH (fillfactor = 50);
