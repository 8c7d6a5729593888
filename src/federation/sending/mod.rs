//! What happens here goes to other servers: events, messages to devices, changes of device lists,
//! and what is worth telling only while it is true.
//!
//! Servers hash to sixteen shards, which are divided among the instances that send (a lease each,
//! so that one that dies is stood in for). A sender reads the events that this server has to send
//! in the order of the stream, works out to whom each goes (`routing`), and keeps a queue in memory
//! for each server that has something coming (`destination`). What it has told everybody is one
//! token in the tables, and for a server that does not answer there is a row for each room of which
//! it misses something (`catch_up`). So a sender that is killed is followed by one that begins at
//! the token: nothing is lost, and what is sent again has the same ids.

mod bodies;
mod catch_up;
mod delivery;
mod destination;
mod devices;
mod ephemeral;
mod inbox;
mod part;
mod routing;
mod shards;
mod spread;
mod transaction;

use std::{sync::Arc, time::Duration};

use chatd_base::{Error, Result};
use chatd_storage::Pool;
use chatd_streams::Streams;
use ruma_common::ServerName;

use self::{
    bodies::Bodies,
    inbox::{Inboxes, attach},
    part::Part,
};
use crate::Deps;

/// How long a sender that has failed waits before it begins again.
const PAUSE: Duration = Duration::from_secs(1);
/// The same if another instance sends to its servers: one of the two is mistaken.
const LONG_PAUSE: Duration = Duration::from_secs(5);

/// Sends to other servers, if it is this instance's task.
pub struct Sending {
    deps: Deps,
    inboxes: Arc<Inboxes>,
    bodies: Bodies,
}

impl Sending {
    /// Sees every stream from now on.
    pub(crate) fn new(deps: &Deps) -> Arc<Self> {
        let inboxes: Arc<Inboxes> = Arc::default();
        attach(&inboxes, &deps.users.deps.streams);
        let told = inboxes.clone();
        deps.servers.back_off.on_life(move |server| {
            told.tell(|news| match server {
                Some(server) => drop(news.alive.insert(server.to_owned())),
                None => news.alive_missed = true,
            });
        });
        let bodies = Bodies::new(&deps.users.deps.pool);
        Arc::new(Self { deps: deps.clone(), inboxes, bodies })
    }

    /// Does the part of the task that is called `name`, one of `parts`, until it is dropped.
    pub async fn run(self: Arc<Self>, name: String, parts: Vec<String>) {
        let mine = shards::shards_of(&name, &parts);
        if mine.is_empty() {
            return std::future::pending().await;
        }
        let clock = &self.deps.users.deps.clock;
        loop {
            let ended: Result<()> = async {
                let mut part = Part::open(&self, &mine).await?;
                tracing::info!(task = name, "sending to other servers");
                part.run().await
            }
            .await;
            let Err(error) = ended else { return };
            let is_taken = is_fenced(&error);
            tracing::warn!(task = name, %error, now_ms = clock.now_ms(), "a sender begins again");
            tokio::time::sleep(if is_taken { LONG_PAUSE } else { PAUSE }).await;
        }
    }

    fn pool(&self) -> &Pool {
        &self.deps.users.deps.pool
    }

    fn streams(&self) -> &Streams {
        &self.deps.users.deps.streams
    }

    fn own_name(&self) -> &ServerName {
        &self.deps.config.server_name
    }

    fn now_ms(&self) -> u64 {
        self.deps.users.deps.clock.now_ms()
    }
}

/// Whether another instance has taken over.
fn is_fenced(error: &Error) -> bool {
    let Error::Internal(cause) = error else { return false };
    cause.downcast_ref::<chatd_storage::Error>().is_some_and(chatd_storage::Error::is_fenced)
}
