//! Statements that take effect together, sent in one round trip.

use std::pin::pin;

use futures::{
    future::{maybe_done, try_join_all},
    poll,
};
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
    /// Whatever the database's default is: what is read after a lock was taken must be what was
    /// committed before.
    pub(crate) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

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
    ///
    /// A future sends its message when it is polled first, so each is polled once in the order
    /// that the messages are to have. Nothing waits in between: a caller that gives up has sent
    /// the whole transaction or nothing of it.
    ///
    /// The answers are taken in that order, too: the driver reads no further while one whose
    /// answer has come in several parts does not take them.
    pub(crate) async fn run(self, client: &deadpool_postgres::Client) -> Result<BatchRows> {
        self.send(client, Self::BEGIN).await
    }

    /// The same for the end of a transaction that has been begun.
    pub(crate) async fn finish(self, client: &deadpool_postgres::Client) -> Result<BatchRows> {
        self.send(client, "").await
    }

    async fn send(self, client: &deadpool_postgres::Client, begin: &str) -> Result<BatchRows> {
        let prepared = try_join_all(self.operations.iter().map(|(statement, _)| async move {
            client
                .prepare_cached(statement.sql)
                .await
                .map_err(|cause| Error::from_postgres(statement.name, cause))
        }))
        .await?;
        let mut begun = pin!(maybe_done(client.batch_execute(begin)));
        let _sent = poll!(begun.as_mut());
        let mut queries = Vec::with_capacity(prepared.len());
        let mut end = "COMMIT";
        for ((statement, params), prepared) in self.operations.iter().zip(&prepared) {
            let mut query = Box::pin(maybe_done(query(client, statement, prepared, params)));
            let _sent = poll!(query.as_mut());
            // An argument that cannot be encoded: the others must not take effect without it.
            if matches!(query.as_mut().output_mut(), Some(Err(_))) {
                end = "ROLLBACK";
            }
            queries.push(query);
        }
        let mut ended = pin!(maybe_done(client.batch_execute(end)));
        let _sent = poll!(ended.as_mut());
        begun.as_mut().await;
        let begun = begun.take_output().expect("it was awaited, and its output is taken once");
        begun.map_err(|cause| Error::from_postgres("BEGIN", cause))?;
        let mut rows = Vec::with_capacity(queries.len());
        for mut query in queries {
            query.as_mut().await;
            rows.push(query.as_mut().take_output().expect("as above"));
        }
        ended.as_mut().await;
        // The first failure is the cause; those after it only say that the transaction is over.
        let rows = rows.into_iter().collect::<Result<_>>()?;
        let ended = ended.take_output().expect("as above");
        ended.map_err(|cause| Error::from_postgres("COMMIT", cause))?;
        Ok(BatchRows(rows))
    }
}

async fn query(
    client: &deadpool_postgres::Client,
    statement: &Statement,
    prepared: &tokio_postgres::Statement,
    params: &[Param],
) -> Result<Vec<Row>> {
    let params: Vec<&(dyn ToSql + Sync)> =
        params.iter().map(|param| &**param as &(dyn ToSql + Sync)).collect();
    client
        .query(prepared, &params)
        .await
        .map_err(|cause| Error::from_postgres(statement.name, cause))
}

/// Boxes the arguments of a statement: `params![room, &names]`.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        vec![$(Box::new($value) as Box<dyn $crate::ToSql + Sync + Send>),*]
    };
}
