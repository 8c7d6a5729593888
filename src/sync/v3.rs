//! The answer of `/v3/sync`, written as bytes: events are spliced in as they are stored.
//! <https://spec.matrix.org/latest/client-server-api/#get_matrixclientv3sync>

use std::{collections::BTreeMap, sync::Arc};

use chatd_base::RoomNid;
use chatd_rooms::{
    client_event::{self, Extras, Viewer},
    federation_event::FederationParts,
};
use chatd_storage::{events::StoredEvent, sync::SummaryRow};
use chatd_streams::{Raw, RoomToken};
use chatd_users::keys::KeyCounts;
use serde::Serialize;

use crate::{
    account::{self, Global},
    ephemeral,
    filter::keep_fields,
    json::{self, Object},
    people::{self, People},
    plan::{Asker, Plan, RoomPlan, Section},
    state::States,
    summary,
    timeline::{Timeline, Timelines},
    token::SyncToken,
    unread::Counts,
};

/// Everything that an answer says.
#[derive(Debug)]
pub struct Parts {
    pub asker: Asker,
    /// The client's next token.
    pub next: SyncToken,
    pub plan: Plan,
    pub timelines: Timelines,
    pub summaries: BTreeMap<RoomNid, Arc<SummaryRow>>,
    pub states: States,
    /// What the events have in the federation format, if the client wants that.
    pub federation: FederationParts,
    pub global: Global,
    /// Stripped state that was read from the tables: JSON arrays.
    pub previews: BTreeMap<RoomNid, String>,
    pub people: People,
    pub to_device: Vec<Raw>,
    pub keys: Arc<KeyCounts>,
}

#[derive(Serialize)]
struct UnreadCounts {
    highlight_count: i64,
    notification_count: i64,
}

impl From<Counts> for UnreadCounts {
    fn from(counts: Counts) -> Self {
        Self { highlight_count: counts.highlights, notification_count: counts.notifications }
    }
}

impl Parts {
    /// Whether there is nothing that a waiting client should be told.
    pub fn is_empty(&self) -> bool {
        self.global.is_empty()
            && self.plan.previews.is_empty()
            && self.people.changed.is_empty()
            && self.people.left.is_empty()
            && self.people.presence.is_empty()
            && self.to_device.is_empty()
            && !self.plan.rooms.values().any(|room| self.is_told(room))
    }

    /// Whether the room is part of the answer.
    fn is_told(&self, room: &RoomPlan) -> bool {
        let timeline = self.timelines.by_room.get(&room.room);
        let has_events = timeline.is_some_and(|t| !t.events.is_empty() || t.limited);
        let has_state = self.states.get(&room.room).is_some_and(|state| !state.is_empty());
        let is_wanted_whole = room.section == Section::Join
            && (room.is_new || room.is_completed || self.asker.full_state);
        // An invite that was declined to another server: the room has nothing to show for it.
        let has_gone = room.section == Section::Leave && !room.is_new;
        has_events
            || has_state
            || is_wanted_whole
            || has_gone
            || !room.account_data.is_empty()
            || !ephemeral::is_empty(room, &self.asker)
    }

    /// The body of the answer.
    pub fn write(&self, viewer: &Viewer<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        let mut body = Object::begin(&mut out);
        body.value("next_batch", &self.next.to_string());
        if !self.global.is_empty() {
            body.events("account_data", &self.global, |out, (kind, content)| {
                account::write(out, kind, content);
            });
        }
        if !self.people.presence.is_empty() {
            body.events("presence", &self.people.presence, |out, presence| {
                people::write_presence(out, presence, viewer.now_ms);
            });
        }
        if !self.to_device.is_empty() {
            body.events("to_device", &self.to_device, |out, message| {
                out.extend_from_slice(message.get().as_bytes());
            });
        }
        if !self.people.changed.is_empty() || !self.people.left.is_empty() {
            let mut lists = body.object("device_lists");
            lists.value("changed", &self.people.changed);
            lists.value("left", &self.people.left);
            lists.end();
        }
        body.value("device_one_time_keys_count", &self.keys.one_time);
        body.value("device_unused_fallback_key_types", &self.keys.unused_fallback);
        body.value(
            "org.matrix.msc2732.device_unused_fallback_key_types",
            &self.keys.unused_fallback,
        );
        self.write_rooms(&mut body, viewer);
        body.end();
        out
    }

