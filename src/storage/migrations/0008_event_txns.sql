-- The device and transaction id of the request that made an event, which that device is told with
-- it. The table holds a day; building the index keeps writers waiting for as long as that takes.

ALTER TABLE event_txns
    ADD COLUMN device_id text NOT NULL DEFAULT '',
    ADD COLUMN txn_id text NOT NULL DEFAULT '';
CREATE INDEX event_txns_event ON event_txns (event);
