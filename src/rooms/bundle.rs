//! What is told together with events: edits, threads, references, redactions.

use std::sync::Arc;

use chatd_base::{EventNid, Position, Result, UserNid};
use chatd_storage::{
    Pool,
    events::StoredEvent,
    relations::{self, What},
};

use crate::client_event::{Bundles, Thread};

/// Reads what is bundled with `events` for `user`. One statement; none if there are no events.
pub async fn load<'a>(
    pool: &Pool,
    user: UserNid,
    events: impl IntoIterator<Item = &'a Arc<StoredEvent>>,
) -> Result<Bundles> {
    Ok(load_at(pool, user, events, None).await?.0)
}

/// As [`load`], and the member events of the senders as they were at a position that the stream
/// has brought; the events must be of one room.
pub async fn load_with_senders<'a>(
    pool: &Pool,
    user: UserNid,
    events: impl IntoIterator<Item = &'a Arc<StoredEvent>>,
    senders_at: Position,
) -> Result<(Bundles, Vec<Arc<StoredEvent>>)> {
    load_at(pool, user, events, Some(senders_at)).await
}

async fn load_at<'a>(
    pool: &Pool,
    user: UserNid,
    events: impl IntoIterator<Item = &'a Arc<StoredEvent>>,
    senders_at: Option<Position>,
) -> Result<(Bundles, Vec<Arc<StoredEvent>>)> {
    let mut nids: Vec<EventNid> = events.into_iter().map(|event| event.nid).collect();
    nids.sort_unstable();
    nids.dedup();
    let (mut bundles, mut senders) = (Bundles::default(), Vec::new());
    if nids.is_empty() {
        return Ok((bundles, senders));
    }
    for bundled in relations::list_bundled(pool, user, &nids, senders_at).await? {
        let parent = bundled.parent;
        match bundled.what {
            What::Sender(event) => senders.push(event),
            What::Redaction(event) => drop(bundles.redactions.insert(parent, event)),
            What::Edit(event) => {
                bundles.relations.entry(parent).or_default().replace = Some(event);
            }
            What::References(ids) => {
                bundles.relations.entry(parent).or_default().references = ids;
            }
            What::Thread { latest, count, participated } => {
                bundles.relations.entry(parent).or_default().thread =
                    Some(Thread { latest, latest_edit: None, count, participated });
            }
        }
    }
    add_edits_of_threads(&mut bundles);
    Ok((bundles, senders))
}

/// The latest event of a thread is shown with its own edit.
fn add_edits_of_threads(bundles: &mut Bundles) {
    let edits: Vec<_> = bundles
        .relations
        .iter()
        .filter_map(|(root, relations)| {
            let latest = relations.thread.as_ref()?.latest.nid;
            Some((*root, bundles.relations.get(&latest)?.replace.clone()))
        })
        .collect();
    for (root, edit) in edits {
        if let Some(thread) = bundles.relations.entry(root).or_default().thread.as_mut() {
            thread.latest_edit = edit;
        }
    }
}
