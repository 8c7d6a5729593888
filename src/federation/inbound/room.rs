//! Events of one room, at its owner: what may come in at all, what is known, who has signed it, and
//! where it goes.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use chatd_base::{Error, Refusal, Result};
use chatd_rooms::{Door, Outline, Received, Verdict};
use chatd_servers::Unsound;
use chatd_storage::inbound::{self, Staged};
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, RoomId, ServerName};
use serde_json::{Value, value::RawValue};

use super::{Inbound, Outcome};

/// How long what comes for a room waits for somebody who is on the way into it.
const PATIENCE: Duration = Duration::from_secs(4);
/// Events that may wait in a room, and those of them that one server may have sent (R8). What is
/// refused comes again as a predecessor of later ones.
const MOST_WAITING: i64 = 1_000;
const MOST_OF_ONE: i64 = 250;

/// An event, and what it says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    pub(crate) outline: Outline,
    pub(crate) json: CanonicalJsonObject,
}

/// An event whose signatures are right, or the id of one and why they are not.
pub(super) type Checked = Result<Pdu, (OwnedEventId, Unsound)>;

impl Pdu {
    pub(crate) fn id(&self) -> &OwnedEventId {
        &self.outline.event_id
    }

    /// Refuses what has not the form of an event of the room.
    pub(crate) fn parse(text: &str, door: &Door, room_id: &RoomId) -> Result<Self> {
        let json: CanonicalJsonObject = serde_json::from_str(text)
            .map_err(|error| Refusal::bad_json(format!("not canonical JSON: {error}")))?;
        let outline = Outline::of(json.clone(), &door.rules, room_id)?;
        Ok(Self { outline, json })
    }
}

impl Inbound {
    /// Takes in events of a room that this instance owns. On return those without an error are
    /// durable; those that refer to missing events wait for them.
    pub(super) async fn take_room(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        events: &[Box<RawValue>],
    ) -> Result<BTreeMap<String, Value>> {
        let mut results = BTreeMap::new();
        let Some((door, is_near)) = self.door(origin, room_id).await? else { return Ok(results) };
        let mut pdus = Vec::with_capacity(events.len());
        for event in events {
            match Pdu::parse(event.get(), &door, room_id) {
                Ok(pdu) => pdus.push(pdu),
                Err(Error::Refused(why)) => {
                    self.0.meters.became("malformed");
                    tracing::info!(server.name = %origin, room.id = %room_id, %why, "not an event");
                    if let Some(id) = claimed_id(event) {
                        results.insert(id, Outcome::refused(&why.message));
                    }
                }
                Err(error) => return Err(error),
            }
        }
        if is_near {
            let pdus = self.signed(origin, room_id, &door, pdus, &mut results).await?;
            self.stage(origin, room_id, pdus, &mut results).await?;
            return Ok(results);
        }
        if let Some(why) = closed(&door) {
            for pdu in pdus {
                self.refuse(origin, room_id, pdu.id(), ("closed", why), &mut results);
            }
            return Ok(results);
        }
        let pdus = self.without_known(room_id, pdus, &mut results).await?;
        let pdus = self.signed(origin, room_id, &door, pdus, &mut results).await?;
        let waiting = match door.is_partial {
            true => pdus,
            false => self.place(origin, room_id, pdus, &mut results).await?,
        };
        self.stage(origin, room_id, waiting, &mut results).await?;
        Ok(results)
    }

    /// The room as `origin` finds it; `None` if it is not known. Waits a moment for somebody who is
    /// on the way into it, and says whether they still are: then what happens there is kept for
    /// them, since who is told to come again may leave this server alone for long.
    async fn door(&self, origin: &ServerName, room_id: &RoomId) -> Result<Option<(Door, bool)>> {
        let owner = &self.0.rooms.owner;
        // First this: they may be there when the room is looked at.
        let expected = owner.expected(room_id);
        let look = async || match self.0.rooms.owner.door(room_id, origin).await {
            Ok(door) => Ok(Some(door)),
            Err(Error::Refused(why)) if is_unknown(&why) => Ok(None),
            Err(error) => Err(error),
        };
        let found = look().await?;
        let is_in = |door: &Option<Door>| door.as_ref().is_some_and(|door| door.is_joined);
        let Some(rules) = expected.filter(|_| !is_in(&found)) else {
            return Ok(found.map(|door| (door, false)));
        };
        let is_over = owner.has_waited_for(room_id, PATIENCE).await;
        let found = look().await?;
        if is_over || is_in(&found) {
            return Ok(found.map(|door| (door, false)));
        }
        let door =
            Door { rules, is_joined: false, is_partial: false, admits: true, heads: Vec::new() };
        Ok(Some((door, true)))
    }

    /// Events that are here already cost no more than this.
    async fn without_known(
        &self,
        room_id: &RoomId,
        mut pdus: Vec<Pdu>,
        results: &mut BTreeMap<String, Value>,
    ) -> Result<Vec<Pdu>> {
        let ids: Vec<OwnedEventId> = pdus.iter().map(|pdu| pdu.id().clone()).collect();
        let placed = self.0.rooms.owner.list_placed(room_id, &ids).await?;
        let mut seen: HashSet<OwnedEventId> = placed.into_iter().collect();
        pdus.retain(|pdu| {
            let is_new = seen.insert(pdu.id().clone());
            if !is_new {
                self.0.meters.became("known");
                results.insert(pdu.id().to_string(), Outcome::taken());
            }
            is_new
        });
        Ok(pdus)
    }

