//! The canonical exchanges of the contract over the wire, against the real binary: what exactly a worker and
//! a client are sent, how much of it, and to whom. `tests/wire.rs` has what goes wrong.

#[path = "exchange/limits.rs"]
mod limits;
mod support;

use std::time::{Duration, SystemTime};

use durahub_proto::wire;
use support::actions::{action, complete, create_timer_at, schedule_task, start_child};
use support::history::compact;
use support::{Program, TestServer, Worker, WorkerOptions};
use tonic::{Code, Request};
use wire::OrchestrationStatus;

fn start(id: &str, name: &str) -> wire::CreateInstanceRequest {
    wire::CreateInstanceRequest { instance_id: id.into(), name: name.into(), ..Default::default() }
}

fn get(id: &str) -> wire::GetInstanceRequest {
    wire::GetInstanceRequest { instance_id: id.into(), get_inputs_and_outputs: true }
}

/// R1.1, R1.8, R1.11, R1.13, R1.37: Hello needs nothing; unknown headers are ignored; no header is needed.
#[tokio::test]
async fn hello_and_headers() {
    let server = TestServer::start().await;
    let client = server.client();
    client.rpc().hello(()).await.expect("answers");
    client.in_hub("nowhere").rpc().hello(()).await.expect("answers without any state");
    let mut request = Request::new(start("a1", "Greet"));
    request.metadata_mut().insert("x-user-agent", "durabletask-zig/0.1".parse().expect("a value"));
    request.metadata_mut().insert("x-unheard-of", "?".parse().expect("a value"));
    client.rpc().start_instance(request).await.expect("unknown headers are ignored");
    // No header at all is hub `default`, for the worker as well.
    let named = client.in_hub("default");
    assert!(named.get("a1").await.is_some());
    let mut worker = Worker::connect(&named, WorkerOptions::default()).await;
    worker.next_turn_of("a1").await;
}

/// R2.10, R2.13, R2.25 to R2.27, R2.30, R2.38, R4.15, R8.3: visible once acknowledged, with all that clients read.
#[tokio::test]
async fn a_state_has_all_that_clients_read() {
    let server = TestServer::start().await;
    let client = server.client();
    let before = SystemTime::now();
    client
        .start_with(wire::CreateInstanceRequest {
            input: Some("in".into()),
            ..start("a1", "Greet")
        })
        .await;
    let state = client.get("a1").await.expect("durably created and visible");
    assert_eq!((state.instance_id.as_str(), state.name.as_str()), ("a1", "Greet"));
    assert_eq!(state.orchestration_status(), OrchestrationStatus::Pending);
    let time = |time: Option<prost_types::Timestamp>| {
        SystemTime::try_from(time.expect("set")).expect("fits")
    };
    let (created, updated) = (time(state.created_timestamp), time(state.last_updated_timestamp));
    assert!(before <= created && created <= updated && updated <= SystemTime::now());
    assert_eq!(
        (state.completed_timestamp, state.failure_details, state.output),
        (None, None, None)
    );
    assert!(state.execution_id.is_some_and(|id| id.as_str().len() == 32));

    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let turn = worker.next_turn().await;
    let mut response = worker.response(&turn, vec![complete(1, "out")]);
    response.custom_status = Some("half way".into());
    client.rpc().complete_orchestrator_task(response).await.expect("is OK");
    let bare = wire::GetInstanceRequest { get_inputs_and_outputs: false, ..get("a1") };
    let answer = client.rpc().get_instance(bare.clone()).await.expect("answers").into_inner();
    let waited =
        client.rpc().wait_for_instance_completion(bare).await.expect("answers").into_inner();
    assert_eq!(answer, waited, "R2.38");
    let state = answer.orchestration_state.expect("exists");
    assert_eq!((state.input, state.output, state.custom_status), (None, None, None), "R2.26");
    let state = client.get("a1").await.expect("exists");
    assert_eq!(state.input, Some("in".into()));
    assert_eq!(state.output, Some("out".into()));
    assert_eq!(state.custom_status, Some("half way".into()));
    assert_eq!(
        (state.failure_details.clone(), state.completed_timestamp),
        (None, state.last_updated_timestamp)
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    client.raise("a1", "late", "").await;
    assert_eq!(client.get("a1").await, Some(state), "R2.29: frozen");
}

/// R3.6, R3.23, R3.24, R3.28, R3.29, R3.43, R4.13, R4.14, A1: the first and the second turn, field by field.
#[tokio::test]
async fn a_turn_has_all_that_workers_read() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let first = worker.next_turn().await;
    let request = &first.request;
    assert_eq!(first.history.compact(), " | OrchestratorStarted#-1, ExecutionStarted#0");
    let execution = first.history.started().orchestration_instance.clone().expect("set");
    assert_eq!(execution.instance_id, "a1");
    assert_eq!(
        (&execution.execution_id, request.instance_id.as_str()),
        (&request.execution_id, "a1")
    );
    let parameters = request.entity_parameters.as_ref().expect("R3.28");
    assert_eq!(parameters.entity_message_reorder_window, Some(prost_types::Duration::default()));
    assert!(request.properties.is_empty(), "R3.29");
    assert!(!request.requires_history_streaming);
    assert!(request.orchestration_trace_context.is_none(), "R6.5");
    worker.complete_turn(&first, vec![schedule_task(1, "Hello", "x")]).await;
    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, "y").await;
    let second = worker.next_turn().await;
    assert_eq!(
        second.history.compact(),
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1 | OrchestratorStarted#-1, TaskCompleted#-1(1)"
    );
    assert_eq!(second.history.past[..2], first.history.new[..], "R4.9: unchanged, the times too");
    assert!(second.history.now() > first.history.now(), "R3.27");
    assert_ne!(first.token, second.token, "R3.43");
    worker.complete_turn(&second, vec![complete(2, "z")]).await;
    assert_eq!(client.output("a1").await, "z");
    // R2.96: a reader sees the very events that the workers were sent, and the end.
    let history = client.history("a1").await;
    let sent: Vec<_> = second.history.past.iter().chain(&second.history.new).cloned().collect();
    assert_eq!(history[..history.len() - 1], sent[..]);
    worker.expect_nothing(Duration::from_millis(200)).await;
}

