"""Asks Synapse what it makes of rooms: reads one room a line, writes what came of its events, one line.

A room is {"version", "room_id", "events": [{"id", "prev", "event"}]}, each event after those that it
refers to. An answer is {"events": [{"refused": reason or null, "state": [[type, key, id]]}]}: whether
the event is allowed by its auth events and by the state before it, and the state after it.
"""

import json
import sys

from synapse import event_auth
from synapse.api.errors import SynapseError
from synapse.api.room_versions import KNOWN_ROOM_VERSIONS, StateResolutionVersions
from synapse.events import make_event_from_dict
from synapse.state import v1, v2
from synapse.storage.databases.main.event_federation import StateDifference


def run(coroutine):
    """Nothing here waits for anything."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("something waits")


class Clock:
    async def sleep(self, _):
        pass


class Room:
    """All events are in memory, so Synapse has nothing to look up; it stands for its database."""

    def __init__(self, version, room_id):
        self.version = KNOWN_ROOM_VERSIONS[version]
        self.room_id = room_id
        self.events = {}
        self.after = {}

    async def get_events(self, ids, *_, **__):
        return {id: self.events[id] for id in ids if id in self.events}

    async def get_auth_chain_difference(self, *_, **__):
        return StateDifference(auth_difference=set(), conflicted_subgraph=set())

    def state_before(self, prev):
        states = [self.after[id] for id in prev]
        if len(states) < 2:
            return dict(states[0]) if states else {}
        known = dict(self.events)
        if self.version.state_res == StateResolutionVersions.V1:
            found = v1.resolve_events_with_store(
                self.room_id, self.version, states, known, self.get_events
            )
        else:
            found = v2.resolve_events_with_store(
                Clock(), self.room_id, self.version, states, known, self
            )
        return dict(run(found))

    def judge(self, event, before):
        """Raises an error if the event is not allowed."""
        event_auth.validate_event_for_room_version(event)
        run(event_auth.check_state_independent_auth_rules(self, event))
        named = [self.events[id] for id in event.auth_event_ids()]
        event_auth.check_state_dependent_auth_rules(event, named)
        wanted = event_auth.auth_types_for_event(self.version, event)
        in_force = [self.events[before[entry]] for entry in wanted if entry in before]
        event_auth.check_state_dependent_auth_rules(event, in_force)

    def add(self, told):
        event = make_event_from_dict(told["event"], self.version)
        if event.event_id != told["id"]:
            raise RuntimeError(f"{told['id']} is {event.event_id} here")
        state = self.state_before(told["prev"])
        refused = None
        try:
            self.judge(event, state)
        except SynapseError as error:
            refused = error.msg
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Synapse drops an event on which it stumbles.
            refused = f"{type(error).__name__}: {error}"
        if refused is not None:
            event = make_event_from_dict(told["event"], self.version, rejected_reason=refused)
        elif event.is_state():
            state[(event.type, event.state_key)] = event.event_id
        self.events[event.event_id] = event
        self.after[event.event_id] = state
        return {"refused": refused, "state": [[kind, key, id] for (kind, key), id in state.items()]}


for line in sys.stdin:
    told = json.loads(line)
    room = Room(told["version"], told["room_id"])
    events = []
    try:
        for event in told["events"]:
            events.append(room.add(event))
        print(json.dumps({"events": events}), flush=True)
    except Exception as error:
        print(json.dumps({"events": events, "error": f"{type(error).__name__}: {error}"}), flush=True)
