//! Other servers' users come into rooms here, knock, and leave; and users here are invited. Each runs
//! at the owner of the room.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use chatd_config::RouterName;
use chatd_federation::{
    Membership,
    resident::{Finished, Invited, LetIn},
};
use chatd_http::{Auth, Home, Reply, Request, Routes, federation_v1, federation_v2};
use ruma_common::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedRoomId, OwnedUserId, RoomVersionId,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use crate::App;

pub fn routes() -> Routes<App> {
    let room = || Home::Room("roomId");
    let sent = |what: &str| format!("/send_{what}/{{roomId}}/{{eventId}}");
    Routes::of(RouterName::FederationQuery)
        .get(federation_v1("/make_join/{roomId}/{userId}"), Auth::Server, make_join)
        .home(room())
        .get(federation_v1("/make_leave/{roomId}/{userId}"), Auth::Server, make_leave)
        .home(room())
        .get(federation_v1("/make_knock/{roomId}/{userId}"), Auth::Server, make_knock)
        .home(room())
        .put(federation_v1(&sent("join")), Auth::Server, send_join_v1)
        .home(room())
        .put(federation_v2(&sent("join")), Auth::Server, send_join)
        .home(room())
        .put(federation_v1(&sent("leave")), Auth::Server, send_leave_v1)
        .home(room())
        .put(federation_v2(&sent("leave")), Auth::Server, send_leave)
        .home(room())
        .put(federation_v1(&sent("knock")), Auth::Server, send_knock)
        .home(room())
        .put(federation_v1("/invite/{roomId}/{eventId}"), Auth::Server, invite_v1)
        .home(room())
        .put(federation_v2("/invite/{roomId}/{eventId}"), Auth::Server, invite)
        .home(room())
}

#[derive(Deserialize)]
struct Versions {
    #[serde(default)]
    ver: Vec<String>,
}

async fn make(
    app: &App,
    req: &Request,
    membership: Membership,
    versions: Option<&[String]>,
) -> Result<Reply> {
    let room_id: OwnedRoomId = req.arg_as("roomId")?;
    let user: OwnedUserId = req.arg_as("userId")?;
    let resident = &app.federation.resident;
    let mut made = resident.make(req.origin()?, &room_id, &user, membership, versions).await?;
    // Of the template, not of the event: whoever signs it puts itself there, or nobody.
    let us = app.federation.deps.config.server_name.as_str();
    made.event.insert("origin".to_owned(), us.into());
    Reply::json(&json!({ "room_version": made.version, "event": made.event }))
}

/// Versions that the other server knows; one that says nothing knows only the first.
fn versions(req: &Request) -> Result<Vec<String>> {
    let Versions { ver } = req.query()?;
    Ok(if ver.is_empty() { vec!["1".to_owned()] } else { ver })
}

async fn make_join(app: Arc<App>, req: Request) -> Result<Reply> {
    make(&app, &req, Membership::Join, Some(&versions(&req)?)).await
}

async fn make_leave(app: Arc<App>, req: Request) -> Result<Reply> {
    make(&app, &req, Membership::Leave, None).await
}

async fn make_knock(app: Arc<App>, req: Request) -> Result<Reply> {
    make(&app, &req, Membership::Knock, Some(&versions(&req)?)).await
}

/// The arguments of the endpoints that take an event in.
struct Sent {
    room_id: OwnedRoomId,
    event_id: OwnedEventId,
    event: CanonicalJsonObject,
}

impl Sent {
    fn of(req: &Request) -> Result<Self> {
        Ok(Self {
            room_id: req.arg_as("roomId")?,
            event_id: req.arg_as("eventId")?,
            event: req.json()?,
        })
    }

    fn finished<'a>(&'a self, req: &'a Request) -> Result<Finished<'a>> {
        Ok(Finished {
            origin: req.origin()?,
            room_id: &self.room_id,
            event_id: &self.event_id,
            event: self.event.clone(),
        })
    }
}

#[derive(Deserialize)]
struct Omits {
    #[serde(default)]
    omit_members: bool,
}

async fn send_join(app: Arc<App>, req: Request) -> Result<Reply> {
    let Omits { omit_members } = req.query()?;
    let let_in = let_in(&app, &req, omit_members).await?;
    Ok(Reply::raw_json(joined(&app, &let_in, omit_members)?))
}

