//! What another server answers when no script says otherwise: from its memory of the rooms that it
//! is in, and without asking who may see what.

use std::{collections::HashSet, sync::atomic::Ordering};

use serde_json::{Map, Value, json};

use super::{Other, Pdu, Reply, Room, Seen, lock, memory::State, now_ms};

/// Most events of one answer.
const MOST: usize = 100;

impl Other {
    pub(super) async fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path().to_owned();
        let segments: Vec<&str> = path.split('/').skip(1).collect();
        match (seen.method.as_str(), &*segments) {
            ("GET", ["_matrix", "key", "v2", "server", ..]) => {
                Reply::json(&lock(&self.inner.published).document(&self.name()))
            }
            ("GET", ["_matrix", "federation", "v1", "version"]) => {
                Reply::json(&json!({"server": {"name": "the test kit", "version": "1"}}))
            }
            ("PUT", ["_matrix", "federation", "v1", "send", _]) => {
                self.take_transaction(seen).await
            }
            (_, ["_matrix", "federation", version, what, _, rest @ ..]) => {
                match self.room(&seen.segment(4)) {
                    Some(room) => self.about(&room, seen, version, what, rest.len()).await,
                    None => self.elsewhere(seen, what),
                }
            }
            _ => unknown(),
        }
    }

    async fn about(
        &self,
        room: &Room,
        seen: &Seen,
        version: &str,
        what: &str,
        more: usize,
    ) -> Reply {
        match (seen.method.as_str(), what, more) {
            ("GET", "make_join" | "make_leave" | "make_knock", 1) => {
                self.template(room, seen, what)
            }
            ("PUT", "send_join", 1) => {
                let answer = in_version(version, self.take_join(room, seen).await);
                // Nobody asks any more if the sender is gone.
                let _ = self.inner.tells.subscribe().wait_for(|tells| *tells).await;
                answer
            }
            ("PUT", "send_leave", 1) => in_version(version, self.take(room, seen, json!({})).await),
            ("PUT", "send_knock", 1) => {
                let known = json!({"knock_room_state": stripped(room)});
                Reply::json(&self.take(room, seen, known).await)
            }
            ("PUT", "invite", 1) => in_version(version, self.take_invite(seen)),
            ("GET", "state", 0) => state(room, seen, false),
            ("GET", "state_ids", 0) => state(room, seen, true),
            ("GET", "backfill", 0) => self.backfill(room, seen),
            ("POST", "get_missing_events", 0) => missing_events(room, seen),
            ("GET", "event_auth", 1) => {
                let memory = room.memory();
                Reply::json(&json!({"auth_chain": jsons(memory.auth_chain([seen.segment(5)]))}))
            }
            _ => unknown(),
        }
    }

    fn elsewhere(&self, seen: &Seen, what: &str) -> Reply {
        match what {
            "event" => self.event(&seen.segment(4)),
            "invite" => in_version(&seen.segment(2), self.take_invite(seen)),
            "query" | "user" => Reply::refused(404, "M_NOT_FOUND"),
            "make_join" | "make_leave" | "make_knock" | "state" | "state_ids" | "backfill"
            | "get_missing_events" | "event_auth" | "send_join" | "send_leave" | "send_knock" => {
                Reply::refused(404, "M_NOT_FOUND")
            }
            _ => unknown(),
        }
    }

    async fn take_transaction(&self, seen: &Seen) -> Reply {
        let mut results = Map::new();
        for event in seen.body["pdus"].as_array().into_iter().flatten() {
            let room = self.room(event["room_id"].as_str().unwrap_or_default());
            let Some(room) = room else { continue };
            let pdu = Pdu::of(event.clone(), &room.rules());
            let result = match self.check_pdu(&pdu, &room.rules()).await {
                Ok(()) => {
                    room.take(&pdu);
                    json!({})
                }
                Err(problem) => {
                    self.note_problem(problem.clone());
                    json!({"error": problem})
                }
            };
            results.insert(pdu.id, result);
        }
        Reply::json(&json!({"pdus": results}))
    }

    fn event(&self, id: &str) -> Reply {
        let rooms: Vec<Room> = lock(&self.inner.rooms).values().cloned().collect();
        match rooms.iter().find_map(|room| room.event(id)) {
            Some(pdu) => self.transaction(&[&pdu]),
            None => Reply::refused(404, "M_NOT_FOUND"),
        }
    }

    fn template(&self, room: &Room, seen: &Seen, what: &str) -> Reply {
        let versions = seen.query_all("ver");
        if what != "make_leave" && !versions.contains(&room.version()) {
            let refusal = json!({
                "errcode": "M_INCOMPATIBLE_ROOM_VERSION",
                "error": "the other server's room is of another version",
                "room_version": room.version(),
            });
            return Reply::status(400, &refusal);
        }
        let membership = what.trim_start_matches("make_");
        let mut content = json!({"membership": membership});
        let user = seen.segment(5);
        if let Some(authoriser) = self.authoriser(room, &user, membership) {
            content["join_authorised_via_users_server"] = authoriser.into();
        }
        let event = room.draft(&user, "m.room.member", content).state(&user).template();
        Reply::json(&json!({"room_version": room.version(), "event": event}))
    }

    /// Who of this server vouches for a join that the join rule does not allow by itself.
    fn authoriser(&self, room: &Room, user: &str, membership: &str) -> Option<String> {
        let rule = room.state("m.room.join_rules", "")?;
        let rule = rule.json["content"]["join_rule"].as_str().unwrap_or_default().to_owned();
        let is_restricted = rule == "restricted" || rule == "knock_restricted";
        let needs_none = ["invite", "join"].contains(&room.membership(user).as_str());
        if membership != "join" || !is_restricted || needs_none {
            return None;
        }
        let creator = room.state("m.room.create", "")?.text("sender").to_owned();
        Some(creator)
    }

    /// Takes an event that somebody has made by a template, and answers `answer`.
    async fn take(&self, room: &Room, seen: &Seen, answer: Value) -> Value {
        let pdu = Pdu::of(seen.body.clone(), &room.rules());
        match self.check_pdu(&pdu, &room.rules()).await {
            Ok(()) => room.take(&pdu),
            Err(problem) => self.note_problem(problem),
        }
        answer
    }

    async fn take_join(&self, room: &Room, seen: &Seen) -> Value {
        let rules = room.rules();
        let mut pdu = Pdu::of(seen.body.clone(), &rules);
        if pdu.json["content"]["join_authorised_via_users_server"].is_string() {
            pdu = pdu.signed_by(&rules, &self.name(), &self.key());
        }
        let omits = self.inner.omits.load(Ordering::Acquire)
            && seen.query("omit_members").as_deref() == Some("true");
        let (state, chain) = {
            let memory = room.memory();
            let mut state = memory.current().clone();
            if omits {
                state.retain(|(kind, _), _| kind != "m.room.member");
            }
            let own = pdu.references("auth_events");
            let mut chain = memory.auth_chain(state.values().chain(&own).cloned());
            if omits {
                let is_new = |pdu: &&Pdu| !chain.iter().any(|other| other.id == pdu.id);
                let own: Vec<&Pdu> =
                    own.iter().filter_map(|id| memory.get(id)).filter(is_new).collect();
                chain.extend(own);
            }
            (jsons(memory.events_of(&state)), jsons(chain))
        };
        if let Err(problem) = self.check_pdu(&pdu, &rules).await {
            self.note_problem(problem);
        }
        room.take(&pdu);
        json!({
            "origin": self.name(),
            "state": state,
            "auth_chain": chain,
            "event": pdu.json,
            "members_omitted": omits,
            "servers_in_room": room.servers(),
        })
    }

    fn take_invite(&self, seen: &Seen) -> Value {
        // The first version sends the event alone.
        let (event, version) = match seen.body.get("event") {
            Some(event) => (event, seen.body["room_version"].as_str().unwrap_or("1")),
            None => (&seen.body, "1"),
        };
        let rules = super::rules_of(version);
        let pdu = Pdu::of(event.clone(), &rules).signed_by(&rules, &self.name(), &self.key());
        json!({"event": pdu.json})
    }

    fn backfill(&self, room: &Room, seen: &Seen) -> Reply {
        let limit = seen.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(MOST);
        let memory = room.memory();
        let found = memory.ancestors(&seen.query_all("v"), limit.min(MOST));
        self.transaction(&found)
    }

    fn transaction(&self, pdus: &[&Pdu]) -> Reply {
        let pdus: Vec<&Value> = pdus.iter().map(|pdu| &pdu.json).collect();
        let body = json!({"origin": self.name(), "origin_server_ts": now_ms(), "pdus": pdus});
        Reply::json(&body)
    }
}

