//! Two servers lose sight of each other, go on by themselves, and find each other again: then both
//! have the same room.
//!
//! A run prints its seed, which decides who does what; `CHATD_FAULT_SEED` repeats it, and
//! `CHATD_FAULT_ROUNDS` is how often the servers part. Where `CHATD_RECORD_ROOMS_IN` names a folder, the
//! rooms are written down there as Synapse has them in the end, for `src/rooms/tests/recorded`.

use std::path::PathBuf;

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
        let answer = match random.random_range(0..10) {
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
                // The server of somebody who is invited has to be there.
                let actions: &[&str] = match target.is_of_server_of(who) {
                    true => &["kick", "ban", "unban", "invite"],
                    false => &["kick", "ban", "unban"],
                };
                who.change(actions[random.random_range(0..actions.len())], room, target).await
            }
            7 => {
                let rule = ["public", "invite", "private"][random.random_range(0..3)];
                who.set_state(room, "m.room.join_rules", "", &json!({"join_rule": rule})).await
            }
            8 if !said.is_empty() => {
                let target = said[random.random_range(0..said.len())].clone();
                who.redact(room, &target).await
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

/// Whose room it is.
#[derive(Clone, Copy, Debug)]
enum Host {
    Chatd,
    Synapse,
}

async fn chatd_and_synapse(version: &str, host: Host) {
    let ((here, one), (synapse, other)) = (chatd_gated().await, Synapse::gated().await);
    let (mut gates, mut strong) =
        ([one, other], [here.user("alice").await, synapse.user("bob").await]);
    if matches!(host, Host::Synapse) {
        gates.reverse();
        strong.reverse();
    }
    let weak = vec![synapse.user("carol").await, synapse.user("dave").await];
    let pair = Pair::of(gates, strong, weak, version).await;
    pair.part_and_meet().await;
    if let Some(folder) = std::env::var_os("CHATD_RECORD_ROOMS_IN") {
        let name = format!("lived_{version:0>2}_{host:?}").to_lowercase();
        record(&synapse, &pair.room, folder.into(), &name);
    }
}

/// Writes a room down in a file that is not there yet.
fn record(synapse: &Synapse, room: &str, folder: PathBuf, name: &str) {
    let made = "chatd and Synapse, parted and met";
    let lines = synapse.record(room, made);
    let mut names = (1..).map(|number| folder.join(format!("{name}_{number}.jsonl")));
    let file = names.find(|file| !file.exists()).expect("names do not end");
    std::fs::write(&file, lines).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    chatd_kit::say(format!("recorded in {}", file.display()));
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
    chatd_and_synapse("10", Host::Chatd).await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again_in_version_1() {
    chatd_and_synapse("1", Host::Synapse).await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again_in_version_2() {
    chatd_and_synapse("2", Host::Synapse).await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again_in_version_6() {
    chatd_and_synapse("6", Host::Synapse).await;
}

#[tokio::test]
async fn chatd_and_synapse_part_and_come_together_again_in_version_12() {
    chatd_and_synapse("12", Host::Chatd).await;
}
