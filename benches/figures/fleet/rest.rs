//! A fleet that nobody asks anything: main and twelve workers, as config-examples has them.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use chatd_kit::{Database, example::Example, say};

use crate::{BINARY, Postgres, meter, meter::Memory};

/// Until starting is over, and what it has left behind is given back.
const SETTLE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(60);

/// Memory and CPU of each and of all, and what they have PostgreSQL do.
pub async fn measure() -> Result<()> {
    let postgres = Postgres::start()?;
    let database = Database::empty(postgres.cluster.clone()).await?;
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("config-examples/twelve-containers");
    let mut example = Example::start_on(database, Path::new(BINARY), &source).await?;
    example.until_ready().await;
    tokio::time::sleep(SETTLE).await;

    let commits = meter::commits_so_far(example.database()).await?;
    let of_postgres = meter::postgres_ms(&postgres)?;
    let before = used(&example)?;
    let started = Instant::now();
    tokio::time::sleep(REST).await;
    let minutes = started.elapsed().as_secs_f64() / 60.0;
    say(format_args!(
        "idle fleet of {}: MB of memory (its part of what is shared, resident, private), ms of CPU \
         in a minute",
        example.count()
    ));
    let line = |name: &str, memory: Memory, cpu: f64| {
        let Memory { proportional, resident, private } = memory;
        say(format_args!("  {name:20} {proportional:6.1} {resident:6.1} {private:6.1} {cpu:6.0}"));
    };
    let (mut all, mut all_cpu) = (Memory::default(), 0.0);
    for ((process, now), then) in example.instances().zip(used(&example)?).zip(before) {
        let memory = Memory::of(process.pid().context("it runs")?)?;
        let cpu = (now - then) / minutes;
        line(process.name(), memory, cpu);
        all.proportional += memory.proportional;
        all.resident += memory.resident;
        all.private += memory.private;
        all_cpu += cpu;
    }
    line("all", all, all_cpu);
    say(format_args!(
        "  PostgreSQL for them: {:.0} ms of CPU in a minute, {:.1} transactions a second",
        (meter::postgres_ms(&postgres)? - of_postgres) / minutes,
        (meter::commits_so_far(example.database()).await? - commits) / minutes / 60.0
    ));
    Ok(())
}

fn used(example: &Example) -> Result<Vec<f64>> {
    example.instances().map(|process| meter::cpu_ms(process.pid().context("it runs")?)).collect()
}
