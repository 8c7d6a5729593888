//! A fleet: main, two persisters, two instances that write the other streams, and two that only
//! read, over a PostgreSQL that writes to disk and a Redis.

pub mod bus;
pub mod hop;
pub mod recovery;
pub mod rest;

use std::path::Path;

use anyhow::{Context, Result};
use chatd_kit::{
    Database, Fleet, Settings, Spread, User,
    fleet::{metrics_socket, public_socket},
    http::Http,
    prometheus::Page,
};

use crate::{BINARY, Postgres, meter};

const PERSISTERS: [&str; 2] = ["persister1", "persister2"];

/// A running fleet.
struct Ships {
    // Dropped in this order: the fleet before its database, that before its cluster.
    fleet: Fleet,
    database: Database,
    postgres: Postgres,
}

impl Ships {
    async fn start() -> Result<Self> {
        let postgres = Postgres::start()?;
        let database = Database::empty(postgres.cluster.clone()).await?;
        let config = database.config();
        let settings = Settings::new();
        let fleet = Fleet::start(Path::new(BINARY), &settings, &config, Spread::Generated).await?;
        Ok(Self { fleet, database, postgres })
    }

    /// Requests to one instance, past the reverse proxy.
    fn at(&self, instance: &str) -> Http {
        Http::on_socket(&public_socket(self.fleet.folder(), instance))
    }

    /// The sum of a metric of an instance.
    async fn metric(&self, instance: &str, name: &str) -> Result<f64> {
        let listener = Http::on_socket(&metrics_socket(self.fleet.folder(), instance));
        let answer = listener.request("GET", "/_synapse/metrics").unchecked().await;
        let page = Page::parse(&answer.text).map_err(anyhow::Error::msg)?;
        Ok(page.sum(name, &[]).unwrap_or_default())
    }

    /// Who owns the room and who of the persisters does not, found out by sending there.
    async fn owner_of(&self, user: &User, room: &str) -> Result<(&'static str, &'static str)> {
        let [one, other] = PERSISTERS;
        let before = self.metric(other, "chatd_carried_in_total").await?;
        user.at(&self.at(one)).send(room, "whose is this?").await;
        let is_carried = self.metric(other, "chatd_carried_in_total").await? > before;
        Ok(if is_carried { (other, one) } else { (one, other) })
    }

    fn pid(&mut self, instance: &str) -> Result<u32> {
        self.fleet.instance(instance).pid().context("it runs")
    }

    /// CPU time of all instances and of PostgreSQL.
    fn cpu_ms(&mut self) -> Result<f64> {
        let mut sum = meter::postgres_ms(&self.postgres)?;
        for process in self.fleet.instances() {
            sum += meter::cpu_ms(process.pid().context("it runs")?)?;
        }
        Ok(sum)
    }
}

/// The value that `share` of the sorted `values` are not above.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index below the length"
    )]
    let index = (meter::float(last) * share).round() as usize;
    values.get(index).copied().unwrap_or_default()
}
