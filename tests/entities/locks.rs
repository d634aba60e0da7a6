//! Locks: none outlives its holder, whatever ends it, and none is waited for that is free.

use std::process::Stdio;
use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;

use super::queue::message;
use crate::support::actions::{complete, continue_as_new, fail, failure, terminated};
use crate::support::client::good;
use crate::support::worker::Turn;
use crate::support::{Client, TestServer, Worker, WorkerOptions};

const SET: [&str; 2] = ["@account@a", "@account@b"];

fn lock() -> wire::OrchestratorAction {
    let request = wire::EntityLockRequestedEvent {
        critical_section_id: "always the same".into(),
        lock_set: SET.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    message(1, Message::EntityLockRequested(request))
}

/// Who holds the two accounts.
async fn holders(client: &Client) -> Vec<Option<String>> {
    let query = wire::EntityQuery { include_transient: true, ..Default::default() };
    let request = wire::QueryEntitiesRequest { query: Some(query) };
    let page = good("query", client.rpc().query_entities(request).await);
    let holder = |id: &str| {
        let entity = page.entities.iter().find(|entity| entity.instance_id == id)?;
        entity.locked_by.as_ref().map(|by| by.as_str().to_owned())
    };
    SET.map(holder).to_vec()
}

async fn held_by(client: &Client, holder: Option<&str>) {
    let wanted = vec![holder.map(str::to_owned); 2];
    for _ in 0..3_000 {
        if holders(client).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("held by {:?}, not by {holder:?}", holders(client).await);
}

/// Locks both accounts; returns the turn in which they are granted.
async fn hold(client: &Client, worker: &mut Worker, id: &str) -> Turn {
    client.start(id, "O", "").await;
    let turn = worker.next_turn_of(id).await;
    worker.complete_turn(&turn, vec![lock()]).await;
    let turn = worker.next_turn_of(id).await;
    held_by(client, Some(id)).await;
    turn
}

async fn restart_instance(client: &Client, id: &str) {
    let request = wire::RestartInstanceRequest { instance_id: id.into(), ..Default::default() };
    good("restart", client.rpc().restart_instance(request).await);
}

/// R5.31: a lock goes with the generation that holds it: by its end in every way, by a purge and a restart after
/// it, by another instance of the same id, by an end without a worker, and across a restart of the server.
#[tokio::test]
async fn a_lock_goes_with_its_holder() {
    let mut server = TestServer::start().await;
    let client = server.client();
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;

    let turn = hold(&client, &mut worker, "completes").await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    held_by(&client, None).await;

    let turn = hold(&client, &mut worker, "fails").await;
    worker.complete_turn(&turn, vec![fail(2, failure("Oops", "no"))]).await;
    held_by(&client, None).await;
    // It would believe that it still has its locks (R2.65).
    let rewind = wire::RewindInstanceRequest { instance_id: "fails".into(), reason: None };
    let refused = client.rpc().rewind_instance(rewind).await.expect_err("is refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    restart_instance(&client, "fails").await;
    let turn = worker.next_turn_of("fails").await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    held_by(&client, None).await;

    let turn = hold(&client, &mut worker, "begins-anew").await;
    worker.complete_turn(&turn, vec![continue_as_new(2, "", Vec::new())]).await;
    held_by(&client, None).await;
    let turn = worker.next_turn_of("begins-anew").await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;

    let turn = hold(&client, &mut worker, "is-terminated").await;
    client.terminate("is-terminated", "").await;
    worker.complete_turn(&turn, Vec::new()).await;
    let turn = worker.next_turn_of("is-terminated").await;
    worker.complete_turn(&turn, vec![terminated(2, "")]).await;
    held_by(&client, None).await;
    let one = wire::purge_instances_request::Request::InstanceId("is-terminated".into());
    let purge = wire::PurgeInstancesRequest { request: Some(one), ..Default::default() };
    good("purge", client.rpc().purge_instances(purge).await);
    held_by(&client, None).await;

    let old = hold(&client, &mut worker, "is-replaced").await;
    use wire::OrchestrationStatus::{Running, Terminated};
    let policy = wire::OrchestrationIdReusePolicy {
        replaceable_status: vec![Running.into(), Terminated.into()],
        ..Default::default()
    };
    let start = wire::CreateInstanceRequest {
        instance_id: "is-replaced".into(),
        name: "O".into(),
        orchestration_id_reuse_policy: Some(policy),
        ..Default::default()
    };
    client.start_with(start).await;
    held_by(&client, None).await;
    // What the worker says for the one that was replaced changes nothing (R3.54).
    worker.complete_turn(&old, vec![complete(2, "late")]).await;
    let turn = worker.next_turn_of("is-replaced").await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;

    // The server dies with the lock held; the holder ends under its next life, and another one has waited.
    let turn = hold(&client, &mut worker, "survives").await;
    client.start("waits", "O", "").await;
    let waits = worker.next_turn_of("waits").await;
    worker.complete_turn(&waits, vec![lock()]).await;
    server.restart_same_ports().await;
    held_by(&client, Some("survives")).await;
    worker.reconnect().await.expect("connects");
    worker.complete_turn(&turn, vec![fail(2, failure("Oops", "no"))]).await;
    held_by(&client, Some("waits")).await;
    let turn = worker.next_turn_of("waits").await;
    worker.complete_turn(&turn, vec![complete(2, "done")]).await;
    held_by(&client, None).await;
}

/// R5.42, R5.36: locks that everybody wants are waited for as long as others have them, and not a moment longer.
/// A hundred orchestrations queue up for pairs of twenty entities, in chains: each holds one and waits for the
/// next. Nothing here uses a timer, gives an item back, loses a lease or changes the leader, and the server repeats
/// nothing by itself, so every step of the run was told to whoever had to take the next one: had one been lost,
/// that orchestration and all behind it would wait for ever.
#[tokio::test]
async fn a_convoy_moves_by_wake_ups_alone() {
    let server = TestServer::start().await;
    let url = format!("http://{}", server.addresses.grpc);
    let args = ["bench", "entities", "--instances", "1500", "--timeout", "600", "--endpoint", &url];
    let bench = tokio::process::Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(args)
        .args(["--output", "json"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = bench.await.expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let parts: serde_json::Value = serde_json::from_slice(&output.stdout).expect("a report");
    let count = |part: &serde_json::Value| part["count"].as_u64().expect("a count");
    let pairs = parts.as_array().expect("parts").iter().filter(|part| part["unit"] == "pairs");
    assert!(pairs.map(count).sum::<u64>() >= 150, "{parts}");

    let (_, metrics) = server.http_get("/metrics").await.expect("answers");
    let returned =
        metrics.lines().filter(|line| line.starts_with("durahub_work_items_returned_total{"));
    let returned: Vec<_> = returned.filter(|line| !line.ends_with(" 0")).collect();
    assert!(returned.is_empty(), "{returned:?}");
    let log = server.logs();
    assert!(!log.contains("no longer leading") && !log.contains("messages wait"), "{log}");
}
