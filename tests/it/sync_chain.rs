//! What a device puts together from one sync after the other is the room: every event once, in
//! order, whatever the limits, and with the state that the room has (R3).

use std::collections::BTreeMap;

use chatd_kit::{
    Started, Synced, User, scenario, spawn,
    sync::{events, ids},
};
use serde_json::{Value, json};

/// What a device knows of one room.
#[derive(Default)]
struct Copy {
    timeline: Vec<String>,
    /// Event ids by type and state key.
    state: BTreeMap<(String, String), String>,
}

impl Copy {
    fn apply(&mut self, event: &Value) {
        let text = |name: &str| event[name].as_str().map(str::to_owned);
        if let (Some(kind), Some(key), Some(id)) =
            (text("type"), text("state_key"), text("event_id"))
        {
            self.state.insert((kind, key), id);
        }
    }
}

/// A device that follows rooms sync by sync, and fills gaps from `/messages`.
struct Follower {
    user: User,
    filter: Value,
    since: String,
    copies: BTreeMap<String, Copy>,
}

impl Follower {
    async fn begin(user: &User, rooms: &[String], timeline: Value) -> Self {
        let filter = json!({"presence": {"types": []}, "room": {"timeline": timeline}});
        let copies = rooms.iter().map(|room| (room.clone(), Copy::default())).collect();
        let first = user.sync().filter(&filter).await;
        let mut new = Self { user: user.clone(), filter, since: String::new(), copies };
        for room in rooms {
            new.take(&first, room, None).await;
        }
        new.since = first.next_batch();
        new
    }

    /// Adds what a sync says of a room; with a token, a gap before it is filled from there.
    async fn take(&mut self, synced: &Synced, room: &str, since: Option<&str>) {
        let section = synced.room(room);
        let timeline = events(&section["timeline"]);
        let mut missed = Vec::new();
        if let (Some(since), Some(true)) = (since, section["timeline"]["limited"].as_bool()) {
            let mut from = section["timeline"]["prev_batch"].as_str().map(str::to_owned);
            while let Some(token) = from {
                let page = self.user.messages(room, "b").query("limit", 3);
                let page = page.query("from", &token).query("to", since).await;
                missed.extend(ids(page.ok()["chunk"].as_array().map_or(&[], Vec::as_slice)));
                from = page.ok()["end"].as_str().map(str::to_owned);
            }
            missed.reverse();
        }
        let copy = self.copies.get_mut(room).expect("a room that is followed");
        events(&section["state"]).iter().chain(&timeline).for_each(|event| copy.apply(event));
        copy.timeline.extend(missed);
        copy.timeline.extend(ids(&timeline));
    }

    /// Follows until each room has shown its last event.
    async fn run(mut self, last: impl Fn(&str, &[String]) -> bool) -> Self {
        let rooms: Vec<String> = self.copies.keys().cloned().collect();
        while !self.copies.iter().all(|(room, copy)| last(room, &copy.timeline)) {
            let request = self.user.sync().since(&self.since).filter(&self.filter);
            let synced = request.timeout_ms(10_000).await;
            let since = std::mem::replace(&mut self.since, synced.next_batch());
            for room in &rooms {
                self.take(&synced, room, Some(&since)).await;
            }
        }
        self
    }
}

/// Sends texts and now and then some state to all rooms, one after the other.
fn chatter(user: &User, rooms: &[String], count: usize) -> Started<()> {
    let (user, rooms) = (user.clone(), rooms.to_vec());
    spawn(async move {
        for number in 0..count {
            for room in &rooms {
                user.send(room, &format!("{number}")).await;
                if number % 4 == 0 {
                    let content = json!({"n": number});
                    user.set_state(room, "org.example.n", &user.id, &content).await.ok();
                }
            }
        }
    })
}

/// Event ids of the state by type and key.
async fn state_of(user: &User, room: &str) -> BTreeMap<(String, String), String> {
    let answer = user.get(chatd_kit::path("/rooms/{}/state", &[room])).await;
    let mut copy = Copy::default();
    answer.ok().as_array().into_iter().flatten().for_each(|event| copy.apply(event));
    copy.state
}

scenario! {
    async fn what_is_put_together_is_the_room(server: Server) {
        let mut users = Vec::new();
        for name in ["alice", "bob", "eve", "mallory"] {
            users.push(server.user(name).await);
        }
        let levels = json!({"users_default": 50});
        let mut rooms = Vec::new();
        for _ in 0..3 {
            let room = users[0].create_room().with("power_level_content_override", levels.clone());
            let room = room.preset("public_chat").with("room_version", "11").await;
            for user in &users[1..] {
                user.join(&room).await.ok();
            }
            rooms.push(room);
        }
        let limits = [json!({}), json!({"limit": 1}), json!({"limit": 3}), json!({"limit": 2})];
        let mut followers = Vec::new();
        for (user, timeline) in users.iter().zip(limits) {
            followers.push(Follower::begin(user, &rooms, timeline).await);
        }
        let talking: Vec<_> = users.iter().map(|user| chatter(user, &rooms, 12)).collect();
        let (ended, end) = tokio::sync::watch::channel(BTreeMap::<String, String>::new());
        let following: Vec<_> = followers
            .into_iter()
            .map(|follower| {
                let end = end.clone();
                let is_last = move |room: &str, seen: &[String]| {
                    end.borrow().get(room).is_some_and(|last| seen.contains(last))
                };
                spawn(follower.run(is_last))
            })
            .collect();
        for talk in talking {
            talk.await;
        }
        let mut last = BTreeMap::new();
        for room in &rooms {
            last.insert(room.clone(), users[0].send(room, "the last").await);
        }
        ended.send_replace(last);
        for follower in following {
            let Follower { user, copies, .. } = follower.await;
            for (room, copy) in copies {
                let history = ids(&user.history(&room).await);
                assert!(copy.timeline.len() > 12 * 4, "{} saw nearly nothing", user.id);
                let tail = &history[history.len() - copy.timeline.len().min(history.len())..];
                assert_eq!(copy.timeline, tail, "{} in {room}", user.id);
                assert_eq!(copy.state, state_of(&user, &room).await, "{} in {room}", user.id);
            }
        }
    }

    async fn a_gap_over_a_restart_is_whole(server: Server) {
        let (alice, bob) = (server.user("alice").await, server.user("bob").await);
        let rooms = vec![alice.create_room().member(&bob).await];
        let follower = Follower::begin(&bob, &rooms, json!({"limit": 2})).await;
        for number in 0..7 {
            alice.send(&rooms[0], &format!("before {number}")).await;
        }
        server.kill9().expect("it is killed");
        server.restart().await.expect("it starts again");
        for number in 0..3 {
            alice.send(&rooms[0], &format!("after {number}")).await;
        }
        let last = alice.send(&rooms[0], "the last").await;
        let done = follower.run(|_, seen| seen.contains(&last)).await;
        let history = ids(&alice.history(&rooms[0]).await);
        let seen = &done.copies[&rooms[0]].timeline;
        assert_eq!(seen, &history[history.len() - seen.len()..]);
        assert_eq!(done.copies[&rooms[0]].state, state_of(&bob, &rooms[0]).await);
    }
}
