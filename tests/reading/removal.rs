//! Instances go: purges by id, batch and filter, with and without children, and ends without a worker.

use std::time::Duration;

use durahub_proto::wire::{self, OrchestrationStatus as Status};
use tonic::Code;
use wire::purge_instances_request::Request;

use crate::lists::{ids, program};
use crate::support::actions::{complete, start_child};
use crate::support::client::good;
use crate::support::{Client, Program, TestServer, Worker, WorkerOptions};

async fn purge(client: &Client, what: Request, recursive: bool) -> (i32, Option<bool>) {
    let request =
        wire::PurgeInstancesRequest { request: Some(what), recursive, is_orchestration: true };
    let answer = good("purge", client.rpc().purge_instances(request).await);
    (answer.deleted_instance_count, answer.is_complete)
}

fn one(id: &str) -> Request {
    Request::InstanceId(id.to_owned())
}

fn batch(ids: impl IntoIterator<Item = String>) -> Request {
    Request::InstanceBatch(wire::InstanceBatch { instance_ids: ids.into_iter().collect() })
}

/// R2.85, R2.88, R2.90, S11: only what has ended goes, wherever one looks.
#[tokio::test]
async fn purges_by_id_remove_every_trace() {
    let mut server = TestServer::start().await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default());
    for (id, input) in [("done", "ok"), ("failed", "fail"), ("runs", "wait")] {
        client.start(id, "End", input).await;
    }
    client.wait("done").await;
    client.wait("failed").await;
    client.wait_started("runs").await;

    assert_eq!(purge(&client, one("nobody"), false).await, (0, Some(true)));
    assert_eq!(purge(&client, one("runs"), false).await, (0, Some(true)));
    assert_eq!(purge(&client, one("@done@1"), false).await, (0, Some(true)));
    assert_eq!(client.status("runs").await, Status::Running);

    assert_eq!(purge(&client, one("done"), false).await, (1, Some(true)));
    assert_eq!(purge(&client, one("done"), false).await, (0, Some(true)), "once");
    server.kill9();
    server.restart_same_ports().await;
    assert!(client.get("done").await.is_none());
    assert!(client.history("done").await.is_empty());
    assert_eq!(ids(&client, wire::InstanceQuery::default()).await, ["failed", "runs"]);
    let request = wire::ListInstanceIdsRequest::default();
    let ended = good("list ids", client.rpc().list_instance_ids(request).await);
    assert_eq!(ended.instance_ids, ["failed"]);
    let event =
        wire::RaiseEventRequest { instance_id: "done".into(), name: "e".into(), input: None };
    assert_eq!(client.rpc().raise_event(event).await.expect_err("gone").code(), Code::NotFound);

    // The id is free again.
    client.start("done", "End", "anew").await;
    assert_eq!(client.output("done").await, "anew");
    let all = ["done", "failed", "runs", "nobody", "done"].map(str::to_owned);
    assert_eq!(purge(&client, batch(all), false).await, (2, Some(true)));

    let many = purge_error(&client, batch((0..501).map(|n| n.to_string()))).await;
    assert_eq!(many.code(), Code::InvalidArgument);
    assert!(many.message().starts_with("instanceBatch.instanceIds: 501"), "{many}");
    let nothing = client.rpc().purge_instances(wire::PurgeInstancesRequest::default()).await;
    let nothing = nothing.expect_err("names nothing");
    assert_eq!(nothing.code(), Code::InvalidArgument);
    assert!(nothing.message().starts_with("request:"), "{nothing}");
    drop(worker);
}

async fn purge_error(client: &Client, what: Request) -> tonic::Status {
    let request = wire::PurgeInstancesRequest { request: Some(what), ..Default::default() };
    client.rpc().purge_instances(request).await.map(drop).expect_err("refused")
}

