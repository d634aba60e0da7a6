//! gRPC as workers and clients speak it, against the real binary: bad input, leases, redelivery, limits.

mod support;

use std::time::Duration;

use durahub_proto::wire;
use support::actions::{complete, create_timer, schedule_task};
use support::server::http_get;
use support::{TestServer, Worker, WorkerOptions};
use tonic::Code;

/// A request to start `id`.
fn start(id: &str, name: &str) -> wire::CreateInstanceRequest {
    wire::CreateInstanceRequest { instance_id: id.into(), name: name.into(), ..Default::default() }
}

#[tokio::test]
async fn bad_input_is_refused_by_name() {
    let server = TestServer::start_with_args(&["--task-hubs", "default,orders"]).await;
    let client = server.client();

    // R2.3, R2.23: ids, and the word "length" that a client looks for.
    let refused =
        client.rpc().start_instance(start(&"x".repeat(101), "A")).await.expect_err("too long");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("instanceId") && refused.message().contains("length"));
    client.rpc().start_instance(start(&"x".repeat(100), "A")).await.expect("just short enough");
    let refused =
        client.rpc().start_instance(start("@counter@1", "A")).await.expect_err("an entity");
    assert_eq!(refused.code(), Code::InvalidArgument);
    let long = wire::CreateInstanceRequest {
        execution_id: Some("e".repeat(101).into()),
        ..start("executed", "A")
    };
    let refused = client.rpc().start_instance(long).await.expect_err("too long an execution id");
    assert!(refused.message().starts_with("executionId:"), "{refused}");
    let refused = client.rpc().start_instance(start("nameless", "")).await.expect_err("no name");
    assert!(refused.message().starts_with("name:"), "{refused}");

    // R1.8, R1.9, R1.12: hubs are apart, and an unknown one is NOT_FOUND on every call.
    let unknown = server.client_in("nowhere");
    let refused = unknown.rpc().start_instance(start("a", "A")).await.expect_err("unknown hub");
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().starts_with("Task hub not found: nowhere"), "{refused}");
    let refused = unknown.rpc().get_work_items(wire::GetWorkItemsRequest::default()).await;
    assert_eq!(refused.map(drop).expect_err("unknown hub").code(), Code::NotFound);
    client.start("only-here", "A", "").await;
    assert!(server.client_in("orders").get("only-here").await.is_none());

    // R2.14, R2.22, R2.24, R2.44, R2.49, R2.58, R2.93: what exists and what does not.
    let refused = client.rpc().start_instance(start("only-here", "A")).await.expect_err("exists");
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert!(refused.message().contains("orchestration instance already exists"));
    assert!(client.get("nobody").await.is_none());
    let event =
        wire::RaiseEventRequest { instance_id: "nobody".into(), name: "E".into(), input: None };
    assert_eq!(client.rpc().raise_event(event).await.expect_err("unknown").code(), Code::NotFound);
    client.terminate("nobody", "").await;
    assert!(client.history("nobody").await.is_empty());

    // R1.3, R1.4: what is not there says so.
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{}", server.addresses.grpc));
    let channel = channel.expect("an address").connect_lazy();
    let mut sandbox =
        durahub_proto::sandbox::sandbox_activities_client::SandboxActivitiesClient::new(channel);
    let refused = sandbox
        .declare_sandbox_worker_profile(durahub_proto::sandbox::SandboxWorkerProfile::default())
        .await;
    assert_eq!(refused.map(drop).expect_err("another service").code(), Code::Unimplemented);
}

/// R1.24, R1.25, R1.26: above the limit the code says "too much", and the text names the limit.
#[tokio::test]
async fn an_oversize_message_is_refused_and_one_below_is_not() {
    let server = TestServer::start_with_args(&["--max-payload-bytes", "64MiB"]).await;
    let client = server.client();
    let sized = |id: &str, bytes: usize| wire::CreateInstanceRequest {
        input: Some("x".repeat(bytes).into()),
        ..start(id, "A")
    };
    client
        .rpc()
        .start_instance(sized("large", 5 << 20))
        .await
        .expect("more than any client receives");
    let refused = client
        .rpc()
        .max_encoding_message_size(usize::MAX)
        .start_instance(sized("larger", 65 << 20))
        .await
        .expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("67108864"), "{refused}");
    assert!(client.get("larger").await.is_none());
}