/// R4.2 to R4.5, R2.96, A1 to A3: the exact twelve events of an activity, a timer, a child and the end.
#[tokio::test]
async fn the_twelve_events_of_activity_timer_and_child() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .activity("Hello", |input| Ok(input.to_owned()))
        .orchestrator("Child", |_| vec![complete(1, "from the child")])
        .orchestrator("Parent", |history| {
            if let Some(Ok(output)) = history.result(3) {
                vec![complete(4, &output)]
            } else if history.fired(2) {
                vec![start_child(3, "c1", "Child", "")]
            } else if history.result(1).is_some() {
                vec![create_timer_at(2, history.now())]
            } else {
                vec![schedule_task(1, "Hello", "")]
            }
        });
    let worker = program.run(&client, WorkerOptions::default());
    client.start("p1", "Parent", "").await;
    assert_eq!(client.output("p1").await, "from the child");
    assert_eq!(
        compact(&client.history("p1").await),
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1, OrchestratorStarted#-1, \
         TaskCompleted#-1(1), TimerCreated#2, OrchestratorStarted#-1, TimerFired#-1(2), \
         SubOrchestrationInstanceCreated#3, OrchestratorStarted#-1, \
         SubOrchestrationInstanceCompleted#-1(3), ExecutionCompleted#4"
    );
    let child = client.history("c1").await;
    assert_eq!(
        compact(&child),
        "OrchestratorStarted#-1, ExecutionStarted#0, ExecutionCompleted#1",
        "A3"
    );
    worker.stop().await;
}

/// R3.33, R3.34, R6.3: an activity, field by field.
#[tokio::test]
async fn an_activity_has_all_that_workers_read() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    let trace = wire::TraceContext {
        trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        trace_state: Some("x=y".into()),
        ..Default::default()
    };
    let scheduled = wire::ScheduleTaskAction {
        name: "Hello".into(),
        version: Some("2".into()),
        input: Some("in".into()),
        tags: [("k".to_owned(), "v".to_owned())].into(),
        parent_trace_context: Some(trace.clone()),
    };
    let scheduled = wire::orchestrator_action::OrchestratorActionType::ScheduleTask(scheduled);
    worker.complete_turn(&turn, vec![action(7, scheduled)]).await;
    let activity = worker.next_activity().await.request;
    let expected = wire::ActivityRequest {
        name: "Hello".into(),
        version: Some("2".into()),
        input: Some("in".into()),
        orchestration_instance: Some(wire::OrchestrationInstance {
            instance_id: "a1".into(),
            execution_id: turn.request.execution_id.clone(),
        }),
        task_id: 7,
        parent_trace_context: Some(trace),
        tags: [("k".to_owned(), "v".to_owned())].into(),
    };
    assert_eq!(activity, expected);
}

