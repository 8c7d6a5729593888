//! Every statement is prepared against a freshly migrated database; what a real PostgreSQL
//! guarantees is asked of one.

mod copying;

use chatd_base::{Position, RoomNid, UserNid, WriterId};
use chatd_kit::{
    Database,
    cluster::{Cluster, USER},
};

use crate::{
    ALL_STATEMENTS, Batch, ConnectSettings, Pool, Statement,
    destinations::{self, Intervals, note_failure, note_life},
    inbound::{Staged, count, list, stage},
    migrate,
    notices::{Heard, Notice, Notices},
    params, receipts,
    sync::{self, get_delivered, set_delivered},
};

/// Opens `database` as the server does.
fn open(database: &Database) -> Pool {
    let folder = database.cluster().socket_folder().to_owned();
    Pool::open(&ConnectSettings::on_socket(folder, USER, database.name(), 4)).unwrap()
}

#[tokio::test]
async fn statements_fit_the_schema() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    migrate(&pool).await.unwrap();
    let client = pool.client().await.unwrap();
    let mut wrong = Vec::new();
    for statement in ALL_STATEMENTS.iter().copied().flatten() {
        if let Err(cause) = client.prepare(statement.sql).await {
            let why = cause.as_db_error().map_or(cause.to_string(), ToString::to_string);
            wrong.push(format!("{}: {why}", statement.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Two instances on one database, and what the second hears.
struct Heards {
    pool: Pool,
    first: std::sync::Arc<Notices>,
    heard: tokio::sync::mpsc::Receiver<Option<Notice>>,
    stop: chatd_base::Stop,
    database: Database,
}

impl Heards {
    async fn start() -> Self {
        let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
        let pool = open(&database);
        migrate(&pool).await.unwrap();
        let stop = chatd_base::Stop::new();
        let (first, second) = (Notices::new(WriterId(1), true), Notices::new(WriterId(2), true));
        let (tell, heard) = tokio::sync::mpsc::channel(64);
        second.on_heard(move |heard| {
            let notice = match heard {
                Heard::Notice(notice) => Some(notice.clone()),
                Heard::Missed => None,
            };
            tell.try_send(notice).unwrap();
        });
        second.listen(&pool, &stop);
        let mut heards = Self { pool, first, heard, stop, database };
        assert_eq!(heards.next().await, None, "it may have missed something before it listened");
        heards
    }

    async fn next(&mut self) -> Option<Notice> {
        let limit = std::time::Duration::from_secs(20);
        tokio::time::timeout(limit, self.heard.recv()).await.expect("nothing was heard").unwrap()
    }

    async fn tell(&self, notice: &Notice) {
        let mut batch = Batch::new();
        self.first.tell(&mut batch, notice.clone());
        self.pool.commit(batch).await.unwrap();
    }
}

impl Drop for Heards {
    fn drop(&mut self) {
        self.stop.trigger();
    }
}

#[tokio::test]
async fn notices_are_told_if_their_commit_takes_effect() {
    let mut heards = Heards::start().await;
    let mut failing = Batch::new();
    heards.first.tell(&mut failing, Notice::Directory);
    failing.add(&FAILS, vec![]);
    assert!(heards.pool.commit(failing).await.is_err());
    let mut own = Batch::new();
    Notices::new(WriterId(2), true).tell(&mut own, Notice::Directory);
    heards.pool.commit(own).await.unwrap();
    let mut alone = Batch::new();
    Notices::new(WriterId(3), false).tell(&mut alone, Notice::Directory);
    assert!(alone.is_empty());
    let told = Notice::DevicesEnded { user: UserNid(7), devices: vec!["A".into(), "B:\"".into()] };
    heards.tell(&told).await;
    assert_eq!(heards.next().await, Some(told));
}

#[tokio::test]
async fn everything_is_missed_while_the_connection_is_lost() {
    let mut heards = Heards::start().await;
    let admin = heards.database.connect().await.unwrap();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database()
                     AND (query LIKE 'LISTEN%' OR query LIKE '%FROM stream_positions WHERE NOT retired')";
    assert_eq!(admin.query(sql, &[]).await.unwrap().len(), 1);
    assert_eq!(heards.next().await, None, "lost");
    assert_eq!(heards.next().await, None, "and back");
    let told = Notice::Profile { user: UserNid(1) };
    heards.tell(&told).await;
    assert_eq!(heards.next().await, Some(told));
}

#[tokio::test]
async fn others_hear_when_a_server_begins_to_fail_and_when_it_is_there_again() {
    let mut heards = Heards::start().await;
    let (pool, first) = (heards.pool.clone(), heards.first.clone());
    let intervals = Intervals { first_ms: 100, factor: 2, longest_ms: 1_000 };
    let mut retry_at = Vec::new();
    for at_ms in [1_000, 1_050, 1_100] {
        let noted = note_failure(&pool, &first, "b.example", at_ms, intervals).await.unwrap();
        retry_at.push(noted.unwrap().retry_at);
    }
    assert_eq!(retry_at, [1_100, 1_100, 1_300]);
    note_life(&pool, &first, "b.example").await.unwrap();
    let server = || "b.example".to_owned();
    assert_eq!(heards.next().await, Some(Notice::ServerAway { server: server() }));
    assert_eq!(heards.next().await, Some(Notice::ServerAlive { server: server() }));
}

#[tokio::test]
async fn servers_that_nobody_asks_any_more_are_forgotten() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    let nobody = Notices::new(WriterId(1), false);
    let intervals = Intervals { first_ms: 100, factor: 10, longest_ms: 10_000 };
    for (server, at_ms) in
        [("a", 1_000), ("b", 1_000), ("c", 1_050), ("a", 1_100), ("d", 2_000), ("e", 2_100)]
    {
        note_failure(&pool, &nobody, server, at_ms, intervals).await.unwrap();
    }
    let left = async || {
        let left = destinations::list(&pool).await.unwrap().into_iter();
        let mut left: Vec<String> = left.map(|one| one.server).collect();
        left.sort();
        left
    };
    assert_eq!(destinations::delete_old(&pool, 1_000, 10).await.unwrap(), 0);
    destinations::delete_old(&pool, 1_200, 10).await.unwrap();
    assert_eq!(left().await, ["a", "d", "e"]);
    destinations::delete_old(&pool, 1_200, 2).await.unwrap();
    assert_eq!(left().await, ["a", "d"]);
}

#[tokio::test]
async fn of_events_that_wait_each_sender_has_its_turn() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    let staged = |number: usize| Staged {
        id: 0,
        event_id: format!("$e{number}"),
        origin: if number < 8 { "loud" } else { "quiet" }.to_owned(),
        added_ts: 1,
        event: "{}".to_owned(),
    };
    stage(&pool, "!r", (0..10).map(staged).collect()).await.unwrap();
    stage(&pool, "!r", vec![staged(3)]).await.unwrap();
    assert_eq!(count(&pool, "!r", "loud").await.unwrap(), (10, 8));
    let listed = list(&pool, "!r", 4).await.unwrap();
    let ids: Vec<&str> = listed.iter().map(|staged| staged.event_id.as_str()).collect();
    assert_eq!(ids, ["$e0", "$e1", "$e8", "$e9"]);
}

const fn statement(name: &'static str, sql: &'static str) -> Statement {
    Statement { name, sql, meter: crate::meter::Meter::new() }
}

static FAILS: Statement = statement("FAILS", "SELECT 1 / 0");
static FAILS_AT_LENGTH: Statement =
    statement("FAILS_AT_LENGTH", "SELECT (repeat('x', $1 + (random() * 0)::int))::int");
static WIDE: Statement = statement("WIDE", "SELECT repeat('x', $2) FROM generate_series(1, $1)");

async fn commit(pool: &Pool, batch: Batch) -> crate::Result<crate::BatchRows> {
    let limit = std::time::Duration::from_secs(30);
    tokio::time::timeout(limit, pool.commit(batch)).await.expect("the commit does not end")
}

/// What a driver has not been asked for it does not take from the connection, and then it takes
/// nothing of what follows either.
#[tokio::test]
async fn a_commit_ends_however_its_answers_come() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    let mut large = Batch::new();
    let indices = [3, 20_000].map(|rows| large.add(&WIDE, params![rows, 100]));
    let rows = commit(&pool, large).await.unwrap();
    assert_eq!(indices.map(|index| rows.of(index).len()), [3, 20_000]);
    // A refusal comes in parts of its own.
    for length in 0..1_000 {
        let mut refused = Batch::new();
        refused.add(&FAILS_AT_LENGTH, params![length * 10]);
        assert!(commit(&pool, refused).await.is_err());
    }
}

#[tokio::test]
async fn whoever_notes_what_it_delivers_learns_what_others_have() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    for (upto, before) in [(5, 0), (9, 5), (7, 9), (12, 9)] {
        let known = set_delivered(&pool, UserNid(1), "D", Position(upto)).await.unwrap();
        assert_eq!(known.delivered, Position(before), "{upto}");
    }
    let known = get_delivered(&pool, UserNid(1), "D").await.unwrap();
    assert_eq!((known.delivered, known.removed), (Position(12), Position(0)));
}

