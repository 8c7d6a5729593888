//! Many rows of one shard that go in by `COPY`. They are streamed as they are, and neither put into
//! arrays here nor taken out of them there.
//!
//! PostgreSQL waits for the rows of a `COPY` as long as the connection is there, also where the process
//! at its other end stands still: its limit for idle transactions does not count here. So a copy
//! must not hold what others need (R5). The shard is fenced (R6) after the rows, in the pipeline
//! that commits; and whoever takes a shard over ends what is still copied under an older epoch.

use std::{
    pin::Pin,
    time::{Duration, Instant},
};

use chatd_base::{ShardId, cost};
use tokio_postgres::{
    binary_copy::BinaryCopyInWriter,
    types::{ToSql, Type},
};

use crate::{
    Batch, Error, Pool, Result, Statement, meter,
    pool::{LONGEST_STATEMENT, Unfinished},
    shards,
    statement::statements,
};

statements! {
    /// Shows under which epoch of which shard there is a copy, in the lower half of the key.
    MARK_COPY = "SELECT pg_advisory_xact_lock_shared((1936221555::int8 << 32)
                                                     | (($2::int8 & 67108863) << 6) | $1::int2::int8)";
    GET_EPOCH = "SELECT epoch FROM shards WHERE shard = $1";
    END_STALE = "SELECT pg_terminate_backend(l.pid)
                 FROM pg_locks l JOIN shards s ON s.shard = l.objid::int8 & 63
                 WHERE l.locktype = 'advisory' AND l.classid::int8 = 1936221555
                   AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND l.objid::int8 >> 6 <> s.epoch & 67108863";
}

/// A transaction under way. Without a commit it has no effect, and its connection is given up: after
/// a `COPY` that was refused, the driver takes answers for those of other statements.
pub(crate) struct Copying {
    pool: Pool,
    connection: Unfinished,
    fence: (ShardId, i64),
    begun: Instant,
}

/// A table that is being filled.
pub(crate) struct Filling {
    name: &'static str,
    writer: Pin<Box<BinaryCopyInWriter>>,
}

impl Pool {
    /// Begins a transaction of rows that belong to a shard. Fails if that has gone to another instance.
    pub(crate) async fn begin_copy(&self, fence: (ShardId, i64)) -> Result<Copying> {
        let connection = Unfinished::new(self.client().await?);
        let begun = Instant::now();
        meter::COMMITS.increment(1);
        let copying = Copying { pool: self.clone(), connection, fence, begun };
        let epoch = copying.pool.noting(within("BEGIN", copying.mark()).await)?;
        if epoch == Some(fence.1) {
            return Ok(copying);
        }
        // It says why not.
        copying.commit().await?;
        Err(Error::Corrupt(format!("the shard {} has no epoch", fence.0.0)))
    }

    /// Ends what is copied into shards by those who do not own them any more. It would come to
    /// nothing; but as long as it lasts, nobody else can write the same rows.
    pub(crate) async fn end_stale_copies(&self) {
        match self.execute(&END_STALE, &[]).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "ended copies of an earlier owner"),
            Err(error) => tracing::warn!(%error, "copies of an earlier owner could not be ended"),
        }
    }
}

impl Copying {
    /// Opens the transaction, shows that it copies, and returns the epoch of the shard after that.
    async fn mark(&self) -> Result<Option<i64>> {
        let client = self.connection.client();
        let (shard, epoch) = (self.fence.0.0, self.fence.1);
        let refused = Error::from_postgres;
        cost::note_round_trip(2);
        meter::STATEMENTS.increment(2);
        let mark = client.prepare_cached(MARK_COPY.sql).await;
        let get = client.prepare_cached(GET_EPOCH.sql).await;
        let mark = mark.map_err(|cause| refused(MARK_COPY.name, cause))?;
        let get = get.map_err(|cause| refused(GET_EPOCH.name, cause))?;
        let key: [&(dyn ToSql + Sync); 2] = [&shard, &epoch];
        // Each is sent when it is polled first, in this order.
        let (begun, marked, row) = futures::join!(
            client.batch_execute(Batch::BEGIN),
            client.execute(&mark, &key),
            client.query_opt(&get, &key[..1]),
        );
        begun.map_err(|cause| refused("BEGIN", cause))?;
        marked.map_err(|cause| refused(MARK_COPY.name, cause))?;
        let row = row.map_err(|cause| refused(GET_EPOCH.name, cause))?;
        Ok(row.map(|row| row.get(0)))
    }

    /// Begins to fill a table. `statement` is a binary `COPY` of columns of these types.
    pub async fn fill(&self, statement: &'static Statement, types: &[Type]) -> Result<Filling> {
        let client = self.connection.client();
        let name = statement.name;
        let opening = async {
            let prepared = client.prepare_cached(statement.sql).await?;
            cost::note_round_trip(1);
            meter::STATEMENTS.increment(1);
            client.copy_in(&prepared).await
        };
        let opening = async { opening.await.map_err(|cause| Error::from_postgres(name, cause)) };
        let sink = self.pool.noting(within(name, opening).await)?;
        Ok(Filling { name, writer: Box::pin(BinaryCopyInWriter::new(sink, types)) })
    }

    /// Ends a table; refuses what a row by itself would be refused for.
    pub async fn filled(&self, mut filling: Filling) -> Result<()> {
        cost::note_round_trip(0);
        let name = filling.name;
        let ending = async {
            let ended = filling.writer.as_mut().finish().await;
            ended.map_err(|cause| Error::from_postgres(name, cause))
        };
        self.pool.noting(within(name, ending).await).map(drop)
    }

    /// Makes the rows durable (R1), if the shard still has its epoch. [`Error::Lost`] means that the
    /// outcome is not known.
    pub async fn commit(mut self) -> Result<()> {
        let mut batch = Batch::new();
        shards::fence(&mut batch, &[self.fence]);
        cost::note_round_trip(1);
        meter::STATEMENTS.increment(1);
        let outcome = batch.finish(self.connection.client()).await;
        meter::COMMIT.note(self.begun.elapsed());
        self.pool.noting(outcome)?;
        self.connection.finish();
        Ok(())
    }
}

impl Filling {
    /// Adds a row. An error may be one of an earlier row, or of a connection that is lost.
    pub async fn add(&mut self, row: &[&(dyn ToSql + Sync)]) -> Result<()> {
        let name = self.name;
        let adding = self.writer.as_mut().write(row);
        within(name, async { adding.await.map_err(|cause| Error::from_postgres(name, cause)) })
            .await
    }
}

/// What comes within the time that a statement may take.
async fn within<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    let limit: Duration = LONGEST_STATEMENT;
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Error::Lost(format!("{name}: no answer"))),
    }
}
