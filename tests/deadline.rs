//! What a caller is told when its own deadline passes (R2.35, R2.91).
//!
//! Every gRPC client ends its call by itself at that moment, so whose answer is seen is a matter of luck.
//! The client here only writes the deadline down, and listens.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod support;

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use durahub_proto::wire;
use prost::Message;
use support::TestServer;
use tonic::Code;
use tonic::codegen::http;

/// Makes a call that may take so long. Returns the code of the answer, and when it came.
async fn call(
    server: &TestServer,
    method: &str,
    timeout: &str,
    message: &impl Message,
) -> (Code, Duration) {
    let socket = tokio::net::TcpStream::connect(server.addresses.grpc).await.unwrap();
    let (mut client, connection) = h2::client::handshake(socket).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!(
        "http://{}/TaskHubSidecarService/{method}",
        server.addresses.grpc
    ));
    let request = request
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(())
        .unwrap();
    let began = Instant::now();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut frame).unwrap();
    body.send_data(Bytes::from(frame), true).unwrap();

    let answer = tokio::time::timeout(support::client::PATIENCE, answer).await.unwrap().unwrap();
    let took = began.elapsed();
    let code = match answer.headers().get("grpc-status") {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None => {
            let mut body = answer.into_body();
            while let Some(data) = body.data().await {
                let length = data.unwrap().len();
                body.flow_control().release_capacity(length).unwrap();
            }
            let trailers = body.trailers().await.unwrap().unwrap();
            Code::from_bytes(trailers["grpc-status"].as_bytes())
        }
    };
    connection.abort();
    (code, took)
}

#[tokio::test]
async fn a_call_that_outlives_its_deadline_is_told_so() {
    let server = TestServer::start().await;
    server.client().start("waits", "Nobody", "").await;
    let waits = wire::GetInstanceRequest { instance_id: "waits".into(), ..Default::default() };

    // Often, since it is a race with tonic's own watch.
    for round in 0..30 {
        for method in ["WaitForInstanceStart", "WaitForInstanceCompletion"] {
            let (code, took) = call(&server, method, "60m", &waits).await;
            assert_eq!(code, Code::DeadlineExceeded, "{method}, round {round}");
            assert!(took >= Duration::from_millis(50), "{method} was cut off after {took:?}");
        }
    }
    let (code, _) = call(&server, "WaitForInstanceStart", "1n", &waits).await;
    assert_eq!(code, Code::DeadlineExceeded, "a deadline that has passed already");
    let (code, _) = call(&server, "GetInstance", "10S", &waits).await;
    assert_eq!(code, Code::Ok, "a deadline that is far away changes nothing");
}
