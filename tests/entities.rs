//! Entities against the real binary, seen by a worker item by item (sections 3.6 and 3.12, A8, A9).

#![allow(clippy::print_stdout, reason = "how long a long queue took is worth a line")]

#[path = "entities/lists.rs"]
mod lists;
#[path = "entities/locks.rs"]
mod locks;
#[path = "entities/queue.rs"]
mod queue;
mod support;

use std::time::{Duration, Instant};

use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::operation_result::ResultType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;
use prost::Message as _;
use support::actions::{action, complete, failure};
use support::client::good;
use support::history::compact;
use support::worker::Entity;
use support::{Client, TestServer, Worker, WorkerOptions};

async fn signal(client: &Client, entity: &str, name: &str) {
    let request = wire::SignalEntityRequest {
        instance_id: entity.into(),
        name: name.into(),
        request_id: format!("00000000-0000-4000-8000-{:012x}", fastrand::u64(..1 << 48)),
        ..Default::default()
    };
    good("signal", client.rpc().signal_entity(request).await);
}

async fn get(client: &Client, entity: &str) -> Option<wire::EntityMetadata> {
    let request = wire::GetEntityRequest { instance_id: entity.into(), include_state: true };
    good("get entity", client.rpc().get_entity(request).await).entity
}

fn ok(results: &[&str], state: &str) -> wire::EntityBatchResult {
    let success = |text: &&str| wire::OperationResult {
        result_type: Some(ResultType::Success(wire::OperationResultSuccess {
            result: Some((*text).into()),
            ..Default::default()
        })),
    };
    wire::EntityBatchResult {
        results: results.iter().map(success).collect(),
        entity_state: Some(state.into()),
        ..Default::default()
    }
}

/// The names of a batch's operations.
fn names(entity: &Entity) -> Vec<String> {
    let events = entity.request.operation_requests.iter();
    let events = events.map(|event| wire::HistoryEvent::decode(event.clone()).expect("an event"));
    let name = |event: wire::HistoryEvent| match event.event_type {
        Some(EventType::EntityOperationSignaled(it)) => it.operation,
        Some(EventType::EntityOperationCalled(it)) => it.operation,
        other => panic!("not an operation (R3.38): {other:?}"),
    };
    events.map(name).collect()
}

/// A8: an entity call, field by field, in the second form (R3.36). The token alone names the batch (R3.45), and
/// the caller is the server's own record, not what the worker says (R3.72).
#[tokio::test]
async fn a_call_carries_its_caller_and_is_answered_once() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("o1", "O", "").await;
    let turn = worker.next_turn().await;
    let call = wire::EntityOperationCalledEvent {
        request_id: "11111111-2222-4333-8444-555555555555".into(),
        operation: "Get".into(),
        input: Some("in".into()),
        target_instance_id: Some("@Counter@Key".into()),
        ..Default::default()
    };
    let message = Some(Message::EntityOperationCalled(call.clone()));
    let message = wire::SendEntityMessageAction { entity_message_type: message };
    worker.complete_turn(&turn, vec![action(1, Action::SendEntityMessage(message))]).await;

    let batch = worker.next_entity().await;
    assert_eq!(batch.request.instance_id, "@counter@Key", "R5.2, R5.3");
    assert!(!batch.request.execution_id.is_empty(), "R3.37");
    assert_eq!(batch.request.entity_state, None, "R3.37");
    let event = wire::HistoryEvent::decode(batch.request.operation_requests[0].clone()).unwrap();
    let execution = turn.request.execution_id.clone();
    let expected = wire::EntityOperationCalledEvent {
        parent_instance_id: Some("o1".into()),
        parent_execution_id: execution,
        ..call
    };
    assert_eq!(
        event.event_type,
        Some(EventType::EntityOperationCalled(expected)),
        "R3.39, R3.41, R5.21"
    );
    assert!(event.timestamp.is_some());
    worker.complete_entity(&batch, ok(&["out"], "state")).await;
    worker.complete_entity(&batch, ok(&["again"], "other")).await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    assert_eq!(
        compact(&client.history("o1").await),
        "OrchestratorStarted#-1, ExecutionStarted#0, EntityOperationCalled#1, OrchestratorStarted#-1, \
         EntityOperationCompleted#-1, ExecutionCompleted#2"
    );
    let entity = get(&client, "@counter@Key").await.expect("exists");
    assert_eq!(
        entity.serialized_state,
        Some("state".into()),
        "a second completion changes nothing (R3.54)"
    );
    assert_eq!((entity.backlog_queue_size, entity.locked_by), (0, None));
}

