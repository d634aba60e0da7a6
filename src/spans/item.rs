//! Spans of calls and of work items: what they say, and how they end.

use durahub_proto::otlp::{KeyValue, Span, SpanKind};
use durahub_proto::wire;

use super::context::{Context, TraceId, trace_of};
use super::{Shared, Spans, make};

/// A call that names an instance.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// What is asked for, as in the span's name: `start`, `signal`.
    pub what: &'static str,
    /// `orchestration` or `entity`.
    pub kind: &'static str,
    /// Number of the task hub.
    pub hub: u32,
    /// Name of the orchestration or operation.
    pub name: &'a str,
    /// Id of the instance.
    pub instance: &'a str,
    /// What the message carries.
    pub context: Option<&'a wire::TraceContext>,
    /// What the call carries, where the message carries nothing.
    pub header: Option<&'a str>,
}

/// A work item, as it is handed to a worker.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// `orchestration`, `activity` or `entity`.
    pub kind: &'static str,
    /// Number of the task hub.
    pub hub: u32,
    /// Name of the orchestration, activity or entity.
    pub name: &'a str,
    /// Its version.
    pub version: Option<&'a str>,
    /// Id of the instance.
    pub instance: &'a str,
    /// Execution id; `None` for an entity.
    pub execution: Option<&'a str>,
    /// Id of an activity's task.
    pub task: Option<i32>,
    /// What the SDK gave for it.
    pub context: Option<&'a wire::TraceContext>,
}

/// What became of a work item that a worker had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its answer was committed.
    Committed,
    /// Its answer changed nothing.
    Ignored,
    /// Its worker gave it back.
    GivenBack,
    /// Its lease ended before an answer came.
    LeaseEnded,
}

impl Outcome {
    fn words(self) -> (&'static str, Option<&'static str>) {
        match self {
            Outcome::Committed => ("committed", None),
            Outcome::Ignored => ("ignored", None),
            Outcome::GivenBack => ("given_back", Some("the worker gave it back")),
            Outcome::LeaseEnded => ("lease_ended", Some("no answer came within the lease")),
        }
    }
}

/// The span of a work item that a worker has. It is told once it is closed; one that is dropped is never told of.
#[derive(Debug)]
pub struct Open(Span);

/// The span of a call that is under way. It is told when its end is known, or when the call is given up.
#[derive(Debug)]
pub struct Calling {
    shared: std::sync::Arc<Shared>,
    span: Option<Span>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Spans {
    /// Begins the span of a call; `None` if it is not recorded.
    #[must_use]
    pub fn call(&self, call: &Call<'_>) -> Option<Calling> {
        let shared = self.0.as_ref()?;
        let given = call.context.and_then(Context::of);
        let given = given.or_else(|| call.header.and_then(Context::parse));
        let below = given.unwrap_or_else(|| shared.sampling.root(shared.new_trace()));
        if !below.is_recorded {
            return None;
        }
        let name = format!("server:{}:{}", call.what, call.name);
        let begin = shared.clock.now();
        let mut span = make::span(&shared.clock, below, name, SpanKind::Server, begin);
        span.attributes = shared.attributes(call.kind, call.hub, call.name, call.instance);
        Some(Calling { shared: shared.clone(), span: Some(span) })
    }

    /// Begins the span of an item that was ready at one time and is handed out at another, both in nanoseconds
    /// since the Unix epoch; `None` if it is not recorded.
    #[must_use]
    pub fn open(&self, item: &Item<'_>, ready: i64, handed_out: i64) -> Option<Box<Open>> {
        let shared = self.0.as_ref()?;
        let below = item.context.and_then(Context::of).unwrap_or_else(|| {
            shared.sampling.root(match item.execution {
                Some(execution) => trace_of(item.hub, item.instance, execution),
                None => shared.new_trace(),
            })
        });
        if !below.is_recorded {
            return None;
        }
        let name = format!("server:{}:{}", item.kind, item.name);
        // A clock that was set back meanwhile counts as no wait.
        let ready = ready.min(handed_out);
        let mut span = make::span(&shared.clock, below, name, SpanKind::Internal, ready);
        span.attributes = shared.attributes(item.kind, item.hub, item.name, item.instance);
        let version = item.version.filter(|version| !version.is_empty());
        span.attributes.extend(version.map(|it| make::text("durabletask.task.version", it)));
        let execution = item.execution.map(|it| make::text("durabletask.task.execution_id", it));
        span.attributes.extend(execution);
        let task = item.task.map(|it| make::number("durabletask.task.task_id", it.into()));
        span.attributes.extend(task);
        shared.finish(make::part(&shared.clock, &span, "server:wait", ready, handed_out));
        Some(Box::new(Open(span)))
    }

    /// Ends the span of an item. `answered` is when the worker's answer came, if one did.
    pub fn close(&self, open: Open, answered: Option<i64>, outcome: Outcome) {
        let (Some(shared), Open(mut span)) = (&self.0, open) else { return };
        let now = shared.clock.now();
        if let Some(answered) = answered {
            shared.finish(make::part(&shared.clock, &span, "server:commit", answered, now));
        }
        let (word, wrong) = outcome.words();
        span.attributes.push(make::text("durahub.outcome", word));
        span.status = wrong.map(make::wrong);
        shared.end(span, now);
    }
}

impl Calling {
    /// Ends the span. `instance` is the one that was found or made, `code` the gRPC code of a refusal.
    pub fn end(mut self, instance: Option<&str>, code: Option<&str>) {
        let Some(mut span) = self.span.take() else { return };
        if let Some(instance) = instance {
            span.attributes.retain(|attribute| attribute.key != INSTANCE);
            span.attributes.push(make::text(INSTANCE, instance));
        }
        span.status = code.map(make::wrong);
        self.shared.end(span, self.shared.clock.now());
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        // The caller did not wait: what it asked for may be done all the same.
        if let Some(mut span) = self.span.take() {
            span.attributes.push(make::text("durahub.outcome", "given_up"));
            self.shared.end(span, self.shared.clock.now());
        }
    }
}

const INSTANCE: &str = "durabletask.task.instance_id";

impl Shared {
    fn end(&self, mut span: Span, now: i64) {
        span.end_time_unix_nano = make::time(now).max(span.start_time_unix_nano);
        self.finish(span);
    }

    /// The SDKs' names where they have one (R6.12, R6.13).
    fn attributes(&self, kind: &str, hub: u32, name: &str, instance: &str) -> Vec<KeyValue> {
        vec![
            make::text("durabletask.type", kind),
            make::text("durabletask.task.name", name),
            make::text(INSTANCE, instance),
            make::text("durahub.hub", &self.hub(hub)),
        ]
    }

    /// The id of a trace that belongs to nothing else.
    fn new_trace(&self) -> TraceId {
        let mut id = TraceId::default();
        id[..8].copy_from_slice(&self.clock.entropy().max(1).to_be_bytes());
        id[8..].copy_from_slice(&self.clock.entropy().to_be_bytes());
        id
    }
}
