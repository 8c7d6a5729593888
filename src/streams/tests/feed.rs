//! What a feed does with frames that come over the bus.

use std::{collections::BTreeSet, sync::Arc};

use chatd_base::{Position, UserNid, WriterId};
use parking_lot::Mutex;
use serde_json::value::to_raw_value;

use crate::{
    Feed, Frame, Key, Picky, StreamToken,
    bus::{Encode, LocalBus},
    to_device::{ToDevice, ToDeviceRow},
};

const WRITER: WriterId = WriterId(1);

/// Wants what concerns one user, and notes everything that it is told.
struct Only {
    user: UserNid,
    told: Mutex<Vec<String>>,
}

impl Picky for Only {
    fn wants(&self, keys: &BTreeSet<Key>) -> bool {
        keys.contains(&Key::User(self.user))
    }

    fn pass(&self, _: WriterId, upto: Position, keys: &BTreeSet<Key>) {
        self.told.lock().push(format!("passed {upto} {keys:?}"));
    }
}

/// A feed with a view that wants what concerns user 1.
fn feed() -> (Arc<Feed<ToDevice>>, Arc<Only>) {
    let feed = Feed::new(Arc::new(LocalBus), &[]);
    let only = Arc::new(Only { user: UserNid(1), told: Mutex::default() });
    let (saw, forgot) = (only.clone(), only.clone());
    feed.on_wanted_rows(only.clone(), move |frame| {
        saw.told.lock().push(format!("saw {}", frame.position));
    });
    feed.on_skipped(move |_, upto| forgot.told.lock().push(format!("forgot {upto}")));
    (feed, only)
}

/// A frame with a message for each of `users`, which follows the one before it.
fn frame(number: i64, users: &[i32]) -> Frame<ToDevice> {
    let row = |user: &i32| ToDeviceRow {
        user: UserNid(*user),
        device_id: "D".into(),
        message: to_raw_value("").unwrap().into(),
        server: None,
    };
    let (previous, position) = (Position(number * 10 - 10), Position(number * 10));
    let rows = users.iter().map(|user| (position, row(user))).collect();
    Frame { writer: WRITER, previous, position, rows }
}

fn take(feed: &Feed<ToDevice>, frame: &Frame<ToDevice>) {
    feed.take(&frame.head(), &frame.rows()).unwrap();
}

#[test]
fn rows_that_nobody_wants_pass_unread() {
    let (feed, only) = feed();
    take(&feed, &frame(1, &[1, 2]));
    let unread = frame(2, &[2]);
    feed.take(&unread.head(), b"not read at all").unwrap();
    take(&feed, &frame(3, &[]));
    assert_eq!(feed.position_of(WRITER), Position(30));
    let passed = format!("passed 20 {:?}", BTreeSet::from([Key::User(UserNid(2))]));
    assert_eq!(*only.told.lock(), ["saw 10", &passed, "saw 30"]);
}

#[test]
fn a_gap_before_rows_that_pass_is_a_gap() {
    let (feed, only) = feed();
    take(&feed, &frame(1, &[1]));
    take(&feed, &frame(4, &[2]));
    assert_eq!(feed.position_of(WRITER), Position(40));
    assert_eq!(only.told.lock()[1], "forgot 30");
}

#[test]
fn what_was_seen_is_not_read_again() {
    let (feed, only) = feed();
    take(&feed, &frame(1, &[1]));
    feed.take(&frame(1, &[1]).head(), b"not read at all").unwrap();
    assert_eq!(only.told.lock().len(), 1);
}

#[test]
fn a_view_that_sees_every_row_sees_those_too() {
    let (feed, only) = feed();
    feed.on_rows(|_| {});
    take(&feed, &frame(1, &[2]));
    assert_eq!(*only.told.lock(), ["saw 10"]);
    assert!(feed.take(&frame(2, &[2]).head(), b"no rows").is_err());
    assert_eq!(feed.position_of(WRITER), Position(10));
}

#[tokio::test]
async fn folds_are_told_before_the_token_moves_and_can_wait_for_it() {
    let (feed, _) = feed();
    let token = Arc::new(Mutex::new(None));
    let (told, saw) = (token.clone(), Arc::downgrade(&feed));
    feed.on_rows(move |frame| {
        let now = saw.upgrade().unwrap().token();
        assert!(!now.covers(frame.writer, frame.position));
        *told.lock() = Some(now.raised(frame.writer, frame.position));
    });
    take(&feed, &frame(1, &[1]));
    let token = token.lock().take().unwrap();
    assert!(feed.wait_for(&token, std::time::Duration::from_secs(10)).await);
}

/// Tokens that do not name a writer have passed its place, if it has written nothing there.
#[test]
fn a_writer_that_is_heard_of_late_moves_no_token_back() {
    for hear in [
        |feed: &Feed<ToDevice>| feed.skip(WriterId(2), Position(20)),
        |feed: &Feed<ToDevice>| {
            let (writer, at) = (WriterId(2), Position(20));
            let rows = Arc::new([]);
            let frame = Frame::<ToDevice> { writer, previous: at, position: at, rows };
            feed.take(&frame.head(), &frame.rows()).unwrap();
        },
    ] {
        let (feed, _) = feed();
        take(&feed, &frame(5, &[1]));
        let before = feed.token();
        hear(&feed);
        assert!(feed.token().is_at_least(&before), "{} after {before}", feed.token());
        let first = Frame { writer: WriterId(2), previous: Position(20), ..frame(6, &[1]) };
        take(&feed, &first);
        assert_eq!(feed.token().to_string(), "m50~2.60");
    }
}

#[test]
fn who_writes_no_more_is_in_no_token() {
    let (feed, _) = feed();
    let gone = Arc::new(Mutex::new(Vec::new()));
    let told = gone.clone();
    feed.on_retired(move |writer| told.lock().push(writer));
    take(&feed, &frame(5, &[1]));
    take(&feed, &Frame { writer: WriterId(2), ..frame(2, &[1]) });
    assert_eq!(feed.token().to_string(), "m20~1.50");
    feed.retire(WriterId(2), Position(10));
    assert_eq!(*gone.lock(), [], "it has come back");
    feed.retire(WriterId(2), Position(30));
    assert_eq!((feed.token(), &*gone.lock()), (StreamToken::at(Position(50)), &vec![WriterId(2)]));
}

/// What the tables have is known here at the latest after a moment, and is not told twice.
#[tokio::test]
async fn what_does_not_come_is_read_from_the_tables() {
    let (feed, only) = feed();
    take(&feed, &frame(1, &[1]));
    take(&feed, &Frame { writer: WriterId(2), ..frame(1, &[1]) });
    let told = |text: &str| text.parse::<StreamToken>().unwrap();
    only.told.lock().clear();
    feed.reach_all(&told("m0~1.10~2.10")).await;
    assert_eq!(*only.told.lock(), [""; 0], "all that is known already");

    let both = told("m0~1.20~2.40");
    tokio::join!(feed.reach_all(&both), async { take(&feed, &frame(2, &[1])) });
    assert_eq!(*only.told.lock(), ["saw 20", "forgot 40"], "only what has not come");
    assert!(feed.token().is_at_least(&both), "{}", feed.token());

    take(&feed, &frame(3, &[1]));
    take(&feed, &frame(4, &[1]));
    feed.retire(WriterId(2), Position(40));
    only.told.lock().clear();
    feed.reach_all(&told("m0~1.40~2.40")).await;
    assert_eq!((feed.token(), only.told.lock().len()), (StreamToken::at(Position(40)), 0));
}
