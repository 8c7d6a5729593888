//! Work that one instance does for all, and who does it.

use crate::{
    Pool, Result, Row,
    notices::{Notice, Notices},
    params,
    statement::statements,
};

statements! {
    LIST_LEASES = "SELECT task, holder, epoch FROM leases";
    /// Those that have changed hands since the caller looked stay where they are.
    TAKE_LEASES = "INSERT INTO leases (task, holder, epoch)
                   SELECT task, $3, seen + 1 FROM unnest($1::text[], $2::int8[]) AS w(task, seen)
                   ORDER BY task
                   ON CONFLICT (task) DO UPDATE SET holder = excluded.holder, epoch = excluded.epoch
                   WHERE leases.epoch = excluded.epoch - 1
                   RETURNING task, holder, epoch";
}

/// A task and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub task: String,
    pub holder: String,
    /// Goes up with each change of hands; 0 if nobody has ever had it.
    pub epoch: i64,
}

/// Gives `holder` those of `seen` (task, epoch) that are still as they were seen; returns them.
/// The others are told.
pub async fn take(
    pool: &Pool,
    notices: &Notices,
    seen: &[(String, i64)],
    holder: &str,
) -> Result<Vec<Lease>> {
    let tasks: Vec<String> = seen.iter().map(|(task, _)| task.clone()).collect();
    let epochs: Vec<i64> = seen.iter().map(|(_, epoch)| *epoch).collect();
    let mut batch = crate::Batch::new();
    let taken = batch.add(&TAKE_LEASES, params![tasks, epochs, holder.to_owned()]);
    notices.tell(&mut batch, Notice::Fleet);
    let rows = pool.commit(batch).await?;
    Ok(rows.of(taken).iter().map(lease).collect())
}

/// A row of the list.
pub(crate) fn lease(row: &Row) -> Lease {
    Lease { task: row.get(0), holder: row.get(1), epoch: row.get(2) }
}
