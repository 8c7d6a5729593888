//! Every metric that chatd has. Those that mean what one of Synapse's means have its name, so that
//! Synapse's Grafana board shows them.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Samples in buckets, with their sum and their number.
    Histogram,
}

impl Kind {
    /// The word in the text format.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Its name on the page; a histogram's is without `_bucket`, `_sum` and `_count`.
    pub(super) name: &'static str,
    /// How it behaves.
    pub(super) kind: Kind,
    /// Its labels, apart from a histogram's `le`.
    pub(super) labels: &'static [&'static str],
    /// What it says, in one line.
    pub(super) meaning: &'static str,
}

macro_rules! catalogue {
    ($($kind:ident $name:ident { $($label:ident)* } $meaning:literal;)*) => {
        /// Every metric, by subject.
        const CATALOGUE: &[Metric] = &[$(Metric {
            name: stringify!($name),
            kind: Kind::$kind,
            labels: &[$(stringify!($label)),*],
            meaning: $meaning,
        }),*];
    };
}

catalogue! {
    Counter synapse_http_server_requests_received_total { method servlet }
        "requests, when they come";
    Histogram synapse_http_server_response_time_seconds { method servlet code }
        "time from a request's head to the head of its answer; long polls included";
    Counter synapse_http_server_responses_total { method code }
        "answers";
    Gauge synapse_http_server_in_flight_requests_count { method servlet }
        "requests that are being answered";
    Gauge chatd_http_connections { }
        "open connections of clients";
    Counter chatd_http_rate_limited_total { class }
        "requests refused with 429";
    Counter chatd_http_panics_total { }
        "handlers that panicked: should be zero, each one is in the log";

    Counter synapse_http_matrixfederationclient_requests_total { method }
        "requests to other servers, repeats included";
    Counter synapse_http_matrixfederationclient_responses_total { method code }
        "their answers";
    Counter synapse_federation_server_received_pdus_total { }
        "events that other servers have sent";
    Counter synapse_federation_server_received_edus_total { }
        "EDUs that other servers have sent";
    Counter chatd_inbound_pdus_total { result }
        "events of other servers by what became of them";
    Histogram chatd_inbound_pdu_age_seconds { }
        "from when an event was made elsewhere until it had its place here";
    Gauge synapse_federation_server_number_inbound_pdu_in_staging { }
        "events of other servers that wait for what they refer to, in all rooms";
    Gauge synapse_federation_server_oldest_inbound_pdu_in_staging { }
        "how long the oldest of them has waited, in milliseconds";

    Gauge chatd_db_connected { }
        "1 while PostgreSQL answers, 0 after it was found to be away";
    Gauge chatd_db_pool_max { }
        "connections to PostgreSQL that there may be (cp_max)";
    Gauge chatd_db_pool_size { }
        "connections to PostgreSQL that there are";
    Gauge chatd_db_pool_in_use { }
        "connections to PostgreSQL that are working";
    Gauge chatd_db_pool_waiting { }
        "tasks that wait for a connection";
    Histogram synapse_storage_schedule_time { }
        "seconds that a task waited for a connection";
    Counter synapse_storage_transaction_time_count_total { desc }
        "transactions, by their statement; those of several statements are `commit`";
    Counter synapse_storage_transaction_time_sum_total { desc }
        "seconds that these took";
    Counter chatd_db_statements_total { }
        "statements sent to PostgreSQL";
    Counter chatd_db_commits_total { }
        "transactions of several statements";

    Counter synapse_storage_events_persisted_events_total { }
        "events that became durable here";
    Histogram chatd_lane_batch_rows { lane }
        "rows in one commit of the lane of a stream";
    Histogram chatd_lane_commit_seconds { lane }
        "time that one such commit took, repeats included";
    Gauge chatd_lane_waiting { lane }
        "changes that wait for the next commit";

    Gauge chatd_stream_position { stream writer }
        "how far this instance has seen the writer of the stream";
    Gauge chatd_stream_lag { stream writer }
        "by how much the tables were ahead of that when they were compared last: 0 is up to date";
    Counter synapse_federation_client_sent_transactions_total { }
        "transactions that other servers have taken";
    Counter synapse_federation_client_sent_edus_total { }
        "what is no event and was in them";
    Counter synapse_federation_client_sent_pdu_destinations_count_total { }
        "events that this server has to send";
    Counter synapse_federation_client_sent_pdu_destinations_total { }
        "servers to which these go, all together";
    Gauge synapse_federation_transaction_queue_pending_destinations { }
        "servers for which there is something";
    Gauge synapse_federation_transaction_queue_pending_pdus { }
        "events that wait in memory for a server";
    Counter chatd_stream_passes_total { stream }
        "frames whose rows nobody here wanted, and which were not read";
    Counter chatd_stream_skips_total { stream }
        "gaps: rows that the bus did not bring, which views have to read from the tables";
    Gauge synapse_event_persisted_position { }
        "the furthest position of the stream of events that this instance has seen";
    Gauge chatd_shards_owned { }
        "shards of rooms that this instance owns";
    Counter chatd_shards_taken_total { }
        "shards that it took over";
    Gauge chatd_instances_alive { }
        "instances of the fleet that are alive, as this one sees it";

    Gauge chatd_bus_connected { }
        "1 while this instance hears Redis; while it is 0, positions are polled from PostgreSQL";
    Gauge chatd_bus_waiting { }
        "frames that wait for Redis";
    Counter chatd_bus_reconnects_total { }
        "times that Redis was there again";
    Counter synapse_replication_tcp_resource_stream_updates_total { stream_name }
        "frames of rows given to Redis";
    Counter synapse_replication_tcp_protocol_inbound_rdata_count_total { stream_name }
        "frames of rows that came from Redis";
    Counter chatd_bus_bytes_total { direction }
        "bytes of these frames, `in` and `out`";
    Counter chatd_bus_dropped_total { stream }
        "frames that Redis did not take in time; the others find the rows in the tables";
    Gauge chatd_notices_connected { }
        "1 while this instance hears PostgreSQL's notices; while it is 0, caches are not kept";
    Counter chatd_level_skips_total { }
        "requests that would not wait for frames on their way, and had views read the tables";

    Counter synapse_outgoing_replication_requests_total { name code }
        "requests carried to other instances, by endpoint and status; `ERR` is no answer";
    Gauge synapse_pending_outgoing_replication_requests { name }
        "those that wait for their answer";
    Histogram chatd_carry_seconds { instance }
        "time until the other instance began to answer";
    Counter chatd_carry_retries_total { }
        "attempts that had to be repeated: a shard has moved, an instance was away";
    Counter chatd_carry_unreached_total { instance }
        "attempts that did not reach the instance, or were broken off by it";
    Counter chatd_carried_in_total { }
        "requests that other instances carried here";
    Histogram chatd_call_seconds { instance }
        "time until another instance had done what this one asked of it";
    Counter chatd_call_retries_total { }
        "calls of other instances that had to be repeated";

    Gauge synapse_util_caches_cache_size { name }
        "entries of a cache";
    Gauge synapse_util_caches_cache_max_size { name }
        "entries that it may have";
    Gauge synapse_util_caches_cache_hits { name }
        "look-ups that found an entry";
    Gauge synapse_util_caches_cache { name }
        "all look-ups; without the hits, these are the misses";
    Gauge chatd_sync_index_rows { part }
        "rows that the index of syncs holds in memory";
    Gauge synapse_notifier_listeners { }
        "syncs that wait for something new";

    Counter synapse_background_process_start_count_total { name }
        "background tasks started";
    Gauge synapse_background_process_in_flight_count { name }
        "background tasks that run";
    Counter chatd_task_panics_total { task }
        "background tasks that panicked: should be zero, each one is in the log";

    Counter process_cpu_seconds_total { }
        "CPU time of the process, user and system";
    Gauge process_resident_memory_bytes { }
        "memory of the process";
    Gauge process_virtual_memory_bytes { }
        "its address space";
    Gauge process_open_fds { }
        "file handles that are open";
    Gauge process_max_fds { }
        "file handles that there may be";
    Gauge process_start_time_seconds { }
        "when the process started, since 1970";
    Gauge synapse_build_info { version }
        "1; the label says which release of chatd this is";
}

