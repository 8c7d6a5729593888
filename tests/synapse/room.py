"""Writes down a room as a Synapse with SQLite has it: room.py FOLDER ROOM WHAT, where FOLDER has its
`synapse.db` and `signing.key`, and WHAT says where the room comes from.

The lines are those of `src/rooms/tests/recorded`: every event after those that it refers to, whether
Synapse has rejected it, and how the state after it differs from the state after its first predecessor;
then the newest events, and how the current state differs from the state after the first of these.
"""

import json
import sqlite3
import sys

from signedjson.key import encode_verify_key_base64, get_verify_key, read_signing_keys

folder, room, made = sys.argv[1:]
database = sqlite3.connect(f"file:{folder}/synapse.db?mode=ro", uri=True)


def rows(query, *arguments):
    return database.execute(query, arguments).fetchall()


def ids(references):
    """In old room versions they come with hashes."""
    return [one if isinstance(one, str) else one[0] for one in references]


def state_of(group):
    """A group has all entries, or those that differ from the group that it follows."""
    chain = [group]
    while before := rows(
        "SELECT prev_state_group FROM state_group_edges WHERE state_group = ?", chain[-1]
    ):
        chain.append(before[0][0])
    state = {}
    for one in reversed(chain):
        entries = rows(
            "SELECT type, state_key, event_id FROM state_groups_state WHERE state_group = ?", one
        )
        state.update({(kind, key): event for kind, key, event in entries})
    return state


def changed(before, after):
    keys = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return [[*key, after.get(key)] for key in keys]


def in_order(events):
    """Predecessors and what allows an event first, otherwise as deep as they stand."""
    done, order = set(), []

    def visit(id):
        if id in done or id not in events:
            return
        done.add(id)
        for other in ids(events[id]["auth_events"]) + ids(events[id]["prev_events"]):
            visit(other)
        order.append(id)

    for id in sorted(events, key=lambda id: (events[id]["depth"], events[id]["origin_server_ts"], id)):
        visit(id)
    return order


def keys():
    """Of all servers whose keys it knows, its own too."""
    with open(f"{folder}/signing.key") as file:
        own = {
            f"{key.alg}:{key.version}": encode_verify_key_base64(get_verify_key(key))
            for key in read_signing_keys(file)
        }
    with open(f"{folder}/homeserver.yaml") as file:
        found = {json.load(file)["server_name"]: own}
    for server, document in rows("SELECT server_name, key_json FROM server_keys_json"):
        published = json.loads(bytes(document))["verify_keys"]
        found.setdefault(server, {}).update({id: key["key"] for id, key in published.items()})
    return found


def show(name, value):
    print(json.dumps({name: value}, ensure_ascii=False, separators=(",", ":")))


stored = rows(
    "SELECT e.event_id, j.json, r.reason, g.state_group "
    "FROM events e JOIN event_json j ON j.event_id = e.event_id "
    "LEFT JOIN rejections r ON r.event_id = e.event_id "
    "LEFT JOIN event_to_state_groups g ON g.event_id = e.event_id WHERE e.room_id = ?",
    room,
)
events = {id: json.loads(text) for id, text, *_ in stored}
reasons = {id: reason for id, _, reason, _ in stored}
after = {id: state_of(group) for id, *_, group in stored if group is not None}
(version,) = rows("SELECT room_version FROM rooms WHERE room_id = ?", room)[0]

servers = {server for event in events.values() for server in event["signatures"]}
public = {server: own for server, own in sorted(keys().items()) if server in servers}
show("room", {"id": room, "version": version, "made": made, "keys": public})
for id in in_order(events):
    event, refused = events[id], reasons[id]
    event.pop("unsigned", None)
    told = {"id": id}
    before = ids(event["prev_events"])
    if refused is not None:
        told["refused"] = refused
    if not all(other in after for other in [id, *before]):
        sys.exit(f"Synapse does not know the state at {id}: its past has to be read before")
    if found := changed(after[before[0]] if before else {}, after[id]):
        told["changed"] = found
    show("event", told | {"pdu": event})

heads = sorted(id for (id,) in rows("SELECT event_id FROM event_forward_extremities WHERE room_id = ?", room))
current = rows("SELECT type, state_key, event_id FROM current_state_events WHERE room_id = ?", room)
current = {(kind, key): event for kind, key, event in current}
show("end", {"heads": heads, "changed": changed(after[heads[0]], current)})
