//! From an item's key to the message that a worker is sent (sections 3.4 and 3.5).

use durahub_cluster::Rows;
use durahub_proto::wire;
use durahub_proto::wire::work_item::Request;
use prost::Message as _;

use super::hub::Key;
use super::token::{ActivityWork, Work};
use crate::engine::command::{CompleteActivity, FailTurn, TaskId};
use crate::engine::{Address, Command, Item, read};
use crate::machine::RowsView;

/// Room that a turn's message needs besides its events: ids, token, parameters.
const TURN_OVERHEAD: usize = 4 * 1024;

/// What became of a key.
pub(crate) enum Assembled {
    /// A message to send.
    Item { work: Work, item: Box<wire::WorkItem>, bytes: usize },
    /// Nothing wants to be done any more.
    Nothing,
    /// No worker could receive it (R1.27): the command fails that one item instead.
    TooLarge { command: Box<Command>, reason: String },
}

/// Reads what a worker needs.
pub(crate) fn assemble(rows: &dyn Rows, hub: u32, key: &Key, now: i64, limit: usize) -> Assembled {
    match key {
        Key::Turn { instance } => turn(rows, Address::new(hub, instance.clone()), now, limit),
        Key::Activity { instance, generation, number } => {
            let at = Address::new(hub, instance.clone());
            activity(rows, Item { at, generation: *generation, number: *number }, limit)
        }
    }
}

fn turn(rows: &dyn Rows, at: Address, now: i64, limit: usize) -> Assembled {
    let events_limit = limit.saturating_sub(TURN_OVERHEAD) as u64;
    let turn = match read::turn(&RowsView(rows), &at, now, events_limit) {
        None => return Assembled::Nothing,
        Some(Ok(turn)) => turn,
        Some(Err(too_large)) => {
            let reason = format!(
                "the history of this orchestration takes {} bytes, more than the {limit} that a worker accepts; \
                 split the work over several instances, or begin anew with continue-as-new",
                too_large.bytes
            );
            let command = FailTurn { turn: too_large.id, reason: reason.clone() };
            return Assembled::TooLarge { command: Box::new(Command::FailTurn(command)), reason };
        }
    };
    let request = wire::OrchestratorRequest {
        instance_id: at.instance,
        execution_id: Some(turn.execution_id.into()),
        past_events: turn.past,
        new_events: turn.new,
        // An explicit zero: this server itself keeps messages in order (R3.28).
        entity_parameters: Some(wire::OrchestratorEntityParameters {
            entity_message_reorder_window: Some(prost_types::Duration::default()),
        }),
        requires_history_streaming: false,
        properties: Default::default(),
        orchestration_trace_context: turn.span,
    };
    let bytes = request.encoded_len();
    let item = wire::WorkItem {
        request: Some(Request::OrchestratorRequest(request)),
        ..Default::default()
    };
    Assembled::Item { work: Work::Turn(turn.id), item: Box::new(item), bytes }
}

fn activity(rows: &dyn Rows, item: Item, limit: usize) -> Assembled {
    let Some(task) = read::task(&RowsView(rows), &item) else { return Assembled::Nothing };
    let Item { at, generation, number } = item;
    let id = TaskId { hub: at.hub, instance: at.instance.clone(), generation, number };
    let request = wire::ActivityRequest {
        name: task.name,
        version: task.version,
        input: task.input,
        orchestration_instance: Some(wire::OrchestrationInstance {
            instance_id: at.instance,
            execution_id: Some(task.execution_id.into()),
        }),
        task_id: task.task_id,
        parent_trace_context: task.trace,
        tags: task.tags,
    };
    let bytes = request.encoded_len();
    if bytes + TURN_OVERHEAD > limit {
        let reason = format!(
            "the input of activity {} makes a message of {bytes} bytes, more than the {limit} that a worker accepts",
            request.name
        );
        let failure = wire::TaskFailureDetails {
            error_type: "DurahubWorkItemTooLarge".to_owned(),
            error_message: reason.clone(),
            is_non_retriable: true,
            ..Default::default()
        };
        let command = CompleteActivity { task: id, result: None, failure: Some(failure) };
        return Assembled::TooLarge {
            command: Box::new(Command::CompleteActivity(command)),
            reason,
        };
    }
    let work = Work::Activity(ActivityWork { task: id, task_id: request.task_id });
    let item =
        wire::WorkItem { request: Some(Request::ActivityRequest(request)), ..Default::default() };
    Assembled::Item { work, item: Box::new(item), bytes }
}
