//! Which events another server may see as they are (spec: room history visibility).

use std::collections::{BTreeSet, HashMap, HashSet};

use chatd_base::{EventNid, Result, SnapshotId};
use chatd_storage::{
    graph,
    resident::{self, Sight},
    snapshots,
};
use ruma_common::ServerName;
use serde_json::Value;

use super::{Answers, Visited};

impl Answers {
    /// Those of the events that the server may not see.
    pub(super) async fn hidden(
        &self,
        room: &Visited,
        nids: &[EventNid],
        origin: &ServerName,
    ) -> Result<HashSet<EventNid>> {
        let mut sights = resident::list_sights(self.pool(), nids, origin.as_str()).await?;
        if sights.iter().any(|sight| sight.snapshot.is_some()) {
            self.look_into_the_past(room, &mut sights, origin).await?;
        }
        Ok(sights.iter().filter(|sight| !is_visible(sight)).map(|sight| sight.nid).collect())
    }

    /// What users of the server were at events that others have told later, from the state there.
    async fn look_into_the_past(
        &self,
        room: &Visited,
        sights: &mut [Sight],
        origin: &ServerName,
    ) -> Result<()> {
        let keys = resident::list_member_keys(self.pool(), room.nid, origin.as_str()).await?;
        let wanted: BTreeSet<SnapshotId> =
            sights.iter().filter_map(|sight| sight.snapshot).collect();
        let wanted: Vec<SnapshotId> = wanted.into_iter().collect();
        let states = snapshots::load_entries(self.pool(), room.nid, &wanted, &keys).await?;
        let members: HashMap<EventNid, Vec<EventNid>> = sights
            .iter()
            .filter_map(|sight| {
                let mut state = states.get(&sight.snapshot?)?.clone();
                if let Some(key) = sight.key.filter(|key| keys.contains(key)) {
                    state.insert(key, sight.nid);
                }
                Some((sight.nid, state.into_values().collect()))
            })
            .collect();
        let named: BTreeSet<EventNid> = members.values().flatten().copied().collect();
        let named: Vec<EventNid> = named.into_iter().collect();
        let events = graph::list_events(self.pool(), &named).await?;
        let memberships: HashMap<EventNid, String> = events
            .iter()
            .filter_map(|event| Some((event.nid, membership(&event.content)?)))
            .collect();
        for sight in sights.iter_mut().filter(|sight| sight.snapshot.is_some()) {
            let all = members.get(&sight.nid).into_iter().flatten();
            let all: Vec<&str> = all.filter_map(|nid| Some(&**memberships.get(nid)?)).collect();
            sight.was_joined = all.contains(&"join");
            sight.was_invited = sight.was_joined || all.contains(&"invite");
        }
        Ok(())
    }
}

fn membership(content: &str) -> Option<String> {
    let content: Value = serde_json::from_str(content).ok()?;
    content["membership"].as_str().map(ToOwned::to_owned)
}

/// Whether a server sees an event as it is.
fn is_visible(sight: &Sight) -> bool {
    let content: Value = serde_json::from_str(&sight.visibility).unwrap_or_default();
    match content["history_visibility"].as_str() {
        Some("joined") => sight.was_joined,
        Some("invited") => sight.was_invited,
        // What is no setting is the default.
        _ => true,
    }
}
