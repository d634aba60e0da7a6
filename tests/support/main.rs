//! Tests of the support folder itself, against the benchmark's fake server: `cargo test --test support`.

#[path = "../../src/bench/fake/mod.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod fake;
#[path = "record/mod.rs"]
mod record;
#[path = "record/sight.rs"]
mod sight;
#[path = "record/sight_books.rs"]
mod sight_books;
#[path = "mod.rs"]
mod support;

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire::OrchestrationStatus;
use fake::{Fake, Mischief};
use support::actions::{complete, failure, schedule_task};
use support::server::listening;
use support::{Client, Program, Worker, WorkerOptions, history};

async fn server(mischief: Mischief) -> (Client, Fake) {
    let (fake, address) = Fake::start(mischief).await;
    (Client::new(address), fake)
}

#[tokio::test]
async fn a_worker_plays_the_canonical_activity_exchange() {
    let (client, _fake) = server(Mischief::default()).await;
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let id = client.start("a1", "Greet", "\"you\"").await;

    let turn = worker.next_turn().await;
    assert_eq!(turn.history.compact(), " | OrchestratorStarted#-1, ExecutionStarted#0");
    assert_eq!((turn.history.name(), turn.history.input()), ("Greet", "\"you\""));
    worker.complete_turn(&turn, vec![schedule_task(1, "Hello", "\"you\"")]).await;

    let activity = worker.next_activity().await;
    assert_eq!(
        (activity.instance(), activity.input(), activity.request.task_id),
        ("a1", "\"you\"", 1)
    );
    worker.complete_activity(&activity, "\"hi\"").await;

    let turn = worker.next_turn_of("a1").await;
    assert_eq!(
        turn.history.compact(),
        "OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1 | \
         OrchestratorStarted#-1, TaskCompleted#-1(1)"
    );
    worker.complete_turn(&turn, vec![complete(2, "\"done\"")]).await;
    assert_eq!(client.output(&id).await, "\"done\"");
    let text = history::compact(&client.history(&id).await);
    assert!(text.ends_with("TaskCompleted#-1(1), ExecutionCompleted#2"), "{text}");
    assert_eq!(worker.pings(), 1);
    worker.expect_nothing(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn items_of_a_dropped_stream_and_abandoned_ones_come_again() {
    let (client, _fake) = server(Mischief::default()).await;
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a1", "Greet", "").await;

    let first = worker.next_turn().await;
    worker.abandon_turn(&first).await;
    let second = worker.next_turn().await;
    assert_ne!(first.token, second.token);
    worker.complete_turn(&second, vec![schedule_task(1, "Hello", "")]).await;

    let lost = worker.next_activity().await;
    worker.reconnect().await.expect("the server takes it back");
    let again = worker.next_activity().await;
    assert_ne!(lost.token, again.token);
    worker.complete_activity(&lost, "late").await;
    worker.fail_activity(&again, failure("Oops", "no")).await;
    let turn = worker.next_turn().await;
    let failed = turn.history.result(1).expect("answered").expect_err("failed");
    assert_eq!(failed.error_type, "Oops");
}

#[tokio::test]
async fn a_program_runs_by_itself_and_survives_broken_streams() {
    let mischief = Mischief { break_stream_after: Some(9), ..Default::default() };
    let (client, _fake) = server(mischief).await;
    let running = Program::new()
        .orchestrator("Two", |history| match (history.result(1), history.result(2)) {
            (Some(Ok(one)), Some(Ok(two))) => vec![complete(3, &format!("{one}{two}"))],
            _ => vec![schedule_task(1, "Double", "1"), schedule_task(2, "Double", "2")],
        })
        .orchestrator("Wait", |history| match history.raised("go").first() {
            Some(data) => vec![complete(1, data)],
            None => Vec::new(),
        })
        .activity("Double", |input| {
            let number: i32 = input.parse().map_err(|_| failure("NotANumber", input))?;
            Ok((number * 2).to_string())
        })
        .run(&client, WorkerOptions::default());

    for number in 0..10 {
        client.start(&format!("two-{number}"), "Two", "").await;
    }
    client.start("wait", "Wait", "").await;
    client.wait_started("wait").await;
    client.raise("wait", "go", "now").await;
    assert_eq!(client.output("wait").await, "now");
    for number in 0..10 {
        assert_eq!(client.output(&format!("two-{number}")).await, "24");
    }

    client.start("stopped", "Wait", "").await;
    client.terminate("stopped", "enough").await;
    let state = client.wait("stopped").await;
    assert_eq!(state.orchestration_status(), OrchestrationStatus::Terminated);
    client.start("strange", "Unheard", "").await;
    let state = client.wait("strange").await;
    assert_eq!(state.failure_details.expect("says why").error_type, "OrchestratorNotFound");
    assert!(running.counts.activities.load(Relaxed) >= 20);
    assert!(running.counts.streams_ended.load(Relaxed) > 0);
    running.stop().await;
}

#[test]
fn the_listening_line_is_found_among_others() {
    let line = r#"{"level":"INFO","fields":{"message":"listening","grpc":"127.0.0.1:1","http":"127.0.0.1:2","peer":"127.0.0.1:3"}}"#;
    let found = listening(line).expect("the line");
    assert_eq!((found.grpc.port(), found.http.port(), found.peer.port()), (1, 2, 3));
    let flat =
        r#"{"message":"listening","grpc":"127.0.0.1:1","http":"127.0.0.1:2","peer":"127.0.0.1:3"}"#;
    assert_eq!(listening(flat), Some(found));
    for other in ["durahub 0.1.0", r#"{"fields":{"message":"ready"}}"#, "{}"] {
        assert_eq!(listening(other), None);
    }
}
