//! `Terminate`: asks an instance to end (section 2.5). A worker's turn ends it, or, as long as no turn of it
//! was ever committed, this command itself does: no user code runs then, and no worker is needed (R2.48a).

use durahub_proto::wire::{self, OrchestrationStatus, history_event::EventType};

use super::Plan;
use super::children::End;
use super::turn::Turn;
use crate::engine::command::Terminate;
use crate::engine::event::{NO_ID, history};
use crate::engine::read;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::message::TerminateMessage;
use crate::engine::state::{Address, InstanceRecord, Recursion};

pub(crate) fn terminate(plan: &mut Plan<'_>, command: Terminate) -> Answer {
    let wire::TerminateRequest { instance_id, output, recursive } = command.request;
    let at = Address::new(command.hub, instance_id);
    if let Some(record) = read::head(plan.view, &at).filter(|record| !record.is_terminal()) {
        ask(
            plan,
            &at,
            record,
            wire::ExecutionTerminatedEvent { input: output, recurse: recursive },
        );
    }
    Ok(Reply::Done)
}

/// A request of another orchestration. One of a parent means its own child only, and goes on to the children
/// of a child that has ended (R2.51); any other is like a client's.
pub(crate) fn terminate_by_message(plan: &mut Plan<'_>, at: &Address, message: TerminateMessage) {
    let TerminateMessage { output, recurse, from } = message;
    let Some(record) = read::head(plan.view, at) else { return };
    if from.as_ref().is_some_and(|from| !record.is_child(&from.instance, from.link)) {
        return;
    }
    if !record.is_terminal() {
        ask(plan, at, record, wire::ExecutionTerminatedEvent { input: output, recurse });
    } else if from.is_some() && recurse {
        let children = read::children(plan.view, at, record.generation);
        plan.terminate_children(at, &children, &Recursion { output });
    }
}

/// Asks an instance that has not ended to end.
fn ask(
    plan: &mut Plan<'_>,
    at: &Address,
    mut record: InstanceRecord,
    event: wire::ExecutionTerminatedEvent,
) {
    if !record.has_run {
        let (status, result) = (OrchestrationStatus::Terminated, event.input.clone());
        let turn = Turn::without_worker(plan, at.clone(), record, event);
        return turn.end(plan, NO_ID, End { status, result, failure: None });
    }
    record.terminating = true;
    // The worker must know of the suspension, or it would act on the held events (R4.70).
    if let Some(suspension) = record.suspension.as_mut().filter(|suspension| !suspension.recorded) {
        suspension.recorded = true;
        let (place, suspended) = (suspension.place(), suspension.event.clone());
        plan.receive_at(at, &record, place, suspended);
    }
    let event = history(NO_ID, plan.stamp.now, EventType::ExecutionTerminated(event));
    plan.receive(at, &record, event);
    plan.write(at, record);
}
