//! Reading a worker's actions: their order, which of several outcomes wins, and what is refused
//! (R4.16 to R4.21).

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use prost::Message as _;

/// The actions of a turn, in the order in which they are carried out.
pub(crate) struct Sorted {
    /// Everything but the outcome.
    pub(crate) actions: Vec<(i32, Action)>,
    /// How the generation ends, if it does.
    pub(crate) outcome: Option<Outcome>,
}

/// How a generation ends.
pub(crate) enum Outcome {
    /// The instance is terminal.
    End { id: i32, action: wire::CompleteOrchestrationAction },
    /// A new generation follows, beginning with these events.
    ContinueAsNew { action: wire::CompleteOrchestrationAction, carried: Vec<Bytes> },
}

/// Sorts by id, since one client sends its actions in random order (R4.17); equal ids keep their order
/// (R4.18). Of several outcomes a terminal one beats continue-as-new, then the lowest id wins (R4.20).
///
/// # Errors
/// Says which action cannot be carried out; then none is (R4.21).
pub(crate) fn sort(mut actions: Vec<wire::OrchestratorAction>) -> Result<Sorted, String> {
    actions.sort_by_key(|action| action.id);
    let mut sorted = Sorted { actions: Vec::with_capacity(actions.len()), outcome: None };
    for wire::OrchestratorAction { id, orchestrator_action_type } in actions {
        match orchestrator_action_type {
            Some(Action::CompleteOrchestration(action)) => {
                let outcome = outcome(id, action)?;
                let beats = matches!(
                    (&sorted.outcome, &outcome),
                    (None, _) | (Some(Outcome::ContinueAsNew { .. }), Outcome::End { .. })
                );
                if beats {
                    sorted.outcome = Some(outcome);
                }
            }
            Some(
                action @ (Action::ScheduleTask(_)
                | Action::CreateTimer(_)
                | Action::CreateSubOrchestration(_)
                | Action::SendEvent(_)
                | Action::TerminateOrchestration(_)
                | Action::SendEntityMessage(_)),
            ) => sorted.actions.push((id, action)),
            // Rewinding needs no worker here, so none is ever asked to rewrite a history (R4.84).
            Some(Action::RewindOrchestration(_)) => {
                return Err(format!(
                    "action {id}: rewindOrchestration was not asked for; this server rewrites histories itself"
                ));
            }
            None => return Err(format!("action {id} is of a kind that this server does not know")),
        }
    }
    Ok(sorted)
}

fn outcome(id: i32, mut action: wire::CompleteOrchestrationAction) -> Result<Outcome, String> {
    use OrchestrationStatus::{Completed, ContinuedAsNew, Failed, Terminated};
    match action.orchestration_status() {
        Completed | Failed | Terminated => Ok(Outcome::End { id, action }),
        ContinuedAsNew => {
            let carried = std::mem::take(&mut action.carryover_events);
            if carried.iter().any(|event| event_type(event).is_none()) {
                return Err(format!(
                    "action {id}: a carried-over event is of a kind that this server does not know"
                ));
            }
            Ok(Outcome::ContinueAsNew { action, carried })
        }
        other => {
            Err(format!("action {id}: an orchestration cannot complete as {}", other.as_str_name()))
        }
    }
}

/// The content of an encoded history event, if it is one.
pub(crate) fn event_type(event: &Bytes) -> Option<EventType> {
    wire::HistoryEvent::decode(event.clone()).ok()?.event_type
}
