//! What happens here reaches other servers: each event once and in order, what else there is with
//! it, and all of it later for one that has been away.

mod away;
mod edus;
mod events;
mod killed;

use std::collections::BTreeSet;

use chatd_kit::{Other, Server, User, other::Seen};
use serde_json::Value;

/// Transactions.
const SEND: &str = "/_matrix/federation/v1/send/";

/// A room of `alice` in which there is a user of each of `others`.
async fn shared_room(server: &mut Server, alice: &User, others: &[&Other]) -> String {
    let room = alice.public_room().await;
    let users: Vec<String> = others.iter().map(|other| other.user("bob")).collect();
    put_in(server, &room, &users).await;
    room
}

/// Puts users of other servers into a room, behind the back of `server`, which has to start again
/// to notice. Joins as such are another subject.
async fn put_in(server: &mut Server, room: &str, users: &[String]) {
    let client = server.database().connect().await.unwrap();
    let names = "INSERT INTO users_nid (user_id) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING";
    client.execute(names, &[&users]).await.unwrap();
    for table in [
        "memberships (user_nid, room, membership, is_local, sender, event, pos)
         SELECT u.nid, r.nid, 'j', false, u.nid, 0, p.position",
        "membership_history (user_nid, room, pos, membership, event)
         SELECT u.nid, r.nid, p.position, 'j', 0",
    ] {
        let insert = format!(
            "INSERT INTO {table}
             FROM users_nid u, rooms r,
                  (SELECT max(position) AS position FROM stream_positions WHERE stream = 1) p
             WHERE u.user_id = ANY($1::text[]) AND r.room_id = $2"
        );
        client.execute(&insert, &[&users, &room]).await.unwrap();
    }
    server.restart().await.unwrap();
}

/// Texts of the messages in transactions that `other` has taken, those of repeats left out, in the
/// order in which they came.
fn taken(other: &Other, is_taken: impl Fn(&Seen) -> bool) -> Vec<String> {
    let mut transactions = BTreeSet::new();
    let mut texts = Vec::new();
    for seen in other.seen("PUT", SEND).iter().filter(|seen| is_taken(seen)) {
        if transactions.insert(seen.segment(4)) {
            texts.extend(texts_of(seen));
        }
    }
    texts
}

/// Texts of the messages in one transaction.
fn texts_of(seen: &Seen) -> Vec<String> {
    let pdus = seen.body["pdus"].as_array().cloned().unwrap_or_default();
    pdus.iter().filter_map(text_of).collect()
}

fn text_of(pdu: &Value) -> Option<String> {
    pdu["content"]["body"].as_str().map(str::to_owned)
}

/// Waits for a message with this text.
async fn until_text(other: &Other, text: &str) -> Value {
    other.until_pdu(text, |pdu| text_of(pdu).as_deref() == Some(text)).await
}
