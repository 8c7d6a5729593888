//! The answer to a join: the state of a room that another server tells, read off the threads that
//! answer requests, and checked.

use std::collections::HashSet;

use bytes::Bytes;
use chatd_rooms::{Import, event_id};
use chatd_servers::{Failure, Unsound};
use ruma_common::{CanonicalJsonObject, RoomId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Joining, candidates::Trial, template::Made};

/// Events that another server may tell of a room (R8).
const MOST: usize = 1_000_000;

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    state: Vec<&'a RawValue>,
    #[serde(borrow)]
    auth_chain: Vec<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
}

/// What was told, as objects. What is none is left out.
struct Told {
    event: Option<CanonicalJsonObject>,
    state: Vec<CanonicalJsonObject>,
    auth_chain: Vec<CanonicalJsonObject>,
}

impl Joining {
    /// Reads and checks what `server` has answered to `made`.
    pub(super) async fn read_answer(
        &self,
        server: &ServerName,
        room_id: &RoomId,
        made: Made,
        body: Bytes,
    ) -> Result<Import, Trial> {
        let odd =
            |why: String| Failure::Odd(format!("{server} has answered what is no room: {why}"));
        let read = tokio::task::spawn_blocking(move || read(&body)).await;
        let told = read.map_err(|error| odd(error.to_string()))?.map_err(odd)?;
        let event = match told.event {
            Some(event) if event_id(&made.version, &event).is_ok_and(|id| id == made.event_id) => {
                event
            }
            Some(_) => return Err(odd("the event is another one".to_owned()).into()),
            None => made.event,
        };
        let (count, of_state) = (told.state.len() + told.auth_chain.len(), told.state.len());
        let rules = made.version.rules().ok_or_else(|| odd("of no version".to_owned()))?;
        let all = told.state.into_iter().chain(told.auth_chain).chain([event]).collect();
        let mut checked = self.deps.servers.keyring.check_events(all, &rules).await?;
        if checked.len() != count + 1 {
            return Err(odd("not all events were checked".to_owned()).into());
        }
        let event = match checked.pop() {
            Some(Ok(event)) => event,
            Some(Err(Unsound::Forged(why) | Unsound::NoKey(why))) => return Err(odd(why).into()),
            None => return Err(odd("the event is missing".to_owned()).into()),
        };
        let auth_chain = checked.split_off(of_state);
        Ok(Import {
            room_id: room_id.to_owned(),
            version: made.version,
            event,
            state: sound(server, checked),
            auth_chain: sound(server, auth_chain),
        })
    }
}

/// Leaves out what cannot be trusted. What the room cannot do without is missed later.
fn sound(
    server: &ServerName,
    checked: Vec<Result<CanonicalJsonObject, Unsound>>,
) -> Vec<CanonicalJsonObject> {
    let mut unsound = 0;
    let sound = checked.into_iter().filter_map(|event| match event {
        Ok(event) => Some(event),
        Err(why) => {
            tracing::debug!(server = %server, ?why, "an event of a room is not believed");
            unsound += 1;
            None
        }
    });
    let sound = sound.collect();
    if unsound > 0 {
        tracing::warn!(server = %server, unsound, "events of a room that was joined are not believed");
    }
    sound
}

fn read(body: &[u8]) -> Result<Told, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    // The first version of the endpoint puts a status in front.
    let answer: Answer<'_> = if text.trim_start().starts_with('[') {
        let (_, answer): (u16, Answer<'_>) =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        answer
    } else {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    };
    if answer.members_omitted {
        return Err("members were left out, which nobody has asked for".to_owned());
    }
    if answer.state.len() + answer.auth_chain.len() > MOST {
        return Err(format!("it has more than {MOST} events"));
    }
    let seen: HashSet<&str> = answer.state.iter().map(|event| event.get()).collect();
    let object = |event: &&RawValue| serde_json::from_str(event.get()).ok();
    Ok(Told {
        event: match answer.event.filter(|event| event.get() != "null") {
            Some(event) => {
                Some(serde_json::from_str(event.get()).map_err(|error| error.to_string())?)
            }
            None => None,
        },
        state: answer.state.iter().filter_map(object).collect(),
        auth_chain: answer
            .auth_chain
            .iter()
            .filter(|event| !seen.contains(event.get()))
            .filter_map(object)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_the_answer_are_read() {
        let body = r#"{"state": [{"a": 1}], "auth_chain": [{"a": 1}, {"b": 1.5}, {"c": 2}]}"#;
        for body in [body.to_owned(), format!("[200, {body}]")] {
            let told = read(body.as_bytes()).unwrap();
            assert_eq!(told.state.len(), 1);
            assert_eq!(told.auth_chain.len(), 1, "neither what was there, nor what is no event");
        }
        for body in ["", "{}", "[200]", r#"{"state": [], "auth_chain": 1}"#, "\u{0}"] {
            assert!(read(body.as_bytes()).is_err(), "{body}");
        }
    }
}
