-- Events of a room by time, for `timestamp_to_event`. Adds only. The index is built under a lock
-- that lets nobody write to `events`: about a second for a million rows.
--
-- Times are kept in steps of 65 s, so that the events of a busy room share entries: about 20 bytes
-- an event, and 7 where there are many in a step, instead of 32. Whoever asks sorts the events of
-- one step. A time that does not fit is as good as the end of time. Events that are in no timeline
-- (flags 7) are left out, by a condition that no other statement has: the planner is not to take
-- this index for theirs.
CREATE INDEX events_room_time
    ON events (room, (least(greatest(origin_ts >> 16, -2147483648), 2147483647)::int4))
    WHERE 7 & flags = 0;
