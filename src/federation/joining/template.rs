//! Events that another server begins and this one finishes: it takes from the other the event's
//! place in the room, and nothing that it would not say itself.

use chatd_base::{Refusal, Result};
use chatd_servers::{Ask, Body, Failure};
use chatd_streams::events::Membership;
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, RoomVersionId, ServerName,
    UserId,
};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Joining;
use crate::{event::Member, uri};

/// Room versions that this server knows.
pub(crate) const VERSIONS: std::ops::RangeInclusive<u8> = 1..=12;

/// A finished event.
#[derive(Clone, Debug)]
pub(super) struct Made {
    pub version: RoomVersionId,
    pub event_id: OwnedEventId,
    pub event: CanonicalJsonObject,
}

/// What a user wants to become in a room.
#[derive(Clone, Debug)]
pub(super) struct Wish<'a> {
    pub user: &'a UserId,
    pub room_id: &'a RoomId,
    pub membership: Membership,
    /// Content of the event beside the membership.
    pub content: Map<String, Value>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    room_version: Option<String>,
    event: CanonicalJsonObject,
}

impl Joining {
    /// Has `server` begin the event, and finishes it.
    pub(super) async fn make(&self, server: &ServerName, wish: &Wish<'_>) -> Result<Made, Failure> {
        let what = wish.membership.as_str();
        let mut target =
            uri!("/_matrix/federation/v1/make_{}/{}/{}", what, wish.room_id, wish.user);
        if wish.membership != Membership::Leave {
            let versions: Vec<String> = VERSIONS.map(|number| format!("ver={number}")).collect();
            target = format!("{target}?{}", versions.join("&"));
        }
        let answer = self.deps.servers.client.ask_json::<Answer>(server, Ask::get(target)).await?;
        self.finish(server, wish, answer).map_err(|error| {
            Failure::Odd(format!("{server} has begun an event that cannot be used: {error}"))
        })
    }

    fn finish(&self, server: &ServerName, wish: &Wish<'_>, answer: Answer) -> Result<Made> {
        let version = answer.room_version.unwrap_or_else(|| "1".to_owned());
        let known = VERSIONS.map(|number| number.to_string()).any(|known| known == version);
        let version = RoomVersionId::try_from(version.as_str()).ok().filter(|_| known);
        let version = version.ok_or_else(|| {
            Refusal::unsupported_room_version("the room has a version that is not known here")
        })?;
        let mut begun = answer.event;
        let mut content = wish.content.clone();
        content.insert("membership".to_owned(), wish.membership.as_str().into());
        let vouches = "join_authorised_via_users_server";
        let of_begun = begun.get("content").and_then(CanonicalJsonValue::as_object);
        if let Some(authoriser) = of_begun.and_then(|content| content.get(vouches)?.as_str()) {
            content.insert(vouches.to_owned(), authoriser.into());
        }
        let content = CanonicalJsonValue::try_from(Value::Object(content));
        let content = content.map_err(|error| Refusal::bad_json(error.to_string()))?;
        let mut event = CanonicalJsonObject::new();
        for name in ["auth_events", "prev_events", "depth"] {
            let value = begun.remove(name);
            let value = value.ok_or_else(|| Refusal::bad_json(format!("`{name}` is missing")))?;
            event.insert(name.to_owned(), value);
        }
        let now = i64::try_from(self.deps.users.deps.clock.now_ms()).unwrap_or(i64::MAX);
        let now = CanonicalJsonValue::try_from(Value::from(now));
        let now = now.map_err(|error| Refusal::bad_json(error.to_string()))?;
        event.insert("content".to_owned(), content);
        event.insert("origin_server_ts".to_owned(), now);
        event.insert("room_id".to_owned(), wish.room_id.as_str().into());
        event.insert("sender".to_owned(), wish.user.as_str().into());
        event.insert("state_key".to_owned(), wish.user.as_str().into());
        event.insert("type".to_owned(), "m.room.member".into());
        self.deps.rooms.finish(&version, &mut event)?;
        let member = Member::read(&event, &version, wish.room_id)?;
        tracing::debug!(server = %server, event.id = %member.event_id, "an event was begun elsewhere");
        Ok(Made { version, event_id: member.event_id, event })
    }

    /// Sends a finished event to the server that has begun it; its answer as it comes. `versions`: of the
    /// endpoint, the newest first; the first one puts a status in front of the answer.
    pub(super) async fn send(
        &self,
        server: &ServerName,
        wish: &Wish<'_>,
        made: &Made,
        versions: &[&str],
        shape: impl Fn(Ask) -> Ask,
    ) -> Result<Body, Failure> {
        let body = serde_json::to_vec(&made.event)
            .map_err(|error| Failure::Odd(format!("an event cannot be written: {error}")))?;
        let body = bytes::Bytes::from(body);
        let what = wish.membership.as_str();
        let mut last = Failure::Odd("there is no way to send it".to_owned());
        for version in versions {
            let target = uri!(
                "/_matrix/federation/{}/send_{}/{}/{}",
                version,
                what,
                wish.room_id,
                &made.event_id
            );
            let ask = shape(Ask::put(target).json(body.clone()));
            match self.deps.servers.client.ask_stream(server, ask).await {
                Err(failure) if is_unknown(&failure) => last = failure,
                done => return done,
            }
        }
        Err(last)
    }
}

/// Whether the server does not know that endpoint, or not in that version.
pub(super) fn is_unknown(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused { status: 400 | 404 | 405, errcode, .. }
        if errcode == "M_UNRECOGNIZED" || errcode.is_empty())
}
