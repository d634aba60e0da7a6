//! `CompleteActivity`: the first answer to an open task becomes history, any other changes nothing.

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use crate::engine::command::CompleteActivity;
use crate::engine::event::{NO_ID, history};
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::{Address, Item};
use crate::engine::{Event, read};

pub(crate) fn complete_activity(plan: &mut Plan<'_>, command: CompleteActivity) -> Answer {
    let at = Address::new(command.task.hub, command.task.instance);
    let item =
        Item { at: at.clone(), generation: command.task.generation, number: command.task.number };
    let task = read::task(plan.view, &item).ok_or(Reject::TaskNotOpen)?;
    plan.push(Event::TaskClosed { item });

    // A task may outlive its generation or its instance's end; its result then interests nobody (R4.29).
    let record = read::head(plan.view, &at)
        .filter(|record| record.generation == command.task.generation && !record.is_terminal());
    if let Some(record) = record {
        let event = match command.failure {
            Some(failure) => EventType::TaskFailed(wire::TaskFailedEvent {
                task_scheduled_id: task.task_id,
                failure_details: Some(failure),
            }),
            None => EventType::TaskCompleted(wire::TaskCompletedEvent {
                task_scheduled_id: task.task_id,
                result: command.result,
            }),
        };
        plan.receive(&at, &record, history(NO_ID, plan.stamp.now, event));
    }
    Ok(Reply::Done)
}
