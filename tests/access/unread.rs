//! A client that does not read its answers: they are made as it makes room for them, others are served meanwhile,
//! and in the end it has them all.

use std::time::Duration;

use bytes::Bytes;
use durahub_proto::wire;
use futures::FutureExt as _;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use tonic::codegen::http::Request;

use super::limits::resident_mib;
use super::support::actions::complete;
use super::support::client::PATIENCE;
use super::support::{Program, TestServer, WorkerOptions};

/// Calls whose answers nobody reads.
const CALLS: usize = 60;
/// Bytes of the input and of the output that each answer holds.
const LARGE: usize = 1_000_000;
/// How long memory is watched, in tenths of a second: many times as long as the answers take.
const WATCHED: u32 = 40;
/// What such a client may cost, in MiB: less than a third of its answers, several times what it may leave unread.
const COSTS: u64 = 40;

/// A connection whose windows open only for what is read.
async fn raw(server: &TestServer) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(server.addresses.grpc).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(
    sender: &mut SendRequest<Bytes>,
    method: &str,
    message: &impl Message,
) -> ResponseFuture {
    let request = Request::post(format!("http://durahub/TaskHubSidecarService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut sender = sender.clone().ready().await.unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    let message = message.encode_to_vec();
    let head = [&[0][..], &(message.len() as u32).to_be_bytes()].concat();
    body.send_data([head, message].concat().into(), true).unwrap();
    answer
}

/// Reads an answer to its end; returns how many bytes it has.
async fn read(answer: ResponseFuture) -> usize {
    let mut body = answer.await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        bytes += data.len();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0", "{trailers:?}");
    bytes
}

fn large(id: &str) -> wire::GetInstanceRequest {
    wire::GetInstanceRequest { instance_id: id.into(), get_inputs_and_outputs: true }
}

async fn server_with_a_large_instance() -> TestServer {
    let args = ["--cache-mb=16", "--connection-unread-bytes=8MiB"];
    let server = TestServer::start_with_args(&args).await;
    let client = server.client();
    let output = format!("\"{}\"", "o".repeat(LARGE));
    let program = Program::new().orchestrator("Large", move |_| vec![complete(1, &output)]);
    let _worker = program.run(&client, WorkerOptions::default());
    client.start("large", "Large", &format!("\"{}\"", "i".repeat(LARGE))).await;
    client.wait("large").await;
    server
}

/// Makes the same call again and again without reading an answer, and then reads them all.
async fn leave_unread(server: &TestServer, method: &str, message: &impl Message) {
    let before = resident_mib(server.pid());
    let mut sender = raw(server).await;
    let mut answers = Vec::new();
    for _ in 0..CALLS {
        answers.push(ask(&mut sender, method, message).await);
    }
    for tenth in 0..WATCHED {
        let now = resident_mib(server.pid());
        assert!(now < before + COSTS, "{method}: {before} MiB, {now} MiB after {tenth} tenths");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let other = async {
        let client = server.client();
        client.start(&format!("beside-{method}"), "Nobody", "").await;
        client.rpc().get_instance(large("large")).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, other).await.expect("another connection is served");
    let all = futures::future::join_all(answers.into_iter().map(read));
    let all = tokio::time::timeout(PATIENCE, all).await.expect("all answers come");
    assert!(all.iter().all(|bytes| *bytes > 2 * LARGE), "{method}: {all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn states_that_nobody_reads_cost_little() {
    let server = server_with_a_large_instance().await;
    leave_unread(&server, "GetInstance", &large("large")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_waits_that_nobody_reads_cost_little() {
    let server = server_with_a_large_instance().await;
    leave_unread(&server, "WaitForInstanceCompletion", &large("large")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_reads_cost_little() {
    let server = server_with_a_large_instance().await;
    let query = wire::InstanceQuery { fetch_inputs_and_outputs: true, ..Default::default() };
    let query = wire::QueryInstancesRequest { query: Some(query) };
    leave_unread(&server, "QueryInstances", &query).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_that_nobody_reads_cost_little() {
    let server = server_with_a_large_instance().await;
    let history =
        wire::StreamInstanceHistoryRequest { instance_id: "large".into(), ..Default::default() };
    leave_unread(&server, "StreamInstanceHistory", &history).await;
}

/// A node stops although somebody does not read.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_no_stop() {
    let mut server = server_with_a_large_instance().await;
    let mut sender = raw(&server).await;
    let mut answers = Vec::new();
    for _ in 0..CALLS {
        answers.push(ask(&mut sender, "GetInstance", &large("large")).await);
    }
    // Some are on their way, the others wait for room.
    let begun = futures::future::select_all(&mut answers);
    tokio::time::timeout(PATIENCE, begun).await.expect("an answer begins").0.unwrap();
    assert!(server.terminate().await.success());
}

/// Who waits for instances holds no room: many waits are one connection's everyday life.
#[tokio::test(flavor = "multi_thread")]
async fn waits_hold_no_room() {
    let server = server_with_a_large_instance().await;
    let client = server.client();
    client.start("open", "Open", "").await;
    let mut sender = raw(&server).await;
    let mut waits = Vec::new();
    for _ in 0..300 {
        waits.push(ask(&mut sender, "WaitForInstanceCompletion", &large("open")).await);
    }
    for _ in 0..20 {
        let answer = ask(&mut sender, "GetInstance", &large("large")).await;
        let bytes = tokio::time::timeout(PATIENCE, read(answer)).await.expect("an answer");
        assert!(bytes > 2 * LARGE);
    }
    assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()), "nothing has ended");
    let program = Program::new().orchestrator("Open", |_| vec![complete(1, "done")]);
    let _worker = program.run(&client, WorkerOptions::default());
    let all = futures::future::join_all(waits.into_iter().map(read));
    tokio::time::timeout(PATIENCE, all).await.expect("all waits end");
}
