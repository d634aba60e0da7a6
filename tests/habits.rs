//! Each public SDK's habits against the real server: `tests/support/habits` plays them, the tests say what
//! the server must make of them. The SDKs themselves run in `tests/sdk.rs`.

mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire;
use support::actions::{
    complete, continue_as_new, create_timer_at, failure, schedule_task, start_child,
};
use support::habits::{dotnet, go, java, python};
use support::history::compact;
use support::{Client, History, Program, TestServer, Worker, WorkerOptions};
use wire::OrchestrationStatus;

/// Fans out to `width` activities numbered from `first`, then returns how many came back.
fn fan_out(first: i32, width: i32) -> impl Fn(&History) -> Vec<wire::OrchestratorAction> {
    move |history| {
        let ids = first..first + width;
        let done = history.succeeded().into_iter().filter(|id| ids.contains(id)).count();
        if done == width as usize {
            return vec![complete(first + width, &done.to_string())];
        }
        ids.map(|id| schedule_task(id, "Echo", &id.to_string())).collect()
    }
}

fn echoing() -> Program {
    Program::new().activity("Echo", |input| Ok(input.to_owned()))
}

async fn start(client: &Client, name: &str, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for number in 0..count {
        ids.push(client.start(&format!("{name}-{number}"), name, "").await);
    }
    ids
}

/// R3.44, R4.17, A12: no token, actions in any order, several workers; nothing is lost or mixed up.
#[tokio::test]
async fn go_completes_by_ids_alone() {
    let server = TestServer::start_with_args(&["--redelivery-grace", "1s"]).await;
    let client = server.client();
    let program = echoing().orchestrator("Fan", fan_out(0, 8)).orchestrator("Loop", |history| {
        // Ids start anew in every generation (R3.34), and the completion may come first.
        let round: i32 = history.input().parse().unwrap_or_default();
        match history.result(0) {
            None => vec![schedule_task(0, "Echo", history.input())],
            Some(Ok(echo)) if round == 5 => vec![complete(1, &echo)],
            Some(Ok(_)) => vec![continue_as_new(1, &(round + 1).to_string(), Vec::new())],
            Some(Err(_)) => vec![complete(1, "failed")],
        }
    });
    let first = go::run(&program, &client);
    let second = go::run(&program, &client);
    let fans = start(&client, "Fan", 10).await;
    let loops = start(&client, "Loop", 10).await;
    // R3.49: what a worker leaves behind when it dies is handed out again.
    first.stop().await;
    for id in &fans {
        assert_eq!(client.output(id).await, "8");
        let history = client.history(id).await;
        let ids: Vec<i32> =
            history.iter().map(|event| event.event_id).filter(|id| *id > 0).collect();
        assert!(ids.is_sorted(), "R4.17: in the order of their ids: {}", compact(&history));
    }
    for id in &loops {
        assert_eq!(client.output(id).await, "5");
        assert_eq!(client.get(id).await.expect("exists").custom_status, None, "R4.86");
    }
    assert_eq!(second.counts.refused.load(Relaxed), 0);
    second.stop().await;
}

/// R4.36: a Go worker leaves the ids of its children to the server, which writes them down.
#[tokio::test]
async fn go_leaves_the_ids_of_children_empty() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .orchestrator("Child", |history| vec![complete(0, history.input())])
        .orchestrator("Parent", |history| match history.succeeded().len() {
            3 => vec![complete(3, "all")],
            _ => (0..3).map(|id| start_child(id, "ignored", "Child", "x")).collect(),
        });
    let worker = go::run(&program, &client);
    client.start("p1", "Parent", "").await;
    assert_eq!(client.output("p1").await, "all");
    for id in 0..3 {
        assert_eq!(client.output(&format!("p1:000{id}")).await, "x");
    }
    let created: Vec<String> = client
        .history("p1")
        .await
        .into_iter()
        .filter_map(|event| match event.event_type {
            Some(wire::history_event::EventType::SubOrchestrationInstanceCreated(it)) => {
                Some(it.instance_id)
            }
            _ => None,
        })
        .collect();
    assert_eq!(created, ["p1:0000", "p1:0001", "p1:0002"]);
    worker.stop().await;
}

