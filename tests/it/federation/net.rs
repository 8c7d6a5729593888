//! Several servers in one room, and any process killed at any time: no event is missing anywhere.

use std::ops::RangeInclusive;

use chatd_kit::{
    Database, Server, Settings, Spread, Started, Synapse, User, cluster::Cluster, spawn,
};
use rand::{Rng, seq::IndexedRandom};
use serde_json::json;
use tempfile::TempDir;

use super::acts::{comes, same_state, same_timeline, says};
use crate::faults::plan;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");
/// Texts of each user between two kills.
const TEXTS: usize = 10;
/// Instances of the fleet that send to other servers.
const SENDERS: [&str; 2] = ["sync1", "sync2"];
const REDIS: &str = "redis";
const POSTGRES: &str = "postgres";

/// Sends texts until each is acknowledged; returns their ids.
fn talk(user: &User, room: &str, round: u64) -> Started<Vec<String>> {
    let (user, room) = (user.clone(), room.to_owned());
    spawn(async move {
        let mut sent = Vec::new();
        for number in 0..TEXTS {
            let txn = format!("{round}-{number}");
            let content = json!({"msgtype": "m.text", "body": txn});
            let event = chatd_kit::eventually("a text is acknowledged", || async {
                let request = user.send_event(&room, "m.room.message", &txn, &content);
                match request.send().await {
                    Ok(answer) if answer.status == 200 => Ok(answer.string("event_id")),
                    Ok(answer) => Err(answer.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            });
            sent.push(event.await);
        }
        sent
    })
}

/// A PostgreSQL of one server's own. Ends with this value.
struct Power {
    cluster: Cluster,
    _folder: TempDir,
}

impl Power {
    fn on() -> Self {
        let folder = tempfile::Builder::new().prefix("chatd-pg-").tempdir().expect("a folder");
        let cluster = Cluster::private(folder.path()).expect("a PostgreSQL of its own");
        Self { cluster, _folder: folder }
    }

    async fn database(&self) -> Database {
        Database::empty(self.cluster.clone()).await.expect("a database")
    }

    /// Ends all of it, or one process, at which it ends all others itself; it is back on return.
    fn fail(&self, all: bool) {
        if all {
            self.cluster.kill9().expect("it can be killed");
            self.cluster.restart().expect("it starts again");
        } else {
            self.cluster.kill9_one_backend().expect("it can be killed");
        }
    }
}

impl Drop for Power {
    fn drop(&mut self) {
        // It may not have come back; there is nobody left to tell.
        let _ = self.cluster.kill9();
    }
}

/// Three of chatd, one of which is a fleet with senders apart, and a Synapse.
struct Net {
    // Dropped in this order: the servers before what they stand on.
    servers: Vec<Server>,
    powers: Vec<Power>,
    synapse: Synapse,
}

impl Net {
    async fn start() -> Self {
        let powers = vec![Power::on(), Power::on(), Power::on()];
        let senders = Settings::federating().with("federation_sender_instances", json!(SENDERS));
        let first = powers[0].database().await;
        let mut servers = vec![Server::fleet_on(BINARY, senders, Spread::Random, first).await];
        for power in &powers[1..] {
            let database = power.database().await;
            servers.push(Server::on(BINARY, Settings::federating(), database).await);
        }
        Self { servers, powers, synapse: Synapse::start().await }
    }

    /// One on each server. The last one is Synapse's.
    async fn users(&self) -> Vec<User> {
        let mut users = Vec::new();
        for server in &self.servers {
            users.push(server.user("alice").await);
        }
        users.push(self.synapse.user("bob").await);
        users
    }

    /// Kills a process of the server with this number, the last of which is Synapse, or its
    /// PostgreSQL, and starts it again. Of the fleet, which is the first, it is one of those with
    /// `names`.
    async fn kill_something(&mut self, index: usize, names: &[&str], random: &mut impl Rng) {
        let mut name = *names.choose(random).expect("something is to be killed");
        if index > 0 && name != POSTGRES {
            name = "all";
        }
        if index == self.servers.len() {
            chatd_kit::say("killed: Synapse");
            return self.synapse.process().restart().await.expect("it starts again");
        }
        chatd_kit::say(format!("killed: {name} of server {index}"));
        let server = &mut self.servers[index];
        match name {
            POSTGRES => self.powers[index].fail(random.random_bool(0.7)),
            "all" => {
                server.kill9().expect("it can be killed");
                server.restart().await.expect("it starts again");
            }
            REDIS => server.members().redis().restart().await,
            one => {
                server.members().instance(one).kill9().expect("it can be killed");
                server.members().launch().await.expect("it starts again");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_missing_anywhere_after_kills() {
    // A third of the kills are PostgreSQL's.
    let mut names = vec!["main", "persister1", "persister2", "stream1", "stream2", REDIS];
    names.extend(SENDERS);
    names.extend([POSTGRES; 4]);
    net_with_kills(&names, 0..=3).await;
}

/// Those that send to other servers, and nothing else, are killed again and again.
#[tokio::test]
async fn no_event_is_missing_anywhere_after_kills_of_senders() {
    net_with_kills(&SENDERS, 0..=0).await;
}

/// PostgreSQL, and nothing else: what is taken and what is to be sent is in no other place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_event_is_missing_anywhere_after_kills_of_postgresql() {
    net_with_kills(&[POSTGRES], 0..=2).await;
}

/// All of the net talk in one room, while those of the servers with numbers in `killed` are killed.
async fn net_with_kills(names: &[&str], killed: RangeInclusive<usize>) {
    let mut net = Net::start().await;
    let users = net.users().await;
    let room = users[0].create_room().version("11").await;
    for user in &users[1..] {
        comes(&users[0], user, &room).await;
    }
    let others: Vec<&User> = users[1..].iter().collect();
    let first = says(&users[0], &others, &room, "all are here").await;
    let (rounds, mut random) = plan();
    let mut sent = Vec::new();
    for round in 0..rounds {
        let talking: Vec<_> = users.iter().map(|user| talk(user, &room, round)).collect();
        let index = random.random_range(killed.clone());
        net.kill_something(index, names, &mut random).await;
        for texts in talking {
            sent.extend(texts.await);
        }
    }
    // A word of everybody, so that whoever has missed something hears that there is more.
    for user in &users {
        sent.push(user.send(&room, "the last word").await);
    }
    let all: Vec<&User> = users.iter().collect();
    same_timeline(&all, &room, &first, &sent).await;
    same_state(&all, &room).await;
}
