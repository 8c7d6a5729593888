//! History visibility: four settings, and a reader who joined, was invited, left, or never was
//! there; on every endpoint that shows events.

use chatd_kit::{Server, User, path, scenario};
use serde_json::{Value, json};

/// A room in which something was said at each stage of bob's membership.
struct Stages {
    room: String,
    /// Said before bob was invited.
    before: String,
    /// Said while he was invited.
    invited: String,
    /// Said while he was joined.
    joined: String,
    /// Said after he left.
    left: String,
}

impl Stages {
    async fn play(alice: &User, bob: &User, visibility: &str) -> Self {
        let visibility = json!({"history_visibility": visibility});
        let room = alice
            .create_room()
            .preset("public_chat")
            .state("m.room.history_visibility", visibility)
            .await;
        let before = alice.send(&room, "before").await;
        alice.invite(&room, bob).await.ok();
        let invited = alice.send(&room, "invited").await;
        bob.join(&room).await.ok();
        let joined = alice.send(&room, "joined").await;
        bob.leave(&room).await.ok();
        let left = alice.send(&room, "left").await;
        Self { room, before, invited, joined, left }
    }

    fn all(&self) -> [&str; 4] {
        [&self.before, &self.invited, &self.joined, &self.left]
    }

    /// What `reader` sees of the four on each endpoint; they all have to agree.
    async fn seen_by(&self, reader: &User) -> [bool; 4] {
        let mut single = [false; 4];
        let mut context = [false; 4];
        for (place, event) in self.all().into_iter().enumerate() {
            single[place] = reader.event(&self.room, event).await.status == 200;
            let url = path("/rooms/{}/context/{}", &[&self.room, event]);
            let answer = reader.get(url).query("limit", 0).await;
            context[place] = answer.status == 200;
        }
        let page = reader.messages(&self.room, "b").query("limit", 100).await;
        let texts: Vec<Value> = match page.status {
            200 => page.ok()["chunk"].as_array().cloned().unwrap_or_default(),
            _ => Vec::new(),
        };
        let paged = self.all().map(|event| texts.iter().any(|e| e["event_id"] == event));
        assert_eq!(single, context, "event and context do not agree");
        assert_eq!(single, paged, "event and messages do not agree");
        single
    }
}

/// Expected: (setting, what bob sees who left, what a stranger sees).
const CASES: [(&str, [bool; 4], [bool; 4]); 4] = [
    ("world_readable", [true, true, true, true], [true, true, true, true]),
    ("shared", [true, true, true, false], [false, false, false, false]),
    ("invited", [false, true, true, false], [false, false, false, false]),
    ("joined", [false, false, true, false], [false, false, false, false]),
];

async fn play(server: &Server, case: usize) {
    let (visibility, to_bob, to_stranger) = CASES[case];
    let (alice, bob, eve) =
        (server.user("alice").await, server.user("bob").await, server.user("eve").await);
    let stages = Stages::play(&alice, &bob, visibility).await;
    assert_eq!(stages.seen_by(&alice).await, [true; 4], "alice was always there");
    assert_eq!(stages.seen_by(&bob).await, to_bob, "bob has left");
    assert_eq!(stages.seen_by(&eve).await, to_stranger, "eve never was there");
}

scenario! {
    async fn world_readable_history(server: Server) {
        play(&server, 0).await;
    }

    async fn shared_history(server: Server) {
        play(&server, 1).await;
    }

    async fn history_since_the_invitation(server: Server) {
        play(&server, 2).await;
    }

    async fn history_since_the_join(server: Server) {
        play(&server, 3).await;
    }

    async fn a_sync_hides_what_history_hides(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let visibility = json!({"history_visibility": "joined"});
        let room = alice
            .create_room()
            .preset("public_chat")
            .state("m.room.history_visibility", visibility)
            .await;
        let hidden = alice.send(&room, "hidden").await;
        bob.join(&room).await.ok();
        let shown = alice.send(&room, "shown").await;
        let synced = bob.sync().await;
        let ids = synced.timeline_ids(&room);
        assert!(ids.contains(&shown) && !ids.contains(&hidden), "{ids:?}");
    }

    async fn state_and_members_stand_still_for_those_who_left(server: Server) {
        let (alice, bob, eve) =
            (server.user("alice").await, server.user("bob").await, server.user("eve").await);
        let room = alice.create_room().member(&bob).await;
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "then"})).await.ok();
        bob.leave(&room).await.ok();
        alice.set_state(&room, "m.room.topic", "", &json!({"topic": "now"})).await.ok();
        alice.invite(&room, &eve).await.ok();
        assert_eq!(bob.get_state(&room, "m.room.topic", "").await.ok()["topic"], "then");
        let all = bob.get(path("/rooms/{}/state", &[&room])).await;
        let all = all.ok().as_array().cloned().unwrap_or_default();
        let topic = all.iter().find(|event| event["type"] == "m.room.topic");
        assert_eq!(topic.expect("a topic")["content"]["topic"], "then");
        let members = bob.get(path("/rooms/{}/members", &[&room])).await;
        assert_eq!(members.ok()["chunk"].as_array().map(Vec::len), Some(2), "eve came later");
        // Invited is not joined: no state, no members.
        eve.get(path("/rooms/{}/state", &[&room])).await.refused(403, "M_FORBIDDEN");
        eve.get(path("/rooms/{}/members", &[&room])).await.refused(403, "M_FORBIDDEN");
        eve.get_state(&room, "m.room.topic", "").await.refused(403, "M_FORBIDDEN");
    }

    async fn anybody_reads_the_state_of_world_readable_rooms(server: Server) {
        let (alice, eve) = (server.user("alice").await, server.user("eve").await);
        let visibility = json!({"history_visibility": "world_readable"});
        let room = alice.create_room().state("m.room.history_visibility", visibility).await;
        eve.get(path("/rooms/{}/state", &[&room])).await.ok();
        eve.get_state(&room, "m.room.create", "").await.ok();
        eve.messages(&room, "b").await.ok();
    }

    async fn the_setting_of_the_time_counts(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let set = |to: &'static str| json!({"history_visibility": to});
        let kind = "m.room.history_visibility";
        let room = alice.create_room().preset("public_chat").state(kind, set("joined")).await;
        let hidden = alice.send(&room, "while it was joined").await;
        alice.set_state(&room, kind, "", &set("shared")).await.ok();
        let shown = alice.send(&room, "while it was shared").await;
        bob.join(&room).await.ok();
        bob.event(&room, &hidden).await.refused(404, "M_NOT_FOUND");
        bob.event(&room, &shown).await.ok();
    }
}
