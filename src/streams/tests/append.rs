//! Changes that another instance writes: known here on return, and made once, however often the
//! answers are lost.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bytes::Bytes;
use chatd_base::{CallError, Calls, Result, Stop, UserNid};
use chatd_config::StreamName;
use chatd_kit::Database;
use chatd_storage::{Pool, account_data as table};
use serde_json::value::RawValue;

use super::{Deaf, database};
use crate::{
    Colleagues, Streams, Writer,
    account_data::{AccountData, AccountDataRow},
    device_lists::{DeviceLists, KeyChange},
};

/// A fleet in this process, in which the first answers get lost.
struct Fleet {
    calls: Vec<(&'static str, Arc<Calls>)>,
    next: AtomicU32,
    lost: AtomicU32,
    asked: AtomicU32,
}

impl Colleagues for Fleet {
    /// Each time another one.
    fn writer_of(&self, _: StreamName) -> Option<String> {
        let next = self.next.fetch_add(1, Ordering::SeqCst) as usize;
        Some(self.calls[next % self.calls.len()].0.to_owned())
    }

    fn call<'a>(
        &'a self,
        instance: &'a str,
        name: &'a str,
        body: Bytes,
    ) -> Pin<Box<dyn Future<Output = Result<Bytes, CallError>> + Send + 'a>> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let calls = &self.calls.iter().find(|(known, _)| *known == instance).unwrap().1;
            let answer = calls.answer(name, body).await.map(Bytes::from);
            let is_lost = |left: u32| left.checked_sub(1);
            if self.lost.fetch_update(Ordering::SeqCst, Ordering::SeqCst, is_lost).is_ok() {
                return Err(CallError::Lost("the connection was cut".to_owned()));
            }
            answer.map_err(|error| match error {
                chatd_base::Error::Refused(refusal) => CallError::Refused(*refusal),
                error @ chatd_base::Error::Internal(_) => CallError::Lost(error.to_string()),
            })
        })
    }
}

struct Instance {
    streams: Arc<Streams>,
    writer: Writer<AccountData>,
}

async fn start(pool: &Pool, name: &str, written: &[StreamName]) -> Instance {
    let stop = Stop::new();
    let written = written.iter().copied().collect();
    let streams = Streams::open(pool, Arc::new(Deaf), name, &written, &stop).await.unwrap();
    let writer = Writer::open(&streams, &streams.account_data, pool, &stop);
    Instance { streams: Arc::new(streams), writer }
}

/// One instance that asks two others, of which both may write.
async fn fleet(lost: u32) -> (Database, Pool, Instance, Arc<Fleet>) {
    let (database, pool) = database().await;
    let mut calls = Vec::new();
    for name in ["b", "c"] {
        let instance = start(&pool, name, &[StreamName::AccountData]).await;
        calls.push((name, instance.streams.calls.clone()));
    }
    let a = start(&pool, "a", &[]).await;
    let (next, lost, asked) = (AtomicU32::new(0), AtomicU32::new(lost), AtomicU32::new(0));
    let fleet = Arc::new(Fleet { calls, next, lost, asked });
    a.streams.others.join(fleet.clone());
    (database, pool, a, fleet)
}

fn row(content: &str) -> AccountDataRow {
    let content = RawValue::from_string(content.to_owned()).unwrap();
    AccountDataRow { user: UserNid(7), room: None, kind: "m.x".to_owned(), content: content.into() }
}

#[tokio::test]
async fn a_change_is_written_by_a_writer_and_known_here() {
    let (_database, pool, a, fleet) = fleet(0).await;
    a.writer.append(row("{\"a\":1}")).await.unwrap();
    let stored = table::get(&pool, UserNid(7), chatd_base::RoomNid(0), "m.x").await.unwrap();
    assert_eq!(stored.as_deref(), Some("{\"a\":1}"));
    assert_eq!(fleet.asked.load(Ordering::SeqCst), 1);
    let written = a.streams.account_data.token().max();
    assert!(written.0 > 0, "the bus has lost the row, and it is known all the same");
    assert_eq!(a.streams.account_data.position_of(a.streams.writer.writer).0, 0);
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_change() {
    let (database, _pool, a, fleet) = fleet(3).await;
    a.writer.append(row("{\"a\":1}")).await.unwrap();
    assert_eq!(fleet.asked.load(Ordering::SeqCst), 4);
    let admin = database.connect().await.unwrap();
    let one = "SELECT e.writer = p.writer AND e.position = p.position
               FROM effects e, stream_positions p WHERE p.stream = 4 AND p.position > 0";
    let effects = admin.query(one, &[]).await.unwrap();
    assert_eq!(effects.len(), 1, "one effect, and one writer that has written");
    assert!(effects[0].get::<_, bool>(0));
    assert_eq!(a.streams.account_data.token().max(), {
        let position: i64 =
            admin.query_one("SELECT position FROM effects", &[]).await.unwrap().get(0);
        chatd_base::Position(position)
    });
}

#[tokio::test]
async fn changes_that_cannot_travel_fail() {
    let (_database, pool, a, fleet) = fleet(0).await;
    let lists = &a.streams.device_lists;
    let writer: Writer<DeviceLists> = Writer::open_here(&a.streams, lists, &pool, &Stop::new());
    let change = KeyChange { rows: Vec::new(), statements: Box::new(|_| ()) };
    let error = writer.append(change).await.unwrap_err();
    assert!(error.to_string().contains("device_lists is written by another instance"), "{error}");
    assert_eq!(fleet.asked.load(Ordering::SeqCst), 0);
}
