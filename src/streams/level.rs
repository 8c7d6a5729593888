//! Reads that see everything that any instance had acknowledged before they came.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use chatd_base::{Position, WriterId};
use chatd_storage::notices::Notices;

use crate::{Feed, Stream, StreamToken, Streams, each_feed};

/// How long frames that are on their way are waited for. Those that come later are passed by,
/// and what the views know is read again.
const PATIENCE: Duration = Duration::from_secs(1);

/// On return every view of this instance knows what any instance had acknowledged before the
/// call: frames and notices. One round trip, which callers at the same time share. Where nothing
/// can be asked, caches are dropped instead.
pub async fn level(streams: &Streams, notices: &Notices) {
    if !streams.has_others() {
        return;
    }
    let Some(known) = notices.sound().await else {
        streams.look();
        return;
    };
    let until = match streams.is_bus_calm() {
        true => Instant::now() + PATIENCE,
        false => Instant::now(),
    };
    if !streams.reach(&known, until).await {
        metrics::counter!("chatd_level_skips_total").increment(1);
        streams.skip_to(&known);
    }
}

impl Streams {
    /// Waits until every feed has come to `known`; false if one has not by `until`.
    async fn reach(&self, known: &[(i16, WriterId, Position)], until: Instant) -> bool {
        let mut is_reached = true;
        each_feed!(self, |feed| is_reached &= reach(feed, known, until).await);
        is_reached
    }
}

async fn reach<S: Stream>(
    feed: &Feed<S>,
    known: &[(i16, WriterId, Position)],
    until: Instant,
) -> bool {
    let mine = known.iter().filter(|(stream, ..)| *stream == S::ID.number);
    let wanted: BTreeMap<WriterId, Position> =
        mine.map(|(_, writer, position)| (*writer, *position)).collect();
    if wanted.is_empty() {
        return true;
    }
    let wanted = StreamToken::from_writers(&wanted);
    if feed.token().is_at_least(&wanted) {
        return true;
    }
    feed.wait_for(&wanted, until.saturating_duration_since(Instant::now())).await
}