/// R7.7, R7.8, R2.29, R2.81: what an export needs: listed as soon as the end is seen, with a time that stays.
#[tokio::test]
async fn an_instance_is_listed_once_its_end_is_seen() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new().orchestrator("Quick", |_| vec![complete(1, "ok")]);
    let worker = program.run(&client, WorkerOptions::default());
    let begun = SystemTime::now();
    for number in 0..20 {
        let id = client.start(&format!("q{number}"), "Quick", "").await;
        let state = client.wait(&id).await;
        let ended = state.completed_timestamp.expect("it has ended");
        let request = wire::ListInstanceIdsRequest {
            completed_time_from: Some(begun.into()),
            completed_time_to: Some((SystemTime::now() + Duration::from_secs(1)).into()),
            page_size: 100,
            ..Default::default()
        };
        let page = client.rpc().list_instance_ids(request).await.expect("answers").into_inner();
        assert!(page.instance_ids.contains(&id), "no lag: {page:?}");
        assert_eq!(page.instance_ids.len(), number + 1, "in the order of their ends");
        assert_eq!(page.instance_ids.last(), Some(&id));
        let again = client.get(&id).await.expect("exists");
        assert_eq!(again.completed_timestamp, Some(ended), "R2.29");
        let history = compact(&client.history(&id).await);
        assert_eq!(history, "OrchestratorStarted#-1, ExecutionStarted#0, ExecutionCompleted#1");
    }
    worker.stop().await;
}

/// R3.1, R3.2, R3.21, R1.5: a stream holds as many of a kind as it stated, others get the rest; 0 is a default.
#[tokio::test]
async fn a_stream_holds_no_more_than_it_stated() {
    let server = TestServer::start().await;
    let client = server.client();
    let two = WorkerOptions { orchestrations: 2, activities: 1, ..Default::default() };
    let mut small = Worker::connect(&client, two).await;
    for number in 0..4 {
        client.start(&format!("a{number}"), "Greet", "").await;
    }
    let (first, second) = (small.next_turn().await, small.next_turn().await);
    small.expect_nothing(Duration::from_millis(300)).await;
    small.abandon_turn(&second).await;
    let third = small.next_turn().await;
    assert_ne!(third.request.instance_id, second.request.instance_id, "given back makes room");
    small.complete_turn(&first, vec![schedule_task(1, "A", ""), schedule_task(2, "A", "")]).await;
    // Kinds have limits of their own: one activity, and the turn that has become possible.
    small.next_activity().await;
    small.next_turn().await;
    small.expect_nothing(Duration::from_millis(300)).await;
    let mut large = Worker::connect(&client, WorkerOptions::default()).await;
    large.next_activity().await;
    large.next_turn().await;
}

/// R3.7, R3.8, R3.10, R3.11, R3.13, R3.14: names and versions decide who gets what, unset counts as empty.
#[tokio::test]
async fn versions_decide_who_gets_what() {
    let server = TestServer::start().await;
    let client = server.client();
    let serving = |name: &str, versions: &[&str]| {
        let versions = || versions.iter().map(|version| (*version).to_owned()).collect();
        let name = name.to_owned();
        WorkerOptions {
            filters: Some(wire::WorkItemFilters {
                orchestrations: vec![wire::OrchestrationFilter {
                    name: name.clone(),
                    versions: versions(),
                }],
                activities: vec![wire::ActivityFilter { name, versions: versions() }],
                entities: Vec::new(),
            }),
            ..Default::default()
        }
    };
    let mut strict = Worker::connect(&client, serving("greet", &["1"])).await;
    let request = |id: &str, version: Option<&str>| wire::CreateInstanceRequest {
        version: version.map(Into::into),
        ..start(id, "Greet")
    };
    client.start_with(request("unversioned", None)).await;
    client.start_with(request("two", Some("2"))).await;
    client.start_with(request("one", Some("1"))).await;
    let turn = strict.next_turn().await;
    assert_eq!(turn.request.instance_id, "one");
    strict.expect_nothing(Duration::from_millis(300)).await;
    assert_eq!(client.status("two").await, OrchestrationStatus::Pending, "R3.11");
    // The activity has no version of its own: it goes where its orchestration's does (R3.13).
    strict.complete_turn(&turn, vec![schedule_task(1, "Greet", "")]).await;
    strict.next_activity().await;
    let mut plain = Worker::connect(&client, serving("GREET", &[""])).await;
    assert_eq!(plain.next_turn().await.request.instance_id, "unversioned", "R3.10, R3.12");
    // Filters end with their stream (R3.14), and no filter takes all.
    strict.drop_stream();
    let mut any = Worker::connect(&client, WorkerOptions::default()).await;
    assert_eq!(any.next_turn().await.request.instance_id, "two", "R3.7");
}

