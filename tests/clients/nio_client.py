"""One matrix-nio device with end-to-end encryption, driven by JSON lines.

Each line on stdin is `{"id": 1, "do": "send_text", ...}`; each gets one line on stdout,
`{"id": 1, "ok": {...}}` or `{"id": 1, "error": "..."}`. `js_client.mjs` takes the same
commands, so that a test can give either client either part. Everything that waits does so on
what /sync brings, within `timeout` seconds.
"""

import asyncio
import json
import logging
import sys
import tempfile

import nio

DEFAULT_TIMEOUT = 60


class Device:
    """A logged-in device, and what its syncs have shown so far."""

    def __init__(self):
        self.client = None
        self.syncing = None
        self.store = tempfile.TemporaryDirectory()
        self.changed = asyncio.Condition()
        self.timeline = {}  # room id → list of events as dictionaries
        self.receipts = set()  # (room id, event id, user id)
        self.typing = {}  # room id → list of user ids

    async def start(self, homeserver, user, password, device_name):
        """Logs in, uploads keys and keeps syncing."""
        config = nio.AsyncClientConfig(encryption_enabled=True, max_timeouts=3, request_timeout=30)
        self.client = nio.AsyncClient(homeserver, user, store_path=self.store.name, config=config)
        expect(await self.client.login(password, device_name=device_name), nio.LoginResponse)
        self.client.add_event_callback(self.on_event, nio.Event)
        self.client.add_ephemeral_callback(self.on_receipt, nio.ReceiptEvent)
        self.client.add_ephemeral_callback(self.on_typing, nio.TypingNoticeEvent)
        self.client.add_response_callback(self.on_sync, nio.SyncResponse)
        if self.client.should_upload_keys:
            expect(await self.client.keys_upload(), nio.KeysUploadResponse)
        self.syncing = asyncio.create_task(self.client.sync_forever(timeout=10_000, full_state=True))
        return {"user_id": self.client.user_id, "device_id": self.client.device_id}

    async def on_event(self, room, event):
        source = event.source
        self.timeline.setdefault(room.room_id, []).append(
            {
                "event_id": event.event_id,
                "sender": event.sender,
                "type": source.get("type"),
                "content": source.get("content", {}),
                "redacts": getattr(event, "redacts", None),
                "encrypted": event.decrypted,
            }
        )

    async def on_receipt(self, room, event):
        self.receipts.update((room.room_id, r.event_id, r.user_id) for r in event.receipts)

    async def on_typing(self, room, event):
        self.typing[room.room_id] = event.users

    async def on_sync(self, _response):
        async with self.changed:
            self.changed.notify_all()

    async def until(self, what, condition, timeout=DEFAULT_TIMEOUT):
        """Waits until `condition()` gives something other than None or False."""
        async with self.changed:
            try:
                async with asyncio.timeout(timeout):
                    while not (found := condition()):
                        if self.syncing.done():
                            self.syncing.result()
                        await self.changed.wait()
                    return found
            except TimeoutError:
                raise RuntimeError(f"waited {timeout} s for {what}; seen: {self.timeline}") from None

    async def create_encrypted_room(self, name, invite):
        encryption = {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        answer = await self.client.room_create(
            name=name, invite=invite, preset=nio.RoomPreset.private_chat, initial_state=[encryption]
        )
        expect(answer, nio.RoomCreateResponse)
        room = answer.room_id
        await self.until(
            "the new room", lambda: room in self.client.rooms and self.client.rooms[room].encrypted
        )
        return {"room": room}

    async def wait_invite(self, room):
        await self.until("an invitation", lambda: room in self.client.invited_rooms)
        return {"inviter": self.client.invited_rooms[room].inviter}

    async def join(self, room):
        expect(await self.client.join(room), nio.JoinResponse)
        await self.until("the joined room", lambda: room in self.client.rooms)
        return {}

    async def wait_member(self, room, user):
        """Waits until `user` is known to have joined."""

        def joined():
            known = self.client.rooms.get(room)
            return known and user in known.users and not known.users[user].invited

        await self.until(f"{user} in the room", joined)
        return {}

    async def send(self, room, kind, content):
        answer = await self.client.room_send(room, kind, content, ignore_unverified_devices=True)
        return {"event_id": expect(answer, nio.RoomSendResponse).event_id}

    async def send_text(self, room, body):
        return await self.send(room, "m.room.message", {"msgtype": "m.text", "body": body})

    async def reply_in_thread(self, room, root, body):
        relation = {
            "rel_type": "m.thread",
            "event_id": root,
            "is_falling_back": True,
            "m.in_reply_to": {"event_id": root},
        }
        content = {"msgtype": "m.text", "body": body, "m.relates_to": relation}
        return await self.send(room, "m.room.message", content)

    async def react(self, room, event, key):
        relation = {"rel_type": "m.annotation", "event_id": event, "key": key}
        return await self.send(room, "m.reaction", {"m.relates_to": relation})

    async def redact(self, room, event):
        answer = await self.client.room_redact(room, event)
        return {"event_id": expect(answer, nio.RoomRedactResponse).event_id}

    def find(self, room, matches):
        return next((e for e in self.timeline.get(room, []) if matches(e)), None)

    async def wait_text(self, room, body):
        found = await self.until(
            f"the text {body!r}",
            lambda: self.find(room, lambda e: e["content"].get("body") == body),
        )
        relation = found["content"].get("m.relates_to", {})
        thread = relation.get("event_id") if relation.get("rel_type") == "m.thread" else None
        return {k: found[k] for k in ("event_id", "sender", "encrypted")} | {"thread": thread}

    async def wait_reaction(self, room, event, key):
        wanted = {"rel_type": "m.annotation", "event_id": event, "key": key}
        found = await self.until(
            f"the reaction {key}",
            lambda: self.find(
                room,
                lambda e: e["type"] == "m.reaction" and e["content"].get("m.relates_to") == wanted,
            ),
        )
        return {"sender": found["sender"]}

    async def wait_redaction(self, room, event):
        found = await self.until(
            f"the redaction of {event}",
            lambda: self.find(
                room, lambda e: e["type"] == "m.room.redaction" and e["redacts"] == event
            ),
        )
        return {"sender": found["sender"]}

    async def mark_read(self, room, event):
        answer = await self.client.room_read_markers(room, event, event)
        expect(answer, nio.RoomReadMarkersResponse)
        return {}

    async def wait_read(self, room, event, user):
        await self.until(f"a receipt of {user}", lambda: (room, event, user) in self.receipts)
        return {}

    async def set_typing(self, room, typing):
        expect(await self.client.room_typing(room, typing, 30_000), nio.RoomTypingResponse)
        return {}

    async def wait_typing(self, room, user, typing):
        await self.until(
            f"{user} typing={typing}", lambda: (user in self.typing.get(room, [])) == typing
        )
        return {}

    async def logout(self):
        self.syncing.cancel()
        expect(await self.client.logout(), nio.LogoutResponse)
        answer = await self.client.whoami()
        return {"token_is_gone": isinstance(answer, nio.WhoamiError)}

    async def close(self):
        if self.syncing:
            self.syncing.cancel()
        if self.client:
            await self.client.close()


def expect(answer, kind):
    """Passes the expected kind of answer on; anything else is an error."""
    if not isinstance(answer, kind):
        raise RuntimeError(str(answer))
    return answer


COMMANDS = {
    "start", "create_encrypted_room", "wait_invite", "join", "wait_member", "send_text",
    "wait_text", "reply_in_thread", "react", "wait_reaction", "redact", "wait_redaction",
    "mark_read", "wait_read", "set_typing", "wait_typing", "logout",
}  # fmt: skip


async def answer(device, line):
    request = json.loads(line)
    number, command = request.pop("id"), request.pop("do")
    try:
        if command not in COMMANDS:
            raise RuntimeError(f"unknown command {command}")
        return {"id": number, "ok": await getattr(device, command)(**request)}
    except Exception as error:
        logging.exception("%s failed", command)
        return {"id": number, "error": f"{type(error).__name__}: {error}"}


async def main():
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    device = Device()
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        print(json.dumps(await answer(device, line)), flush=True)
    await device.close()


asyncio.run(main())