/// R3.55: whatever a Java worker sends twice or too late is OK, or it would stay away for 5 s each time.
#[tokio::test]
async fn java_never_loses_its_stream() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = echoing().orchestrator("Fan", fan_out(0, 3));
    let worker = java::run(&program, &client, true);
    for id in start(&client, "Fan", 20).await {
        assert_eq!(client.output(&id).await, "3");
        let history = compact(&client.history(&id).await);
        assert_eq!(history.matches("TaskCompleted").count(), 3, "R3.60: {history}");
    }
    let counts = &worker.counts;
    assert_eq!((counts.refused.load(Relaxed), counts.streams_ended.load(Relaxed)), (0, 0));
    worker.stop().await;
}

/// R1.43, R3.22: one item at a time, and a slow one in front; the others wait in the worker and are done.
#[tokio::test]
async fn java_works_on_one_item_at_a_time() {
    let server = TestServer::start_with_args(&["--orchestrator-lease", "1s"]).await;
    let client = server.client();
    let slow = |input: &str| {
        std::thread::sleep(Duration::from_millis(1_500));
        Ok(input.to_owned())
    };
    let program = echoing().activity("Slow", slow).orchestrator("Fan", fan_out(0, 3)).orchestrator(
        "Slowly",
        |history| match history.result(0) {
            None => vec![schedule_task(0, "Slow", "done")],
            Some(result) => vec![complete(1, &result.expect("never fails"))],
        },
    );
    let worker = java::run(&program, &client, false);
    let slow = start(&client, "Slowly", 2).await;
    let fans = start(&client, "Fan", 5).await;
    for id in slow {
        assert_eq!(
            client.output(&id).await,
            "done",
            "a lease that ran out in its queue is no loss"
        );
    }
    for id in fans {
        assert_eq!(client.output(&id).await, "3");
    }
    assert_eq!(worker.counts.streams_ended.load(Relaxed), 0);
    worker.stop().await;
}

/// R3.65 to R3.69, A11: a completion in parts is committed once, whole, in order.
#[tokio::test]
async fn dotnet_splits_its_completions() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = echoing().orchestrator("Fan", fan_out(0, 200));
    let options = dotnet::Options { chunk_bytes: 1_000, ..Default::default() };
    let worker = dotnet::run(&program, &client, options);
    let id = &start(&client, "Fan", 1).await[0];
    assert_eq!(client.output(id).await, "200");
    assert!(worker.counts.in_parts.load(Relaxed) > 0);
    assert_eq!(worker.counts.refused.load(Relaxed), 0);
    let history = client.history(id).await;
    let scheduled: Vec<i32> = history.iter().map(|it| it.event_id).filter(|id| *id >= 0).collect();
    let expected: Vec<i32> = [0].into_iter().chain(0..=200).collect();
    assert_eq!(scheduled, expected);
    worker.stop().await;
}

/// R3.66, R3.68: nothing of an unfinished series is visible, and it goes with its stream or its server.
#[tokio::test]
async fn an_unfinished_series_leaves_nothing() {
    let mut server = TestServer::start_with_args(&["--redelivery-grace", "0s"]).await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;
    let part = |response: wire::OrchestratorResponse, index: i32, last: bool| {
        #[allow(deprecated)]
        wire::OrchestratorResponse { chunk_index: Some(index), is_partial: !last, ..response }
    };
    let send = async |response| {
        client.rpc().complete_orchestrator_task(response).await.expect("is OK");
    };
    let turn = worker.next_turn().await;
    send(part(worker.response(&turn, vec![schedule_task(1, "A", "")]), 0, false)).await;
    assert_eq!(client.status("a1").await, OrchestrationStatus::Pending);
    assert!(client.history("a1").await.is_empty());
    worker.reconnect().await.expect("connects again");
    let turn = worker.next_turn().await;
    assert_eq!(turn.history.compact(), " | OrchestratorStarted#-1, ExecutionStarted#0");
    send(part(worker.response(&turn, vec![schedule_task(1, "A", "")]), 0, false)).await;

    server.kill9();
    server.restart_same_ports().await;
    // The rest of it alone is no completion: the turn is handed out again.
    send(part(worker.response(&turn, vec![complete(2, "half")]), 1, true)).await;
    let _ = worker.reconnect().await;
    let turn = worker.next_turn().await;
    assert_eq!(turn.history.compact(), " | OrchestratorStarted#-1, ExecutionStarted#0");
    send(part(worker.response(&turn, vec![schedule_task(1, "A", "")]), 0, false)).await;
    send(part(worker.response(&turn, vec![complete(2, "whole")]), 1, true)).await;
    assert_eq!(client.output("a1").await, "whole");
    let history = compact(&client.history("a1").await);
    assert_eq!(
        history,
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1, ExecutionCompleted#2"
    );
}

