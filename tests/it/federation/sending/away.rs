//! Servers that do not answer.

use chatd_kit::{Other, Settings, eventually, other::Reply, scenario};
use serde_json::json;

use super::{SEND, put_in, shared_room, taken, texts_of, until_text};

/// A server that is away is tried again after so long.
fn impatient() -> Settings {
    Settings::federating().with(
        "federation",
        json!({
            "destination_min_retry_interval": "300ms",
            "destination_retry_multiplier": 1,
            "destination_max_retry_interval": "300ms",
        }),
    )
}

/// The furthest position of a token (`123`, `m123~1.456`).
fn furthest(token: &str) -> i64 {
    let parts = token.split(|letter: char| !letter.is_ascii_digit());
    parts.filter_map(|number| number.parse().ok()).max().unwrap_or_default()
}

scenario! {
    /// What a server has missed it gets when it is back, in full transactions, in order.
    async fn a_server_that_was_away_catches_up(server: Server) with (impatient()) {
        let (here, there) = (Other::start().await, Other::start().await);
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here, &there]).await;
        alice.send(&room, "first").await;
        until_text(&here, "first").await;
        here.go_away();
        for number in 0..130 {
            alice.send(&room, &format!("m{number}")).await;
        }
        until_text(&there, "m129").await;
        here.come_back().await;
        until_text(&here, "m129").await;
        alice.send(&room, "last").await;
        until_text(&here, "last").await;
        let mut expected = vec!["first".to_owned()];
        expected.extend((0..130).map(|number| format!("m{number}")));
        expected.push("last".to_owned());
        assert_eq!(taken(&here, |_| true), expected);
        let sent = here.seen("PUT", SEND);
        assert!(sent.iter().any(|seen| texts_of(seen).len() == 50), "transactions are full");
    }

    /// Far behind, the newest event of a room comes first, after a transaction that was under way
    /// and comes again as it was; the others come after it, each once.
    async fn the_newest_comes_first_when_much_is_missing(server: Server)
    with (impatient()) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        here.go_away();
        for number in 0..620 {
            alice.send(&room, &format!("m{number}")).await;
        }
        here.come_back().await;
        until_text(&here, "m618").await;
        let mut texts = taken(&here, |_| true);
        let newest = texts.iter().position(|text| text == "m619").expect("the newest came");
        assert!(newest <= 50, "it came after {newest} others");
        texts.remove(newest);
        let expected: Vec<String> = (0..619).map(|number| format!("m{number}")).collect();
        assert_eq!(texts, expected);
    }

    /// A server that refuses is left alone for as long as the configuration says; any request of
    /// its own ends that.
    async fn a_server_that_fails_is_left_alone(server: Server)
    with (Settings::federating()) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        here.always("PUT", SEND, Reply::refused(500, "M_UNKNOWN"));
        alice.send(&room, "one").await;
        until_text(&here, "one").await;
        for number in 0..20 {
            alice.send(&room, &format!("more {number}")).await;
        }
        let tried = here.seen("PUT", SEND).len();
        // It may have asked for keys, which is a sign of life.
        assert!(tried < 5, "{tried} attempts: it is left alone");
        here.behave();
        here.send(&server.peer(), &[], &[]).await.ok();
        until_text(&here, "more 19").await;
        let mut expected = vec!["one".to_owned()];
        expected.extend((0..20).map(|number| format!("more {number}")));
        assert_eq!(taken(&here, |_| true), expected, "what was refused comes again as it was");
    }

    /// A server that is back is heard by whichever instance it turns to, also by one that it had
    /// turned to just before it went away.
    async fn any_instance_hears_that_a_server_is_back(server: Server) in (random)
    with (Settings::federating().with(
        "federation",
        json!({ "destination_min_retry_interval": "10m" }),
    )) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = shared_room(&mut server, &alice, &[&here]).await;
        alice.send(&room, "one").await;
        until_text(&here, "one").await;
        for _ in 0..30 {
            here.send(&server.peer(), &[], &[]).await.ok();
        }
        here.go_away();
        alice.send(&room, "two").await;
        let client = server.database().connect().await.unwrap();
        chatd_kit::eventually("the server is left alone", || async {
            let row = client.query_opt("SELECT FROM destinations", &[]).await.unwrap();
            row.ok_or_else(|| "it is not".to_owned())
        })
        .await;
        here.come_back().await;
        here.send(&server.peer(), &[], &[]).await.ok();
        until_text(&here, "two").await;
    }

    /// Thousands of dead servers cost rows once, and nothing afterwards.
    async fn dead_servers_cost_nothing(server: Server)
    with (Settings::federating().with("federation", json!({ "client_timeout": "2s" }))) {
        let here = Other::start().await;
        let alice = server.user("alice").await;
        let room = alice.public_room().await;
        // Nothing listens on port 1 of any of these.
        let dead = (0..2_000).map(|n| format!("@bob:127.0.{}.{}:1", 1 + n / 200, 1 + n % 200));
        let mut users: Vec<String> = dead.collect();
        users.push(here.user("bob"));
        put_in(&mut server, &room, &users).await;
        alice.send(&room, "to all").await;
        until_text(&here, "to all").await;
        let client = server.database().connect().await.unwrap();
        let count = async |table: &str| -> i64 {
            let count = format!("SELECT count(*) FROM {table}");
            client.query_one(&count, &[]).await.unwrap().get(0)
        };
        eventually("all have been tried", || async {
            let known = (count("sending_rooms").await, count("destinations").await);
            if known.0.min(known.1) >= 2_000 { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
        for number in 0..50 {
            alice.send(&room, &format!("m{number}")).await;
        }
        until_text(&here, "m49").await;
        let expected: Vec<String> = (0..50).map(|number| format!("m{number}")).collect();
        assert_eq!(taken(&here, |_| true)[1..], expected);
        assert_eq!(count("sending_rooms").await, 2_000);
        // The token moves on although they have had nothing.
        let tokens = "SELECT events FROM sending_shards";
        let newest = "SELECT max(pos) FROM events WHERE flags & 64 <> 0";
        eventually("all has been told", || async {
            let tokens = client.query(tokens, &[]).await.unwrap();
            let told = tokens.iter().map(|row| furthest(row.get(0))).min().unwrap();
            let newest: i64 = client.query_one(newest, &[]).await.unwrap().get(0);
            if told >= newest { Ok(()) } else { Err(format!("{told} of {newest}")) }
        })
        .await;
        let written = "SELECT n_tup_upd + n_tup_ins FROM pg_stat_all_tables
                       WHERE relname = 'sending_rooms'";
        let rows: i64 = client.query_one(written, &[]).await.unwrap().get(0);
        assert!(rows < 5_000, "{rows} writes for 2000 servers and 51 events");
    }
}