    /// Those whose signatures are right; redacted where the content has been changed.
    async fn signed(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        door: &Door,
        pdus: Vec<Pdu>,
        results: &mut BTreeMap<String, Value>,
    ) -> Result<Vec<Pdu>> {
        let mut sound = Vec::with_capacity(pdus.len());
        for checked in self.checked(door, pdus).await? {
            match checked {
                Ok(pdu) => sound.push(pdu),
                Err((id, why)) => {
                    let why = why.to_string();
                    self.refuse(origin, room_id, &id, ("unsigned", &why), results);
                }
            }
        }
        Ok(sound)
    }

    /// What the signatures of each event come to. Fails if this server cannot tell, whatever is in
    /// them.
    pub(super) async fn checked(&self, door: &Door, pdus: Vec<Pdu>) -> Result<Vec<Checked>> {
        let (outlines, events): (Vec<Outline>, Vec<CanonicalJsonObject>) =
            pdus.into_iter().map(|pdu| (pdu.outline, pdu.json)).unzip();
        let checked = self.0.servers.keyring.check_events(events, &door.rules).await?;
        let both = outlines.into_iter().zip(checked);
        Ok(both
            .map(|(outline, checked)| match checked {
                Ok(json) => Ok(Pdu { outline, json }),
                Err(why) => Err((outline.event_id, why)),
            })
            .collect())
    }

    /// Gives events their place; returns those that have to wait for others.
    async fn place(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        pdus: Vec<Pdu>,
        results: &mut BTreeMap<String, Value>,
    ) -> Result<Vec<Pdu>> {
        if pdus.is_empty() {
            return Ok(pdus);
        }
        let events = pdus.iter().map(|pdu| pdu.json.clone()).collect();
        let received = self.0.rooms.owner.receive_all(room_id, events).await?;
        let mut waiting = Vec::new();
        for (pdu, received) in pdus.into_iter().zip(received) {
            match received {
                Ok(Received { verdict: Verdict::Missing(_), .. }) => waiting.push(pdu),
                Ok(received) => {
                    self.tell(room_id, &pdu, &received);
                    results.insert(pdu.id().to_string(), Outcome::taken());
                }
                Err(why) => {
                    let why = ("malformed", why.message.as_str());
                    self.refuse(origin, room_id, pdu.id(), why, results);
                }
            }
        }
        Ok(waiting)
    }

    /// Notes what has become of an event. Its sender is not told that it was rejected: other
    /// servers do not tell either.
    pub(super) fn tell(&self, room_id: &RoomId, pdu: &Pdu, received: &Received) {
        let (result, why) = match &received.verdict {
            Verdict::Accepted => ("accepted", None),
            Verdict::SoftFailed(why) => ("soft_failed", Some(why)),
            Verdict::Rejected(why) => ("rejected", Some(why)),
            Verdict::Known => ("known", None),
            Verdict::Missing(_) => ("missing", None),
        };
        self.0.meters.became(result);
        if let Some(why) = why {
            let id = pdu.id();
            tracing::info!(room.id = %room_id, event.id = %id, why, "an event is not allowed: {result}");
        }
        if let Some(CanonicalJsonValue::Integer(ts)) = pdu.json.get("origin_server_ts") {
            let age_ms = self.now_ms().saturating_sub(i64::from(*ts)).max(0);
            self.0.meters.age.record(std::time::Duration::from_millis(age_ms.unsigned_abs()));
        }
    }

    /// Keeps events until what they refer to is here.
    async fn stage(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        waiting: Vec<Pdu>,
        results: &mut BTreeMap<String, Value>,
    ) -> Result<()> {
        if waiting.is_empty() {
            return Ok(());
        }
        let (pool, room) = (&self.0.pool, room_id.as_str());
        let (all, of_one) = inbound::count(pool, room, origin.as_str()).await?;
        if all >= MOST_WAITING || of_one >= MOST_OF_ONE {
            for pdu in waiting {
                let why = ("too_many", "too many events of the room wait for others");
                self.refuse(origin, room_id, pdu.id(), why, results);
            }
            return Ok(());
        }
        let added_ts = self.now_ms();
        let mut staged = Vec::with_capacity(waiting.len());
        for pdu in waiting {
            results.insert(pdu.id().to_string(), Outcome::taken());
            self.0.meters.became("waiting");
            staged.push(Staged {
                id: 0,
                event_id: pdu.id().to_string(),
                origin: origin.to_string(),
                added_ts,
                event: serde_json::to_string(&pdu.json).map_err(Error::internal)?,
            });
        }
        inbound::stage(pool, room, staged).await?;
        self.kick(room_id.to_owned());
        Ok(())
    }

    fn refuse(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        id: &OwnedEventId,
        (result, why): (&'static str, &str),
        results: &mut BTreeMap<String, Value>,
    ) {
        self.0.meters.became(result);
        tracing::info!(
            server.name = %origin, room.id = %room_id, event.id = %id, why, "an event is refused"
        );
        results.insert(id.to_string(), Outcome::refused(why));
    }
}

/// Whether a refusal says that the room is not known, and not that it is another instance's.
pub(super) fn is_unknown(why: &Refusal) -> bool {
    why.status < 500 && why.errcode != Refusal::NOT_OWNER
}

/// Why nothing of that server comes in.
fn closed(door: &Door) -> Option<&'static str> {
    match (door.is_joined, door.admits) {
        (false, _) => Some("this server is not in the room"),
        (_, false) => Some("the room keeps your server out"),
        _ => None,
    }
}

/// The id that something which is no event has in old room versions.
fn claimed_id(event: &RawValue) -> Option<String> {
    let event: Value = serde_json::from_str(event.get()).ok()?;
    let id = event.get("event_id")?.as_str()?;
    (id.len() <= 255 && id.starts_with('$')).then(|| id.to_owned())
}
