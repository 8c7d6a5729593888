//! This server as one that is in a room, for others whose users want to come in, to knock, or to
//! leave: it makes events for them to sign, takes these in, and tells of the room. And as the server
//! of a user whom others invite.
//!
//! All of it runs at the owner of the room.

mod invite;

use chatd_base::{Refusal, Result};
use chatd_rooms::{JoinAnswer, Route, Template, Verdict};
use chatd_servers::Unsound;
use chatd_streams::{Raw, events::Membership};
use ruma_common::{CanonicalJsonObject, EventId, RoomId, RoomVersionId, ServerName, UserId};

use crate::{Deps, event::Member};

pub use invite::Invited;

/// Answers servers that are not in a room.
pub struct Resident {
    deps: Deps,
}

/// A join that has been let in.
#[derive(Debug)]
pub struct LetIn {
    /// The event with all signatures.
    pub event: CanonicalJsonObject,
    pub answer: JoinAnswer,
}

/// A membership event that another server has finished.
pub struct Finished<'a> {
    pub origin: &'a ServerName,
    pub room_id: &'a RoomId,
    pub event_id: &'a EventId,
    pub event: CanonicalJsonObject,
}

impl Resident {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self { deps: deps.clone() }
    }

    /// An event for `user` to sign. `versions`: those that its server knows, where it says so.
    pub async fn make(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        user: &UserId,
        membership: Membership,
        versions: Option<&[String]>,
    ) -> Result<Template> {
        if user.server_name() != origin {
            return Err(Refusal::forbidden(format!("{user} is not a user of {origin}")).into());
        }
        let version = self.admit(origin, room_id).await?;
        if let Some(versions) = versions
            && !versions.iter().any(|known| known == version.as_str())
        {
            return Err(incompatible(&version).into());
        }
        if membership == Membership::Knock && !allows_knocks(&version) {
            return Err(Refusal::forbidden("nobody can knock at rooms of this version").into());
        }
        self.deps.rooms.member_template(user, membership, room_id).await
    }

    /// Takes a join in.
    pub async fn join(&self, finished: Finished<'_>, omits_members: bool) -> Result<LetIn> {
        let (room_id, event_id) = (finished.room_id, finished.event_id);
        let event = self.take(finished, Membership::Join).await?;
        let answer = self.deps.rooms.join_answer(room_id, event_id, omits_members).await?;
        Ok(LetIn { event, answer })
    }

    /// Takes a leave in.
    pub async fn leave(&self, finished: Finished<'_>) -> Result<()> {
        self.take(finished, Membership::Leave).await.map(drop)
    }

    /// Takes a knock in; what the one who knocks is shown of the room.
    pub async fn knock(&self, finished: Finished<'_>) -> Result<Vec<Raw>> {
        let room_id = finished.room_id;
        self.take(finished, Membership::Knock).await?;
        self.deps.rooms.shown_of(room_id).await
    }

    /// The version of a room in which somebody here is, and which lets `origin` take part.
    async fn admit(&self, origin: &ServerName, room_id: &RoomId) -> Result<RoomVersionId> {
        let rooms = &self.deps.rooms;
        match rooms.owner.door(room_id, origin).await {
            Ok(door) if !door.admits => Err(kept_out()),
            Ok(door) if door.is_joined => {
                rooms.whole_for_server(room_id).await?;
                rooms.version(room_id).await
            }
            Err(error) if error.errcode() != Some("M_FORBIDDEN") => Err(error),
            _ => Err(Refusal::not_found(format!("nobody here is in {room_id}")).into()),
        }
    }

    /// Makes a membership event part of its room.
    async fn take(
        &self,
        finished: Finished<'_>,
        membership: Membership,
    ) -> Result<CanonicalJsonObject> {
        let Finished { origin, room_id, event_id, event } = finished;
        let version = self.admit(origin, room_id).await?;
        let member = Member::read(&event, &version, room_id)?;
        member.check_own(origin, membership)?;
        if member.event_id != event_id {
            return Err(Refusal::invalid_param("the event has another id than the path").into());
        }
        let event = match member.authoriser.filter(|_| membership == Membership::Join) {
            Some(authoriser) => {
                self.vouch(&authoriser, &member.user, room_id, &version, event).await?
            }
            None => event,
        };
        let event = self.check(event, &version).await?;
        let owner = &self.deps.rooms.owner;
        let received = owner.receive_as(room_id, event.clone(), Route::Forwarded).await?;
        match received.verdict {
            Verdict::Accepted => Ok(event),
            Verdict::Known if owner.is_accepted(room_id, event_id).await? => Ok(event),
            Verdict::Known => Err(Refusal::forbidden("the room has not allowed it before").into()),
            Verdict::SoftFailed(why) | Verdict::Rejected(why) => {
                Err(Refusal::forbidden(why).into())
            }
            Verdict::Missing(_) => {
                Err(Refusal::invalid_param("the event refers to events that are not known").into())
            }
        }
    }

    /// Signs a join of a restricted room, if this server is the one that the join names, and would
    /// let the user in.
    async fn vouch(
        &self,
        authoriser: &UserId,
        user: &UserId,
        room_id: &RoomId,
        version: &RoomVersionId,
        mut event: CanonicalJsonObject,
    ) -> Result<CanonicalJsonObject> {
        let rooms = &self.deps.rooms;
        if authoriser.server_name() != self.deps.config.server_name {
            return Err(
                Refusal::unknown(format!("{authoriser} is not a user of this server")).into()
            );
        }
        rooms.check_join_rule(user, room_id).await?;
        rooms.countersign(version, &mut event)?;
        Ok(event)
    }

    /// Checks signatures and hash.
    async fn check(
        &self,
        event: CanonicalJsonObject,
        version: &RoomVersionId,
    ) -> Result<CanonicalJsonObject> {
        let rules = version.rules().ok_or_else(|| incompatible(version))?;
        let keyring = &self.deps.servers.keyring;
        let checked = keyring.check_events(vec![event.clone()], &rules).await?.pop();
        match checked {
            Some(Ok(same)) if same.get("content") == event.get("content") => Ok(event),
            Some(Ok(_)) => Err(Refusal::bad_json("the content hash of the event is wrong").into()),
            Some(Err(Unsound::Forged(why) | Unsound::NoKey(why))) => {
                Err(Refusal::forbidden(why).into())
            }
            None => Err(chatd_base::Error::internal("an event was checked without an outcome")),
        }
    }
}

/// The room is of a version that the other server does not know.
fn incompatible(version: &RoomVersionId) -> Refusal {
    let message = format!("the room has the version {version}");
    Refusal::new(400, "M_INCOMPATIBLE_ROOM_VERSION", message).with("room_version", version.as_str())
}

/// The room's access control list names the server.
fn kept_out() -> chatd_base::Error {
    Refusal::forbidden("the room keeps this server out").into()
}

fn allows_knocks(version: &RoomVersionId) -> bool {
    version.rules().is_some_and(|rules| rules.authorization.knocking)
}
