-- Keys of other servers, with what they have signed to tell them. A new table: nothing is locked,
-- and it takes no time.
CREATE TABLE server_keys (
    server_name text    NOT NULL,
    key_id      text    NOT NULL,
    public_key  bytea   NOT NULL,
    -- Milliseconds. What the key has signed at or before is good.
    valid_until bigint  NOT NULL,
    -- Whether the server signs with it no more; then `valid_until` does not grow.
    is_old      boolean NOT NULL,
    -- Until when the document is valid: a newer one replaces an older one.
    told_until  bigint  NOT NULL,
    fetched     bigint  NOT NULL,
    -- The document, canonical JSON with its signatures.
    document    text    COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (server_name, key_id)
);
