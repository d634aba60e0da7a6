//! KEDA's external scaler: what waits and what workers have, by kind, and triggers that are not right.

use durahub_proto::scaler::{GetMetricsRequest, IsActiveResponse};
use durahub_proto::wire;
use tonic::{Code, Streaming};

use crate::support::actions::{complete, schedule_task};
use crate::support::client::{PATIENCE, good};
use crate::support::scaler::{Rpc, metric, object, until};
use crate::support::server::ServerOptions;
use crate::support::{TestServer, Worker, WorkerOptions};

async fn told(stream: &mut Streaming<IsActiveResponse>) -> bool {
    let told = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
    told.expect("the stream lives").expect("no end").result
}

#[tokio::test]
async fn the_scaler_counts_what_waits_and_what_workers_have() {
    let task_hubs = vec!["default".to_owned(), "orders".to_owned()];
    let server = TestServer::start_with(ServerOptions { task_hubs, ..Default::default() }).await;
    let client = server.client_in("orders");
    let mut rpc = Rpc::new(client.channel());
    until(&mut rpc, "orders", [0, 0, 0]).await;
    let activities = || object("orders", "activity", "7");
    let mut stream = good("stream", rpc.stream_is_active(activities()).await);
    assert!(!told(&mut stream).await, "it tells at once");

    // Nobody works: everything waits.
    for id in ["a", "b", "c"] {
        client.start(id, "Order", "").await;
    }
    let signal = wire::SignalEntityRequest {
        instance_id: "@counter@1".into(),
        name: "add".into(),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
        ..Default::default()
    };
    good("signal", client.rpc().signal_entity(signal).await);
    until(&mut rpc, "orders", [3, 0, 1]).await;
    until(&mut rpc, "default", [0, 0, 0]).await;

    // What a worker has still counts: it would be taken away otherwise.
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let mut turns = Vec::new();
    for _ in 0..3 {
        turns.push(worker.next_turn().await);
    }
    let entity = worker.next_entity().await;
    until(&mut rpc, "orders", [3, 0, 1]).await;
    let result = wire::EntityBatchResult {
        results: vec![wire::OperationResult {
            result_type: Some(wire::operation_result::ResultType::Success(
                wire::OperationResultSuccess::default(),
            )),
        }],
        ..Default::default()
    };
    worker.complete_entity(&entity, result).await;
    for turn in &turns {
        let two = vec![schedule_task(1, "Pack", ""), schedule_task(2, "Send", "")];
        worker.complete_turn(turn, two).await;
    }
    until(&mut rpc, "orders", [0, 6, 0]).await;
    assert!(told(&mut stream).await, "it tells when work comes");

    let mut done = 0;
    while done < 6 {
        let activity = worker.next_activity().await;
        worker.complete_activity(&activity, "ok").await;
        done += 1;
    }
    for id in ["a", "b", "c"] {
        // A turn may bring one result or both.
        while client.status(id).await != wire::OrchestrationStatus::Completed {
            let turn = worker.next_turn_of(id).await;
            let both = turn.history.result(1).is_some() && turn.history.result(2).is_some();
            let actions = if both { vec![complete(3, "ok")] } else { Vec::new() };
            worker.complete_turn(&turn, actions).await;
        }
    }
    until(&mut rpc, "orders", [0, 0, 0]).await;
    assert!(!told(&mut stream).await, "it tells when the work is gone");

    let spec = good("spec", rpc.get_metric_spec(activities()).await).metric_specs;
    assert_eq!(spec.len(), 1);
    assert_eq!((spec[0].target_size, spec[0].target_size_float), (7, 7.0));
    let by_name = |metric_name: &str| GetMetricsRequest {
        scaled_object_ref: Some(activities()),
        metric_name: metric_name.into(),
    };
    let values = good("metric", rpc.get_metrics(by_name(&spec[0].metric_name)).await).metric_values;
    assert_eq!(values[0].metric_name, spec[0].metric_name);
    let other = rpc.get_metrics(by_name("something-else")).await.expect_err("another metric");
    assert_eq!(other.code(), Code::InvalidArgument, "{other}");

    // The hub goes, and the stream says why it ends.
    good("delete", client.rpc().delete_task_hub(wire::DeleteTaskHubRequest {}).await);
    let ended = tokio::time::timeout(PATIENCE, stream.message()).await.expect("in time");
    assert_eq!(ended.expect_err("the hub is gone").code(), Code::NotFound);
}

#[tokio::test]
async fn a_trigger_that_is_not_right_is_told_what_is_wrong_and_creates_no_hub() {
    let server = TestServer::start_with_args(&["--dynamic-task-hubs"]).await;
    let mut rpc = Rpc::new(server.client().channel());
    for (hub, kind, each, code, text) in [
        ("", "Activity", "1", Code::InvalidArgument, "taskhubName: is missing"),
        ("default", "", "1", Code::InvalidArgument, "workItemType: is missing"),
        ("default", "Activity", "", Code::InvalidArgument, "maxConcurrentWorkItemsCount: is missi"),
        ("default", "Activities", "1", Code::InvalidArgument, "Orchestration, Activity or Entity"),
        ("default", "Activity", "0", Code::InvalidArgument, "from 1 to 1000000"),
        ("default", "Activity", "2.5", Code::InvalidArgument, "maxConcurrentWorkItemsCount"),
        ("orders", "Activity", "1", Code::NotFound, "\"orders\""),
    ] {
        let wrong = object(hub, kind, each);
        let mut refusals = vec![
            rpc.is_active(wrong.clone()).await.expect_err("refused"),
            rpc.get_metric_spec(wrong.clone()).await.expect_err("refused"),
            metric(&mut rpc, wrong.clone()).await.expect_err("refused"),
        ];
        refusals.push(rpc.stream_is_active(wrong).await.expect_err("refused"));
        for refused in refusals {
            assert_eq!(refused.code(), code, "{refused}");
            assert!(refused.message().contains(text), "{refused}");
        }
    }
    // The hub was asked for and is still none.
    let again = metric(&mut rpc, object("orders", "Entity", "1")).await.expect_err("no such hub");
    assert_eq!(again.code(), Code::NotFound);
}
