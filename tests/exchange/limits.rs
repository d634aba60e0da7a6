//! Limits of one instance, over the wire.

use durahub_proto::wire;
use tonic::Code;
use wire::OrchestrationStatus;

use crate::start;
use crate::support::actions::{complete, schedule_task};
use crate::support::history::compact;
use crate::support::{TestServer, Worker, WorkerOptions};

/// R4.11, R1.26, R1.40: whatever grows too large fails or refuses one instance, by name, and nothing else.
#[tokio::test]
async fn limits_hurt_one_instance_only() {
    let server = TestServer::start_with_args(&[
        "--max-payload-bytes",
        "1KiB",
        "--max-custom-status-bytes",
        "1KiB",
        "--max-name-length",
        "20",
        "--max-tags-bytes",
        "1KiB",
        "--max-history-events",
        "8",
        "--max-waiting-events",
        "2",
        "--max-pending-per-instance",
        "3",
    ])
    .await;
    let client = server.client();
    let large = "x".repeat(1_025);

    // A client is refused, and told which field.
    let refused = [
        (
            "input",
            wire::CreateInstanceRequest { input: Some(large.as_str().into()), ..start("r", "A") },
        ),
        ("name", start("r", &"n".repeat(21))),
        (
            "version",
            wire::CreateInstanceRequest { version: Some("v".repeat(21).into()), ..start("r", "A") },
        ),
        (
            "tags",
            wire::CreateInstanceRequest {
                tags: [("k".to_owned(), large.clone())].into(),
                ..start("r", "A")
            },
        ),
    ];
    for (field, request) in refused {
        let status = client.rpc().start_instance(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(&format!("{field}:")), "{status}");
        assert!(status.message().contains("limits."), "it names the setting: {status}");
    }
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("events", "A", "").await;
    let turn = worker.next_turn().await;
    client.raise("events", "E", "1").await;
    client.raise("events", "E", "2").await;
    let event = |input: &str| wire::RaiseEventRequest {
        instance_id: "events".into(),
        name: "E".into(),
        input: Some(input.into()),
    };
    let status = client.rpc().raise_event(event("3")).await.expect_err("too many");
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let status = client.rpc().raise_event(event(&large)).await.expect_err("too large");
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    worker.complete_turn(&turn, Vec::new()).await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, Vec::new()).await;
    client.raise("events", "E", "3").await;

    // A worker is answered OK, and its one instance or activity fails with the reason.
    let wide = (1..=4).map(|id| schedule_task(id, "A", "")).collect();
    let cases: Vec<(&str, Vec<wire::OrchestratorAction>, &str, &str)> = vec![
        ("wide", wide, "", "limits.max_pending_per_instance"),
        ("input", vec![schedule_task(1, "A", &large)], "", "action 1, input"),
        ("named", vec![schedule_task(1, &"n".repeat(21), "")], "", "action 1, name"),
        ("output", vec![complete(1, &large)], "", "action 1, result"),
        ("status", vec![complete(1, "ok")], &large, "customStatus"),
    ];
    for (id, actions, status, reason) in cases {
        client.start(id, "A", "").await;
        let turn = worker.next_turn_of(id).await;
        let mut response = worker.response(&turn, actions);
        response.custom_status = Some(status.into());
        client.rpc().complete_orchestrator_task(response).await.expect("is OK");
        let state = client.wait(id).await;
        assert_eq!(state.orchestration_status(), OrchestrationStatus::Failed, "{id}");
        let failure = state.failure_details.expect("says why");
        assert!(failure.error_message.contains(reason), "{id}: {}", failure.error_message);
        assert!(failure.is_non_retriable);
    }
    client.start("results", "A", "").await;
    let turn = worker.next_turn_of("results").await;
    worker.complete_turn(&turn, vec![schedule_task(1, "A", "")]).await;
    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, &large).await;
    let turn = worker.next_turn_of("results").await;
    let failure = turn.history.result(1).expect("answered").expect_err("failed");
    assert!(failure.error_message.starts_with("result:"), "{failure:?}");
    // That was 5 events; 3 more are too many, and the end is not.
    worker.complete_turn(&turn, vec![complete(2, "the stream lives")]).await;
    assert_eq!(client.output("results").await, "the stream lives");
    let history = compact(&client.history("results").await);
    assert!(history.ends_with("TaskFailed#-1(1), ExecutionCompleted#2"), "{history}");
}