/// R1.25, S1: a message just below the limit becomes one log entry, which outlives a crash.
#[tokio::test]
async fn a_message_near_the_limit_survives_kill_9() {
    let mut server = TestServer::start_with_args(&["--max-payload-bytes", "64MiB"]).await;
    let client = server.client();
    let request = wire::CreateInstanceRequest {
        input: Some("x".repeat(63 << 20).into()),
        ..start("large", "A")
    };
    client.rpc().start_instance(request).await.expect("below the limit");
    server.kill9();
    server.restart().await;
    let client = server.client();
    let request = wire::GetInstanceRequest { instance_id: "large".into(), ..Default::default() };
    let state = client.rpc().get_instance(request).await.expect("is there").into_inner();
    let state = state.orchestration_state.expect("exists");
    assert_eq!(state.orchestration_status(), wire::OrchestrationStatus::Pending);
    // Whole, not only named: with its input it is more than any client may be sent (R1.23).
    let request =
        wire::GetInstanceRequest { instance_id: "large".into(), get_inputs_and_outputs: true };
    let refused = client.rpc().get_instance(request).await.expect_err("too large to send");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let size: usize = refused
        .message()
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .expect("the refusal names the size");
    assert!(size > 63 << 20, "{refused}");
}

/// R3.54, R3.55, R3.61: garbage, unknown and used-up tokens are OK and change nothing.
#[tokio::test]
async fn completions_that_mean_nothing_change_nothing() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    for token in ["garbage", "AAAA", "id:id:00000000-0000-0000-0000-000000000000"] {
        let response = wire::OrchestratorResponse {
            instance_id: "a1".into(),
            completion_token: token.into(),
            actions: vec![complete(1, "wrong")],
            ..Default::default()
        };
        client.rpc().complete_orchestrator_task(response).await.expect("is OK");
        let result =
            wire::ActivityResponse { completion_token: token.into(), ..Default::default() };
        client.rpc().complete_activity_task(result).await.expect("is OK");
        let back = wire::AbandonOrchestrationTaskRequest { completion_token: token.into() };
        client.rpc().abandon_task_orchestrator_work_item(back).await.expect("is OK");
    }
    worker.complete_turn(&turn, vec![schedule_task(1, "Hello", "")]).await;
    worker.complete_turn(&turn, vec![complete(1, "again")]).await;

    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, "first").await;
    worker.complete_activity(&activity, "second").await;
    let turn = worker.next_turn().await;
    assert_eq!(turn.history.result(1), Some(Ok("first".into())));
    worker.complete_turn(&turn, vec![complete(2, "right")]).await;
    assert_eq!(client.output("a1").await, "right");
    let history = support::history::compact(&client.history("a1").await);
    assert_eq!(
        history,
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1, OrchestratorStarted#-1, \
         TaskCompleted#-1(1), ExecutionCompleted#2"
    );
}

/// R1.27, R3.31: the one instance or activity fails and says why; the stream goes on.
#[tokio::test]
async fn what_no_worker_can_receive_fails_alone() {
    let server = TestServer::start_with_args(&["--max-payload-bytes", "64MiB"]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let large = "x".repeat(5 << 20);
    let request =
        wire::CreateInstanceRequest { input: Some(large.clone().into()), ..start("large", "A") };
    client.rpc().start_instance(request).await.expect("accepted");
    let failed = loop {
        let request =
            wire::GetInstanceRequest { instance_id: "large".into(), ..Default::default() };
        let answer = client.rpc().wait_for_instance_completion(request).await.expect("waits");
        if let Some(state) = answer.into_inner().orchestration_state {
            break state;
        }
    };
    assert_eq!(failed.orchestration_status(), wire::OrchestrationStatus::Failed);

    client.start("a2", "A", "").await;
    let turn = worker.next_turn_of("a2").await;
    worker.complete_turn(&turn, vec![schedule_task(1, "Large", &large)]).await;
    // The history of this instance holds the large input too, so it ends as well, and says so.
    let request = wire::GetInstanceRequest { instance_id: "a2".into(), ..Default::default() };
    let state =
        client.rpc().wait_for_instance_completion(request).await.expect("waits").into_inner();
    assert_eq!(
        state.orchestration_state.expect("state").orchestration_status(),
        wire::OrchestrationStatus::Failed
    );

    client.start("a3", "A", "").await;
    let turn = worker.next_turn_of("a3").await;
    worker.complete_turn(&turn, vec![complete(1, "the stream lives")]).await;
    assert_eq!(client.output("a3").await, "the stream lives");
}

/// R3.49, R3.61, R3.62, S5: what a worker leaves behind is handed out again, with another token.
#[tokio::test]
async fn items_come_back_after_disconnect_and_abandon() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    assert!(worker.next_within(Duration::from_millis(300)).await.expect("lives").is_none());
    assert_eq!(worker.pings(), 1, "the first ping comes before the first item (R1.28)");

    client.start("a1", "Greet", "").await;
    let abandoned = worker.next_turn().await;
    worker.abandon_turn(&abandoned).await;
    worker.expect_nothing(Duration::from_millis(700)).await;
    let turn = worker.next_turn().await;
    assert_ne!(abandoned.token, turn.token);
    worker.complete_turn(&abandoned, vec![complete(1, "used up")]).await;
    worker.complete_turn(&turn, vec![schedule_task(1, "Hello", "")]).await;

    let lost = worker.next_activity().await;
    worker.drop_stream();
    worker.reconnect().await.expect("connects again");
    let again = worker.next_activity().await;
    assert_ne!(lost.token, again.token);
    worker.complete_activity(&again, "done").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(2, "ok")]).await;
    assert_eq!(client.output("a1").await, "ok");
}