/// R2.86, R2.87: by filter, with exact counts; a purge that runs out of time says so and can go on.
#[tokio::test]
async fn purges_by_filter_count_exactly() {
    let server = TestServer::start().await;
    let client = server.client();
    let worker = program().run(&client, WorkerOptions::default());
    client.start("runs", "End", "wait").await;
    for n in 0..200 {
        client.start(&format!("i-{n}"), "End", if n % 4 == 0 { "fail" } else { "ok" }).await;
    }
    for n in 0..200 {
        client.wait(&format!("i-{n}")).await;
    }
    let filter = wire::PurgeInstanceFilter::default;
    let by = |filter| purge(&client, Request::PurgeInstanceFilter(filter), false);

    let running = vec![Status::Running as i32, Status::Pending as i32];
    let none = by(wire::PurgeInstanceFilter { runtime_status: running, ..filter() }).await;
    assert_eq!(none, (0, Some(true)), "only terminal instances");
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 1 });
    let (early, complete) = by(wire::PurgeInstanceFilter { timeout, ..filter() }).await;
    assert_eq!(complete, Some(false), "a nanosecond is over at once");

    let created = |state: wire::OrchestrationState| state.created_timestamp;
    let from = created(client.get("i-150").await.expect("exists"));
    let late = by(wire::PurgeInstanceFilter { created_time_from: from, ..filter() }).await;
    assert_eq!(late, (50, Some(true)), "the begin is included");
    let failed = vec![Status::Failed as i32];
    let failed = by(wire::PurgeInstanceFilter { runtime_status: failed, ..filter() }).await;
    let rest = by(filter()).await;
    assert_eq!((early + failed.0 + rest.0, failed.1, rest.1), (150, Some(true), Some(true)));
    assert!(failed.0 <= 38 && rest.0 <= 112, "{failed:?} {rest:?}");
    assert_eq!(ids(&client, wire::InstanceQuery::default()).await, ["runs"]);

    let bad = wire::PurgeInstanceFilter { runtime_status: vec![99], ..filter() };
    let bad = purge_error(&client, Request::PurgeInstanceFilter(bad)).await;
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("purgeInstanceFilter.runtimeStatus: 99"), "{bad}");
    let timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 });
    let bad = wire::PurgeInstanceFilter { timeout, ..filter() };
    let bad = purge_error(&client, Request::PurgeInstanceFilter(bad)).await;
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("purgeInstanceFilter.timeout:"), "{bad}");
    drop(worker);
}

/// R2.91: the client's deadline counts.
#[tokio::test]
async fn a_purge_ends_with_the_deadline_of_its_client() {
    let server = TestServer::start().await;
    let client = server.client();
    let filter = Request::PurgeInstanceFilter(wire::PurgeInstanceFilter::default());
    let request = wire::PurgeInstancesRequest { request: Some(filter), ..Default::default() };
    let mut request = tonic::Request::new(request);
    request.set_timeout(Duration::from_nanos(1));
    let status = client.rpc().purge_instances(request).await.expect_err("no time");
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
}

/// Root with two children, the first of which has one of its own; `wait` leaves that one running.
fn family() -> Program {
    let answered = |history: &crate::support::History, ids: &[i32]| {
        ids.iter().all(|id| history.result(*id).is_some())
    };
    program()
        .orchestrator("Root", move |history| {
            let mut actions = vec![
                start_child(1, &format!("{}-a", history.instance), "Middle", history.input()),
                start_child(2, &format!("{}-b", history.instance), "End", "ok"),
            ];
            if answered(history, &[1, 2]) {
                actions.push(complete(3, "done"));
            }
            actions
        })
        .orchestrator("Middle", move |history| {
            let leaf = start_child(1, &format!("{}-a", history.instance), "End", history.input());
            // Ends at once, its child's end or not.
            vec![leaf, complete(2, "done")]
        })
}

