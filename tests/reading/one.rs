//! What clients ask about one instance: its history in chunks, its state, and whether its id may be reused.

use std::collections::BTreeSet;

use durahub_proto::wire::{self, OrchestrationStatus as Status};
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Code;

use crate::lists::program;
use crate::support::actions::{complete, continue_as_new, schedule_task};
use crate::support::client::good;
use crate::support::{History, Program, TestServer, Worker, WorkerOptions, history};

/// R2.92, R2.93, R2.95, R1.23: chunks of a bounded size, in order, of the current generation only.
#[tokio::test]
async fn a_long_history_comes_in_chunks() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("long", "A", "").await;
    let turn = worker.next_turn().await;
    let payload = "x".repeat(20_000);
    let tasks = (1..=40).map(|id| schedule_task(id, "T", &payload)).collect();
    worker.complete_turn(&turn, tasks).await;
    for _ in 1..=40 {
        let activity = worker.next_activity().await;
        worker.complete_activity(&activity, &payload).await;
    }
    let mut turn = worker.next_turn().await;
    while turn
        .history
        .events()
        .filter(|event| matches!(event, wire::history_event::EventType::TaskCompleted(_)))
        .count()
        < 40
    {
        worker.complete_turn(&turn, Vec::new()).await;
        turn = worker.next_turn().await;
    }
    let request = |execution: Option<&str>, working| wire::StreamInstanceHistoryRequest {
        instance_id: "long".into(),
        execution_id: execution.map(Into::into),
        for_work_item_processing: working,
    };
    let chunks = async |request| {
        let mut stream = good("history", client.rpc().stream_instance_history(request).await);
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.message().await.expect("a chunk") {
            assert!(chunk.encoded_len() <= 300 * 1024, "{} bytes", chunk.encoded_len());
            chunks.push(history::decode(&chunk.events));
        }
        chunks
    };
    // R2.94: what a turn leaves out is exactly what it would have been given as past events.
    let past = chunks(request(Some(&turn.history.execution), true)).await;
    assert!(past.len() >= 3, "{} chunks", past.len());
    assert_eq!(past.concat(), turn.history.past);
    assert!(chunks(request(Some("another"), false)).await.is_empty());
    worker.complete_turn(&turn, vec![complete(41, "done")]).await;
    let all = chunks(request(Some(""), false)).await.concat();
    assert!(history::compact(&all).ends_with("ExecutionCompleted#41"));
    assert_eq!(all[..turn.history.past.len()], turn.history.past);
}

/// R2.92: an instance that begins anew again and again is read as it is at that moment. Only a reader that already
/// has part of a generation which is gone is told to ask again.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_always_begins_anew_can_be_read() {
    let server = TestServer::start().await;
    let client = server.client();
    let anew = |history: &History| match history.result(1) {
        None => vec![schedule_task(1, "T", "")],
        Some(_) => vec![continue_as_new(2, history.input(), Vec::new())],
    };
    let program = Program::new().orchestrator("Anew", anew).activity("T", |_| Ok("done".into()));
    let running = program.run(&client, WorkerOptions::default());
    client.start("anew", "Anew", "again").await;
    let mut readers = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        readers.spawn(async move {
            let mut generations = BTreeSet::new();
            while generations.len() < 40 {
                let request = wire::StreamInstanceHistoryRequest {
                    instance_id: "anew".into(),
                    ..Default::default()
                };
                let mut stream =
                    good("history", client.rpc().stream_instance_history(request).await);
                let mut events = Vec::new();
                while let Some(chunk) = stream.message().await.expect("one generation, whole") {
                    events.extend(history::decode(&chunk.events));
                }
                let execution = events.iter().find_map(|event| match &event.event_type {
                    Some(wire::history_event::EventType::ExecutionStarted(started)) => {
                        started.orchestration_instance.as_ref()?.execution_id.clone()
                    }
                    _ => None,
                });
                // Until the first turn of a generation is done there is nothing to read.
                generations.extend(execution.map(String::from));
            }
        });
    }
    while readers.join_next().await.transpose().expect("a reader failed").is_some() {}
    drop(running);
}

/// R2.94: a worker that asks for the past of its turn gets that of its turn, whatever came behind it.
#[tokio::test]
async fn a_worker_reads_the_past_of_the_turn_it_has() {
    let server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("a", "A", "").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![schedule_task(1, "T", "")]).await;
    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, "").await;
    let turn = worker.next_turn().await;
    let request = wire::SkipGracefulOrchestrationTerminationsRequest {
        instance_batch: Some(wire::InstanceBatch { instance_ids: vec!["a".into()] }),
        reason: None,
    };
    good("end it", client.rpc().skip_graceful_orchestration_terminations(request).await);

    let request = wire::StreamInstanceHistoryRequest {
        instance_id: "a".into(),
        execution_id: None,
        for_work_item_processing: true,
    };
    let mut stream = good("history", client.rpc().stream_instance_history(request).await);
    let mut past = Vec::new();
    while let Some(chunk) = stream.message().await.expect("a chunk") {
        past.extend(history::decode(&chunk.events));
    }
    assert_eq!(past, turn.history.past);
    let all = history::compact(&client.history("a").await);
    assert!(all.ends_with("ExecutionCompleted#-1"), "{all}");
}

/// R2.21: what one client's older protocol says about ids in use.
#[tokio::test]
async fn the_legacy_action_of_a_reuse_policy_counts() {
    const IGNORE: i32 = 1;
    const TERMINATE: i32 = 2;
    let server = TestServer::start().await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default());
    client.start("a", "End", "wait").await;
    client.wait_started("a").await;
    let first = client.get("a").await.expect("exists").execution_id;
    let start = async |status: Status, legacy_action| {
        let request = wire::CreateInstanceRequest {
            instance_id: "a".into(),
            name: "End".into(),
            input: Some("second".into()),
            orchestration_id_reuse_policy: Some(wire::OrchestrationIdReusePolicy {
                replaceable_status: vec![status as i32],
                legacy_action,
            }),
            ..Default::default()
        };
        client.rpc().start_instance(request).await
    };
    let refused = start(Status::Completed, IGNORE).await.expect_err("not that status");
    assert_eq!(refused.code(), Code::AlreadyExists);
    let kept = good("ignore", start(Status::Running, IGNORE).await);
    assert_eq!(kept.instance_id, "a");
    let state = client.get("a").await.expect("exists");
    assert_eq!((state.execution_id, state.input), (first.clone(), Some("wait".into())));
    good("terminate", start(Status::Running, TERMINATE).await);
    assert_eq!(client.output("a").await, "second");
    assert_ne!(client.get("a").await.expect("exists").execution_id, first);
    drop(worker);
}

/// R2.104: calls about orchestrations never see an entity, and do not wait for one.
#[tokio::test]
async fn an_entity_is_no_orchestration() {
    let server = TestServer::start().await;
    let client = server.client();
    let request =
        wire::GetInstanceRequest { instance_id: "@counter@1".into(), get_inputs_and_outputs: true };
    let get = good("get", client.rpc().get_instance(request.clone()).await);
    let wait = client.rpc().wait_for_instance_completion(request.clone()).await;
    let start = client.rpc().wait_for_instance_start(request).await;
    for answer in [get, good("wait", wait), good("wait", start)] {
        assert!(!answer.exists && answer.orchestration_state.is_none(), "{answer:?}");
    }
}
