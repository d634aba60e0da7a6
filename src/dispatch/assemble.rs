//! From an item's key to the message that a worker is sent (sections 3.4 to 3.6).

use durahub_cluster::Rows;
use durahub_proto::wire;
use durahub_proto::wire::work_item::Request;
use prost::Message as _;

use super::hub::Key;
use super::limits::too_large;
use super::token::{ActivityWork, Work};
use crate::engine::command::{CompleteActivity, FailBatch, FailTurn, TaskId, TurnId};
use crate::engine::{Address, Command, Item, read};
use crate::machine::RowsView;

/// Room that a turn's message needs besides its events: ids, token, parameters.
const TURN_OVERHEAD: usize = 4 * 1024;

/// Most operations of a batch (R3.42).
const BATCH_OPERATIONS: usize = 100;
/// Most bytes of them, if there are several.
const BATCH_BYTES: usize = 1 << 20;

/// What became of a key.
pub(crate) enum Assembled {
    /// A message to send.
    Item { work: Work, item: Box<wire::WorkItem>, bytes: usize },
    /// Nothing wants to be done any more.
    Nothing,
    /// No worker could receive it (R1.27): the command fails that one item instead, unless it fits without
    /// its history and some worker can ask for that.
    TooLarge { command: Box<Command>, reason: String, fits_without_past: bool },
}

/// How an item is to be written.
#[derive(Clone, Copy)]
pub(crate) struct Form<'a> {
    /// Nanoseconds since the Unix epoch.
    pub(crate) now: i64,
    /// Most bytes of a message.
    pub(crate) limit: usize,
    /// Larger histories, in bytes, are left out; `None` for a worker that cannot ask for them.
    pub(crate) stream_history_above: Option<usize>,
    /// The turn to repeat, if it is still current.
    pub(crate) turn: Option<&'a TurnId>,
}

/// Reads what a worker needs.
pub(crate) fn assemble(rows: &dyn Rows, hub: u32, key: &Key, form: Form<'_>) -> Assembled {
    match key {
        Key::Turn { instance } => turn(rows, Address::new(hub, &**instance), form),
        Key::Activity { instance, generation, number } => {
            let at = Address::new(hub, &**instance);
            activity(rows, Item { at, generation: *generation, number: *number }, form.limit)
        }
        Key::Entity { instance } => batch(rows, Address::new(hub, &**instance), form.limit),
    }
}

fn turn(rows: &dyn Rows, at: Address, form: Form<'_>) -> Assembled {
    let limit = form.limit;
    let room = read::Room {
        bytes: limit.saturating_sub(TURN_OVERHEAD) as u64,
        past: form.stream_history_above.map(|bytes| bytes as u64),
    };
    let turn = match read::turn(&RowsView(rows), &at, form.now, room, form.turn) {
        None => return Assembled::Nothing,
        Some(Ok(turn)) => turn,
        Some(Err(too_large)) => {
            let reason = format!(
                "the history of this orchestration takes {} bytes, more than the {limit} that a worker accepts; \
                 split the work over several instances, or begin anew with continue-as-new",
                too_large.bytes
            );
            let command = FailTurn { turn: too_large.id, reason: reason.clone() };
            return Assembled::TooLarge {
                command: Box::new(Command::FailTurn(command)),
                reason,
                fits_without_past: too_large.fits_without_past,
            };
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
        requires_history_streaming: turn.past_left_out,
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
        let failure = too_large(reason.clone());
        let command = CompleteActivity { task: id, result: None, failure: Some(failure) };
        return Assembled::TooLarge {
            command: Box::new(Command::CompleteActivity(command)),
            reason,
            fits_without_past: false,
        };
    }
    let work = Work::Activity(ActivityWork { task: id, task_id: request.task_id });
    let item =
        wire::WorkItem { request: Some(Request::ActivityRequest(request)), ..Default::default() };
    Assembled::Item { work, item: Box::new(item), bytes }
}

fn batch(rows: &dyn Rows, at: Address, limit: usize) -> Assembled {
    let room = read::BatchRoom {
        operations: BATCH_OPERATIONS,
        operation_bytes: BATCH_BYTES,
        bytes: limit.saturating_sub(TURN_OVERHEAD),
    };
    let batch = match read::batch(&RowsView(rows), &at, room) {
        None => return Assembled::Nothing,
        Some(Ok(batch)) => batch,
        Some(Err(too_large)) => {
            let reason = format!(
                "the operation and the state of {} take {} bytes together, more than the {limit} that a worker \
                 accepts; send less at once, or keep less in one entity",
                at.instance, too_large.bytes
            );
            let command = FailBatch { batch: too_large.id, reason: reason.clone() };
            return Assembled::TooLarge {
                command: Box::new(Command::FailBatch(command)),
                reason,
                fits_without_past: false,
            };
        }
    };
    // The second form, which all workers know and one needs (R3.36).
    let request = wire::EntityRequest {
        execution_id: at.instance.clone(),
        instance_id: at.instance,
        entity_state: batch.state,
        operation_requests: batch.operations,
    };
    let bytes = request.encoded_len();
    let item =
        wire::WorkItem { request: Some(Request::EntityRequestV2(request)), ..Default::default() };
    Assembled::Item { work: Work::Entity(batch.id), item: Box::new(item), bytes }
}
