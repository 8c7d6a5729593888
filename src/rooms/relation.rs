//! What may relate to what. Only drafts that relate to an event cost a look at it.

use chatd_base::{Refusal, Result, RoomNid};
use chatd_storage::{events, relations};
use serde_json::Value;

use crate::{owner::RoomOwner, pdu::content_str, push, seal::Draft};

/// Longest key of an annotation, in characters.
const LONGEST_KEY: usize = 500;

impl RoomOwner {
    /// Refuses relations to events that nobody here can know of, the same annotation twice, and
    /// threads below events that relate to others themselves.
    pub(crate) async fn check_relation(&self, room: RoomNid, draft: &Draft) -> Result<()> {
        let Some((rel_type, parent_id)) = push::relation(&draft.content) else { return Ok(()) };
        match events::get_by_id(&self.pool, parent_id.as_str()).await? {
            Some(parent) if parent.room != room => {
                return Err(Refusal::unknown("relations must be in the same room").into());
            }
            Some(parent) if rel_type == "m.thread" => {
                // Whoever redacts a reply makes it one more event without a relation.
                let relates = relation_type(parent.content.get());
                if relates.is_some() {
                    let message = "threads cannot begin at an event that relates to another one";
                    return Err(Refusal::unknown(message).into());
                }
            }
            Some(_) => {}
            // Somebody else has seen it, from another server.
            None if relations::is_parent(&self.pool, room, parent_id.as_str()).await? => {}
            None => return Err(Refusal::unknown("the event to relate to is not known").into()),
        }
        if rel_type == "m.annotation" {
            self.check_annotation(room, draft, parent_id.as_str()).await?;
        }
        Ok(())
    }

    async fn check_annotation(&self, room: RoomNid, draft: &Draft, parent: &str) -> Result<()> {
        let key = draft.content.get("m.relates_to").and_then(|relates| relates.get("key"));
        let key = key.and_then(Value::as_str).unwrap_or_default();
        if key.is_empty() || key.chars().count() > LONGEST_KEY {
            let message = format!("an annotation has a key of 1 to {LONGEST_KEY} characters");
            return Err(Refusal::unknown(message).into());
        }
        let sender = self.users.deps.interner.user(draft.sender.as_str()).await?;
        let earlier =
            relations::list_own_annotations(&self.pool, room, parent, sender, &draft.kind).await?;
        if earlier.iter().any(|content| annotation_key(content).as_deref() == Some(key)) {
            let message = "you have annotated the event with that already";
            return Err(Refusal::new(400, "M_DUPLICATE_ANNOTATION", message).into());
        }
        Ok(())
    }
}

fn relates_to(content: &str) -> Option<Box<serde_json::value::RawValue>> {
    #[derive(serde::Deserialize)]
    struct Content {
        #[serde(rename = "m.relates_to")]
        relates_to: Option<Box<serde_json::value::RawValue>>,
    }
    serde_json::from_str::<Content>(content).ok()?.relates_to
}

fn relation_type(content: &str) -> Option<String> {
    content_str(&relates_to(content)?, "rel_type")
}

fn annotation_key(content: &str) -> Option<String> {
    content_str(&relates_to(content)?, "key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_relations_are_found() {
        let content = r#"{"m.relates_to": {"rel_type": "m.annotation", "key": "+"}, "b": 1}"#;
        assert_eq!(relation_type(content).as_deref(), Some("m.annotation"));
        assert_eq!(annotation_key(content).as_deref(), Some("+"));
        let reply = r#"{"m.relates_to": {"m.in_reply_to": {"event_id": "$x"}}}"#;
        for none in [reply, r#"{"m.relates_to": 7}"#, "{}"] {
            assert_eq!(relation_type(none), None, "{none}");
        }
    }
}