/// R2.33, R2.34, R2.37, R2.39: a wait ends when it should, by the client's deadline, or not at all.
#[tokio::test]
async fn waits_end_when_they_should() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    // While the first turn runs it has not started.
    let mut request = Request::new(get("a1"));
    request.set_timeout(Duration::from_millis(300));
    let late = client.rpc().wait_for_instance_start(request).await.expect_err("too early");
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");

    let (rpc, rpc2) = (client.rpc(), client.rpc());
    let started = tokio::spawn(async move { { rpc }.wait_for_instance_start(get("a1")).await });
    let completed =
        tokio::spawn(async move { { rpc2 }.wait_for_instance_completion(get("a1")).await });
    let mut response = worker.response(&turn, Vec::new());
    response.custom_status = Some("one".into());
    client.rpc().complete_orchestrator_task(response).await.expect("is OK");
    let state = started.await.expect("no panic").expect("started").into_inner();
    let state = state.orchestration_state.expect("exists");
    assert_eq!(state.custom_status, Some("one".into()), "R2.33: of the first turn");

    // Replaced while it is waited for: the wait goes on with the new instance (R2.37).
    let replaceable =
        vec![OrchestrationStatus::Running.into(), OrchestrationStatus::Terminated.into()];
    let policy =
        wire::OrchestrationIdReusePolicy { replaceable_status: replaceable, ..Default::default() };
    let again = wire::CreateInstanceRequest {
        orchestration_id_reuse_policy: Some(policy),
        ..start("a1", "Greet")
    };
    client.start_with(again).await;
    let turn = worker.next_turn().await;
    let new = support::actions::continue_as_new(1, "again", Vec::new());
    worker.complete_turn(&turn, vec![new]).await;
    let turn = worker.next_turn().await;
    assert!(!completed.is_finished(), "R2.39: a new generation is no end");
    worker.complete_turn(&turn, vec![complete(1, "the new one")]).await;
    let state = completed.await.expect("no panic").expect("completed").into_inner();
    assert_eq!(state.orchestration_state.expect("exists").output, Some("the new one".into()));
}

/// R3.32: a worker that lacks the history gets the turn again; nothing of it was committed.
#[tokio::test]
async fn a_turn_without_its_history_comes_again() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    let mut response = worker.response(&turn, Vec::new());
    response.requires_history = true;
    client.rpc().complete_orchestrator_task(response).await.expect("is OK");
    assert_eq!(client.status("a1").await, OrchestrationStatus::Pending);
    let again = worker.next_turn().await;
    assert_eq!(again.history.compact(), turn.history.compact());
    worker.complete_turn(&again, vec![complete(1, "ok")]).await;
    assert_eq!(client.output("a1").await, "ok");
}

/// R3.46, R3.54, R1.12: a token that does not fit its call changes nothing, and holds nothing up.
#[tokio::test]
async fn a_token_fits_one_item_only() {
    let server = TestServer::start_with_args(&["--task-hubs", "default,orders"]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let turn = worker.next_turn().await;
    let wrong = vec![complete(1, "wrong")];
    // Of another instance, in another hub, for another kind.
    let mut response = worker.response(&turn, wrong.clone());
    response.instance_id = "a2".into();
    client.rpc().complete_orchestrator_task(response).await.expect("is OK");
    let elsewhere = server.client_in("orders");
    elsewhere.rpc().complete_orchestrator_task(worker.response(&turn, wrong)).await.expect("is OK");
    let result = wire::ActivityResponse {
        completion_token: turn.token.clone(),
        result: Some("wrong".into()),
        ..Default::default()
    };
    client.rpc().complete_activity_task(result).await.expect("is OK");
    let back = wire::AbandonActivityTaskRequest { completion_token: turn.token.clone() };
    client.rpc().abandon_task_activity_work_item(back).await.expect("is OK");
    worker.complete_turn(&turn, vec![complete(1, "right")]).await;
    assert_eq!(client.output("a1").await, "right");
}

/// R3.51, R3.43: while its stream lives, a turn that nobody answers is handed out again, under a new token.
#[tokio::test]
async fn a_lease_bounds_a_turn_on_a_live_stream() {
    let server = TestServer::start_with_args(&["--orchestrator-lease", "1s"]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let lost = worker.next_turn().await;
    let again = worker.next_turn().await;
    assert_ne!(lost.token, again.token);
    worker.complete_turn(&again, vec![complete(1, "second")]).await;
    worker.complete_turn(&lost, vec![complete(1, "first")]).await;
    assert_eq!(client.output("a1").await, "second", "R3.54");
}
