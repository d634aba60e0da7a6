//! The actions of a turn, one function each. Ids are the caller's, as they are the SDK's.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use durahub_proto::wire;
use wire::OrchestrationStatus;
use wire::orchestrator_action::OrchestratorActionType as Type;

/// An action of any type.
pub fn action(id: i32, of: Type) -> wire::OrchestratorAction {
    wire::OrchestratorAction { id, orchestrator_action_type: Some(of) }
}

/// Runs an activity.
pub fn schedule_task(id: i32, name: &str, input: &str) -> wire::OrchestratorAction {
    action(
        id,
        Type::ScheduleTask(wire::ScheduleTaskAction {
            name: name.into(),
            input: Some(input.into()),
            ..Default::default()
        }),
    )
}

/// A timer that fires at a moment, given as Unix time.
pub fn create_timer_at(id: i32, fire_at: SystemTime) -> wire::OrchestratorAction {
    action(id, Type::CreateTimer(wire::CreateTimerAction { fire_at: Some(fire_at.into()) }))
}

/// A timer that fires this long from now, by the clock of the test. For turns that run once only:
/// in a [`super::Program`] use [`create_timer_at`] with `history.now()`.
pub fn create_timer(id: i32, after: Duration) -> wire::OrchestratorAction {
    create_timer_at(id, SystemTime::now() + after)
}

/// Starts a child orchestration; an empty `instance` leaves the id to the server.
pub fn start_child(id: i32, instance: &str, name: &str, input: &str) -> wire::OrchestratorAction {
    action(
        id,
        Type::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
            instance_id: instance.into(),
            name: name.into(),
            input: Some(input.into()),
            ..Default::default()
        }),
    )
}

/// Raises an event on an instance.
pub fn send_event(id: i32, instance: &str, name: &str, data: &str) -> wire::OrchestratorAction {
    action(
        id,
        Type::SendEvent(wire::SendEventAction {
            instance: Some(wire::OrchestrationInstance {
                instance_id: instance.into(),
                execution_id: None,
            }),
            name: name.into(),
            data: Some(data.into()),
        }),
    )
}

/// Ends the instance with a result.
pub fn complete(id: i32, result: &str) -> wire::OrchestratorAction {
    end(id, OrchestrationStatus::Completed, Some(result), None)
}

/// Ends the instance as failed.
pub fn fail(id: i32, details: wire::TaskFailureDetails) -> wire::OrchestratorAction {
    end(id, OrchestrationStatus::Failed, None, Some(details))
}

/// Ends the instance as terminated: the answer to `ExecutionTerminated`.
pub fn terminated(id: i32, output: &str) -> wire::OrchestratorAction {
    end(id, OrchestrationStatus::Terminated, Some(output), None)
}

/// Begins a new generation with this input; `carryover` are encoded history events.
pub fn continue_as_new(id: i32, input: &str, carryover: Vec<Bytes>) -> wire::OrchestratorAction {
    let mut again = end(id, OrchestrationStatus::ContinuedAsNew, Some(input), None);
    if let Some(Type::CompleteOrchestration(again)) = &mut again.orchestrator_action_type {
        again.carryover_events = carryover;
    }
    again
}

fn end(
    id: i32,
    status: OrchestrationStatus,
    result: Option<&str>,
    failure_details: Option<wire::TaskFailureDetails>,
) -> wire::OrchestratorAction {
    action(
        id,
        Type::CompleteOrchestration(wire::CompleteOrchestrationAction {
            orchestration_status: status.into(),
            result: result.map(Into::into),
            failure_details,
            ..Default::default()
        }),
    )
}

/// Failure details with a type and a message.
pub fn failure(error_type: &str, message: &str) -> wire::TaskFailureDetails {
    wire::TaskFailureDetails {
        error_type: error_type.into(),
        error_message: message.into(),
        ..Default::default()
    }
}
