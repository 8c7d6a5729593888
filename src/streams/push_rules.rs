//! Push rules of users.

use chatd_base::UserNid;
use chatd_config::StreamName;
use chatd_storage::{Batch, positions::StreamId, push_rules};
use serde::{Deserialize, Serialize};

use crate::{Concerns, Key, Persist, Raw, Stream};

pub struct PushRules;

impl Stream for PushRules {
    const NAME: &'static str = "push_rules";
    const KIND: StreamName = StreamName::PushRules;
    const ID: StreamId = StreamId { number: 7, sequence: "stream_push_rules" };
    type Row = PushRulesRow;

    fn concerns(row: &Self::Row) -> Concerns {
        Concerns::only([Key::User(row.user)])
    }
}

/// All rules of a user, after a change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PushRulesRow {
    pub user: UserNid,
    /// The `Ruleset`, without the `global` around it.
    pub rules: Raw,
}

impl Persist for PushRules {
    type Change = PushRulesRow;

    fn rows(change: &PushRulesRow) -> Vec<PushRulesRow> {
        vec![change.clone()]
    }

    fn persist(batch: &mut Batch, changes: &[(i64, &PushRulesRow)]) {
        let rows = changes.iter().map(|(offset, row)| (row.user, *offset, row.rules.get()));
        push_rules::upsert(batch, rows.collect());
    }
}
