//! Several servers in one room, and any process killed at any time: no event is missing anywhere.

use chatd_kit::{Server, Settings, Spread, Started, Synapse, User, spawn};
use rand::{Rng, seq::IndexedRandom};

use super::acts::{comes, same_state, same_timeline, says};
use crate::faults::plan;

const BINARY: &str = env!("CARGO_BIN_EXE_chatd");
/// Texts of each user between two kills.
const TEXTS: usize = 10;

/// Sends texts until each is acknowledged; returns their ids.
fn talk(user: &User, room: &str, round: u64) -> Started<Vec<String>> {
    let (user, room) = (user.clone(), room.to_owned());
    spawn(async move {
        let mut sent = Vec::new();
        for number in 0..TEXTS {
            let txn = format!("{round}-{number}");
            let content = serde_json::json!({"msgtype": "m.text", "body": txn});
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

/// Kills one process of one server, and starts it again.
async fn kill_something(servers: &mut [Server], random: &mut impl Rng) {
    let index = random.random_range(0..servers.len());
    let server = &mut servers[index];
    if index == 0 {
        let fleet = server.members();
        let names: Vec<String> =
            fleet.instances().iter().map(|process| process.name().to_owned()).collect();
        let name = names.choose(random).expect("a fleet has instances");
        fleet.instance(name).kill9().expect("it can be killed");
        fleet.launch().await.expect("it starts again");
    } else {
        server.kill9().expect("it can be killed");
        server.restart().await.expect("it starts again");
    }
}

#[tokio::test]
async fn no_event_is_missing_anywhere_after_kills() {
    let synapse = Synapse::shared().await;
    let mut servers = vec![
        Server::fleet(BINARY, Settings::federating(), Spread::Random).await,
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
        kill_something(&mut servers, &mut random).await;
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