fn unknown() -> Reply {
    Reply::refused(404, "M_UNRECOGNIZED")
}

/// The first version of some endpoints puts the status beside the answer.
fn in_version(version: &str, answer: Value) -> Reply {
    Reply::json(&if version == "v1" { json!([200, answer]) } else { answer })
}

fn jsons<'a>(pdus: impl IntoIterator<Item = &'a Pdu>) -> Vec<Value> {
    pdus.into_iter().map(|pdu| pdu.json.clone()).collect()
}

fn stripped(room: &Room) -> Vec<Value> {
    let kinds = ["m.room.create", "m.room.join_rules", "m.room.name"];
    kinds.iter().filter_map(|kind| room.state(kind, "")).map(|pdu| pdu.stripped()).collect()
}

fn state(room: &Room, seen: &Seen, ids_only: bool) -> Reply {
    let memory = room.memory();
    let id = seen.query("event_id").unwrap_or_default();
    if memory.get(&id).is_none() {
        return Reply::refused(404, "M_NOT_FOUND");
    }
    let state: State = memory.state_before(&id);
    let chain = memory.auth_chain(state.values().cloned());
    if ids_only {
        let chain: Vec<&str> = chain.iter().map(|pdu| pdu.id.as_str()).collect();
        let ids: Vec<&String> = state.values().collect();
        Reply::json(&json!({"pdu_ids": ids, "auth_chain_ids": chain}))
    } else {
        let events = jsons(memory.events_of(&state));
        Reply::json(&json!({"pdus": events, "auth_chain": jsons(chain)}))
    }
}

fn missing_events(room: &Room, seen: &Seen) -> Reply {
    let ids = |name: &str| -> Vec<String> {
        let all = seen.body[name].as_array().into_iter().flatten();
        all.filter_map(|id| id.as_str().map(str::to_owned)).collect()
    };
    let limit = seen.body["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.unwrap_or(10).min(MOST);
    let (latest, earliest) = (ids("latest_events"), ids("earliest_events"));
    let memory = room.memory();
    let known = memory.ancestors(&earliest, usize::MAX);
    let known: HashSet<&str> = known.iter().map(|pdu| pdu.id.as_str()).collect();
    let found = memory.ancestors(&latest, usize::MAX).into_iter();
    let is_new = |pdu: &&Pdu| !latest.contains(&pdu.id) && !known.contains(pdu.id.as_str());
    let mut new: Vec<Value> = jsons(found.filter(is_new));
    let skipped = new.len().saturating_sub(limit);
    Reply::json(&json!({"events": new.split_off(skipped)}))
}