/// R3.30, R2.94: a long history is left out, asked for, and exactly what the turn came without.
#[tokio::test]
async fn dotnet_streams_long_histories() {
    let server = TestServer::start_with_args(&["--stream-history-above", "16KiB"]).await;
    let client = server.client();
    let program = echoing().orchestrator("Chain", |history| {
        let done = (1..).take_while(|id| history.result(*id).is_some()).count() as i32;
        match done {
            60 => vec![complete(61, &done.to_string())],
            _ => vec![schedule_task(done + 1, "Echo", &"x".repeat(1_000))],
        }
    });
    let worker = dotnet::run(&program, &client, dotnet::Options::default());
    let id = &start(&client, "Chain", 1).await[0];
    assert_eq!(client.output(id).await, "60");
    let (turns, asked) = (worker.counts.turns.load(Relaxed), worker.counts.histories.load(Relaxed));
    assert!(asked > 20 && asked < turns, "{asked} of {turns}: short ones come with the turn");
    worker.stop().await;
}

/// R3.31: the same history goes whole to a worker that cannot stream it, as far as a message allows.
#[tokio::test]
async fn a_history_of_ten_thousand_events_works_with_and_without_streaming() {
    let server = TestServer::start_with_args(&["--stream-history-above", "64KiB"]).await;
    let client = server.client();
    let program = echoing().orchestrator("Fan", fan_out(0, 5_000));
    let worker = dotnet::run(&program, &client, dotnet::Options::default());
    let streamed = client.start("streamed", "Fan", "").await;
    assert_eq!(client.output(&streamed).await, "5000");
    assert!(worker.counts.histories.load(Relaxed) > 0);
    worker.stop().await;
    let worker = go::run(&program, &client);
    let whole = client.start("whole", "Fan", "").await;
    assert_eq!(client.output(&whole).await, "5000");
    worker.stop().await;
    for id in [streamed, whole] {
        assert!(client.history(&id).await.len() > 10_000);
    }
}

/// R3.62, R3.63: a worker that rejects an item is offered it again, less and less often; another takes it.
#[tokio::test]
async fn dotnet_gives_back_what_it_rejects() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new().orchestrator("Any", |_| vec![complete(1, "ok")]);
    let rejects = Some("2".to_owned());
    let worker = dotnet::run(&program, &client, dotnet::Options { rejects, ..Default::default() });
    let request = |id: &str, version: &str| wire::CreateInstanceRequest {
        instance_id: id.into(),
        name: "Any".into(),
        version: Some(version.into()),
        ..Default::default()
    };
    client.start_with(request("two", "2")).await;
    client.start_with(request("one", "1")).await;
    assert_eq!(client.output("one").await, "ok", "the others go on");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(client.status("two").await, OrchestrationStatus::Pending);
    let given_back = worker.counts.abandoned.load(Relaxed);
    assert!((2..=4).contains(&given_back), "at 0, 1, 3 and 7 s: {given_back} times");
    // The free room of the other is smaller, and still it is preferred for what was given back.
    let options = WorkerOptions { orchestrations: 1, ..Default::default() };
    let other = program.run(&client, options);
    assert_eq!(client.output("two").await, "ok");
    other.stop().await;
    worker.stop().await;
}

/// R1.28, R3.5: on an idle stream the pings come often enough that nobody gives it up.
#[tokio::test]
async fn dotnet_keeps_an_idle_stream_that_pings() {
    let server = TestServer::start_with_args(&["--health-ping", "1s"]).await;
    let client = server.client();
    let silence = Duration::from_secs(3);
    let options = dotnet::Options { silence, ..Default::default() };
    let worker = dotnet::run(&Program::new(), &client, options);
    tokio::time::sleep(Duration::from_secs(7)).await;
    let counts = &worker.counts;
    assert_eq!((counts.silences.load(Relaxed), counts.streams_ended.load(Relaxed)), (0, 0));
    assert!(counts.pings.load(Relaxed) >= 6);
    worker.stop().await;
}

