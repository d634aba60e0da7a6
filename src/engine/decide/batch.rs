//! `CompleteBatch` and `FailBatch`: the only way the state of an entity changes (section 3.12).
//!
//! A batch is accepted only if its operations are still the first that may run and the state is the one it was
//! computed from. Then, in one step: the results to their callers, the state, and what the operations asked
//! for (R3.75). Operations without a result stay where they are.

use durahub_proto::wire;
use durahub_proto::wire::operation_action::OperationActionType as Action;
use durahub_proto::wire::operation_result::ResultType;
use durahub_proto::{Text, wire::TaskFailureDetails};

use super::Plan;
use super::entity::Entity;
use super::signal::{new_request_id, signaled};
use super::start::new_execution_id;
use crate::engine::command::{BatchId, CompleteBatch, FailBatch};
use crate::engine::event::failure;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::message::{Body, OperationEnded, OperationMessage, StartMessage};
use crate::engine::state::{Operation, Spot, entity_id, is_entity};
use crate::engine::time::nanos;
use crate::engine::{Event, read};

/// How often a batch may fail as a whole before its operations fail (R3.73).
const ATTEMPTS: u32 = 10;

/// Commits a batch.
pub(crate) fn complete_batch(plan: &mut Plan<'_>, command: CompleteBatch) -> Answer {
    let (mut entity, operations) = begin(plan, &command.batch)?;
    let CompleteBatch { results, actions, state, failure: problem, id_length, .. } = command;
    let done = results.len().min(operations.len());
    if done == 0 {
        return Ok(try_again(plan, entity, operations, problem));
    }
    for ((spot, operation), result) in operations.into_iter().zip(results) {
        entity.take(plan, spot);
        let (output, failure) = outcome(result);
        plan.answer_call(entity.at.hub, operation, output, failure);
    }
    entity.record.version = plan.stamp.sequence;
    entity.record.modified = plan.stamp.now;
    entity.record.failures = u32::from(problem.is_some());
    entity.record.has_state = state.is_some();
    plan.push(Event::EntityStateWritten { at: entity.at.clone(), state });
    for (index, action) in (0_u64..).zip(actions) {
        if let Some(action) = action.operation_action_type {
            act(plan, &entity, index, action, id_length);
        }
    }
    entity.settle(plan);
    Ok(if problem.is_some() { Reply::TriedInVain } else { Reply::Done })
}

/// Fails the operations of a batch.
pub(crate) fn fail_batch(plan: &mut Plan<'_>, command: FailBatch) -> Answer {
    let (entity, operations) = begin(plan, &command.batch)?;
    give_up(plan, entity, operations, &failure("DurahubEntityFailure", command.reason));
    Ok(Reply::Done)
}

fn begin(plan: &Plan<'_>, id: &BatchId) -> Result<(Entity, Vec<(Spot, Operation)>), Reject> {
    let entity = Entity::load(plan, &id.at());
    let operations =
        read::operations_of(plan.view, &entity.record, id).ok_or(Reject::StaleBatch)?;
    Ok((entity, operations))
}

/// Nothing was carried out: all of it is tried again, but not for ever.
fn try_again(
    plan: &mut Plan<'_>,
    mut entity: Entity,
    operations: Vec<(Spot, Operation)>,
    problem: Option<TaskFailureDetails>,
) -> Reply {
    entity.record.failures = entity.record.failures.saturating_add(1);
    if entity.record.failures < ATTEMPTS {
        entity.settle(plan);
        return Reply::TriedInVain;
    }
    let details = problem.unwrap_or_else(|| {
        let text =
            format!("the worker gave no results for this operation, {ATTEMPTS} times in a row");
        failure("DurahubEntityFailure", text)
    });
    give_up(plan, entity, operations, &details);
    Reply::Done
}

fn give_up(
    plan: &mut Plan<'_>,
    mut entity: Entity,
    operations: Vec<(Spot, Operation)>,
    details: &TaskFailureDetails,
) {
    for (spot, operation) in operations {
        entity.take(plan, spot);
        plan.answer_call(entity.at.hub, operation, None, Some(details.clone()));
    }
    entity.record.failures = 0;
    // What was computed from this queue is of no use any more.
    entity.record.version = plan.stamp.sequence;
    entity.settle(plan);
}

fn outcome(result: wire::OperationResult) -> (Option<Text>, Option<TaskFailureDetails>) {
    let no_details =
        || failure("EntityOperationFailed", "the operation failed and gave no details");
    match result.result_type {
        Some(ResultType::Success(success)) => (success.result, None),
        Some(ResultType::Failure(it)) => {
            (None, Some(it.failure_details.unwrap_or_else(no_details)))
        }
        None => (None, Some(failure("EntityOperationFailed", "the worker gave an empty result"))),
    }
}

fn act(plan: &mut Plan<'_>, entity: &Entity, index: u64, action: Action, id_length: u32) {
    let hub = entity.at.hub;
    let fits = |id: &str| id_length == 0 || id.chars().count() <= id_length as usize;
    match action {
        Action::SendSignal(action) => {
            // An id that no entity can have is dropped: it must not fail the batch, as in R5.26.
            let target = entity_id(&action.instance_id).filter(|target| fits(target));
            let Some(target) = target else { return };
            let due = action.scheduled_time.as_ref().map(nanos);
            let signal = wire::EntityOperationSignaledEvent {
                request_id: new_request_id(plan.stamp.seed, index),
                operation: action.name,
                scheduled_time: action.scheduled_time,
                input: action.input,
                target_instance_id: Some(action.instance_id.as_str().into()),
            };
            let operation = signaled(signal, plan.stamp.now, None);
            plan.send(hub, target, Body::Operation(OperationMessage { operation, due }));
        }
        Action::StartNewOrchestration(action) => {
            let instance = match action.instance_id.is_empty() {
                true => new_execution_id(plan.stamp.seed ^ (index + 1).rotate_left(32)),
                false => action.instance_id,
            };
            if !fits(&instance) || is_entity(&instance) {
                return;
            }
            let request = wire::CreateInstanceRequest {
                name: action.name,
                version: action.version,
                input: action.input,
                scheduled_start_timestamp: action.scheduled_time,
                parent_trace_context: action.parent_trace_context,
                ..Default::default()
            };
            // Nobody waits for its end (R5.24); an id that is in use is left alone (R5.25).
            plan.send(hub, instance, Body::Start(StartMessage { request, parent: None }));
        }
    }
}

impl Plan<'_> {
    /// Tells the caller of an operation what became of it; a signal has none (R5.19).
    fn answer_call(
        &mut self,
        hub: u32,
        operation: Operation,
        output: Option<Text>,
        failure: Option<TaskFailureDetails>,
    ) {
        let Operation { request_id, sender, is_call, .. } = operation;
        let Some(caller) = sender.filter(|_| is_call) else { return };
        let ended = OperationEnded { generation: caller.generation, request_id, output, failure };
        self.send(hub, caller.instance, Body::OperationEnded(ended));
    }
}
