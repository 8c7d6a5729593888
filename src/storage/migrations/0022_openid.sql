-- Tokens by which users show others who they are (`/openid/request_token`). Adds only.
CREATE TABLE openid_tokens (
    -- SHA-256.
    digest bytea PRIMARY KEY,
    user_nid int4 NOT NULL,
    expires_ts int8 NOT NULL
);
