//! Streams and waits end with the token, or the role, that opened them; those of others go on.

use std::time::Duration;

use durahub_proto::wire;
use serde_json::json;
use tonic::{Code, Status};

use super::Guarded;
use super::support::actions::complete;
use super::support::client::PATIENCE;
use super::support::security::now;
use super::support::{Client, Worker, WorkerOptions};

/// How the worker's stream ends; fails if it carries on.
async fn end_of(worker: &mut Worker) -> Status {
    worker.next_within(PATIENCE).await.expect_err("the stream ends")
}

async fn wait(client: Client, id: &'static str) -> Status {
    let request = wire::GetInstanceRequest { instance_id: id.into(), ..Default::default() };
    let mut rpc = client.rpc();
    let answer = tokio::time::timeout(PATIENCE, rpc.wait_for_instance_completion(request)).await;
    answer.expect("the wait ends").expect_err("the instance runs")
}

fn one_turn() -> WorkerOptions {
    WorkerOptions { orchestrations: 1, ..Default::default() }
}

#[tokio::test]
async fn a_token_that_expires_ends_its_stream_and_its_wait_and_the_work_goes_on() {
    let guarded = Guarded::start(&["--auth-jwt-clock-skew=1s"]).await;
    let over = Client::over(guarded.channel(None)).in_hub("a");
    let by = |seconds: u64| {
        let claims = json!({ "role": "contributor", "exp": now() + seconds });
        over.with_token(&guarded.signer.token(&claims))
    };
    let (long, short) = (by(3600), by(5));
    long.start("a", "A", "").await;
    let mut worker = Worker::connect(&short, one_turn()).await;
    let held = worker.next_turn().await;
    let mut lasting = Worker::connect(&long, one_turn()).await;
    let waiting = tokio::spawn(wait(short.clone(), "a"));

    let ended = end_of(&mut worker).await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("expired"), "{ended}");
    let ended = waiting.await.unwrap();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("expired"), "{ended}");
    let refused = worker.reconnect().await.expect_err("the token is over");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");

    // What the worker had goes to another one, whose stream has noticed nothing.
    let turn = lasting.next_turn().await;
    assert_eq!(turn.request.instance_id, held.request.instance_id);
    assert_ne!(turn.token, held.token);
    lasting.complete_turn(&turn, vec![complete(1, "done")]).await;
    assert_eq!(long.output("a").await, "done");
}

#[tokio::test]
async fn a_token_or_a_role_that_is_withdrawn_ends_its_streams_and_no_others() {
    let guarded = Guarded::start(&[]).await;
    let contributor = guarded.client("contributor");
    contributor.start("a", "A", "").await;
    let mut worker = Worker::connect(&guarded.client("worker"), one_turn()).await;
    let held = worker.next_turn().await;
    let mut admin = Worker::connect(&guarded.client("admin"), one_turn()).await;
    let mut other = Worker::connect(&contributor, one_turn()).await;
    let waiting = tokio::spawn(wait(guarded.client("reader"), "a"));
    // By a certificate, whose grants stand in a file of their own.
    let pair = guarded.ca.issue(guarded.folder.path(), "cert", &[], "cert-worker");
    let certified = Client::over(guarded.channel(Some(&pair))).in_hub("a");
    let mut certified = Worker::connect(&certified, one_turn()).await;

    // Files that are read again and say the same end nothing.
    guarded.hang_up();
    while !guarded.server.log().contains("reading files again") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let path = guarded.path("tokens.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let gone = |entry: &&str| !entry.contains("'worker'") && !entry.contains("'reader'");
    let kept: Vec<_> = text.split("[[token]]").filter(gone).collect();
    // The admin keeps the token and loses the hub.
    std::fs::write(&path, kept.join("[[token]]").replace("admin@a", "reader@a")).unwrap();
    guarded.hang_up();
    let ended = end_of(&mut worker).await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    let ended = waiting.await.unwrap();
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    // It comes to one of the others.
    let turn = tokio::select! {
        turn = other.next_turn() => turn,
        turn = certified.next_turn() => turn,
    };
    assert_eq!(turn.request.instance_id, held.request.instance_id);
    other.complete_turn(&turn, vec![complete(1, "done")]).await;
    assert_eq!(contributor.output("a").await, "done");
    let ended = end_of(&mut admin).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");

    let grants = guarded.path("grants.toml");
    let text = std::fs::read_to_string(&grants).unwrap();
    std::fs::write(&grants, text.replace("cert-worker=worker@a", "cert-worker=reader@a")).unwrap();
    guarded.hang_up();
    let ended = end_of(&mut certified).await;
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended}");
    contributor.start("b", "A", "").await;
    assert_eq!(other.next_turn().await.request.instance_id, "b", "this one went on all the time");
}
