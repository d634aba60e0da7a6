//! `Suspend` and `Resume` (sections 2.6 and 4.9).
//!
//! A suspension takes effect at once and needs no worker. It keeps two places in the inbox: what came
//! before them is processed first, what comes after is held. `executionSuspended` is written into the
//! history, in a turn of its own, as soon as everything before it is history too; `executionResumed`
//! goes to the place kept for it, so the held events follow it in one turn.

use durahub_proto::wire::{self, OrchestrationStatus, history_event::EventType};

use super::Plan;
use crate::engine::command::{Resume, Suspend};
use crate::engine::event::{NO_ID, history};
use crate::engine::read;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::{Address, Suspension};

pub(crate) fn suspend(plan: &mut Plan<'_>, command: Suspend) -> Answer {
    let wire::SuspendRequest { instance_id, reason } = command.request;
    let at = Address::new(command.hub, instance_id);
    let Some(mut record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    if record.is_terminal() || record.suspension.is_some() {
        return Ok(Reply::Done);
    }
    let event = EventType::ExecutionSuspended(wire::ExecutionSuspendedEvent { input: reason });
    let place = plan.next_place();
    record.status = OrchestrationStatus::Suspended.into();
    record.updated = plan.stamp.now;
    record.suspension = Some(Suspension {
        sequence: place.sequence,
        sub: place.sub,
        recorded: false,
        event: history(NO_ID, plan.stamp.now, event),
    });
    let first_waiting = read::first_waiting(plan.view, &at);
    plan.record_suspension(&at, &mut record, first_waiting);
    plan.write(&at, record);
    Ok(Reply::Done)
}

pub(crate) fn resume(plan: &mut Plan<'_>, command: Resume) -> Answer {
    let wire::ResumeRequest { instance_id, reason } = command.request;
    let at = Address::new(command.hub, instance_id);
    let Some(mut record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    let Some(suspension) = record.suspension.take() else { return Ok(Reply::Done) };

    record.status =
        if record.has_run { OrchestrationStatus::Running } else { OrchestrationStatus::Pending }
            .into();
    record.updated = plan.stamp.now;
    if !suspension.recorded {
        plan.receive_at(&at, &record, suspension.place(), suspension.event.clone());
    }
    let event = EventType::ExecutionResumed(wire::ExecutionResumedEvent { input: reason });
    plan.receive_at(&at, &record, suspension.resume_place(), history(NO_ID, plan.stamp.now, event));
    plan.write(&at, record);
    Ok(Reply::Done)
}