/// R3.48, R3.56, S1: a token from before a crash is still good, and so is everything acknowledged.
#[tokio::test]
async fn tokens_and_timers_survive_kill_9() {
    let mut server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    let actions = vec![schedule_task(1, "Hello", ""), create_timer(2, Duration::from_millis(200))];
    worker.complete_turn(&turn, actions).await;
    let activity = worker.next_activity().await;

    server.kill9();
    server.restart_same_ports().await;
    worker.complete_activity(&activity, "from before").await;
    let _ = worker.reconnect().await;
    let mut history = String::new();
    while !(history.contains("TaskCompleted") && history.contains("TimerFired")) {
        let turn = worker.next_turn_of("a1").await;
        history = turn.history.compact();
        let ends = history.contains("TaskCompleted") && history.contains("TimerFired");
        let actions = if ends { vec![complete(3, "ok")] } else { Vec::new() };
        worker.complete_turn(&turn, actions).await;
    }
    assert_eq!(client.output("a1").await, "ok");
}

/// R3.8, R3.11: an item that nobody accepts waits, and goes to the first worker that does.
#[tokio::test]
async fn filters_hold_items_for_a_worker_that_fits() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut other =
        Worker::connect(&client, WorkerOptions::default().serving(&["Other"], &[])).await;
    client.start("a1", "Wanted", "").await;
    other.expect_nothing(Duration::from_millis(500)).await;
    assert_eq!(client.status("a1").await, wire::OrchestrationStatus::Pending);
    let mut fits =
        Worker::connect(&client, WorkerOptions::default().serving(&["wanted"], &[])).await;
    let turn = fits.next_turn().await;
    fits.complete_turn(&turn, vec![complete(1, "ok")]).await;
    assert_eq!(client.output("a1").await, "ok");
}

/// R1.40, R1.41: a node that goes away ends its streams with UNAVAILABLE, after what runs is done.
#[tokio::test]
async fn sigterm_lets_work_finish_and_ends_streams_politely() {
    let mut server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    let (status, ended) = tokio::join!(server.terminate(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        worker.complete_turn(&turn, vec![complete(1, "in time")]).await;
        loop {
            match worker.next_within(Duration::from_secs(10)).await {
                Ok(_) => {}
                Err(status) => break status,
            }
        }
    });
    assert!(status.success(), "{status}");
    assert_eq!(ended.code(), Code::Unavailable);
    server.restart().await;
    assert_eq!(server.client().output("a1").await, "in time");
}

/// R1.41: a worker that connects while the node drains is given nothing; what it would get waits on disk.
#[tokio::test]
async fn a_draining_node_hands_out_nothing_to_new_streams() {
    let mut server = TestServer::start().await;
    let client = server.client();
    let mut busy = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("held", "Greet", "").await;
    let held = busy.next_turn().await;
    let http = server.addresses.http;
    let (status, ()) = tokio::join!(server.terminate(), async {
        // It says that it drains once it hands out nothing more.
        while http_get(http, "/readyz").await.expect("answers while it drains").0 == 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        client.start("probe", "Greet", "").await;
        let mut late = Worker::connect(&client, WorkerOptions::default()).await;
        late.expect_nothing(Duration::from_millis(700)).await;
        busy.complete_turn(&held, vec![complete(1, "in time")]).await;
    });
    assert!(status.success(), "{status}");
    server.restart().await;
    let client = server.client();
    assert_eq!(client.output("held").await, "in time");
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let turn = worker.next_turn_of("probe").await;
    worker.complete_turn(&turn, vec![complete(1, "later")]).await;
    assert_eq!(client.output("probe").await, "later");
}
