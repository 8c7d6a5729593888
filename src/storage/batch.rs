//! Statements that take effect together, sent in one round trip.

use futures::future::{join_all, try_join_all};
use tokio_postgres::{Row, types::ToSql};

use crate::{Error, Result, Statement};

type Param = Box<dyn ToSql + Sync + Send>;

/// An ordered list of statements for one transaction. Functions that add to a batch take it as
/// their first argument; nothing is sent before [`crate::Pool::commit`].
#[derive(Default)]
pub struct Batch {
    operations: Vec<(&'static Statement, Vec<Param>)>,
}

/// Rows that each statement of a batch returned, in the order in which they were added.
#[derive(Debug)]
pub struct BatchRows(Vec<Vec<Row>>);

impl BatchRows {
    /// Rows of the statement at `index`, as returned by [`Batch::add`].
    pub fn of(&self, index: usize) -> &[Row] {
        self.0.get(index).map_or(&[], Vec::as_slice)
    }
}

impl Batch {
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a statement with its arguments; returns its index for [`BatchRows::of`].
    pub fn add(&mut self, statement: &'static Statement, params: Vec<Param>) -> usize {
        self.operations.push((statement, params));
        self.operations.len() - 1
    }

    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub fn len(&self) -> usize {
        self.operations.len()
    }

    /// Sends `BEGIN`, all statements and `COMMIT` as one pipeline on `client`.
    pub(crate) async fn run(self, client: &deadpool_postgres::Client) -> Result<BatchRows> {
        let prepared = try_join_all(self.operations.iter().map(|(statement, _)| async move {
            client
                .prepare_cached(statement.sql)
                .await
                .map_err(|cause| Error::from_postgres(statement.name, cause))
        }))
        .await?;
        let queries = self.operations.iter().zip(&prepared).map(
            |((statement, params), prepared)| async move {
                let params: Vec<&(dyn ToSql + Sync)> =
                    params.iter().map(|param| &**param as &(dyn ToSql + Sync)).collect();
                client
                    .query(prepared, &params)
                    .await
                    .map_err(|cause| Error::from_postgres(statement.name, cause))
            },
        );
        // Futures are polled in order, which is the order on the wire.
        let (begun, rows, committed) = tokio::join!(
            biased;
            client.batch_execute("BEGIN"),
            join_all(queries),
            client.batch_execute("COMMIT"),
        );
        begun.map_err(|cause| Error::from_postgres("BEGIN", cause))?;
        // The first failure is the cause; those after it only say that the transaction is over.
        let rows = rows.into_iter().collect::<Result<Vec<_>>>()?;
        committed.map_err(|cause| Error::from_postgres("COMMIT", cause))?;
        Ok(BatchRows(rows))
    }
}

/// Boxes the arguments of a statement: `params![room, &names]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        vec![$(Box::new($value) as Box<dyn $crate::ToSql + Sync + Send>),*]
    };
}
