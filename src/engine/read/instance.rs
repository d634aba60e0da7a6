//! One instance, as clients see it (section 2.2).

use bytes::Bytes;
use durahub_proto::Text;
use durahub_proto::wire::{self, history_event::EventType};
use prost::Message as _;

use super::history::chunk;
use super::inbox::first_event;
use crate::engine::state::{Address, Events, InstanceRecord, decode, keys};
use crate::engine::time::timestamp;
use crate::engine::view::View;

/// The head of an instance.
pub fn head(view: &dyn View, at: &Address) -> Option<InstanceRecord> {
    view.get(&keys::instance(at)).map(decode)
}

/// The state of an instance; input, output, custom status and failure details only with `payloads`
/// (R2.26).
pub fn state(view: &dyn View, at: &Address, payloads: bool) -> Option<wire::OrchestrationState> {
    Some(state_of(view, at, head(view, at)?, payloads))
}

/// The state that a head stands for.
pub(super) fn state_of(
    view: &dyn View,
    at: &Address,
    record: InstanceRecord,
    payloads: bool,
) -> wire::OrchestrationState {
    let mut state = wire::OrchestrationState {
        instance_id: at.instance.clone(),
        name: record.name.clone(),
        version: record.version.clone(),
        orchestration_status: record.status,
        scheduled_start_timestamp: record.scheduled_start,
        created_timestamp: Some(timestamp(record.created)),
        last_updated_timestamp: Some(timestamp(record.updated)),
        execution_id: Some(record.execution_id.as_str().into()),
        completed_timestamp: record.completed.map(timestamp),
        parent_instance_id: record
            .parent
            .as_ref()
            .and_then(|parent| parent.orchestration_instance.as_ref())
            .map(|parent| parent.instance_id.as_str().into()),
        tags: record.tags.clone(),
        ..Default::default()
    };
    if payloads {
        state.input = input(view, at, &record);
        state.custom_status = record.custom_status.clone();
        if record.is_terminal() {
            (state.output, state.failure_details) = outcome(view, at, &record);
        }
    }
    state
}

/// The input of the current generation: it stands in `executionStarted`, and only there (R2.28).
pub(crate) fn input(view: &dyn View, at: &Address, record: &InstanceRecord) -> Option<Text> {
    let events: Vec<Bytes> = if record.history_events == 0 {
        first_event(view, at).into_iter().collect()
    } else {
        // orchestratorStarted comes first.
        Events::of(chunk(view, at, record.generation, 0)?).take(2).collect()
    };
    events.into_iter().find_map(|event| match event_type(event)? {
        EventType::ExecutionStarted(started) => Some(started.input),
        _ => None,
    })?
}

/// What `executionCompleted`, the last event, says.
pub(crate) fn outcome(
    view: &dyn View,
    at: &Address,
    record: &InstanceRecord,
) -> (Option<Text>, Option<wire::TaskFailureDetails>) {
    let last = chunk(view, at, record.generation, record.last_chunk)
        .and_then(|row| Events::of(row).last());
    match last.and_then(event_type) {
        Some(EventType::ExecutionCompleted(completed)) => {
            (completed.result, completed.failure_details)
        }
        _ => (None, None),
    }
}

fn event_type(event: Bytes) -> Option<EventType> {
    wire::HistoryEvent::decode(event).ok()?.event_type
}
