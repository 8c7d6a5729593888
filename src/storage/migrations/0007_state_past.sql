-- The past of one entry of a room's state, newest last. Quick while rooms are small; builds an
-- index, which keeps writers of the table waiting.

CREATE INDEX state_delta_room_key ON state_delta (room, key, pos);
