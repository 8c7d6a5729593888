-- Writers that do not write a stream any more: they are in no token, and nobody waits for them.
-- Adds only.
ALTER TABLE stream_positions ADD COLUMN retired bool NOT NULL DEFAULT false;
