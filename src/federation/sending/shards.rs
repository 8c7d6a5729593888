//! Which part of the senders a server belongs to, and tokens as far as senders calculate with
//! them.

use std::collections::{BTreeMap, BTreeSet};

use chatd_base::{Position, WriterId};
use chatd_storage::sending::Range;
use chatd_streams::{StreamToken, weight};
use ruma_common::ServerName;

/// Servers hash to so many shards; the table has a row for each.
pub(super) const SHARDS: i16 = 16;

/// The shard of a server: the same on every instance and in every release.
pub(super) fn shard_of(server: &ServerName) -> i16 {
    let shard = weight(server.as_str(), "") % u64::from(SHARDS.unsigned_abs());
    i16::try_from(shard).unwrap_or_default()
}

/// The shards that belong to one of `parts`: each goes to the part that draws it most.
pub(super) fn shards_of(part: &str, parts: &[String]) -> Vec<i16> {
    let owner = |shard: &i16| {
        let draw = |part: &&String| weight(part, &shard.to_string());
        parts.iter().max_by_key(draw).is_some_and(|owner| owner == part)
    };
    (0..SHARDS).filter(owner).collect()
}

/// The furthest token that both cover.
pub(super) fn least(a: &StreamToken, b: &StreamToken) -> StreamToken {
    let min = a.min.min(b.min);
    let writers: BTreeSet<WriterId> = a.ahead.iter().chain(&b.ahead).map(|(w, _)| *w).collect();
    let ahead = writers.into_iter().map(|writer| (writer, a.of(writer).min(b.of(writer))));
    StreamToken { min, ahead: ahead.filter(|(_, position)| *position > min).collect() }
}

/// What `high` covers up to the position `upto`, and all that `low` covers.
pub(super) fn limited(low: &StreamToken, high: &StreamToken, upto: Position) -> StreamToken {
    let of = |low: Position, high: Position| low.max(high.min(upto));
    let min = of(low.min, high.min);
    let writers: BTreeSet<WriterId> =
        low.ahead.iter().chain(&high.ahead).map(|(writer, _)| *writer).collect();
    let ahead: BTreeMap<WriterId, Position> =
        writers.into_iter().map(|writer| (writer, of(low.of(writer), high.of(writer)))).collect();
    // A writer below the others keeps them from being one number.
    let least = ahead.values().copied().chain([min]).min().unwrap_or(min);
    if least < min {
        return StreamToken { min: least, ahead: above(ahead, least) };
    }
    StreamToken { min, ahead: above(ahead, min) }
}

fn above<L: FromIterator<(WriterId, Position)>>(
    positions: BTreeMap<WriterId, Position>,
    min: Position,
) -> L {
    positions.into_iter().filter(|(_, position)| *position > min).collect()
}

/// What lies between two tokens, as storage wants it.
pub(super) fn range(low: &StreamToken, high: &StreamToken) -> Range {
    let writers: BTreeSet<WriterId> =
        low.ahead.iter().chain(&high.ahead).map(|(writer, _)| *writer).collect();
    Range {
        lows: writers.iter().map(|writer| low.of(*writer).0).collect(),
        highs: writers.iter().map(|writer| high.of(*writer).0).collect(),
        writers: writers.into_iter().map(|writer| writer.0).collect(),
        low: low.min.0,
        high: high.min.0,
        end: high.max().0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> StreamToken {
        text.parse().unwrap()
    }

    #[test]
    fn every_shard_belongs_to_one_part() {
        let parts: Vec<String> = ["a", "b", "c"].map(|name| format!("sender/{name}")).to_vec();
        let mut all: Vec<i16> = parts.iter().flat_map(|part| shards_of(part, &parts)).collect();
        all.sort_unstable();
        assert_eq!(all, (0..SHARDS).collect::<Vec<_>>());
        // One part more takes shards only for itself.
        let before = shards_of(&parts[0], &parts[..2]);
        let after = shards_of(&parts[0], &parts);
        assert!(after.iter().all(|shard| before.contains(shard)));
    }

    #[test]
    fn the_least_of_two_tokens_is_covered_by_both() {
        for (a, b, both) in [("5", "7", "5"), ("m5~1.9", "7", "m5~1.7"), ("m5~1.9", "m5~2.9", "5")]
        {
            assert_eq!(least(&token(a), &token(b)).to_string(), both);
        }
    }

    #[test]
    fn a_limit_holds_back_those_who_are_ahead() {
        for (low, high, upto, limit) in [
            ("5", "20", 9, "9"),
            ("5", "m6~1.20", 9, "m6~1.9"),
            ("m5~1.15", "m6~1.20", 9, "m6~1.15"),
            ("m5~1.15", "m16~1.20", 30, "m16~1.20"),
        ] {
            assert_eq!(limited(&token(low), &token(high), Position(upto)).to_string(), limit);
        }
    }
}
