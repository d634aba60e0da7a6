//! `Terminate`: asks an instance to end (section 2.5). A worker's turn ends it, or, as long as no turn of it
//! was ever committed, this command itself does: no user code runs then, and no worker is needed (R2.48a).

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use super::turn::end_unstarted;
use crate::engine::command::Terminate;
use crate::engine::event::{NO_ID, history};
use crate::engine::read;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::Address;

pub(crate) fn terminate(plan: &mut Plan<'_>, command: Terminate) -> Answer {
    let wire::TerminateRequest { instance_id, output, recursive } = command.request;
    let at = Address::new(command.hub, instance_id);
    let record = read::head(plan.view, &at).filter(|record| !record.is_terminal());
    let Some(mut record) = record else { return Ok(Reply::Done) };

    let event = EventType::ExecutionTerminated(wire::ExecutionTerminatedEvent {
        input: output.clone(),
        recurse: recursive,
    });
    let terminated = history(NO_ID, plan.stamp.now, event);
    if !record.has_run {
        end_unstarted(plan, at, record, terminated, output);
        return Ok(Reply::Done);
    }
    record.terminating = true;
    // The worker must know of the suspension, or it would act on the held events (R4.70).
    if let Some(suspension) = record.suspension.as_mut().filter(|suspension| !suspension.recorded) {
        suspension.recorded = true;
        let (place, suspended) = (suspension.place(), suspension.event.clone());
        plan.receive_at(&at, &record, place, suspended);
    }
    plan.receive(&at, &record, terminated);
    plan.write(&at, record);
    Ok(Reply::Done)
}
