//! `Terminate`: asks an instance to end; a worker's turn ends it (section 2.5).

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use crate::engine::command::Terminate;
use crate::engine::event::{NO_ID, history};
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::{Address, Item};
use crate::engine::{Event, read};

pub(crate) fn terminate(plan: &mut Plan<'_>, command: Terminate) -> Answer {
    let wire::TerminateRequest { instance_id, output, recursive } = command.request;
    let at = Address::new(command.hub, instance_id);
    let record = read::head(plan.view, &at).filter(|record| !record.is_terminal());
    let Some(mut record) = record else { return Ok(Reply::Done) };

    record.terminating = true;
    // It does not wait for its scheduled start (R2.48).
    if let Some(number) = record.start_timer.take() {
        let item = Item { at: at.clone(), generation: record.generation, number };
        if let Some(timer) = read::timer(plan.view, &item) {
            plan.push(Event::TimerCleared { item, due: timer.due });
        }
    }
    // The worker must know of the suspension, or it would act on the held events (R4.70).
    if let Some(suspension) = record.suspension.as_mut().filter(|suspension| !suspension.recorded) {
        suspension.recorded = true;
        let (place, suspended) = (suspension.place(), suspension.event.clone());
        plan.receive_at(&at, &record, place, suspended);
    }
    let event = EventType::ExecutionTerminated(wire::ExecutionTerminatedEvent {
        input: output,
        recurse: recursive,
    });
    plan.receive(&at, &record, history(NO_ID, plan.stamp.now, event));
    plan.write(&at, record);
    Ok(Reply::Done)
}
