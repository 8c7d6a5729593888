//! What other servers tell of their users.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use chatd_base::{Result, UserNid, tasks};
use chatd_config::PresenceMode;
use chatd_storage::{presence, remote_edus};
use chatd_streams::{
    Feed, StreamToken,
    presence::{Presence as PresenceStream, PresenceRow, PresenceState},
};
use futures::future::{join_all, try_join_all};
use ruma_common::OwnedUserId;

use super::{MAX_STATUS_BYTES, MAX_USERS, Presence};

/// After which pauses presence of those whom nobody here meets is looked at again, and how many of
/// such messages may wait for that (R8).
const UNSEEN_AGAIN: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(20)];
pub(super) const MAX_UNSEEN: usize = 256;

/// What another server says of one of its users.
#[derive(Clone, Debug)]
pub struct RemotePresence {
    pub user_id: OwnedUserId,
    pub state: PresenceState,
    pub status_msg: Option<String>,
    pub currently_active: bool,
    pub last_active_ts: i64,
}

/// What is put aside, in the order in which it came: of a user only the last of it counts.
#[derive(Default)]
pub(super) struct Aside {
    count: u64,
    newest: HashMap<OwnedUserId, u64>,
}

impl Aside {
    /// Puts it aside; under which number.
    fn put(&mut self, told: &[RemotePresence]) -> u64 {
        self.count += 1;
        self.newest.extend(told.iter().map(|told| (told.user_id.clone(), self.count)));
        self.count
    }

    /// Leaves out those of whom something newer has been put aside.
    fn keep_newest(&self, told: &mut Vec<RemotePresence>, number: u64) {
        told.retain(|told| self.newest.get(&told.user_id) == Some(&number));
    }

    /// It is not looked at any more.
    fn end(&mut self, number: u64) {
        self.newest.retain(|_, newest| *newest != number);
    }
}

impl Presence {
    /// Takes in presence of users of other servers. Those who share no room with anybody here are
    /// passed over, unless they do a moment later: who lets somebody in may tell who is there
    /// before this server knows that somebody is in.
    pub async fn set_remote(&self, told: Vec<RemotePresence>) -> Result<()> {
        if self.mode() != PresenceMode::Enabled {
            return Ok(());
        }
        let unseen = self.set_seen(told).await?;
        if unseen.is_empty() {
            return Ok(());
        }
        if let Ok(place) = self.0.unseen.clone().try_acquire_owned() {
            let presence = self.clone();
            let number = self.0.aside.lock().put(&unseen);
            let heard_at = self.0.deps.streams.presence.token();
            tasks::spawn("unseen_presence", async move {
                let _place = place;
                if let Err(error) = presence.look_again(unseen, (number, heard_at)).await {
                    tracing::info!(%error, "presence of other servers is lost");
                }
                presence.0.aside.lock().end(number);
            });
        }
        Ok(())
    }

    /// Looks again at what was put aside as `number`, at `heard_at`.
    async fn look_again(
        &self,
        mut unseen: Vec<RemotePresence>,
        (number, heard_at): (u64, StreamToken),
    ) -> Result<()> {
        for pause in UNSEEN_AGAIN {
            if unseen.is_empty() || !self.0.deps.stop.sleep(pause).await {
                break;
            }
            self.0.aside.lock().keep_newest(&mut unseen, number);
            unseen = self.set_unseen(unseen, &heard_at).await?;
        }
        Ok(())
    }

    /// Takes in what was put aside at `heard_at`, but for those of whom something newer has come;
    /// returns what nobody here meets even now.
    async fn set_unseen(
        &self,
        mut unseen: Vec<RemotePresence>,
        heard_at: &StreamToken,
    ) -> Result<Vec<RemotePresence>> {
        let names: Vec<&str> = unseen.iter().map(|told| told.user_id.as_str()).collect();
        let users = self.0.deps.interner.known_users(&names).await?;
        let known: Vec<UserNid> = users.iter().copied().flatten().collect();
        let stored = presence::list(&self.0.deps.pool, &known).await?;
        let newer: BTreeSet<UserNid> = stored
            .into_iter()
            .filter(|stored| stored.pos > heard_at.max())
            .map(|stored| stored.user)
            .collect();
        let mut users = users.into_iter();
        unseen.retain(|_| !users.next().flatten().is_some_and(|user| newer.contains(&user)));
        self.set_seen(unseen).await
    }

    /// Takes in those who share a room with somebody here; returns the others.
    async fn set_seen(&self, told: Vec<RemotePresence>) -> Result<Vec<RemotePresence>> {
        let names: Vec<&str> = told.iter().map(|told| told.user_id.as_str()).collect();
        let seen = remote_edus::list_seen(&self.0.deps.pool, &names).await?;
        let seen: HashMap<&str, UserNid> =
            seen.iter().map(|(user, name)| (name.as_str(), *user)).collect();
        let rows = told.iter().filter_map(|told| {
            Some(PresenceRow {
                user: *seen.get(told.user_id.as_str())?,
                user_id: told.user_id.clone(),
                state: told.state,
                status_msg: told.status_msg.clone().filter(|s| s.len() <= MAX_STATUS_BYTES),
                currently_active: told.currently_active,
                last_active_ts: told.last_active_ts,
            })
        });
        try_join_all(rows.map(|row| self.0.writer.append(row))).await?;
        let names: BTreeSet<String> = seen.into_keys().map(str::to_owned).collect();
        Ok(told.into_iter().filter(|told| !names.contains(told.user_id.as_str())).collect())
    }

    /// Follows what other servers tell, through whichever instance it has come.
    pub(super) fn follow_others(&self, feed: &Arc<Feed<PresenceStream>>) {
        let presence = Arc::downgrade(&self.0);
        feed.on_rows(move |frame| {
            let Some(inner) = presence.upgrade() else { return };
            let own = &inner.deps.config.server_name;
            let (now_ms, mut state) = (inner.deps.clock.now_ms(), inner.state.lock());
            for (_, row) in frame.rows.iter().filter(|(_, row)| row.user_id.server_name() != own) {
                state.heard.note(row, now_ms, MAX_USERS);
            }
        });
    }

    /// Shows those as offline of whom nothing has been heard for too long.
    pub(super) async fn end_silent(&self) -> Result<()> {
        let silent = self.0.state.lock().heard.take_silent(self.now_ms());
        let written = silent.iter().map(|row| self.0.writer.append(row.clone()));
        let failed = join_all(written).await.into_iter().zip(&silent);
        let failed: Vec<_> = failed.filter_map(|(done, row)| Some((done.err()?, row))).collect();
        let mut state = self.0.state.lock();
        let mut outcome = Ok(());
        for (error, row) in failed {
            // They are looked at again when as much time has passed.
            let again = PresenceRow { state: PresenceState::Unavailable, ..row.clone() };
            state.heard.note(&again, self.now_ms(), MAX_USERS);
            outcome = Err(error);
        }
        outcome
    }
}
