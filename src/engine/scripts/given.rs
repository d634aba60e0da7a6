//! What scripts say that workers and clients send.

use std::error::Error;

use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use goldenscript::Argument;

use super::super::{command, event, time};
use super::SECOND;
use super::entities::entity_action;

/// A time in seconds.
pub(super) fn seconds(text: &str) -> Result<prost_types::Timestamp, Box<dyn Error>> {
    Ok(time::timestamp((text.parse::<f64>()? * SECOND as f64) as i64))
}

/// `running.failed` lists statuses; `ignore-` or `terminate-` in front is the legacy action.
pub(super) fn policy(list: &str) -> wire::OrchestrationIdReusePolicy {
    let (legacy_action, list) = match list.split_once('-') {
        Some(("ignore", list)) => (1, list),
        Some(("terminate", list)) => (2, list),
        _ => (0, list),
    };
    let statuses = list.split('.').filter(|name| !name.is_empty()).map(|name| {
        let name = format!("ORCHESTRATION_STATUS_{}", name.to_uppercase());
        OrchestrationStatus::from_str_name(&name).expect("a status") as i32
    });
    wire::OrchestrationIdReusePolicy { replaceable_status: statuses.collect(), legacy_action }
}

/// A worker's response: `task=1/SayHi/input timer=2/5 complete=3/result failed=3/message
/// terminated=3/result can=3/input carry=event status=text processed=1`.
pub(super) fn response(args: &[Argument]) -> Result<command::CompleteTurn, Box<dyn Error>> {
    let mut response = command::CompleteTurn::default();
    let mut carried = Vec::new();
    for arg in args {
        let Argument::KeyValue(key, value) = arg else { continue };
        let mut parts = value.split('/').map(str::to_owned);
        let mut next = || parts.next();
        match key.as_str() {
            "status" => {
                response.custom_status = Some(value.clone().into());
                continue;
            }
            "carry" => {
                let raised = wire::EventRaisedEvent { name: value.clone(), input: None };
                carried.push(event::history(-1, 0, EventType::EventRaised(raised)));
                continue;
            }
            "processed" => {
                response.processed = Some(value.parse()?);
                continue;
            }
            _ => {}
        }
        let id = next().ok_or("no id")?.parse()?;
        let complete = |status: OrchestrationStatus, result: Option<String>| {
            wire::CompleteOrchestrationAction {
                orchestration_status: status.into(),
                result: result.map(Into::into),
                ..Default::default()
            }
        };
        let action = match key.as_str() {
            "task" => Action::ScheduleTask(wire::ScheduleTaskAction {
                name: next().ok_or("no name")?,
                input: next().map(Into::into),
                ..Default::default()
            }),
            "timer" => Action::CreateTimer(wire::CreateTimerAction {
                fire_at: Some(seconds(&next().ok_or("no time")?)?),
            }),
            "complete" => {
                Action::CompleteOrchestration(complete(OrchestrationStatus::Completed, next()))
            }
            "terminated" => {
                Action::CompleteOrchestration(complete(OrchestrationStatus::Terminated, next()))
            }
            "failed" => Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                failure_details: Some(event::failure("Oops", next().unwrap_or_default())),
                ..complete(OrchestrationStatus::Failed, None)
            }),
            "can" => Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                carryover_events: std::mem::take(&mut carried),
                ..complete(OrchestrationStatus::ContinuedAsNew, next())
            }),
            "child" => Action::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
                name: next().ok_or("no name")?,
                instance_id: next().unwrap_or_default(),
                input: next().map(Into::into),
                version: next().map(Into::into),
                ..Default::default()
            }),
            "send" => Action::SendEvent(wire::SendEventAction {
                instance: Some(wire::OrchestrationInstance {
                    instance_id: next().ok_or("to whom?")?,
                    execution_id: None,
                }),
                name: next().ok_or("which event?")?,
                data: next().map(Into::into),
            }),
            "stop" => Action::TerminateOrchestration(wire::TerminateOrchestrationAction {
                instance_id: next().ok_or("whom?")?,
                reason: next().map(Into::into),
                recurse: next().is_some(),
            }),
            "rewritten" => Action::RewindOrchestration(wire::RewindOrchestrationAction::default()),
            other => entity_action(other, &mut next)?,
        };
        response
            .actions
            .push(wire::OrchestratorAction { id, orchestrator_action_type: Some(action) });
    }
    Ok(response)
}