/// The metric of that name.
pub(super) fn find(name: &str) -> Option<&'static Metric> {
    CATALOGUE.iter().find(|metric| metric.name == name)
}

/// Counters of what seldom happens, which are on the page before it has happened.
const FROM_THE_START: &[&str] = &[
    "chatd_call_retries_total",
    "chatd_carried_in_total",
    "chatd_carry_retries_total",
    "chatd_http_panics_total",
    "chatd_level_skips_total",
    "chatd_shards_taken_total",
];

/// Says what each metric means.
pub(super) fn describe() {
    for name in FROM_THE_START.iter().copied() {
        metrics::counter!(name).absolute(0);
    }
    for Metric { name, kind, meaning, .. } in CATALOGUE.iter().copied() {
        match kind {
            Kind::Counter => metrics::describe_counter!(name, meaning),
            Kind::Gauge => metrics::describe_gauge!(name, meaning),
            Kind::Histogram => metrics::describe_histogram!(name, meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write};

    use super::*;

    /// The catalogue as the documentation has it.
    fn table() -> String {
        let mut text = "| metric | labels | what it says |\n| --- | --- | --- |\n".to_owned();
        for Metric { name, labels, meaning, .. } in CATALOGUE {
            let labels: Vec<_> = labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(text, "| `{name}` | {} | {meaning} |", labels.join(", "));
        }
        text
    }

    #[test]
    fn names_are_unique_and_say_what_they_are() {
        let names: BTreeSet<_> = CATALOGUE.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), CATALOGUE.len());
        for metric in CATALOGUE {
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{metric:?}");
            assert!(!metric.meaning.contains(['\n', '|', '\\']), "{metric:?}");
        }
    }

    #[test]
    fn the_documentation_lists_them_all() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let page = std::fs::read_to_string(file).unwrap();
        assert!(page.contains(&table()), "docs/operations.md should have this:\n{}", table());
    }
}
