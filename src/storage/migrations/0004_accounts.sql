-- Accounts, devices and sessions of this server's users. Runs on an empty database.

CREATE TABLE users (
    user_nid int4 PRIMARY KEY,
    -- Case is kept: databases that come from elsewhere have upper-case names.
    localpart text NOT NULL,
    -- bcrypt; absent if the account cannot log in with a password.
    password_hash text,
    created_ts int8 NOT NULL,
    is_admin boolean NOT NULL DEFAULT false,
    is_guest boolean NOT NULL DEFAULT false,
    deactivated boolean NOT NULL DEFAULT false,
    -- Asked to be forgotten when it was deactivated.
    erased boolean NOT NULL DEFAULT false,
    locked boolean NOT NULL DEFAULT false,
    -- 'bot', 'support' and the like; absent for people.
    user_type text
) WITH (fillfactor = 90);
CREATE INDEX users_folded_localpart ON users (lower(localpart));

CREATE TABLE devices (
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    display_name text,
    -- Written every few seconds at most, for all devices at once.
    last_seen_ts int8,
    last_seen_ip text,
    last_seen_user_agent text,
    PRIMARY KEY (user_nid, device_id)
) WITH (fillfactor = 80);

-- Tokens are stored as their SHA-256, so that a copy of the database logs nobody in.
CREATE TABLE access_tokens (
    id int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    user_nid int4 NOT NULL,
    device_id text,
    valid_until_ts int8,
    -- The refresh token that was given out with it.
    refresh_digest bytea,
    -- Whether it has been used; kept only for tokens with a refresh token.
    used boolean NOT NULL DEFAULT false,
    -- Last user-interactive authentication.
    validated_ts int8
);
CREATE INDEX access_tokens_device ON access_tokens (user_nid, device_id);
CREATE INDEX access_tokens_refresh ON access_tokens (refresh_digest)
    WHERE refresh_digest IS NOT NULL;

CREATE TABLE refresh_tokens (
    digest bytea PRIMARY KEY,
    user_nid int4 NOT NULL,
    device_id text NOT NULL,
    -- The token that it was exchanged for. It stays good until that one, or the access token
    -- that came with it, is used.
    next_digest bytea,
    expires_ts int8,
    -- When the login ends whatever happens (`session_lifetime`).
    session_ends_ts int8
);
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_nid, device_id);
CREATE INDEX refresh_tokens_next ON refresh_tokens (next_digest) WHERE next_digest IS NOT NULL;

-- One-time tokens of POST /login/get_token.
CREATE TABLE login_tokens (
    digest bytea PRIMARY KEY,
    user_nid int4 NOT NULL,
    expires_ts int8 NOT NULL
);

-- User-interactive authentication that is under way. Any instance can finish it.
CREATE TABLE uia_sessions (
    session text PRIMARY KEY,
    created_ts int8 NOT NULL,
    -- What may be done once it is finished.
    method text NOT NULL,
    path text NOT NULL,
    -- Body of the first request without secrets.
    body text NOT NULL,
    -- Who asked; 0 for registration.
    user_nid int4 NOT NULL,
    -- The registration token that it has reserved a use of.
    registration_token text
);
CREATE INDEX uia_sessions_created ON uia_sessions (created_ts);
CREATE INDEX uia_sessions_registration_token ON uia_sessions (registration_token)
    WHERE registration_token IS NOT NULL;

CREATE TABLE uia_stages (
    session text NOT NULL REFERENCES uia_sessions ON DELETE CASCADE,
    stage text NOT NULL,
    PRIMARY KEY (session, stage)
);

-- How often a token has been used is counted here; uses that are reserved are those in
-- `uia_sessions`.
CREATE TABLE registration_tokens (
    token text PRIMARY KEY,
    -- NULL: without limit.
    uses_allowed int4,
    completed int4 NOT NULL DEFAULT 0,
    expires_ts int8
);

-- Fails the transaction (SQLSTATE CH002) unless the token has a use left, and takes it.
CREATE FUNCTION chatd_use_registration_token(wanted text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE registration_tokens SET completed = completed + 1
    WHERE token = wanted AND (uses_allowed IS NULL OR completed < uses_allowed);
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the registration token has no use left' USING ERRCODE = 'CH002';
    END IF;
END $$;

-- One row a field: displayname, avatar_url and fields of the user's own.
CREATE TABLE profile_fields (
    user_nid int4 NOT NULL,
    name text NOT NULL COLLATE "C",
    -- JSON
    value text NOT NULL,
    PRIMARY KEY (user_nid, name)
) WITH (fillfactor = 90);