static NEXT_RECEIPT: Statement = statement("NEXT_RECEIPT", "SELECT nextval('stream_receipts')");

/// Two writers may be asked at once, and the database hears of them in any order.
#[tokio::test]
async fn a_receipt_never_goes_back() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    let cases: [(&[(&str, i64)], _); 4] = [
        (&[("$2", 2)], "$2"),
        (&[("$1", 1)], "$2"),
        (&[("$3", 3)], "$3"),
        (&[("$5", 5), ("$4", 4)], "$5"),
    ];
    for (moves, stands_at) in cases {
        let mut columns = receipts::Columns::default();
        for ((event_id, event_pos), offset) in moves.iter().zip(0..) {
            columns.push(receipts::Receipt {
                room: RoomNid(1),
                user: UserNid(1),
                is_private: false,
                thread: "",
                offset,
                event_id,
                event_pos: Position(*event_pos),
                ts: 0,
            });
        }
        let mut batch = Batch::new();
        batch.add(&NEXT_RECEIPT, params![]);
        receipts::upsert(&mut batch, columns);
        pool.commit(batch).await.unwrap();
        let stored = receipts::list(&pool, &[RoomNid(1)], Position(0)).await.unwrap();
        let stored: Vec<_> = stored.into_iter().map(|receipt| receipt.event_id).collect();
        assert_eq!(stored, [stands_at]);
    }
}

