//! Ended instances go once they have stayed as long as their task hub keeps them.

use durahub_proto::wire;

use crate::lists::{ids, program};
use crate::support::actions::{complete, start_child};
use crate::support::server::ServerOptions;
use crate::support::{Client, Program, TestServer, WorkerOptions};

/// Calls that set retention go through the command line, as operators do it.
async fn set(server: &TestServer, hub: &str, times: &[&str]) {
    let endpoint = format!("http://{}", server.addresses.grpc);
    let command = tokio::process::Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(["hub", "--endpoint", &endpoint, "retention", hub])
        .args(times)
        .output();
    let output = command.await.expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn all(client: &Client) -> Vec<String> {
    let mut ids = ids(client, wire::InstanceQuery::default()).await;
    ids.sort();
    ids
}

/// Waits until these are left, and no others.
async fn left(client: &Client, expected: &[&str]) {
    let until = tokio::time::Instant::now() + crate::support::client::PATIENCE;
    loop {
        let found = all(client).await;
        if found == expected {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "{found:?} are left, not {expected:?}");
        for kept in expected {
            assert!(found.iter().any(|id| id == kept), "{kept} is gone: {found:?}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn removed(server: &TestServer, hub: &str) -> u64 {
    let (_, text) = server.http_get("/metrics").await.expect("answers");
    let series = format!("durahub_instances_removed_total{{hub=\"{hub}\"}} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&series));
    value.map_or(0, |value| value.parse().expect("a number"))
}

/// A parent that ends while its child waits for an event, and those of `program`.
fn trees() -> Program {
    program().orchestrator("Leave", |history| {
        let child = format!("{}-child", history.input());
        vec![start_child(1, &child, "End", "wait"), complete(2, "left")]
    })
}

#[tokio::test]
async fn ended_instances_go_by_status_and_time_and_others_stay() {
    // For hubs that say nothing of their own, terminated ones go.
    let args = ["--retention-terminated", "1s"].map(String::from).into();
    let task_hubs = vec!["default".into(), "orders".into()];
    let mut server =
        TestServer::start_with(ServerOptions { args, task_hubs, ..Default::default() }).await;
    let (orders, other) = (server.client_in("orders"), server.client_in("default"));
    let _workers = [&orders, &other].map(|hub| trees().run(hub, WorkerOptions::default()));
    for client in [&orders, &other] {
        for (id, input) in [("done", "ok"), ("failed", "fail"), ("runs", "wait"), ("ended", "wait")]
        {
            client.start(id, "End", input).await;
        }
        client.start("parent", "Leave", "parent").await;
        client.terminate("ended", "enough").await;
        for id in ["done", "failed", "ended", "parent"] {
            client.wait(id).await;
        }
        client.wait_started("runs").await;
        client.wait_started("parent-child").await;
    }
    // Nothing but terminated ones goes yet.
    left(&orders, &["done", "failed", "parent", "parent-child", "runs"]).await;
    left(&other, &["done", "failed", "parent", "parent-child", "runs"]).await;

    // What completed goes now, in this hub alone; but not above a child that runs.
    set(&server, "orders", &["--completed", "1s", "--failed", "off"]).await;
    left(&orders, &["failed", "parent", "parent-child", "runs"]).await;
    assert_eq!(removed(&server, "orders").await, 2);
    assert_eq!(removed(&server, "default").await, 1);
    assert!(server.log().contains("removed by retention"));

    // After a restart the same holds, and goes on.
    server.kill9();
    server.restart_same_ports().await;
    orders.start("done", "End", "again").await;
    orders.wait("done").await;
    left(&orders, &["failed", "parent", "parent-child", "runs"]).await;
    // With its child the parent goes as well.
    orders.raise("parent-child", "go", "").await;
    left(&orders, &["failed", "runs"]).await;
    left(&other, &["done", "failed", "parent", "parent-child", "runs"]).await;
    set(&server, "orders", &["--failed", "1s"]).await;
    left(&orders, &["runs"]).await;
    assert!(orders.history("failed").await.is_empty(), "nothing of it is left");
}
