//! Every metric of this room: its name, its unit and what it tells.

use std::sync::LazyLock;

use metrics::{Gauge, Histogram};

/// Seconds that one log sync took (write-out and fdatasync).
pub(crate) static FLUSH_SECONDS: LazyLock<Histogram> =
    LazyLock::new(|| metrics::histogram!("durahub_log_flush_seconds"));
/// Records written per log flush.
pub(crate) static FLUSH_RECORDS: LazyLock<Histogram> =
    LazyLock::new(|| metrics::histogram!("durahub_log_flush_records"));
/// Bytes written per log flush.
pub(crate) static FLUSH_BYTES: LazyLock<Histogram> =
    LazyLock::new(|| metrics::histogram!("durahub_log_flush_bytes"));
/// Jobs that a flush round found waiting.
pub(crate) static QUEUE_DEPTH: LazyLock<Gauge> =
    LazyLock::new(|| metrics::gauge!("durahub_log_queue_depth"));
/// Purged log records that are still to be deleted.
pub(crate) static PENDING_DELETIONS: LazyLock<Gauge> =
    LazyLock::new(|| metrics::gauge!("durahub_log_pending_deletions"));
/// Bytes of the database on disk.
pub(crate) static SIZE_ON_DISK: LazyLock<Gauge> =
    LazyLock::new(|| metrics::gauge!("durahub_store_size_bytes"));
/// Commands that share a log entry.
pub(crate) static BATCH_COMMANDS: LazyLock<Histogram> =
    LazyLock::new(|| metrics::histogram!("durahub_proposal_batch_commands"));

/// Bytes of the in-memory log tail of a group.
pub(crate) fn log_tail_bytes(group: u32) -> Gauge {
    metrics::gauge!("durahub_log_tail_bytes", "partition" => group.to_string())
}

/// Entries of a group that are in the log and not applied yet.
pub(crate) fn apply_lag(group: u32) -> Gauge {
    metrics::gauge!("durahub_apply_lag_entries", "partition" => group.to_string())
}

/// Term in which this node leads a group; 0 while it does not.
pub(crate) fn leader_term(group: u32) -> Gauge {
    metrics::gauge!("durahub_leader_term", "partition" => group.to_string())
}

/// 1 while a replica is in quarantine because its state differs from that of most others.
pub(crate) fn quarantined(group: u32) -> Gauge {
    metrics::gauge!("durahub_replica_quarantined", "partition" => group.to_string())
}

/// A replica went: nothing is to be told of it any more.
pub(crate) fn forget(group: u32) {
    for gauge in [log_tail_bytes(group), apply_lag(group), leader_term(group), quarantined(group)] {
        gauge.set(0.0);
    }
}

/// Registers the descriptions with the installed recorder. Install the recorder before starting a node.
pub fn describe() {
    use metrics::{Unit, describe_gauge, describe_histogram};
    describe_histogram!(
        "durahub_log_flush_seconds",
        Unit::Seconds,
        "Time of one log sync, shared by all partitions"
    );
    describe_histogram!("durahub_log_flush_records", Unit::Count, "Records written per log flush");
    describe_histogram!("durahub_log_flush_bytes", Unit::Bytes, "Bytes written per log flush");
    describe_gauge!(
        "durahub_log_queue_depth",
        Unit::Count,
        "Log writes that the last flush round found waiting"
    );
    describe_gauge!(
        "durahub_log_pending_deletions",
        Unit::Count,
        "Purged log records still to be deleted"
    );
    describe_gauge!("durahub_store_size_bytes", Unit::Bytes, "Size of the database on disk");
    describe_histogram!(
        "durahub_proposal_batch_commands",
        Unit::Count,
        "Commands that share one log entry"
    );
    describe_gauge!(
        "durahub_log_tail_bytes",
        Unit::Bytes,
        "Log entries of a partition that are held in memory"
    );
    describe_gauge!(
        "durahub_apply_lag_entries",
        Unit::Count,
        "Log entries of a partition that are not applied yet"
    );
    describe_gauge!(
        "durahub_replica_quarantined",
        Unit::Count,
        "1 if this replica's state differs from that of most others, so that it was stopped"
    );
    describe_gauge!(
        "durahub_leader_term",
        Unit::Count,
        "Term in which this node leads the partition, 0 if it does not"
    );
}
