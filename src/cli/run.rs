//! `chatd run`: read the configuration, decide what is ours, run until told to stop.

use std::{sync::Arc, time::Duration};

use chatd_base::{Stop, tasks};
use chatd_config::{Assignment, Config, Roles, SigningKeys, StreamName, assignment};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::Instant,
};

use super::{Failure, Source};
use crate::{logging, wiring};

/// How long threads that are still busy after an orderly end are waited for.
const LEFTOVERS: Duration = Duration::from_secs(1);
/// Signals that come within this time of each other say the same.
const ONE_WISH: Duration = Duration::from_millis(500);

/// Starts this instance and returns when it has stopped.
pub fn execute(source: &Source) -> Result<(), Failure> {
    let config = source.load_or_create()?;
    let mine = assignment(&config, &Roles::embedded())?;
    logging::start(&config)?;
    tracing::info!(
        instance = %mine.instance,
        role = %mine.role,
        server_name = %config.server_name,
        version = env!("CARGO_PKG_VERSION"),
        "starting chatd",
    );
    for warning in &config.warnings {
        tracing::warn!("configuration: {warning}");
    }
    SigningKeys::read_or_create(&config.signing_key_path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::other(format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(until_stopped(source, config, mine));
    // Whatever is left is idle or stuck: the sockets are closed and the commits are done.
    runtime.shutdown_timeout(LEFTOVERS);
    result
}

async fn until_stopped(source: &Source, config: Config, mine: Assignment) -> Result<(), Failure> {
    let stop = Stop::new();
    stop_on_signals(&stop)
        .map_err(|error| Failure::other(format!("signals cannot be received: {error}")))?;
    let (tell, told) = watch::channel(mine.clone());
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| Failure::other(format!("signals cannot be received: {error}")))?;
    let served = wiring::run(Arc::new(config), mine, told, stop);
    tokio::pin!(served);
    loop {
        tokio::select! {
            ended = &mut served => break ended?,
            Some(()) = hangup.recv() => reload(source, &tell),
        }
    }
    tracing::info!("stopped");
    Ok(())
}

/// Reads the files again and tells of what may change while the instance runs: whether it extends
/// rooms. Mistakes in the files change nothing.
fn reload(source: &Source, tell: &watch::Sender<Assignment>) {
    let read = source.load().and_then(|config| assignment(&config, &Roles::embedded()));
    let new = match read {
        Ok(new) => new,
        Err(error) => return tracing::error!("the configuration was read again: {error}"),
    };
    let old = tell.borrow().clone();
    if new.instance != old.instance || new.role != old.role {
        return tracing::error!("an instance gets another name or role by a restart only");
    }
    let others = |one: &Assignment| {
        let mut writers = one.writers.clone();
        writers.remove(&StreamName::Events);
        (writers, one.tasks.clone())
    };
    if others(&new) != others(&old) {
        tracing::warn!("streams other than events, and tasks, change by a restart only");
    }
    tracing::info!("the configuration was read again");
    tell.send_replace(new);
}

/// The first SIGTERM or SIGINT asks everybody to end; a later one does not wait for them. Some
/// supervisors send each signal to the process and to its group: that is one wish.
fn stop_on_signals(stop: &Stop) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = stop.clone();
    tasks::spawn("signals", async move {
        let mut asked = None::<Instant>;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match asked {
                None => {
                    tracing::info!("stopping: finishing requests and commits");
                    stop.trigger();
                    asked = Some(Instant::now());
                }
                Some(first) if first.elapsed() < ONE_WISH => {}
                Some(_) => {
                    tracing::warn!("asked twice to stop; ending at once");
                    std::process::exit(130);
                }
            }
        }
    });
    Ok(())
}
