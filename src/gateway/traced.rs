//! Spans of the calls that carry a context: the start of an orchestration and the signal to an entity.

use durahub_proto::wire;
use tonic::{Request, Status};

use super::Gateway;
use crate::engine::state::entity_name;
use crate::spans::{Call, Calling};

impl Gateway {
    /// Begins the span of a start.
    pub(super) fn start_span(
        &self,
        hub: u32,
        request: &Request<wire::CreateInstanceRequest>,
    ) -> Option<Calling> {
        if !self.0.settings.spans.is_on() {
            return None;
        }
        let message = request.get_ref();
        self.0.settings.spans.call(&Call {
            what: "start",
            kind: "orchestration",
            hub,
            name: &message.name,
            instance: &message.instance_id,
            context: message.parent_trace_context.as_ref(),
            header: header(request),
        })
    }

    /// Begins the span of a signal.
    pub(super) fn signal_span(
        &self,
        hub: u32,
        request: &Request<wire::SignalEntityRequest>,
    ) -> Option<Calling> {
        if !self.0.settings.spans.is_on() {
            return None;
        }
        let message = request.get_ref();
        self.0.settings.spans.call(&Call {
            what: "signal",
            kind: "entity",
            hub,
            name: entity_name(&message.instance_id).unwrap_or_default(),
            instance: &message.instance_id,
            context: message.parent_trace_context.as_ref(),
            header: header(request),
        })
    }
}

/// Ends the span of a call; `instance` is what its answer names.
pub(super) fn end<T>(
    calling: Option<Calling>,
    answer: &Result<T, Status>,
    instance: impl FnOnce(&T) -> Option<&str>,
) {
    let Some(calling) = calling else { return };
    match answer {
        Ok(answer) => calling.end(instance(answer), None),
        Err(status) => calling.end(None, Some(&format!("{:?}", status.code()))),
    }
}

/// What instrumented gRPC clients send.
fn header<T>(request: &Request<T>) -> Option<&str> {
    request.metadata().get("traceparent").and_then(|value| value.to_str().ok())
}