/// A shard has moved, and the new owner brings back what the one before had written: its position is
/// the new owner's, whoever has written the event.
#[tokio::test]
async fn a_membership_that_comes_back_is_at_a_position_of_who_brings_it_back() {
    let database = Database::empty(Cluster::shared().unwrap()).await.unwrap();
    let pool = open(&database);
    migrate(&pool).await.unwrap();
    let client = pool.client().await.unwrap();
    client
        .batch_execute(
            "INSERT INTO rooms (nid, room_id, version, creator, created_ts)
             VALUES (1, '!r:x', '11', 1, 0);
             INSERT INTO events (nid, pos, snapshot, depth, origin_ts, room, type, sender, writer,
                                 flags, event_id, prev_ids, auth_ids)
             VALUES (1, 5, 0, 1, 0, 1, 1, 1, 1, 0, '$join', '{}', '{}'),
                    (2, 9, 0, 2, 0, 1, 1, 1, 2, 0, '$late', '{}', '{}'),
                    (3, 0, 0, 2, 0, 1, 1, 1, 3, 1, '$outlier', '{}', '{}');
             INSERT INTO memberships (user_nid, room, membership, is_local, sender, event, pos)
             VALUES (1, 1, 'j', true, 1, 1, 9);
             INSERT INTO membership_history (user_nid, room, pos, membership, event)
             VALUES (1, 1, 5, 'j', 1), (1, 1, 9, 'j', 1);",
        )
        .await
        .unwrap();
    let (user, all) = (UserNid(1), Position(i64::MAX));
    let now = sync::list_memberships(&pool, &[user]).await.unwrap();
    let now: Vec<_> = now.iter().map(|row| (row.pos, row.writer)).collect();
    assert_eq!(now, [(Position(9), Some(WriterId(2)))]);
    let steps = sync::list_membership_changes(&pool, user, Position(0), all).await.unwrap();
    let steps: Vec<_> = steps.iter().map(|step| (step.pos, step.writer)).collect();
    assert_eq!(steps, [(Position(5), WriterId(1)), (Position(9), WriterId(2))]);
}