async fn send_join_v1(app: Arc<App>, req: Request) -> Result<Reply> {
    let let_in = let_in(&app, &req, false).await?;
    let mut out = b"[200,".to_vec();
    out.extend(joined(&app, &let_in, false)?);
    out.push(b']');
    Ok(Reply::raw_json(out))
}

async fn let_in(app: &App, req: &Request, omits_members: bool) -> Result<LetIn> {
    let sent = Sent::of(req)?;
    app.federation.resident.join(sent.finished(req)?, omits_members).await
}

/// The answer to a join. Events go in as they are stored.
fn joined(app: &App, let_in: &LetIn, omits_members: bool) -> Result<Vec<u8>> {
    let LetIn { event, answer } = let_in;
    let head = json!({
        "origin": app.federation.deps.config.server_name,
        "event": event,
        "members_omitted": omits_members,
        "servers_in_room": answer.servers,
    });
    let mut out = serde_json::to_vec(&head).map_err(chatd_base::Error::internal)?;
    let bytes: usize =
        answer.state.iter().chain(&answer.auth_chain).map(|event| event.len() + 1).sum();
    out.reserve(bytes + 64);
    out.pop();
    for (name, events) in [("state", &answer.state), ("auth_chain", &answer.auth_chain)] {
        out.extend(format!(",\"{name}\":[").bytes());
        for (index, event) in events.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            out.extend(event.as_bytes());
        }
        out.push(b']');
    }
    out.push(b'}');
    Ok(out)
}

async fn leave(app: &App, req: &Request) -> Result<()> {
    let sent = Sent::of(req)?;
    app.federation.resident.leave(sent.finished(req)?).await
}

async fn send_leave(app: Arc<App>, req: Request) -> Result<Reply> {
    leave(&app, &req).await?;
    Ok(Reply::empty())
}

async fn send_leave_v1(app: Arc<App>, req: Request) -> Result<Reply> {
    leave(&app, &req).await?;
    Reply::json(&json!([200, {}]))
}

async fn send_knock(app: Arc<App>, req: Request) -> Result<Reply> {
    let sent = Sent::of(&req)?;
    let shown = app.federation.resident.knock(sent.finished(&req)?).await?;
    Reply::json(&json!({ "knock_room_state": shown }))
}

#[derive(Deserialize)]
struct Invite {
    room_version: String,
    event: CanonicalJsonObject,
    #[serde(default)]
    invite_room_state: Vec<Box<RawValue>>,
}

async fn invite(app: Arc<App>, req: Request) -> Result<Reply> {
    let Invite { room_version, event, invite_room_state } = req.json()?;
    let event = invited(&app, &req, &room_version, event, invite_room_state).await?;
    Reply::json(&json!({ "event": event }))
}

/// The first version sends the event alone, and has no place for the version of the room.
async fn invite_v1(app: Arc<App>, req: Request) -> Result<Reply> {
    let mut event: CanonicalJsonObject = req.json()?;
    let shown = match event.remove("unsigned") {
        Some(CanonicalJsonValue::Object(mut unsigned)) => unsigned.remove("invite_room_state"),
        _ => None,
    };
    let shown = match shown {
        Some(CanonicalJsonValue::Array(shown)) => shown,
        _ => Vec::new(),
    };
    let shown = shown.iter().filter_map(|event| serde_json::value::to_raw_value(event).ok());
    let event = invited(&app, &req, "1", event, shown.collect()).await?;
    Reply::json(&json!([200, { "event": event }]))
}

async fn invited(
    app: &App,
    req: &Request,
    version: &str,
    event: CanonicalJsonObject,
    shown: Vec<Box<RawValue>>,
) -> Result<CanonicalJsonObject> {
    let (room_id, event_id): (OwnedRoomId, OwnedEventId) =
        (req.arg_as("roomId")?, req.arg_as("eventId")?);
    let unknown = || {
        let message = format!("room version {version} is not known here");
        Refusal::new(400, "M_INCOMPATIBLE_ROOM_VERSION", message).with("room_version", version)
    };
    let version = RoomVersionId::try_from(version).map_err(|_| unknown())?;
    let invited = Invited {
        origin: req.origin()?,
        room_id: &room_id,
        event_id: &event_id,
        version,
        event,
        shown,
    };
    app.federation.resident.invite(invited).await
}
