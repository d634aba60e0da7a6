//! Whether a turn lets its instance grow beyond its limits (R4.11): then the instance fails with a reason,
//! and nothing else does.
//!
//! What a generation waits for is counted by what it asked for and by the answers that its turns took in;
//! external events by what was raised and what turns took in. Neither costs a row.

use bytes::Bytes;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use prost::Message as _;

use super::actions::Sorted;
use crate::engine::event::Sort;
use crate::engine::limits::Limits;
use crate::engine::state::InstanceRecord;

/// Takes what a turn consumes from the counts of its instance.
pub(crate) fn consume(record: &mut InstanceRecord, event: &Bytes) {
    match Sort::of(event) {
        Sort::Answer => record.pending = record.pending.saturating_sub(1),
        Sort::Raised => record.raised_events = record.raised_events.saturating_sub(1),
        Sort::Other => {}
    }
}

/// Adds what a turn asks for to the counts of its instance. `appended` is what the turn has put into the
/// history so far.
///
/// # Errors
/// Says which limit the instance would exceed, and what to do. A turn that ends the generation never does.
pub(crate) fn check(
    limits: &Limits,
    record: &mut InstanceRecord,
    appended: &[Bytes],
    sorted: Sorted,
) -> Result<Sorted, String> {
    if sorted.outcome.is_some() {
        return Ok(sorted);
    }
    let opened = sorted.actions.iter().filter(|(_, action)| opens(action)).count();
    record.pending = record.pending.saturating_add(u32::try_from(opened).unwrap_or(u32::MAX));
    let (pending, limit) = (record.pending, limits.pending);
    if Limits::exceeds(limit, pending.into()) {
        return Err(format!(
            "this orchestration waits for {pending} activities, timers and child orchestrations at once, \
             the limit is {limit} (limits.max_pending_per_instance); start fewer at once, or spread \
             them over child orchestrations"
        ));
    }
    let events = u64::from(record.history_events) + (appended.len() + sorted.actions.len()) as u64;
    let limit = limits.history_events;
    if Limits::exceeds(limit, events) {
        return Err(format!(
            "the history of this orchestration would have {events} events, the limit is {limit} \
             (limits.max_history_events); {ANEW}"
        ));
    }
    let taken: usize = appended.iter().map(Bytes::len).sum();
    let asked: usize = sorted.actions.iter().map(|(_, action)| size(action)).sum();
    let bytes = record.history_bytes + (taken + asked) as u64;
    let limit = limits.history_bytes;
    if Limits::exceeds(limit, bytes) {
        return Err(format!(
            "the history of this orchestration would take {bytes} bytes, the limit is {limit} \
             (limits.max_history_bytes); {ANEW}"
        ));
    }
    Ok(sorted)
}

const ANEW: &str = "begin anew with continue-as-new, or spread the work over child orchestrations";

/// Whether an answer will come.
fn opens(action: &Action) -> bool {
    matches!(
        action,
        Action::ScheduleTask(_) | Action::CreateTimer(_) | Action::CreateSubOrchestration(_)
    )
}

/// About what the event of an action takes in the history.
fn size(action: &Action) -> usize {
    match action {
        Action::ScheduleTask(it) => it.encoded_len(),
        Action::CreateSubOrchestration(it) => it.encoded_len(),
        Action::CreateTimer(it) => it.encoded_len(),
        Action::SendEvent(it) => it.encoded_len(),
        Action::SendEntityMessage(it) => it.encoded_len(),
        Action::CompleteOrchestration(_)
        | Action::TerminateOrchestration(_)
        | Action::RewindOrchestration(_) => 0,
    }
}
