//! The worker of the entity loads: orchestrators that call and lock, and an entity that counts.

use std::time::Duration;

use bytes::Bytes;
use durahub_proto::wire;
use prost::Message as _;
use wire::OrchestrationStatus as Status;
use wire::history_event::EventType;
use wire::operation_result::ResultType;
use wire::orchestrator_action::OrchestratorActionType as Action;
use wire::send_entity_message_action::EntityMessageType as Message;
use wire::work_item::Request as Work;

use crate::bench::connect::Rpc;

/// Name of the entity.
pub(super) const ENTITY: &str = "benchcounter";
/// The orchestration that calls an entity again and again; its input is `COUNT ENTITY`.
pub(super) const CALLS: &str = "BenchCalls";
/// The orchestration that locks two entities and calls both; its input is `ENTITY ENTITY`.
pub(super) const LOCKS: &str = "BenchLocks";

/// Works until it is dropped. `concurrency` sizes what the stream may hold at once.
pub(super) async fn run(rpc: Rpc, concurrency: u32) {
    // As many entities at once as a worker that states nothing has (R3.2): what comes for the others meanwhile makes
    // their batches larger.
    let entities = 100;
    let limit = i32::try_from(concurrency.saturating_mul(2).clamp(100, 20_000)).unwrap_or(100);
    let orchestration =
        |name: &str| wire::OrchestrationFilter { name: name.into(), ..Default::default() };
    let request = wire::GetWorkItemsRequest {
        max_concurrent_orchestration_work_items: limit,
        max_concurrent_activity_work_items: limit,
        max_concurrent_entity_work_items: entities,
        work_item_filters: Some(wire::WorkItemFilters {
            orchestrations: vec![orchestration(CALLS), orchestration(LOCKS)],
            entities: vec![wire::EntityFilter { name: ENTITY.into() }],
            ..Default::default()
        }),
        ..Default::default()
    };
    loop {
        if let Ok(stream) = rpc.clone().get_work_items(request.clone()).await {
            let mut stream = stream.into_inner();
            while let Ok(Some(item)) = stream.message().await {
                tokio::spawn(work(rpc.clone(), item));
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn work(mut rpc: Rpc, item: wire::WorkItem) {
    let completion_token = item.completion_token;
    let answer = match item.request {
        Some(Work::OrchestratorRequest(request)) => {
            let response = wire::OrchestratorResponse {
                actions: turn(request.past_events.iter().chain(&request.new_events)),
                instance_id: request.instance_id,
                completion_token,
                ..Default::default()
            };
            rpc.complete_orchestrator_task(response).await
        }
        Some(Work::EntityRequestV2(request)) => {
            rpc.complete_entity_task(count(&request, completion_token)).await
        }
        _ => return,
    };
    if let Err(status) = answer {
        tracing::debug!(code = ?status.code(), message = status.message(), "completion refused");
    }
}

/// An entity adds one per operation, and answers with the count.
fn count(request: &wire::EntityRequest, completion_token: String) -> wire::EntityBatchResult {
    let state = request.entity_state.as_ref().and_then(|state| state.as_str().parse::<u64>().ok());
    let before = state.unwrap_or(0);
    let operations = request.operation_requests.len() as u64;
    let success = |count: u64| wire::OperationResult {
        result_type: Some(ResultType::Success(wire::OperationResultSuccess {
            result: Some(count.to_string().into()),
            ..Default::default()
        })),
    };
    wire::EntityBatchResult {
        results: (before + 1..=before + operations).map(success).collect(),
        entity_state: Some((before + operations).to_string().into()),
        completion_token,
        ..Default::default()
    }
}

/// What an orchestration does next. A history that makes no sense fails it.
fn turn<'a>(history: impl Iterator<Item = &'a Bytes>) -> Vec<wire::OrchestratorAction> {
    let (mut name, mut input) = (String::new(), String::new());
    let (mut asked, mut granted, mut called, mut answered) = (false, false, 0_usize, 0_usize);
    for event in history {
        match wire::HistoryEvent::decode(event.clone()).ok().and_then(|event| event.event_type) {
            Some(EventType::ExecutionStarted(it)) => {
                name = it.name;
                input = it.input.map(String::from).unwrap_or_default();
            }
            Some(EventType::EntityLockRequested(_)) => asked = true,
            Some(EventType::EntityLockGranted(_)) => granted = true,
            Some(EventType::EntityOperationCalled(_)) => called += 1,
            Some(EventType::EntityOperationCompleted(_)) => answered += 1,
            Some(EventType::EntityOperationFailed(_)) => return vec![complete(1, Status::Failed)],
            _ => {}
        }
    }
    let mut parts = input.split(' ');
    let (Some(first), Some(second)) = (parts.next(), parts.next()) else {
        return vec![complete(1, Status::Failed)];
    };
    let locks = name == LOCKS;
    let count = if locks { 2 } else { first.parse().unwrap_or(0) };
    let id = called as i32 * 2 + 1;
    match (answered >= count, called == answered) {
        (true, _) if locks => {
            vec![unlock(id, first), unlock(id + 1, second), complete(id + 2, Status::Completed)]
        }
        (true, _) => vec![complete(id, Status::Completed)],
        (false, true) if !locks => vec![call(id, second)],
        (false, true) if granted => vec![call(id + 1, first), call(id + 2, second)],
        (false, true) if !asked => vec![lock(id, [first, second])],
        _ => Vec::new(),
    }
}

fn call(id: i32, entity: &str) -> wire::OrchestratorAction {
    let call = wire::EntityOperationCalledEvent {
        request_id: format!("call-{id}"),
        operation: "add".into(),
        target_instance_id: Some(entity.into()),
        ..Default::default()
    };
    message(id, Message::EntityOperationCalled(call))
}

/// The one critical section of an orchestration.
const SECTION: &str = "section";

fn lock(id: i32, set: [&str; 2]) -> wire::OrchestratorAction {
    let request = wire::EntityLockRequestedEvent {
        critical_section_id: SECTION.into(),
        lock_set: set.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    message(id, Message::EntityLockRequested(request))
}

fn unlock(id: i32, entity: &str) -> wire::OrchestratorAction {
    let unlock = wire::EntityUnlockSentEvent {
        critical_section_id: SECTION.into(),
        target_instance_id: Some(entity.into()),
        ..Default::default()
    };
    message(id, Message::EntityUnlockSent(unlock))
}

fn message(id: i32, message: Message) -> wire::OrchestratorAction {
    let message = wire::SendEntityMessageAction { entity_message_type: Some(message) };
    action(id, Action::SendEntityMessage(message))
}

fn complete(id: i32, status: Status) -> wire::OrchestratorAction {
    let complete = wire::CompleteOrchestrationAction {
        orchestration_status: status.into(),
        ..Default::default()
    };
    action(id, Action::CompleteOrchestration(complete))
}

fn action(id: i32, action: Action) -> wire::OrchestratorAction {
    wire::OrchestratorAction { id, orchestrator_action_type: Some(action) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_counts_each_operation() {
        let request = wire::EntityRequest {
            entity_state: Some("7".into()),
            operation_requests: vec![Bytes::new(); 3],
            ..Default::default()
        };
        let result = count(&request, "token".into());
        assert_eq!((result.results.len(), result.entity_state), (3, Some("10".into())));
    }
}
