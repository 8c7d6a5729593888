-- What is told to other servers while it is true: a sender that begins finds what was not told.
-- Adds only. The indexes are built under locks that let nobody write to `receipts` and
-- `membership_history`: about a second for a million rows of each.

-- Tokens: everything up to there has been told to the servers that answer.
ALTER TABLE sending_shards ADD COLUMN receipts text NOT NULL DEFAULT '0';
ALTER TABLE sending_shards ADD COLUMN presence text NOT NULL DEFAULT '0';
UPDATE sending_shards SET
    receipts = (SELECT coalesce(max(position), 0) FROM stream_positions WHERE stream = 5)::text,
    presence = (SELECT coalesce(max(position), 0) FROM stream_positions WHERE stream = 6)::text;

CREATE INDEX receipts_public ON receipts (pos) WHERE kind = 'r';
CREATE INDEX membership_history_joins ON membership_history (pos) WHERE membership = 'j';
