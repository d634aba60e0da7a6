//! Spans of the server, for a collector of traces (OTLP over gRPC), where one is configured.
//!
//! The SDKs make the spans of an application: the call that starts an orchestration, the orchestration, each
//! activity. They pass their contexts through the server, which carries them as data and changes nothing
//! (section 6 of the contract). What no SDK can see is what happens in between, and that is told here: how long a
//! call took to be durable, how long an item waited for a worker, how long its answer took to be committed.
//!
//! | Span | From, to | Below it |
//! | --- | --- | --- |
//! | `server:start:NAME` | the call `StartInstance`, to its answer | |
//! | `server:signal:NAME` | the call `SignalEntity`, to its answer | |
//! | `server:orchestration:NAME` | a turn: ready, to committed | `server:wait`, `server:commit` |
//! | `server:activity:NAME` | ready, to its result committed | `server:wait`, `server:commit` |
//! | `server:entity:NAME` | a batch: ready, to committed | `server:wait`, `server:commit` |
//!
//! Each is a child of the context that the SDK gave for the same thing, so it stands beside the SDK's own span and
//! never above one (R6.13). Whether it is recorded, that context says. Where there is none, the spans of one
//! execution form a trace of their own, whose id follows from the execution's, so that all nodes come to the same
//! one; a share of those traces is recorded. A batch of an entity is a trace by itself: its operations come from
//! many callers, and their messages carry no context.
//!
//! An open span lies in the lease of its item ([`Open`]) and goes with it; a finished one goes into a queue, from
//! which one task sends ([`export`]). The queue has an end: when the collector is away, spans are dropped and
//! counted, and nobody waits. Without a collector there is no queue, and nothing is done per item at all.
//!
//! What is absent on purpose: spans of what the SDKs see themselves, payloads, links, and events.

mod context;
mod export;
mod item;
mod make;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use durahub_proto::otlp;
use metrics::{Counter, counter};
use parking_lot::Mutex;
use tokio::sync::mpsc;

pub use context::Context;
pub use export::{ExportError, Exporting, Headers, read_headers};
pub use item::{Call, Calling, Item, Open, Outcome};

use crate::clock::Clock;
use crate::telemetry::metrics as names;
use context::Sampling;

/// Finished spans that wait to be sent; more are dropped.
const QUEUE: usize = 8192;
/// Names of task hubs that are remembered.
const HUBS: usize = 1024;

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// URL of the collector: `http` or `https`, host, and port.
    pub endpoint: String,
    /// PEM file with the certificates that sign that of an `https` collector; `None`: those that this machine trusts.
    pub ca_file: Option<PathBuf>,
    /// File with headers for each call, `name: value` on each line.
    pub headers_file: Option<PathBuf>,
    /// Share of the traces that begin here that are recorded, 0 to 1.
    pub sampling_ratio: f64,
    /// How the server is called in traces.
    pub service_name: String,
    /// More of what is said of this server, by key.
    pub resource: BTreeMap<String, String>,
    /// Number of this node.
    pub node: u64,
}

/// Records spans, if a collector is configured; a cheap handle.
#[derive(Clone, Default)]
pub struct Spans(Option<Arc<Shared>>);

struct Shared {
    queue: mpsc::Sender<otlp::Span>,
    sampling: Sampling,
    clock: Clock,
    full: Counter,
    name_of: OnceLock<NameOf>,
    hubs: Mutex<BTreeMap<u32, Arc<str>>>,
}

type NameOf = Box<dyn Fn(u32) -> Option<String> + Send + Sync>;

impl Spans {
    /// Records nothing.
    #[must_use]
    pub fn off() -> Spans {
        Spans::default()
    }

    /// Records, and sends what was recorded until [`Exporting::stop`].
    ///
    /// # Errors
    /// [`ExportError`] when a file cannot be used. A collector that cannot be reached is no error: it is asked again.
    pub fn start(settings: Settings, clock: Clock) -> Result<(Spans, Exporting), ExportError> {
        let (queue, finished) = mpsc::channel(QUEUE);
        let sampling = Sampling::new(settings.sampling_ratio);
        let exporting = Exporting::start(settings, finished)?;
        let full = counter!(names::SPANS_DROPPED, "reason" => "full");
        let (name_of, hubs) = Default::default();
        let shared = Shared { queue, sampling, clock, full, name_of, hubs };
        Ok((Spans(Some(Arc::new(shared))), exporting))
    }

    /// Says how the name of a task hub is found; `None` for one that is not known on this node.
    pub fn name_hubs(&self, name_of: impl Fn(u32) -> Option<String> + Send + Sync + 'static) {
        if let Some(shared) = &self.0 {
            let _ = shared.name_of.set(Box::new(name_of));
        }
    }

    /// Whether anything may be recorded: if not, nothing needs to be looked up for it.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

impl std::fmt::Debug for Spans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_on() { "Spans(on)" } else { "Spans(off)" })
    }
}

impl Shared {
    /// Hands a finished span to the task that sends it. Never waits.
    fn finish(&self, span: otlp::Span) {
        if self.queue.try_send(span).is_err() {
            self.full.increment(1);
        }
    }

    fn hub(&self, id: u32) -> Arc<str> {
        if let Some(name) = self.hubs.lock().get(&id) {
            return name.clone();
        }
        // Asked without the lock: it reads rows.
        let name = self.name_of.get().and_then(|name_of| name_of(id));
        let Some(name) = name else { return id.to_string().into() };
        let name: Arc<str> = name.into();
        let mut hubs = self.hubs.lock();
        if hubs.len() >= HUBS {
            hubs.clear();
        }
        hubs.insert(id, name.clone());
        name
    }
}
