//! Two independent clients, unchanged from their registries, in one encrypted room.

use chatd_kit::{
    User,
    clients::{Device, Library},
    scenario,
    user::password_of,
};
use serde_json::{Value, json};

/// Commands that both clients know, for one room.
struct Room<'a> {
    id: &'a str,
}

impl Room<'_> {
    async fn run(&self, device: &mut Device, command: &str, mut arguments: Value) -> Value {
        arguments["room"] = self.id.into();
        device.run(command, arguments).await
    }

    /// `from` says `text`, and `to` reads it, decrypted; returns the event id.
    async fn says(&self, from: &mut Device, to: &mut Device, text: &str) -> String {
        let sent = self.run(from, "send_text", json!({"body": text})).await;
        let read = self.run(to, "wait_text", json!({"body": text})).await;
        assert_eq!(read["event_id"], sent["event_id"]);
        assert_eq!(read["encrypted"], true, "{text} arrived without encryption");
        sent["event_id"].as_str().expect("an event id").to_owned()
    }

    /// `from` answers in the thread of `root`, and `to` sees that it is one.
    async fn answers(&self, from: &mut Device, to: &mut Device, root: &str, text: &str) {
        self.run(from, "reply_in_thread", json!({"root": root, "body": text})).await;
        let read = self.run(to, "wait_text", json!({"body": text})).await;
        assert_eq!((&read["thread"], &read["encrypted"]), (&json!(root), &json!(true)));
    }

    /// `from` reacts to `event`, and `to` sees it.
    async fn reacts(&self, from: &mut Device, to: &mut Device, event: &str, key: &str) {
        let reaction = json!({"event": event, "key": key});
        self.run(from, "react", reaction.clone()).await;
        self.run(to, "wait_reaction", reaction).await;
    }

    /// `from` (the user `who`) reads up to `event`, and `to` sees the receipt.
    async fn reads(&self, from: &mut Device, who: &str, to: &mut Device, event: &str) {
        self.run(from, "mark_read", json!({"event": event})).await;
        self.run(to, "wait_read", json!({"event": event, "user": who})).await;
    }

    /// `from` (the user `who`) starts and stops typing, and `to` sees both.
    async fn types(&self, from: &mut Device, who: &str, to: &mut Device) {
        for typing in [true, false] {
            self.run(from, "set_typing", json!({"typing": typing})).await;
            self.run(to, "wait_typing", json!({"user": who, "typing": typing})).await;
        }
    }

    /// `from` redacts `event`, and `to` sees it gone.
    async fn redacts(&self, from: &mut Device, to: &mut Device, event: &str) {
        self.run(from, "redact", json!({"event": event})).await;
        self.run(to, "wait_redaction", json!({"event": event})).await;
    }
}

/// `host` makes an encrypted room, and `guest` accepts the invitation.
async fn encrypted_room(
    (host, host_id): (&mut Device, &str),
    (guest, guest_id): (&mut Device, &str),
) -> String {
    let made =
        host.run("create_encrypted_room", json!({"name": "the room", "invite": [guest_id]})).await;
    let room = made["room"].as_str().expect("a room id").to_owned();
    let seen = guest.run("wait_invite", json!({"room": room})).await;
    assert_eq!(seen["inviter"], host_id);
    guest.run("join", json!({"room": room})).await;
    host.run("wait_member", json!({"room": room, "user": guest_id})).await;
    guest.run("wait_member", json!({"room": room, "user": host_id})).await;
    room
}

/// js-sdk for alice and nio for bob, each at the server with this URL, have all of a conversation.
pub async fn talk_encrypted((alice, alice_at): (&User, &str), (bob, bob_at): (&User, &str)) {
    let logs = tempfile::tempdir().expect("a folder for logs");
    let mut js = Device::launch(Library::Js, "js", logs.path());
    let mut nio = Device::launch(Library::Nio, "nio", logs.path());
    js.log_in(alice_at, &alice.name, &password_of(&alice.name)).await;
    nio.log_in(bob_at, &bob.name, &password_of(&bob.name)).await;
    let recovery = js.run("set_up_backup", json!({})).await["recovery"].take();

    let id = encrypted_room((&mut js, &alice.id), (&mut nio, &bob.id)).await;
    let room = Room { id: &id };
    let root = room.says(&mut js, &mut nio, "hello from js").await;
    let reply = room.says(&mut nio, &mut js, "hello from nio").await;
    room.answers(&mut nio, &mut js, &root, "nio in the thread").await;
    room.answers(&mut js, &mut nio, &root, "js in the thread").await;
    room.reacts(&mut nio, &mut js, &root, "👍").await;
    room.reacts(&mut js, &mut nio, &reply, "🎉").await;
    let last = room.says(&mut js, &mut nio, "the last of js").await;
    room.reads(&mut nio, &bob.id, &mut js, &last).await;
    let last = room.says(&mut nio, &mut js, "the last of nio").await;
    room.reads(&mut js, &alice.id, &mut nio, &last).await;
    room.types(&mut nio, &bob.id, &mut js).await;
    room.types(&mut js, &alice.id, &mut nio).await;

    // A second device knows nothing but the recovery key.
    js.run("wait_backed_up", json!({"sessions": 2})).await;
    let mut second = Device::launch(Library::Js, "js-second", logs.path());
    second.log_in(alice_at, &alice.name, &password_of(&alice.name)).await;
    let restored = second.run("restore_backup", json!({"recovery": recovery})).await;
    assert_eq!((&restored["imported"], &restored["trusted"]), (&json!(2), &json!(true)));
    let texts = room.run(&mut second, "history", json!({})).await["texts"].take();
    let said = [
        "hello from js",
        "hello from nio",
        "nio in the thread",
        "js in the thread",
        "the last of js",
        "the last of nio",
    ];
    assert_eq!(texts, json!(said), "the second device reads all of the history");

    room.redacts(&mut nio, &mut js, &reply).await;
    room.redacts(&mut js, &mut nio, &root).await;

    // The other way round: nio's room, and both devices of alice get the keys.
    let id = encrypted_room((&mut nio, &bob.id), (&mut js, &alice.id)).await;
    let room = Room { id: &id };
    room.says(&mut nio, &mut js, "to every device").await;
    let read = room.run(&mut second, "wait_text", json!({"body": "to every device"})).await;
    assert_eq!(read["encrypted"], true);
    room.says(&mut second, &mut nio, "from the second device").await;

    for device in [&mut second, &mut js, &mut nio] {
        let out = device.run("logout", json!({})).await;
        assert_eq!(out["token_is_gone"], true);
    }
}

scenario! {
    async fn two_clients_talk_encrypted(server: Server) {
        let (url, alice, bob) = (server.url(), server.user("alice").await, server.user("bob").await);
        talk_encrypted((&alice, &url), (&bob, &url)).await;
    }
}