/// R4.31: a name that no worker knows fails as the worker says; the server has no opinion.
#[tokio::test]
async fn an_unknown_activity_fails_as_its_worker_says() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new().orchestrator("Ask", |history| match history.result(1) {
        None => vec![schedule_task(1, "Nobody", "")],
        Some(result) => vec![complete(2, &result.expect_err("fails").error_type)],
    });
    let worker = java::run(&program, &client, false);
    let id = &start(&client, "Ask", 1).await[0];
    assert_eq!(client.output(id).await, "ActivityTaskNotFound");
    worker.stop().await;
}

/// R3.34, R4.19: a retry reuses the id of the first attempt; both stand in the history, each answered once.
#[tokio::test]
async fn python_reuses_ids_when_it_retries() {
    let server = TestServer::start().await;
    let client = server.client();
    let program = Program::new()
        .repeating_ids()
        .activity("Flaky", |attempt| match attempt {
            "3" => Ok("third time lucky".to_owned()),
            _ => Err(failure("Oops", attempt)),
        })
        .orchestrator("Retry", |history| {
            use wire::history_event::EventType::{
                TaskCompleted, TaskFailed, TaskScheduled, TimerFired,
            };
            let count = |fits: &dyn Fn(&wire::history_event::EventType) -> bool| {
                history.events().filter(|event| fits(event)).count()
            };
            let attempts = count(&|event| matches!(event, TaskScheduled(_)));
            let failed = count(&|event| matches!(event, TaskFailed(_)));
            let waits = count(&|event| matches!(event, TimerFired(_)));
            if count(&|event| matches!(event, TaskCompleted(_))) == 1 {
                return vec![complete(9, &format!("{attempts} attempts"))];
            }
            // The next attempt has the id of the first (1), each wait an id of its own.
            match (attempts, failed, waits) {
                (0, 0, 0) => vec![schedule_task(1, "Flaky", "1")],
                (a, f, w) if a == f && w == f => {
                    vec![schedule_task(1, "Flaky", &(a + 1).to_string())]
                }
                (a, f, w) if a == f && w < f => {
                    vec![create_timer_at(1 + f as i32, history.now())]
                }
                _ => Vec::new(),
            }
        });
    let worker = python::run(&program, &client, 10);
    let id = &start(&client, "Retry", 1).await[0];
    assert_eq!(client.output(id).await, "3 attempts");
    let history = compact(&client.history(id).await);
    assert_eq!(history.matches("TaskScheduled#1").count(), 3, "{history}");
    assert_eq!(history.matches("TaskFailed#-1(1)").count(), 2, "{history}");
    worker.stop().await;
}

/// R3.61, R3.64, R8.2: what a stopping worker gives back, and what it never saw, goes to the next one.
#[tokio::test]
async fn python_gives_back_what_is_queued_when_it_stops() {
    let server = TestServer::start_with_args(&["--redelivery-grace", "1s"]).await;
    let client = server.client();
    let program = Program::new()
        .activity("Slow", |input| {
            std::thread::sleep(Duration::from_millis(100));
            Ok(input.to_owned())
        })
        .orchestrator("One", |history| match history.result(1) {
            None => vec![schedule_task(1, "Slow", "x")],
            Some(result) => vec![complete(2, &result.expect("never fails"))],
        });
    let first = python::run(&program, &client, 100);
    let ids = start(&client, "One", 30).await;
    client.output(&ids[0]).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let counts = first.counts();
    assert_eq!(counts.refused.load(Relaxed), 0);
    first.stop().await;
    let next = program.run(&client, WorkerOptions::default());
    for id in &ids {
        assert_eq!(client.output(id).await, "x");
        let history = compact(&client.history(id).await);
        assert_eq!(history.matches("TaskCompleted").count(), 1, "R3.60: {history}");
    }
    next.stop().await;
}
