//! What messages take on disk.

use std::{collections::BTreeMap, time::Instant};

use anyhow::Result;
use chatd_kit::{User, say};
use futures::future::join_all;

use crate::{Bench, CLIENTS, meter::float};

const MESSAGES: usize = 100_000;

/// Words of the texts; how well they compress is about that of chat.
const WORDS: [&str; 24] = [
    "the", "train", "at", "seven", "would", "be", "fine", "but", "I", "have", "not", "seen",
    "anybody", "since", "lunch", "so", "perhaps", "we", "should", "ask", "in", "the", "office",
    "first",
];

/// Sends 100 000 messages and says by how much each table has grown.
pub async fn measure() -> Result<()> {
    let bench = Bench::start().await?;
    let host = bench.server.user("host").await;
    let room = host.public_room().await;
    let mut users = vec![host];
    while users.len() < CLIENTS {
        let user = bench.server.user(&format!("user{}", users.len())).await;
        user.join(&room).await.ok();
        users.push(user);
    }
    let before = sizes(&bench).await?;
    let started = Instant::now();
    let sending = users.iter().enumerate().map(async |(number, user)| {
        send(user, &room, number).await;
    });
    join_all(sending).await;
    say(format_args!(
        "{MESSAGES} messages of {CLIENTS} members in one room, sent in {:.0} s; bytes for each of \
         them, tables with indexes, after VACUUM:",
        started.elapsed().as_secs_f64()
    ));
    let mut total = 0.0;
    let mut lines = Vec::new();
    for (table, now) in sizes(&bench).await? {
        let grown = (now - before.get(&table).copied().unwrap_or_default()) / float(MESSAGES);
        total += grown;
        if grown >= 0.5 {
            lines.push((grown, table));
        }
    }
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (grown, table) in lines {
        say(format_args!("  {grown:6.0}  {table}"));
    }
    say(format_args!("  {total:6.0}  in all"));
    Ok(())
}

async fn send(user: &User, room: &str, number: usize) {
    for message in 0..MESSAGES / CLIENTS {
        let start = message * 7 + number * 13;
        let length = 4 + start % 17;
        let words: Vec<_> =
            (0..length).map(|word| WORDS[(start + word * 5) % WORDS.len()]).collect();
        user.send(room, &words.join(" ")).await;
    }
}

/// Bytes of each table with its indexes, after VACUUM.
async fn sizes(bench: &Bench) -> Result<BTreeMap<String, f64>> {
    let client = bench.server.database().connect().await?;
    client.batch_execute("VACUUM ANALYZE").await?;
    // Partitions count as their table.
    let sql = "SELECT coalesce(i.inhparent, c.oid)::regclass::text, \
                      sum(pg_total_relation_size(c.oid))::float8 \
               FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid \
               WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace GROUP BY 1";
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
