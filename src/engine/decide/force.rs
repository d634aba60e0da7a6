//! `ForceTerminate`: ends instances at once, without a worker (R2.98).

use durahub_proto::wire::{self, OrchestrationStatus};

use super::Plan;
use super::children::End;
use super::turn::Turn;
use crate::engine::command::ForceTerminate;
use crate::engine::event::NO_ID;
use crate::engine::read;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::Address;

/// Ends each instance that has not ended; the answer lists the others.
///
/// One that holds entity locks, or waits for them, is left alone: a turn of its worker may be using them.
pub(crate) fn force_terminate(plan: &mut Plan<'_>, command: ForceTerminate) -> Answer {
    let mut left = Vec::new();
    for instance in command.instances {
        let at = Address::new(command.hub, instance);
        let record = read::head(plan.view, &at).filter(|record| !record.is_terminal());
        let Some(record) = record.filter(|record| !at.is_entity() && record.section.is_none())
        else {
            left.push(at.instance);
            continue;
        };
        let event =
            wire::ExecutionTerminatedEvent { input: command.reason.clone(), recurse: false };
        let turn = Turn::without_worker(plan, at, record, event);
        let status = OrchestrationStatus::Terminated;
        turn.end(plan, NO_ID, End { status, result: command.reason.clone(), failure: None });
    }
    Ok(Reply::Unterminated { instances: left })
}