/// R2.89: with children and without; a tree with a running instance stays whole.
#[tokio::test]
async fn recursive_purges_go_through_the_tree() {
    let server = TestServer::start().await;
    let client = server.client();
    let worker = family().run(&client, WorkerOptions::default());
    for (root, input) in [("r1", "ok"), ("r2", "ok"), ("r3", "wait"), ("r4", "ok")] {
        client.start(root, "Root", input).await;
        client.wait(root).await;
        client.wait(&format!("{root}-b")).await;
        if input == "ok" {
            client.wait(&format!("{root}-a-a")).await;
        }
    }
    let left = async |prefix: &str| {
        let prefix = Some(prefix.into());
        ids(&client, wire::InstanceQuery { instance_id_prefix: prefix, ..Default::default() }).await
    };
    assert_eq!(left("r1").await, ["r1", "r1-a", "r1-a-a", "r1-b"]);
    assert_eq!(purge(&client, one("r1"), true).await, (4, Some(true)));
    assert!(left("r1").await.is_empty());

    assert_eq!(purge(&client, one("r2"), false).await, (1, Some(true)));
    assert_eq!(left("r2").await, ["r2-a", "r2-a-a", "r2-b"]);

    let request = wire::PurgeInstancesRequest {
        request: Some(one("r3")),
        recursive: true,
        ..Default::default()
    };
    let runs = client.rpc().purge_instances(request).await.expect_err("a descendant runs");
    assert_eq!(runs.code(), Code::FailedPrecondition);
    assert!(runs.message().contains("r3-a-a"), "{runs}");
    assert_eq!(left("r3").await.len(), 4, "nothing is gone");

    // An id that somebody else has by now is not the child's.
    assert_eq!(purge(&client, one("r4-b"), false).await, (1, Some(true)));
    client.start("r4-b", "End", "of my own").await;
    client.wait("r4-b").await;
    assert_eq!(purge(&client, one("r4"), true).await, (3, Some(true)));
    assert_eq!(left("r4").await, ["r4-b"]);

    let all = Request::PurgeInstanceFilter(wire::PurgeInstanceFilter::default());
    let (count, complete) = purge(&client, all, true).await;
    // r2's three and r4-b. r3 and r3-a have a running one below them; r3-b has none.
    assert_eq!((count, complete), (5, Some(true)));
    assert_eq!(left("r").await, ["r3", "r3-a", "r3-a-a"]);
    client.raise("r3-a-a", "go", "").await;
    client.wait("r3-a-a").await;
    assert_eq!(purge(&client, one("r3"), true).await, (3, Some(true)));
    assert!(left("").await.is_empty());
    drop(worker);
}

/// R2.98: no worker is connected, and instances end; who waits for them hears of it.
#[tokio::test]
async fn instances_end_without_a_worker() {
    let server = TestServer::start().await;
    let client = server.client();
    {
        let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
        client.start("parent", "Root", "").await;
        let turn = worker.next_turn().await;
        worker.complete_turn(&turn, vec![start_child(1, "child", "End", "")]).await;
    }
    client.start("fresh", "End", "in").await;
    let skip = async |ids: Vec<String>, reason: Option<&str>| {
        let request = wire::SkipGracefulOrchestrationTerminationsRequest {
            instance_batch: Some(wire::InstanceBatch { instance_ids: ids }),
            reason: reason.map(Into::into),
        };
        client.rpc().skip_graceful_orchestration_terminations(request).await
    };
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait("fresh").await }
    });
    client.wait_status("child", Status::Pending).await;
    let ids = ["nobody", "fresh", "@e@1", "child"].map(str::to_owned).to_vec();
    let answer = skip(ids, Some("\"enough\"")).await.expect("accepted").into_inner();
    assert_eq!(answer.unterminated_instance_ids, ["nobody", "@e@1"]);
    let state = waiting.await.expect("the waiter hears of it");
    assert_eq!(state.orchestration_status(), Status::Terminated);
    assert_eq!(state.output, Some("\"enough\"".into()));
    assert_eq!(state.input, Some("in".into()));
    let answer = skip(vec!["fresh".into()], None).await.expect("accepted").into_inner();
    assert_eq!(answer.unterminated_instance_ids, ["fresh"], "it has ended already");

    // The parent is told as of any other end.
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let turn = worker.next_turn_of("parent").await;
    assert!(turn.history.result(1).expect("an answer").is_err(), "{}", turn.history.compact());
    worker.complete_turn(&turn, vec![complete(2, "ok")]).await;
    assert_eq!(client.output("parent").await, "ok");

    let refused =
        skip((0..501).map(|n| n.to_string()).collect(), None).await.expect_err("too many");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("instanceBatch.instanceIds: 501"), "{refused}");
}
