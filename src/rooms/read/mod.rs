//! What users read of rooms, each through their [`Lens`]: timelines, state, relations, the
//! directory. Nothing here writes events.

mod directory;
mod moments;
mod relations;
mod state;
mod summary;
mod timeline;

use std::sync::Arc;

use chatd_base::{Position, Result, RoomNid, UserNid};
use chatd_storage::{
    Pool,
    events::{self, Location},
    notices::{Heard, Notice},
};
use chatd_streams::{StreamToken, Streams};
use chatd_users::{Users, ignored};
use ruma_common::RoomId;

use crate::{
    bundle,
    client_event::{self, Bundles, Viewer},
    lenses::Lenses,
    visibility::{Lens, Reach},
    whole::Wholes,
};

pub use chatd_storage::events::{End, StoredEvent};
pub use chatd_streams::RoomToken;
pub use directory::{Listing, ListingPage, ListingQuery};
pub use moments::{Moment, NearestEvent, Toward, nearest_of_all};
pub use relations::{RECURSION_DEPTH, RelationsPage, RelationsQuery, ThreadsPage};
pub use state::{MembersQuery, Profile, State};
pub use summary::{Child, Memberships, SpaceRoom, Summary, Visitor, in_order};
pub use timeline::{Context, Messages, MessagesQuery};

/// Reads rooms. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    pool: Pool,
    streams: Arc<Streams>,
    users: Arc<Users>,
    listings: Arc<directory::Listings>,
    lenses: Arc<Lenses>,
    wholes: Arc<Wholes>,
}

impl Reader {
    pub fn new(users: &Arc<Users>, wholes: &Arc<Wholes>) -> Self {
        let deps = &users.deps;
        let listings: Arc<directory::Listings> = Arc::default();
        let lenses = Arc::new(Lenses::new());
        let (seen, looked) = (listings.clone(), lenses.clone());
        deps.streams.events.on_common_rows(move |frame| {
            for (_, row) in frame.rows.iter() {
                seen.see(row);
                looked.see(row);
            }
        });
        let (seen, looked) = (listings.clone(), lenses.clone());
        deps.notices.on_heard(move |heard| match heard {
            Heard::Notice(Notice::Directory) => seen.change(),
            Heard::Notice(Notice::Forgotten { user, room_id }) => {
                if let Ok(room) = <&RoomId>::try_from(room_id.as_str()) {
                    looked.forget(room, Some(*user));
                }
            }
            Heard::Notice(Notice::History { room_id }) => {
                if let Ok(room) = <&RoomId>::try_from(room_id.as_str()) {
                    looked.forget(room, None);
                }
            }
            Heard::Notice(_) => {}
            Heard::Missed => {
                seen.change();
                looked.clear();
            }
        });
        let (seen, looked) = (listings.clone(), lenses.clone());
        deps.streams.events.on_skipped(move |_, _| {
            seen.change();
            looked.clear();
        });
        Self {
            pool: deps.pool.clone(),
            streams: deps.streams.clone(),
            users: users.clone(),
            listings,
            lenses,
            wholes: wholes.clone(),
        }
    }

    /// The furthest position of a room event that this instance knows to be complete.
    fn now(&self) -> Position {
        self.streams.events.token().max()
    }

    /// Where `token` is in the room's timeline. No query if no writer was ahead of another.
    async fn locate(&self, room: RoomNid, token: &StreamToken) -> Result<Location> {
        if token.ahead.is_empty() {
            return Ok(Location { low: token.min, high: token.min });
        }
        Ok(events::locate(&self.pool, room, token.min, &token.ahead).await?)
    }

    /// As [`Reader::locate`], if there is a token.
    async fn locate_if(
        &self,
        room: RoomNid,
        token: Option<&RoomToken>,
    ) -> Result<Option<Location>> {
        match token {
            Some(token) => Ok(Some(self.locate(room, &token.stream()).await?)),
            None => Ok(None),
        }
    }

    /// How the user sees the room; refuses rooms that this server does not know.
    async fn lens(&self, user: UserNid, room: &RoomId) -> Result<Arc<Lens>> {
        self.lenses.get(&self.pool, user, room).await
    }

    /// Something about the user and the room has changed that is no event: the user has
    /// forgotten it.
    pub(crate) fn look_again(&self, user: UserNid, room: &RoomId) {
        self.lenses.forget(room, Some(user));
    }

    /// Whether the user may ask for the room.
    pub async fn admits(&self, user: UserNid, room: &RoomId) -> Result<bool> {
        Ok(self.lens(user, room).await?.reach().is_ok())
    }

    /// Events of the room have been fetched that are from before this server was in it.
    pub fn look_further_back(&self, room: &RoomId) {
        self.lenses.forget(room, None);
    }

    /// The lens of a user who may ask for the room, and up to where; refuses others.
    async fn admitted(
        &self,
        user: UserNid,
        room: &RoomId,
    ) -> Result<(Arc<Lens>, Option<Position>)> {
        let lens = self.lens(user, room).await?;
        let until = match lens.reach()? {
            Reach::Now => None,
            Reach::Until(position) => Some(position),
        };
        Ok((lens, until))
    }

    /// Leaves out what comes from users whom `user` ignores; state stays.
    async fn drop_ignored(&self, user: UserNid, events: &mut Vec<Arc<StoredEvent>>) -> Result<()> {
        let ignored: ignored::List = self.users.ignored.of(user).await?;
        if !ignored.is_empty() {
            events.retain(|event| event.state_key.is_some() || !ignored.contains(&event.sender));
        }
        Ok(())
    }

    /// `events` with everything that is told together with them.
    async fn shown(&self, lens: Arc<Lens>, events: Vec<Arc<StoredEvent>>) -> Result<Shown> {
        let bundles = bundle::load(&self.pool, lens.user(), &events).await?;
        Ok(Shown { lens, events, bundles })
    }
}

/// Events as one user sees them, ready to be written.
#[derive(Debug)]
pub struct Shown {
    pub lens: Arc<Lens>,
    pub events: Vec<Arc<StoredEvent>>,
    pub bundles: Bundles,
}

impl Shown {
    /// Appends one of the events, or another of the same room that came with them.
    pub fn write(&self, out: &mut Vec<u8>, event: &StoredEvent, viewer: &Viewer<'_>) {
        let membership = Some(self.lens.membership_at(event));
        client_event::write(out, event, viewer, &self.bundles.extras(event, membership));
    }

    /// Appends `events` as an array.
    pub fn write_all(&self, out: &mut Vec<u8>, events: &[Arc<StoredEvent>], viewer: &Viewer<'_>) {
        client_event::write_array(out, events.iter().map(|event| &**event), |out, event| {
            self.write(out, event, viewer);
        });
    }
}
