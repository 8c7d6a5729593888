//! Two servers lose sight of each other, go on by themselves, and find each other again: then both
//! have the same room.
//!
//! A run prints its seed, which decides who does what; `CHATD_FAULT_SEED` repeats it, and
//! `CHATD_FAULT_ROUNDS` is how often the servers part.

use chatd_kit::{Gate, Server, Settings, Synapse, User, path};
use rand::{Rng, rngs::StdRng};
use serde_json::{Value, json};

use super::acts::{comes, same_state, same_timeline, says, shared_room};
use crate::faults::plan;

/// Two servers, a way between them, and who is where.
struct Pair {
    gates: [Gate; 2],
    /// One on each server; both have the power to do anything.
    strong: [User; 2],
    /// Others in the room, of whichever server.
    weak: Vec<User>,
    room: String,
    /// An event before the servers first part, and after both were there.
    first: String,
}

impl Pair {
    async fn of(gates: [Gate; 2], strong: [User; 2], weak: Vec<User>, version: &str) -> Self {
        let room = shared_room(&strong[0], &strong[1], version).await;
        let mut levels = strong[0].get_state(&room, "m.room.power_levels", "").await.ok().clone();
        levels["users"][&strong[1].id] = json!(if version == "12" { 150 } else { 100 });
        strong[0].set_state(&room, "m.room.power_levels", "", &levels).await.ok();
        for user in &weak {
            comes(&strong[0], user, &room).await;
        }
        same_state(&[&strong[0], &strong[1]], &room).await;
        let first = says(&strong[0], &[&strong[1]], &room, "let us part").await;
        Self { gates, strong, weak, room, first }
    }

    fn all(&self) -> [&User; 2] {
        [&self.strong[0], &self.strong[1]]
    }

    /// One side does something at random. Nothing of it takes away from the other side what that
    /// may do at the same time: what is soft-failed on one side only is in one timeline only.
    async fn act(&self, random: &mut StdRng, said: &mut Vec<String>) {
        let who = &self.strong[random.random_range(0..2)];
        let target = &self.weak[random.random_range(0..self.weak.len())];
        let room = self.room.as_str();
        let number: u32 = random.random();
        let answer = match random.random_range(0..8) {
            0..4 => {
                said.push(who.send(room, &format!("message {number}")).await);
                return;
            }
            4 => who.set_state(room, "m.room.topic", "", &json!({"topic": number})).await,
            5 => {
                let mut levels = who.get_state(room, "m.room.power_levels", "").await.ok().clone();
                let levels_of = ["m.room.topic", "m.room.name", "m.room.avatar"];
                let kind = levels_of[random.random_range(0..levels_of.len())];
                levels["events"][kind] = json!(random.random_range(0..100));
                who.set_state(room, "m.room.power_levels", "", &levels).await
            }
            6 => {
                let action = ["kick", "ban", "unban"][random.random_range(0..3)];
                who.change(action, room, target).await
            }
            _ => {
                let content = json!({"number": number});
                who.set_state(room, "kit.thing", &format!("{}", number % 3), &content).await
            }
        };
        // What is refused has not happened; what is done is wherever resolution puts it.
        assert!(answer.status < 500, "{answer}");
        if answer.status == 200
            && let Some(event) = answer.json()["event_id"].as_str()
        {
            said.push(event.to_owned());
        }
    }

    async fn part_and_meet(&self) {
        let (rounds, mut random) = plan();
        for round in 0..rounds {
            let mut said = Vec::new();
            for gate in &self.gates {
                gate.shut();
            }
            for _ in 0..random.random_range(5..25) {
                self.act(&mut random, &mut said).await;
            }
            for gate in &self.gates {
                gate.open();
            }
            // Whoever speaks is heard again, and what was missed comes with it.
            for (from, to) in [(0, 1), (1, 0)] {
                let text = format!("round {round} is over");
                says(&self.strong[from], &[&self.strong[to]], &self.room, &text).await;
            }
            let state = same_state(&self.all(), &self.room).await;
            let timeline = same_timeline(&self.all(), &self.room, &self.first, &[]).await;
            let here = self.accepted_by(&said).await;
            chatd_kit::say(format!(
                "round {round}: {} events of {} stand, {} in all, {} pieces of state",
                here.len(),
                said.len(),
                timeline.len(),
                state.len()
            ));
        }
    }

    /// The events of `said` that the first server shows.
    async fn accepted_by(&self, said: &[String]) -> Vec<Value> {
        let mut found = Vec::new();
        for event in said {
            let answer = self.strong[0].get(path("/rooms/{}/event/{}", &[&self.room, event])).await;
            if answer.status == 200 {
                found.push(answer.json().clone());
            }
        }
        found
    }
}

async fn chatd_gated() -> (Server, Gate) {
    let (settings, gate) = Settings::gated().await;
    (Server::start(env!("CARGO_BIN_EXE_chatd"), settings).await, gate)
}

async fn two_of_chatd(version: &str) {
    let ((here, one), (there, other)) = (chatd_gated().await, chatd_gated().await);
    let strong = [here.user("alice").await, there.user("bob").await];
    let weak = vec![there.user("carol").await, there.user("dave").await];
    Pair::of([one, other], strong, weak, version).await.part_and_meet().await;
}

async fn chatd_and_synapse(version: &str) {
    let ((here, one), (synapse, other)) = (chatd_gated().await, Synapse::gated().await);
    let strong = [here.user("alice").await, synapse.user("bob").await];
    let weak = vec![synapse.user("carol").await, synapse.user("dave").await];
    Pair::of([one, other], strong, weak, version).await.part_and_meet().await;
}

#[tokio::test]
async fn servers_that_part_come_together_again() {
    two_of_chatd("11").await;
}

#[tokio::test]
async fn servers_that_part_come_together_again_in_version_12() {
    two_of_chatd("12").await;
}

#[tokio::test]
async fn servers_that_part_come_together_again_in_version_1() {
    two_of_chatd("1").await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again() {
    chatd_and_synapse("10").await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again_in_version_12() {
    chatd_and_synapse("12").await;
}
