-- Up to where messages that a device has confirmed were removed: an instance that still has them
-- in memory must not deliver them again. Adds only.
ALTER TABLE to_device_delivered ADD COLUMN removed int8 NOT NULL DEFAULT 0;
