//! Task hubs come and go by call (R2.97).

use std::time::Duration;

use durahub_proto::wire;
use tonic::Code;

use crate::lists::ids;
use crate::support::actions::complete;
use crate::support::client::good;
use crate::support::{Client, TestServer, Worker, WorkerOptions};

async fn create(client: &Client, recreate_if_exists: bool) {
    let request = wire::CreateTaskHubRequest { recreate_if_exists };
    good("create a hub", client.rpc().create_task_hub(request).await);
}

async fn delete(client: &Client) {
    good("delete a hub", client.rpc().delete_task_hub(wire::DeleteTaskHubRequest {}).await);
}

async fn unknown(client: &Client) {
    let request = wire::GetInstanceRequest { instance_id: "a".into(), ..Default::default() };
    let refused = client.rpc().get_instance(request).await.expect_err("no such hub");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(refused.message().starts_with("Task hub not found: orders"), "{refused}");
}

#[tokio::test]
async fn hubs_come_and_go() {
    let server = TestServer::start().await;
    let client = server.client_in("orders");
    unknown(&client).await;
    create(&client, false).await;
    client.start("a", "A", "").await;
    create(&client, false).await;
    assert!(client.get("a").await.is_some(), "it was there and stays");

    // A worker of the hub that goes hears of it, and finds the one that comes.
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let old = worker.next_turn().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        let request = wire::GetInstanceRequest { instance_id: "a".into(), ..Default::default() };
        async move { client.rpc().wait_for_instance_completion(request).await }
    });
    // It waits for what it knows is there.
    tokio::time::sleep(Duration::from_millis(200)).await;
    create(&client, true).await;
    let answer = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    let answer = good("wait", answer.expect("the waiter hears of it").expect("no panic"));
    assert!(!answer.exists, "{answer:?} (R2.37)");
    assert!(client.get("a").await.is_none());
    let ended = worker.next_within(Duration::from_secs(10)).await;
    let ended = ended.expect_err("the stream of a deleted hub ends, and carries nothing more");
    assert_eq!(ended.code(), Code::Unavailable, "{ended} (R1.40)");
    worker.complete_turn(&old, vec![complete(1, "too late")]).await;
    client.start("a", "A", "").await;
    worker.reconnect().await.expect("connects again");
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(1, "new")]).await;
    assert_eq!(client.output("a").await, "new");

    delete(&client).await;
    unknown(&client).await;
    delete(&client).await;
    create(&client, false).await;
    assert!(ids(&client, wire::InstanceQuery::default()).await.is_empty());

    let bad = server.client_in("no such name!");
    let request = wire::CreateTaskHubRequest::default();
    let refused = bad.rpc().create_task_hub(request).await.expect_err("a bad name");
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("taskhub:"), "{refused}");
}

/// A deleted hub is cleared after a restart, too, and its name is used again meanwhile.
#[tokio::test]
async fn a_deletion_survives_kill_9() {
    let mut server = TestServer::start().await;
    let client = server.client_in("orders");
    create(&client, false).await;
    for n in 0..400 {
        client.start(&format!("i-{n}"), "A", "").await;
    }
    delete(&client).await;
    server.kill9();
    server.restart_same_ports().await;
    unknown(&client).await;
    create(&client, false).await;
    client.start("i-7", "A", "new").await;
    let until = tokio::time::Instant::now() + Duration::from_secs(30);
    // In the log of this process or, if it was that quick, of the one before.
    while !server.logs().contains("deleted task hub is clear") {
        assert!(tokio::time::Instant::now() < until, "the deleted hub is not cleared");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(ids(&client, wire::InstanceQuery::default()).await, ["i-7"]);
    let state = client.get("i-7").await.expect("exists");
    assert_eq!(state.input, Some("new".into()));
}

#[tokio::test]
async fn calls_for_hubs_can_be_switched_off() {
    let server = TestServer::start_with_args(&["--task-hub-calls=false"]).await;
    let client = server.client();
    client.start("a", "A", "").await;
    let request = wire::CreateTaskHubRequest { recreate_if_exists: true };
    let refused = client.rpc().create_task_hub(request).await.expect_err("off");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused =
        client.rpc().delete_task_hub(wire::DeleteTaskHubRequest {}).await.expect_err("off");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().contains("--task-hub-calls"), "{refused}");
    assert!(client.get("a").await.is_some());
}
