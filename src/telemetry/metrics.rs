//! Metrics: every name of the main package in one table, and the text that Prometheus reads.
//!
//! A room counts with the constants below, so a metric that is not in [`METRICS`] cannot be counted by
//! accident, and the table is what the dashboard, the Grafana file and the documentation are written from.
//! Handles are made once (`dispatch/meter.rs` per hub, `gateway/calls.rs` per call), not per item. What can be
//! looked up is not counted at all: [`Metrics::before_each_look`] has it looked up when somebody asks.
//!
//! Labels have few values each: kinds, codes, statuses, and the names of the first hubs. Never an instance id.

use std::sync::{Arc, OnceLock};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows while the process lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution; all of ours are in seconds.
    Histogram,
}

/// One metric of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Name as Prometheus sees it.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Labels, in the order in which they are written.
    pub labels: &'static [&'static str],
    /// What it tells, in one sentence.
    pub help: &'static str,
}

/// Declares the constants and the table together, so that neither can miss a metric.
macro_rules! table {
    ($($constant:ident = $name:literal, $kind:ident, [$($label:literal),*], $help:literal;)*) => {
        $(#[doc = $help] pub const $constant: &str = $name;)*

        /// Every metric of the main package.
        pub const METRICS: &[Metric] = &[
            $(Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

table! {
    BUILD_INFO = "durahub_build_info", Gauge, ["version"], "Always 1; the label tells the version that runs.";
    READY = "durahub_ready", Gauge, [], "1 when the node takes work, otherwise 0.";
    PARTITIONS_LED = "durahub_partitions_led", Gauge, [], "Partitions that this node leads.";
    REQUESTS = "durahub_requests_total", Counter, ["rpc", "code"], "Calls answered by the gateway, by gRPC code; a stream counts when it opens.";
    REQUEST_SECONDS = "durahub_request_duration_seconds", Histogram, ["rpc"], "Time from a call's arrival to its answer; calls that wait for an instance or for work are left out.";
    INSTANCES_STARTED = "durahub_instances_started_total", Counter, ["hub"], "Instances created, on the partitions led here.";
    INSTANCES_FINISHED = "durahub_instances_finished_total", Counter, ["hub", "status"], "Instances that reached a terminal status, on the partitions led here.";
    INSTANCE_SECONDS = "durahub_instance_duration_seconds", Histogram, ["hub", "status"], "Time from an instance's creation to its terminal status.";
    INSTANCES_REMOVED = "durahub_instances_removed_total", Counter, ["hub"], "Ended instances that retention removed, on the partitions led here.";
    READY_ITEMS = "durahub_ready_items", Gauge, ["hub", "kind"], "Work items that wait for a worker, on the partitions led here.";
    OLDEST_READY = "durahub_oldest_ready_item_seconds", Gauge, ["hub", "kind"], "How long the oldest of them has waited; 0 when there is none.";
    LEASES = "durahub_leases", Gauge, ["hub", "kind"], "Work items that are with a worker, on the partitions led here.";
    WORKER_STREAMS = "durahub_worker_streams", Gauge, ["hub"], "Worker streams that are open on this node.";
    WORK_ITEMS_SENT = "durahub_work_items_sent_total", Counter, ["hub", "kind"], "Work items handed to workers, repeats included.";
    WORK_ITEM_WAIT = "durahub_work_item_wait_seconds", Histogram, ["hub", "kind"], "Schedule-to-start: time from ready to handed out; for an item that is handed out again, from the first time.";
    WORK_ITEMS_RETURNED = "durahub_work_items_returned_total", Counter, ["hub", "kind", "reason"], "Work items that came back undone: given up by their worker, or not answered within the lease.";
    ACTIONS = "durahub_actions_total", Counter, ["hub", "kind"], "Work items whose answer was committed: what the managed service counts as actions.";
    ANSWERS_IGNORED = "durahub_answers_ignored_total", Counter, ["hub", "kind"], "Answers of workers that changed nothing: late, repeated or computed from an older history.";
    DISK_FREE = "durahub_disk_free_bytes", Gauge, [], "Free bytes of the file system of the data folder.";
    MEMORY_USED = "durahub_memory_used_bytes", Gauge, [], "Memory of this process that is resident.";
    MEMORY_BUDGET = "durahub_memory_budget_bytes", Gauge, [], "Memory that this process may have.";
    PRESSURE = "durahub_pressure", Gauge, ["source"], "How short of room the node is: 0 not at all, 1 nothing new is begun, 2 nothing that grows is taken.";
    TIMER_LAG = "durahub_timer_lag_seconds", Histogram, [], "Time from the due time of a partition's earliest timer to its firing.";
    CONNECTIONS = "durahub_connections", Gauge, ["port"], "Connections that are open at a port: grpc, http or peer.";
    REQUEST_BYTES = "durahub_request_bytes", Gauge, [], "Bytes of requests that are under way on the gRPC port: of messages that arrive, and of those that are not answered.";
    REQUESTS_WAITING = "durahub_requests_waiting", Gauge, [], "Requests that are not read on because there is no room for them (limits.request_bytes, limits.connection_request_bytes).";
    CONNECTIONS_REFUSED = "durahub_connections_refused_total", Counter, ["port", "reason"], "Connections that were closed because there were too many, in all or from their address.";
    SPANS_SENT = "durahub_spans_sent_total", Counter, [], "Spans that the collector of traces (tracing.endpoint) has taken.";
    SPANS_DROPPED = "durahub_spans_dropped_total", Counter, ["reason"], "Spans that it will never see: full (too many waited), unsent (it was not reached), refused (by it).";
}

/// Upper ends of histogram buckets in seconds: fine around a commit, coarse up to a lease.
const BUCKETS: &[f64] = &[
    0.000_25, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
    30.0, 60.0, 300.0,
];

/// Metrics could not be started.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The recorder refused its settings.
    #[error("set up metrics")]
    Setup(#[from] BuildError),
    /// Something else has already taken the process's metrics.
    #[error("start metrics: another recorder is installed in this process")]
    Taken,
}

/// Handle to all metrics of the process; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    look: Arc<OnceLock<Look>>,
}

/// Looks at the node and sets gauges.
type Look = Box<dyn Fn() + Send + Sync>;

impl Metrics {
    /// Installs the recorder of the process and describes every metric.
    ///
    /// # Errors
    /// [`MetricsError::Taken`] when called twice.
    pub fn install() -> Result<Metrics, MetricsError> {
        let recorder = builder()?.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Taken)?;
        describe();
        metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        // There from the start: who asks how fast they grow needs a first value.
        drop(metrics::counter!(SPANS_SENT));
        for reason in ["full", "unsent", "refused"] {
            drop(metrics::counter!(SPANS_DROPPED, "reason" => reason));
        }
        Ok(Metrics { handle, look: Arc::default() })
    }

    /// A handle of its own that nothing is counted in, for tests and for processes that count elsewhere.
    ///
    /// # Errors
    /// Never in practice: the settings are constants.
    pub fn detached() -> Result<Metrics, MetricsError> {
        Ok(Metrics { handle: builder()?.build_recorder().handle(), look: Arc::default() })
    }

    /// Sets what is called before each [`Metrics::render`], once for the process; later calls change nothing.
    pub fn before_each_look(&self, look: impl Fn() + Send + Sync + 'static) {
        let _ = self.look.set(Box::new(look));
    }

    /// All metrics in the text format of Prometheus.
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(look) = self.look.get() {
            look();
        }
        self.handle.render()
    }

    /// Moves recorded values into their buckets. Called every few seconds, it keeps memory bounded when
    /// nobody scrapes.
    pub fn tidy(&self) {
        self.handle.run_upkeep();
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), BUCKETS)
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => {
                metrics::describe_histogram!(metric.name, metrics::Unit::Seconds, metric.help)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions_of_prometheus() {
        for (i, metric) in METRICS.iter().enumerate() {
            assert!(metric.name.starts_with("durahub_"), "{}", metric.name);
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{}",
                metric.name
            );
            assert!(
                metric.name.ends_with("_seconds") || metric.kind != Kind::Histogram,
                "{}",
                metric.name
            );
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(
                METRICS[..i].iter().all(|other| other.name != metric.name),
                "{} twice",
                metric.name
            );
        }
    }

    #[test]
    fn what_is_counted_is_rendered_with_its_description() {
        let recorder = builder().unwrap().build_recorder();
        let metrics = Metrics { handle: recorder.handle(), look: Arc::default() };
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!(REQUESTS, "rpc" => "Hello", "code" => "OK").increment(2);
            metrics::histogram!(REQUEST_SECONDS, "rpc" => "Hello").record(0.003);
        });
        metrics.tidy();
        let text = metrics.render();
        for part in [
            "# HELP durahub_requests_total Calls answered by the gateway, by gRPC code; a stream counts when it opens.",
            "# TYPE durahub_requests_total counter",
            "durahub_requests_total{rpc=\"Hello\",code=\"OK\"} 2",
            "durahub_request_duration_seconds_bucket{rpc=\"Hello\",le=\"0.005\"} 1",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }
}
