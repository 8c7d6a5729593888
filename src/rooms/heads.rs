//! A room does not keep more than a few newest events: when branches pile up, an event of this
//! server that says nothing joins them. Every local event follows all that are left, so that its
//! predecessors stay below what the format allows.

use std::sync::Arc;

use chatd_base::{Refusal, Result};
use ruma_common::{OwnedUserId, RoomId};
use ruma_state_res::auth_types_for_event;
use serde_json::{Map, value::to_raw_value};

use crate::{
    arrival::Arrival,
    live::{Head, Live},
    owner::{RoomOwner, Slot, UNSETTLED, away, lock},
    place::Scene,
    receive::{One, current},
    seal::{self, Draft, Reference, Unsealed},
};

/// Newest events that a room may have before some of them are joined.
pub(crate) const MOST_HEADS: usize = 10;
/// Predecessors of one event (spec: event format).
const MOST_PREV: usize = 20;
/// Newest events that are kept if nobody here may join them (R8): the deepest.
const MOST_LOOSE_HEADS: usize = 100;
/// How often what joins them is made anew because the memory of its room was thrown away.
const ATTEMPTS: usize = 16;
/// What says nothing.
const DUMMY: &str = "org.matrix.dummy_event";

impl RoomOwner {
    /// Joins the newest events of the room until there are few.
    pub(crate) async fn merge_heads(&self, room_id: &RoomId) -> Result<()> {
        let mut in_vain = 0;
        while in_vain < ATTEMPTS {
            let (slot, alone) = {
                let slot = self.slot(room_id).await?;
                if lock(&slot).lock().heads.len() <= MOST_HEADS {
                    return Ok(());
                }
                self.alone(room_id).await?
            };
            let before = lock(&slot).lock().heads.len();
            let arrival = match self.dummy(&slot).await {
                Ok(Some(arrival)) => arrival,
                Ok(None) => return Ok(()),
                Err(chatd_base::Error::Refused(refusal)) => {
                    drop_oldest(&mut lock(&slot).lock(), &refusal);
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let places = self.places_of(&slot, &[&arrival], &[]).await?;
            let one = One { arrival: &arrival, places: &places, before: None };
            let joined = self.receive_one(&slot, alone, one).await?;
            if joined.is_none() {
                in_vain += 1;
                continue;
            }
            let mut live = lock(&slot).lock();
            if live.heads.len() >= before {
                let why = Refusal::forbidden("the room does not allow it");
                drop_oldest(&mut live, &why);
                return Ok(());
            }
        }
        Err(away(UNSETTLED).into())
    }

    /// The event that joins the deepest of the newest events; `None` if there is nobody here who
    /// could send it.
    pub(crate) async fn dummy(&self, slot: &Slot) -> Result<Option<Arrival>> {
        let (heads, sender, rules, room, room_id, current) = {
            let live = lock(slot).lock();
            let Some(sender) = strongest(&live) else { return Ok(None) };
            let (heads, rules) = (deepest(&live, MOST_PREV), live.rules.clone());
            (heads, sender, rules, live.room, live.room_id.clone(), current(&live))
        };
        let draft = Draft::message(sender, DUMMY, Map::new());
        self.load_members(slot, &draft).await?;
        let nobody = Arc::new(crate::pdu::Pdu::nobody(&draft, &room_id)?);
        let place = (room, room_id.clone());
        let mut scene = Scene::new(self, place, rules.clone(), &nobody, Vec::new(), current);
        let after: Vec<_> = heads.iter().map(|head| (head.snapshot, None)).collect();
        let states = scene.states_after(&after).await?;
        let before = scene.merge(states).await?;
        let content = to_raw_value(&draft.content).map_err(chatd_base::Error::internal)?;
        let kind = nobody.kind.clone();
        let types =
            auth_types_for_event(&kind, &draft.sender, None, &content, &rules.authorization)
                .map_err(Refusal::bad_json)?;
        let deciding = scene.deciding(&nobody, &before.state).await?;
        let auth: Vec<Reference> = types
            .iter()
            .filter_map(|(kind, key)| deciding.get(&(kind.to_string(), key.clone())))
            .map(|pdu| Reference { event_id: pdu.event_id.clone(), hash: pdu.hash.clone() })
            .collect();
        let prev: Vec<Reference> = heads
            .iter()
            .map(|head| Reference { event_id: head.event_id.clone(), hash: head.hash.clone() })
            .collect();
        let depth = heads.iter().map(|head| head.depth).max().unwrap_or_default() + 1;
        let unsealed = Unsealed {
            draft: &draft,
            room_id: Some(&room_id),
            origin_ts: self.now_ms(),
            depth: depth.min(chatd_base::json::MAX_INTEGER),
            prev_events: &prev,
            auth_events: &auth,
        };
        let sealed = seal::seal(&self.signer, &rules, &unsealed)?;
        Ok(Some(Arrival::own(&unsealed, sealed)))
    }
}

/// The local user who can do most.
fn strongest(live: &Live) -> Option<OwnedUserId> {
    let powers = live.powers();
    let users = live.members.iter().map(|member| &member.user_id);
    users.max_by_key(|user| powers.of_user(user)).cloned()
}

fn deepest(live: &Live, most: usize) -> Vec<Head> {
    let mut heads = live.heads.clone();
    heads.sort_by_key(|head| std::cmp::Reverse((head.depth, head.nid)));
    heads.truncate(most);
    heads
}

/// Nobody here may join them: those that are furthest behind are left alone. They stay in the
/// room; what follows them makes them count again.
fn drop_oldest(live: &mut Live, why: &Refusal) {
    if live.heads.len() > MOST_LOOSE_HEADS {
        let room = &live.room_id;
        let count = live.heads.len();
        tracing::warn!(room.id = %room, count, %why, "a room has too many forward extremities");
        live.heads = deepest(live, MOST_LOOSE_HEADS);
    }
}
