//! Where events stand in the graph, read for many rooms with one query.
//!
//! A transaction of another server has events of up to fifty rooms, each of which asks for a few
//! ids at about the same time. While as many queries run as may run at a time, what others ask for
//! is gathered, and becomes the next query. Nobody waits for anything else than that: a reader who
//! is alone reads at once.

use std::{collections::HashMap, sync::Arc};

use chatd_base::{Result, tasks};
use chatd_storage::{
    Pool,
    graph::{self, Place},
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

/// What is known of the events that somebody names, by id.
pub(crate) type Places = HashMap<String, Place>;

/// Queries at a time.
const AT_ONCE: usize = 2;
/// Ids that are gathered at most (R8); who comes when there are so many reads alone.
const MOST_IDS: usize = 5_000;

/// Reads the places of events.
pub(crate) struct PlaceReader {
    pool: Pool,
    turns: Arc<Semaphore>,
    open: Arc<Mutex<Option<Gathered>>>,
}

/// The next query, as long as it has not begun.
struct Gathered {
    ids: Vec<String>,
    /// `None` until it has ended; closed if it has failed.
    answer: watch::Receiver<Option<Arc<Places>>>,
}

impl PlaceReader {
    pub(crate) fn new(pool: &Pool) -> Self {
        Self { pool: pool.clone(), turns: Arc::new(Semaphore::new(AT_ONCE)), open: Arc::default() }
    }

    /// Those of the events that are known, by id, as the tables have it at some time after this was
    /// called.
    pub(crate) async fn list(&self, ids: &[&str]) -> Result<Places> {
        if ids.is_empty() {
            return Ok(Places::new());
        }
        if let Ok(_turn) = self.turns.try_acquire() {
            return self.list_alone(ids).await;
        }
        let Some(mut answer) = self.gather(ids) else { return self.list_alone(ids).await };
        let found = match answer.wait_for(Option::is_some).await {
            Ok(found) => found.clone(),
            // Each is told of its own failure.
            Err(_) => None,
        };
        let Some(found) = found else { return self.list_alone(ids).await };
        let of = |id: &&str| found.get(*id).map(|place| ((*id).to_owned(), place.clone()));
        Ok(ids.iter().filter_map(of).collect())
    }

    async fn list_alone(&self, ids: &[&str]) -> Result<Places> {
        Ok(graph::list_places(&self.pool, ids).await?)
    }

    /// Adds `ids` to the next query; `None` if it has too many.
    fn gather(&self, ids: &[&str]) -> Option<watch::Receiver<Option<Arc<Places>>>> {
        let owned = ids.iter().map(|id| (*id).to_owned());
        let mut open = self.open.lock();
        if let Some(gathered) = open.as_mut() {
            if gathered.ids.len() + ids.len() > MOST_IDS {
                return None;
            }
            gathered.ids.extend(owned);
            return Some(gathered.answer.clone());
        }
        let (told, answer) = watch::channel(None);
        *open = Some(Gathered { ids: owned.collect(), answer: answer.clone() });
        self.read_next(told);
        Some(answer)
    }

    /// Reads what has been gathered when it is its turn. Not part of any request, since that may
    /// end before those that wait with it.
    fn read_next(&self, told: watch::Sender<Option<Arc<Places>>>) {
        let (pool, turns, open) = (self.pool.clone(), self.turns.clone(), self.open.clone());
        tasks::spawn("places", async move {
            let turn = turns.acquire().await;
            let gathered = open.lock().take();
            let (Ok(_turn), Some(Gathered { mut ids, .. })) = (turn, gathered) else { return };
            ids.sort_unstable();
            ids.dedup();
            let names: Vec<&str> = ids.iter().map(String::as_str).collect();
            match graph::list_places(&pool, &names).await {
                Ok(found) => drop(told.send_replace(Some(Arc::new(found)))),
                Err(error) => tracing::debug!(%error, "what was gathered is read singly"),
            }
        });
    }
}