    fn write_rooms(&self, body: &mut Object<'_>, viewer: &Viewer<'_>) {
        let of = |section: Section| {
            let rooms = self.plan.rooms.values();
            rooms.filter(move |room| room.section == section && self.is_told(room)).peekable()
        };
        let (mut joined, mut left) = (of(Section::Join), of(Section::Leave));
        let has_previews = !self.plan.previews.is_empty();
        if joined.peek().is_none() && left.peek().is_none() && !has_previews {
            return;
        }
        let mut rooms = body.object("rooms");
        if joined.peek().is_some() {
            let mut section = rooms.object("join");
            for room in joined {
                self.write_joined(section.member(room.room_id.as_str()), room, viewer);
            }
            section.end();
        }
        if left.peek().is_some() {
            let mut section = rooms.object("leave");
            for room in left {
                self.write_left(section.member(room.room_id.as_str()), room, viewer);
            }
            section.end();
        }
        self.write_previews(&mut rooms, "invite", "invite_state", false);
        self.write_previews(&mut rooms, "knock", "knock_state", true);
        rooms.end();
    }

    fn write_joined(&self, out: &mut Vec<u8>, room: &RoomPlan, viewer: &Viewer<'_>) {
        let mut object = Object::begin(out);
        self.write_events(&mut object, room, viewer);
        object.events("account_data", &room.account_data, |out, (kind, content)| {
            account::write(out, kind, content);
        });
        ephemeral::write(&mut object, room, &self.asker);
        match self.summaries.get(&room.room) {
            Some(summary) => summary::write(&mut object, summary, &self.asker),
            None => object.raw("summary", "{}"),
        }
        let (main, threads) = &room.unread;
        if self.asker.filter.room.timeline.unread_thread_notifications {
            object.value("unread_notifications", &UnreadCounts::from(*main));
            if !threads.is_empty() {
                let threads: BTreeMap<&String, UnreadCounts> =
                    threads.iter().map(|(root, counts)| (root, (*counts).into())).collect();
                object.value("unread_thread_notifications", &threads);
            }
        } else {
            let all = threads.values().fold(*main, |sum, one| Counts {
                notifications: sum.notifications + one.notifications,
                highlights: sum.highlights + one.highlights,
            });
            object.value("unread_notifications", &UnreadCounts::from(all));
        }
        object.end();
    }

    fn write_left(&self, out: &mut Vec<u8>, room: &RoomPlan, viewer: &Viewer<'_>) {
        let mut object = Object::begin(out);
        self.write_events(&mut object, room, viewer);
        object.events("account_data", &room.account_data, |out, (kind, content)| {
            account::write(out, kind, content);
        });
        object.end();
    }

    /// The members `timeline`, and `state` or `state_after`.
    fn write_events(&self, object: &mut Object<'_>, room: &RoomPlan, viewer: &Viewer<'_>) {
        let nothing = Timeline::nothing(room);
        let timeline = self.timelines.by_room.get(&room.room).unwrap_or(&nothing);
        let mut part = object.object("timeline");
        json::array(part.member("events"), &timeline.events, |out, shown| {
            let membership = Some(shown.membership);
            let extras = self.timelines.bundles.extras(&shown.event, membership);
            self.write_event(out, &shown.event, viewer, &extras);
        });
        part.value("limited", &timeline.limited);
        part.value("prev_batch", &RoomToken::at(timeline.start).to_string());
        part.end();
        let name = self.asker.state_after.unwrap_or("state");
        let state = self.states.get(&room.room).into_iter().flatten();
        object.events(name, state, |out, event| {
            self.write_event(out, event, viewer, &Extras::default());
        });
    }

    /// Appends an event in the format and with the members that the client wants.
    fn write_event(
        &self,
        out: &mut Vec<u8>,
        event: &StoredEvent,
        viewer: &Viewer<'_>,
        extras: &Extras<'_>,
    ) {
        let in_federation_format = self.federation.to_json(event, viewer, extras);
        match (&self.asker.filter.event_fields, in_federation_format) {
            (None, None) => client_event::write(out, event, viewer, extras),
            (None, Some(event)) => out.extend(event),
            (Some(fields), format) => {
                let all = format.unwrap_or_else(|| client_event::to_json(event, viewer, extras));
                out.extend(keep_fields(&all, fields));
            }
        }
    }

    fn write_previews(&self, rooms: &mut Object<'_>, name: &str, inner: &str, knocks: bool) {
        let mut previews =
            self.plan.previews.iter().filter(|preview| preview.is_knock == knocks).peekable();
        if previews.peek().is_none() {
            return;
        }
        let mut section = rooms.object(name);
        for preview in previews {
            let mut room = section.object(preview.room_id.as_str());
            let mut state = room.object(inner);
            match (&preview.stripped, self.previews.get(&preview.room)) {
                (Some(events), _) => {
                    json::array(state.member("events"), events.iter(), |out, e| {
                        out.extend_from_slice(e.get().as_bytes());
                    })
                }
                (None, stored) => state.raw("events", stored.map_or("[]", String::as_str)),
            }
            state.end();
            room.end();
        }
        section.end();
    }
}
