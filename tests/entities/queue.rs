//! Long queues, batches that fail or are lost, and hubs that go while entities are busy.

use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;
use tokio::task::JoinSet;

use crate::support::actions::{action, failure};
use crate::support::client::good;
use crate::support::server::ServerOptions;
use crate::support::{Client, TestServer, Worker, WorkerOptions};
use crate::{get, names, ok, signal};

/// Operations that wait before the worker comes. `DURAHUB_LONG_QUEUE=100000` is as many as may wait.
fn length() -> usize {
    std::env::var("DURAHUB_LONG_QUEUE").map_or(4_000, |n| n.parse().expect("a number"))
}

/// R5.12, R3.42: whatever waits is taken in and carried out in order, once, in batches of a bounded size. The
/// signals come from many callers at once, each in an order of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_queue_is_worked_off_in_order() {
    const SENDERS: usize = 40;
    let length = length() / SENDERS * SENDERS;
    // With one more, which is told apart.
    let limit = (length + 1).to_string();
    let server = TestServer::start_with_args(&["--max-waiting-events", &limit]).await;
    let client = server.client();
    let request = |id: &str| wire::SignalEntityRequest {
        instance_id: "@a@1".into(),
        name: "single".into(),
        request_id: id.into(),
        ..Default::default()
    };
    good("the first", client.rpc().signal_entity(request("r1")).await);
    let began = std::time::Instant::now();
    let mut senders = JoinSet::new();
    for sender in 0..SENDERS {
        let client = client.clone();
        senders.spawn(async move {
            for number in 0..length / SENDERS {
                signal(&client, "@a@1", &format!("{sender} {number}")).await;
            }
        });
    }
    while senders.join_next().await.transpose().expect("a sender panicked").is_some() {}
    let sent = began.elapsed();
    let refused = client.rpc().signal_entity(request("r2")).await.expect_err("is full");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused}");
    // A repeat of what was taken in is not refused: its place in the queue is there (R5.14).
    good("a repeat", client.rpc().signal_entity(request("r1")).await);

    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let mut seen = [0; SENDERS];
    let mut done = 0;
    while done <= length {
        let batch = worker.next_entity().await;
        let names = names(&batch);
        assert!(names.len() <= 100, "R3.42");
        for name in names.iter().filter(|name| *name != "single") {
            let (sender, number) = name.split_once(' ').expect("a sender");
            let seen = &mut seen[sender.parse::<usize>().expect("a number")];
            assert_eq!(number, seen.to_string(), "of sender {sender}: twice, lost or out of order");
            *seen += 1;
        }
        done += names.len();
        let state = done.to_string();
        worker.complete_entity(&batch, ok(&vec!["x"; names.len()], &state)).await;
    }
    println!(
        "{length} signals: taken in after {sent:?}, worked off after {:?}",
        began.elapsed() - sent
    );
    let entity = get(&client, "@a@1").await.expect("exists");
    assert_eq!(entity.serialized_state, Some((length + 1).to_string().into()));
    assert_eq!(entity.backlog_queue_size, 0);
    worker.expect_nothing(Duration::from_millis(200)).await;
}

/// R3.51: a batch that its worker keeps too long goes to somebody else; `limits.entity_lease` says how long.
/// Meanwhile the entity is with nobody else (R3.16).
#[tokio::test]
async fn a_batch_that_is_not_answered_is_handed_out_again() {
    let server = TestServer::start_with_args(&["--entity-lease", "1s"]).await;
    let client = server.client();
    signal(&client, "@a@1", "first").await;
    let mut slow = Worker::connect(&client, WorkerOptions::default()).await;
    let batch = slow.next_entity().await;
    let mut other = Worker::connect(&client, WorkerOptions::default()).await;
    slow.expect_nothing(Duration::from_millis(300)).await;
    other.expect_nothing(Duration::from_millis(300)).await;
    let again = tokio::select! {
        batch = slow.next_entity() => batch,
        batch = other.next_entity() => batch,
    };
    assert_eq!(names(&again), ["first"]);
    slow.complete_entity(&batch, ok(&["late"], "late")).await;
    slow.complete_entity(&again, ok(&["1"], "1")).await;
    let state = get(&client, "@a@1").await.expect("exists").serialized_state;
    assert_eq!(state, Some("1".into()), "the lease that is current counts (R3.54)");
}

