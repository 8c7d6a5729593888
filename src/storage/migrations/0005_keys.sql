-- End-to-end encryption: keys of devices and users, their signatures, backups of room keys; and
-- filters. Runs on an empty database.

-- What a device uploaded, as it signed it.
CREATE TABLE device_keys (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    keys text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, device_id)
);

-- Handed out once each, oldest first.
CREATE TABLE one_time_keys (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id text NOT NULL,
    added_ts int8 NOT NULL,
    key text NOT NULL,
    PRIMARY KEY (user_nid, device_id, algorithm, key_id)
);

-- Handed out when there is no one-time key left, and then again and again.
CREATE TABLE fallback_keys (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    algorithm text NOT NULL,
    key_id text NOT NULL,
    used boolean NOT NULL DEFAULT false,
    key text NOT NULL,
    PRIMARY KEY (user_nid, device_id, algorithm)
) WITH (fillfactor = 80);

CREATE TABLE cross_signing_keys (
    user_nid int4 NOT NULL,
    -- 'm' master, 's' self-signing, 'u' user-signing
    kind "char" NOT NULL,
    key text NOT NULL,
    PRIMARY KEY (user_nid, kind)
);

-- Signatures that came after the key that they are on.
CREATE TABLE key_signatures (
    user_nid int4 NOT NULL,
    -- A device id, or the public part of a cross-signing key.
    target text NOT NULL,
    signer int4 NOT NULL,
    key_id text NOT NULL,
    signature text NOT NULL,
    PRIMARY KEY (user_nid, target, signer, key_id)
);

-- Backups of room keys. The highest version of a user that is not deleted is the current one.
CREATE TABLE room_key_versions (
    user_nid int4 NOT NULL,
    version int8 NOT NULL,
    -- Goes up with each change of the keys.
    etag int8 NOT NULL DEFAULT 0,
    is_deleted boolean NOT NULL DEFAULT false,
    algorithm text NOT NULL,
    auth_data text NOT NULL,
    PRIMARY KEY (user_nid, version)
) WITH (fillfactor = 80);

CREATE TABLE room_keys (
    user_nid int4 NOT NULL,
    version int8 NOT NULL,
    room_id text NOT NULL,
    session_id text NOT NULL,
    first_message_index int8 NOT NULL,
    forwarded_count int8 NOT NULL,
    is_verified boolean NOT NULL,
    session_data text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, version, room_id, session_id)
);

CREATE TABLE filters (
    user_nid int4 NOT NULL,
    id int8 NOT NULL,
    digest uuid NOT NULL,
    filter text COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (user_nid, id),
    UNIQUE (user_nid, digest)
);