/// R3.16, R3.42, R5.9, R5.45: one batch at a time; what comes meanwhile waits, and is in the next one.
#[tokio::test]
async fn an_entity_has_one_batch_outstanding() {
    let server = TestServer::start().await;
    let client = server.client();
    signal(&client, "@a@1", "first").await;
    let options = WorkerOptions { entities: 1, ..Default::default() };
    let mut worker = Worker::connect(&client, options).await;
    let mut other = Worker::connect(&client, WorkerOptions::default()).await;
    let batch = tokio::select! {
        batch = worker.next_entity() => batch,
        batch = other.next_entity() => batch,
    };
    worker.complete_entity(&batch, ok(&["1"], "1")).await;
    for number in 0..150 {
        signal(&client, "@a@1", &number.to_string()).await;
    }
    let batch = tokio::select! {
        batch = worker.next_entity() => batch,
        batch = other.next_entity() => batch,
    };
    let mut seen = names(&batch);
    worker.expect_nothing(Duration::from_millis(200)).await;
    other.expect_nothing(Duration::from_millis(200)).await;
    let waiting = get(&client, "@a@1").await.expect("exists").backlog_queue_size as usize;
    assert_eq!(waiting, 150 - seen.len(), "R5.9");
    let results = vec!["x"; seen.len()];
    worker.complete_entity(&batch, ok(&results, "2")).await;
    while seen.len() < 150 {
        let batch = tokio::select! {
            batch = worker.next_entity() => batch,
            batch = other.next_entity() => batch,
        };
        assert!(batch.request.operation_requests.len() <= 100, "R3.42");
        let results = vec!["x"; batch.request.operation_requests.len()];
        seen.extend(names(&batch));
        worker.complete_entity(&batch, ok(&results, "3")).await;
    }
    assert_eq!(seen, (0..150).map(|number| number.to_string()).collect::<Vec<_>>(), "R5.12");
}

/// R3.71, R3.73: results that are there count; the rest comes back, at once after a short answer, later after a
/// failure. R3.61, R3.62: what was abandoned comes back later, too.
#[tokio::test]
async fn a_batch_that_failed_comes_back_later() {
    let server = TestServer::start().await;
    let client = server.client();
    for name in ["a", "b", "c"] {
        signal(&client, "@a@1", name).await;
    }
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let batch = worker.next_entity().await;
    assert_eq!(names(&batch), ["a", "b", "c"]);
    worker.complete_entity(&batch, ok(&["1"], "1")).await;
    let batch = worker.next_entity().await;
    assert_eq!(names(&batch), ["b", "c"], "R3.71");

    let began = Instant::now();
    let broken = wire::EntityBatchResult {
        failure_details: Some(failure("Oops", "out of memory")),
        ..ok(&["2"], "2")
    };
    worker.complete_entity(&batch, broken).await;
    let batch = worker.next_entity().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "after a delay");
    assert_eq!(
        (names(&batch), batch.request.entity_state.clone()),
        (vec!["c".into()], Some("2".into()))
    );

    let asks = wire::EntityBatchResult { requires_state: true, ..Default::default() };
    worker.complete_entity(&batch, asks).await;
    let batch = worker.next_entity().await;
    let has = batch.request.entity_state.clone();
    assert_eq!((names(&batch), has), (vec!["c".into()], Some("2".into())), "R3.76");

    let began = Instant::now();
    worker.abandon_entity(&batch).await;
    let batch = worker.next_entity().await;
    assert!(began.elapsed() >= Duration::from_secs(1), "R3.62");
    assert_eq!(names(&batch), ["c"]);
    worker.complete_entity(&batch, ok(&["3"], "3")).await;
    assert_eq!(get(&client, "@a@1").await.expect("exists").serialized_state, Some("3".into()));
}

/// R3.48, R3.49: a batch survives the stream and the server; R1.42: a late completion counts.
#[tokio::test]
async fn a_batch_outlives_its_stream_and_its_server() {
    let mut server = TestServer::start().await;
    let client = server.client();
    signal(&client, "@a@1", "first").await;
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let batch = worker.next_entity().await;
    worker.drop_stream();
    let mut other = Worker::connect(&client, WorkerOptions::default()).await;
    let again = other.next_entity().await;
    assert_eq!(names(&again), names(&batch), "handed out again after the grace (R3.49)");
    worker.complete_entity(&batch, ok(&["late"], "late")).await;
    other.complete_entity(&again, ok(&["1"], "1")).await;
    assert_eq!(
        get(&client, "@a@1").await.expect("exists").serialized_state,
        Some("1".into()),
        "R3.54"
    );

    signal(&client, "@a@1", "second").await;
    let batch = other.next_entity().await;
    server.restart_same_ports().await;
    other.complete_entity(&batch, ok(&["2"], "2")).await;
    assert_eq!(
        get(&client, "@a@1").await.expect("exists").serialized_state,
        Some("2".into()),
        "R3.48"
    );
}

/// R3.8, R3.12: filters of names hold for entities as well.
#[tokio::test]
async fn a_worker_gets_the_entities_that_it_names() {
    let server = TestServer::start().await;
    let client = server.client();
    let entity = |name: &str| wire::EntityFilter { name: name.into() };
    let filters =
        Some(wire::WorkItemFilters { entities: vec![entity("Mine")], ..Default::default() });
    let options = WorkerOptions { filters, ..Default::default() };
    let mut worker = Worker::connect(&client, options).await;
    signal(&client, "@other@1", "x").await;
    signal(&client, "@mine@1", "y").await;
    let batch = worker.next_entity().await;
    assert_eq!(batch.request.instance_id, "@mine@1");
    worker.expect_nothing(Duration::from_millis(300)).await;
    let mut other = Worker::connect(&client, WorkerOptions::default()).await;
    assert_eq!(other.next_entity().await.request.instance_id, "@other@1", "it has waited (R3.11)");
}