/// R3.73: a batch that fails as a whole fails its operations after so many tries, and the caller hears why. The
/// delays between them grow: `a_batch_that_fails_as_a_whole_waits_longer_each_time` in src/dispatch/tests.
#[tokio::test]
async fn a_caller_hears_of_a_batch_that_never_works() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("o1", "O", "").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![call("@a@1", "q1")]).await;
    let broken = || wire::EntityBatchResult {
        failure_details: Some(failure("Oops", "never")),
        ..Default::default()
    };
    let batch = worker.next_entity().await;
    worker.complete_entity(&batch, broken()).await;
    // The first delay is over after a second; the ninth would take minutes. The engine counts tries whoever
    // makes them: a worker that comes back with an old token after a restart makes one, too (R3.48).
    let mut server = server;
    for _ in 0..9 {
        server.restart_same_ports().await;
        worker.reconnect().await.expect("connects");
        let batch = worker.next_entity().await;
        assert_eq!(batch.request.operation_requests.len(), 1, "it is tried again");
        worker.complete_entity(&batch, broken()).await;
    }
    let turn = worker.next_turn().await;
    let failed = turn.history.new.iter().find_map(|event| match &event.event_type {
        Some(wire::history_event::EventType::EntityOperationFailed(it)) => Some(it.clone()),
        _ => None,
    });
    let failed = failed.expect("the caller is told");
    assert_eq!(failed.request_id, "q1");
    assert_eq!(failed.failure_details.expect("details").error_message, "never");
    assert!(get(&client, "@a@1").await.is_none(), "nothing is left of it (R5.7)");
}

fn call(entity: &str, request: &str) -> wire::OrchestratorAction {
    let call = wire::EntityOperationCalledEvent {
        request_id: request.into(),
        operation: "get".into(),
        target_instance_id: Some(entity.into()),
        ..Default::default()
    };
    message(1, Message::EntityOperationCalled(call))
}

pub(crate) fn message(id: i32, message: Message) -> wire::OrchestratorAction {
    let message = wire::SendEntityMessageAction { entity_message_type: Some(message) };
    action(id, Action::SendEntityMessage(message))
}

async fn all(client: &Client) -> Vec<wire::EntityMetadata> {
    let query = wire::EntityQuery { include_transient: true, ..Default::default() };
    let request = wire::QueryEntitiesRequest { query: Some(query) };
    good("query", client.rpc().query_entities(request).await).entities
}

/// A hub goes with its entities, whatever they are doing: states, waiting and delayed operations, a batch with a
/// worker, locks that are held and waited for. A hub of the same name knows nothing of them. That no row of any
/// kind is left: `src/engine/mesh_locks`.
#[tokio::test]
async fn a_hub_goes_with_all_that_its_entities_have() {
    let options =
        ServerOptions { task_hubs: vec!["default".into(), "doomed".into()], ..Default::default() };
    let mut server = TestServer::start_with(options).await;
    let client = server.client_in("doomed");
    let later =
        |seconds| Some((std::time::SystemTime::now() + Duration::from_secs(seconds)).into());
    for number in 0..300 {
        let request = wire::SignalEntityRequest {
            instance_id: format!("@a@{}", number % 50),
            name: "add".into(),
            request_id: format!("request-{number}"),
            scheduled_time: if number % 3 == 0 { later(2 + number % 2 * 3600) } else { None },
            ..Default::default()
        };
        good("signal", client.rpc().signal_entity(request).await);
    }
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    for id in ["holder", "waiter"] {
        client.start(id, "O", "").await;
    }
    let (mut turns, mut batches) = (0, Vec::new());
    while turns < 2 {
        match worker.next().await {
            wire::WorkItem {
                request: Some(wire::work_item::Request::OrchestratorRequest(turn)),
                completion_token,
            } => {
                let lock = wire::EntityLockRequestedEvent {
                    critical_section_id: "s1".into(),
                    lock_set: vec!["@locked@1".into(), "@locked@2".into()],
                    ..Default::default()
                };
                let response = wire::OrchestratorResponse {
                    instance_id: turn.instance_id,
                    completion_token,
                    actions: vec![message(1, Message::EntityLockRequested(lock))],
                    ..Default::default()
                };
                good("turn", client.rpc().complete_orchestrator_task(response).await);
                turns += 1;
            }
            item => batches.push(item),
        }
    }
    // Some entities get a state, some batches stay with the worker.
    for item in batches.split_off(batches.len() / 2) {
        let Some(wire::work_item::Request::EntityRequestV2(batch)) = item.request else { continue };
        let mut result = ok(&vec!["x"; batch.operation_requests.len()], "state");
        result.completion_token = item.completion_token;
        good("batch", client.rpc().complete_entity_task(result).await);
    }
    while !all(&client).await.iter().any(|entity| entity.locked_by.is_some()) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    good("delete", client.rpc().delete_task_hub(wire::DeleteTaskHubRequest {}).await);
    server.restart_same_ports().await;
    while !server.logs().contains("deleted task hub is clear") {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let created = wire::CreateTaskHubRequest { recreate_if_exists: false };
    good("create", client.rpc().create_task_hub(created).await);
    assert_eq!(all(&client).await, []);
    // Later than the earlier ones of the delayed signals would have come.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(all(&client).await, [], "no delayed signal comes back");
    // What was a repeat in the old hub is new in this one, and nobody holds anything.
    let request = wire::SignalEntityRequest {
        instance_id: "@locked@1".into(),
        name: "add".into(),
        request_id: "request-1".into(),
        ..Default::default()
    };
    good("signal", client.rpc().signal_entity(request).await);
    worker.reconnect().await.expect("connects");
    let batch = worker.next_entity().await;
    assert_eq!((names(&batch), batch.request.entity_state.clone()), (vec!["add".into()], None));
}
