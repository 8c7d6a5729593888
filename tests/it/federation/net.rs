//! Several servers in one room, and any process killed at any time: no event is missing anywhere.

use std::ops::RangeInclusive;

use chatd_kit::{Server, Settings, Spread, Started, Synapse, User, spawn};
use rand::{Rng, seq::IndexedRandom};
use serde_json::json;

use super::acts::{comes, same_state, same_timeline, says};
use crate::faults::plan;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");
/// Texts of each user between two kills.
const TEXTS: usize = 10;
/// Instances of the fleet that send to other servers.
const SENDERS: [&str; 2] = ["sync1", "sync2"];
const REDIS: &str = "redis";

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

/// Kills a process of the server with this number, the last of which is Synapse, and starts it again.
/// Of the fleet, which is the first, it is one of those with `names`.
async fn kill_something(
    servers: &mut [Server],
    synapse: &mut Synapse,
    index: usize,
    names: &[&str],
    random: &mut impl Rng,
) {
    if index == 0 {
        let fleet = servers[0].members();
        let name = *names.choose(random).expect("a fleet has instances");
        chatd_kit::say(format!("killed: {name} of the fleet"));
        if name == REDIS {
            fleet.redis().restart().await;
        } else {
            fleet.instance(name).kill9().expect("it can be killed");
            fleet.launch().await.expect("it starts again");
        }
        return;
    }
    chatd_kit::say(format!("killed: server {index}"));
    match servers.get_mut(index) {
        Some(server) => {
            server.kill9().expect("it can be killed");
            server.restart().await.expect("it starts again");
        }
        None => synapse.process().restart().await.expect("it starts again"),
    }
}

#[tokio::test]
async fn no_event_is_missing_anywhere_after_kills() {
    let mut names = vec!["main", "persister1", "persister2", "stream1", "stream2", REDIS];
    names.extend(SENDERS);
    net_with_kills(&names, 0..=3).await;
}

/// Those that send to other servers, and nothing else, are killed again and again.
#[tokio::test]
async fn no_event_is_missing_anywhere_after_kills_of_senders() {
    net_with_kills(&SENDERS, 0..=0).await;
}

/// Three of chatd, one of which is a fleet with senders apart, and a Synapse, in one room.
/// Those of the servers with numbers in `killed` are killed.
async fn net_with_kills(names: &[&str], killed: RangeInclusive<usize>) {
    let mut synapse = Synapse::start().await;
    let senders = Settings::federating().with("federation_sender_instances", json!(SENDERS));
    let mut servers = vec![
        Server::fleet(BINARY, senders, Spread::Random).await,
        Server::start(BINARY, Settings::federating()).await,
        Server::start(BINARY, Settings::federating()).await,
    ];
    let mut users = Vec::new();
    for server in &servers {
        users.push(server.user("alice").await);
    }
    users.push(synapse.user("bob").await);
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
        kill_something(&mut servers, &mut synapse, index, names, &mut random).await;
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
