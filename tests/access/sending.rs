//! Clients that send much and finish little: what they cost is bounded, for one connection and for all together,
//! others are served meanwhile, and in the end everything arrives. Who holds room and does not use it is ended.

use std::time::Duration;

use bytes::Bytes;
use durahub_proto::wire;
use futures::FutureExt as _;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, request};

use super::limits::{resident_mib, with_file};
use super::support::TestServer;
use super::support::client::PATIENCE;

/// Bytes of an input.
const LARGE: usize = 700_000;
/// What a client keeps back of each message, until the end.
const REST: usize = 1000;
/// How long memory is watched, in tenths of a second: many times as long as it takes to send everything.
const WATCHED: u32 = 40;
const START: &str = "/TaskHubSidecarService/StartInstance";

async fn raw(server: &TestServer) -> SendRequest<Bytes> {
    let tcp = tokio::net::TcpStream::connect(server.addresses.grpc).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(path: &str) -> request::Builder {
    Request::post(format!("http://durahub{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

async fn open(
    sender: &SendRequest<Bytes>,
    call: request::Builder,
) -> (ResponseFuture, SendStream<Bytes>) {
    let mut sender = sender.clone().ready().await.unwrap();
    sender.send_request(call.body(()).unwrap(), false).unwrap()
}

/// A message with its head in front.
fn framed(message: &impl Message) -> Bytes {
    let message = message.encode_to_vec();
    [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat().into()
}

fn large(id: &str) -> Bytes {
    start(id, LARGE)
}

/// A start with so many bytes of input.
fn start(id: &str, bytes: usize) -> Bytes {
    let input = Some(format!("\"{}\"", "x".repeat(bytes)).into());
    let (instance_id, name) = (id.to_owned(), "Nobody".to_owned());
    framed(&wire::CreateInstanceRequest { instance_id, name, input, ..Default::default() })
}

/// Code, text and other trailers of an answer.
async fn answer(answer: ResponseFuture) -> (Code, HeaderMap) {
    let arrives = async {
        let (head, mut body) = answer.await.unwrap().into_parts();
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data.unwrap().len()).unwrap();
        }
        let trailers = body.trailers().await.unwrap().unwrap_or(head.headers);
        (Code::from_bytes(trailers["grpc-status"].as_bytes()), trailers)
    };
    tokio::time::timeout(PATIENCE, arrives).await.expect("an answer")
}

fn text(trailers: &HeaderMap) -> String {
    trailers["grpc-message"].to_str().unwrap().replace("%20", " ")
}

/// A start of which all has been sent but the end.
struct Begun {
    answer: ResponseFuture,
    stream: SendStream<Bytes>,
    rest: Bytes,
}

impl Begun {
    async fn of(sender: &SendRequest<Bytes>, id: &str) -> Begun {
        Begun::with(sender, large(id)).await
    }

    async fn with(sender: &SendRequest<Bytes>, mut most: Bytes) -> Begun {
        let rest = most.split_off(most.len() - REST);
        let (answer, mut stream) = open(sender, call(START)).await;
        stream.send_data(most, false).unwrap();
        Begun { answer, stream, rest }
    }

    async fn finish(mut self) -> (Code, HeaderMap) {
        // One that was refused takes nothing any more.
        let _ = self.stream.send_data(self.rest, true);
        answer(self.answer).await
    }
}

async fn watch(server: &TestServer, most: u64) {
    for tenth in 0..WATCHED {
        let now = resident_mib(server.pid());
        assert!(now < most, "{now} MiB after {tenth} tenths, at most {most}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn metric(server: &TestServer, name: &str) -> f64 {
    let (_, text) = server.http_get("/metrics").await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Finishes all, and looks whether each has become an instance.
async fn finish(server: &TestServer, begun: Vec<Begun>) {
    let count = begun.len();
    let all = futures::future::join_all(begun.into_iter().map(Begun::finish)).await;
    assert!(all.iter().all(|(code, _)| *code == Code::Ok), "{all:?}");
    let client = server.client();
    for instance in 0..count {
        assert!(client.get(&format!("large-{instance}")).await.is_some(), "{instance}");
    }
    let free = async {
        while metric(server, "durahub_request_bytes").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, free).await.expect("all room is free again");
    assert_eq!(metric(server, "durahub_requests_waiting").await, 0.0);
}

/// Room: 6 MiB for large messages on a connection, 16 MiB on all; 409 may wait.
const ROOM: [&str; 3] =
    ["--cache-mb=16", "--request-bytes=64MiB", "--connection-request-bytes=8MiB"];

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_one_connection_does_not_finish_cost_little() {
    let server = TestServer::start_with_args(&ROOM).await;
    let before = resident_mib(server.pid());
    let sender = raw(&server).await;
    let mut begun = Vec::new();
    for n in 0..300 {
        begun.push(Begun::of(&sender, &format!("large-{n}")).await);
    }
    // All of them are 200 MiB. 8 have room, twice where they are put together; 292 have sent 80 KiB.
    watch(&server, before + 80).await;
    assert!(metric(&server, "durahub_requests_waiting").await > 250.0);
    assert!(metric(&server, "durahub_request_bytes").await > 5e6);
    // Others are served, with large messages as well, and so are the small ones of this one.
    let others = async {
        let client = server.client();
        client.start("beside", "Nobody", &format!("\"{}\"", "x".repeat(LARGE))).await;
        assert!(client.get("beside").await.is_some());
        let get = wire::GetInstanceRequest { instance_id: "beside".into(), ..Default::default() };
        let path = "/TaskHubSidecarService/GetInstance";
        let (got, mut stream) = open(&sender, call(path)).await;
        stream.send_data(framed(&get), true).unwrap();
        assert_eq!(answer(got).await.0, Code::Ok);
    };
    tokio::time::timeout(PATIENCE, others).await.expect("others are served");
    finish(&server, begun).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_many_connections_do_not_finish_cost_little() {
    let server = TestServer::start_with_args(&ROOM).await;
    let before = resident_mib(server.pid());
    let mut begun = Vec::new();
    for connection in 0..40 {
        let sender = raw(&server).await;
        for n in 0..10 {
            begun.push(Begun::of(&sender, &format!("large-{}", connection * 10 + n)).await);
        }
    }
    // All of them are 267 MiB; what each connection may have is 240.
    watch(&server, before + 100).await;
    assert!(metric(&server, "durahub_requests_waiting").await > 300.0);
    let others = async {
        let client = server.client();
        client.start("beside", "Nobody", &format!("\"{}\"", "x".repeat(60_000))).await;
        assert!(client.get("beside").await.is_some());
    };
    tokio::time::timeout(PATIENCE, others).await.expect("small messages of others are served");
    finish(&server, begun).await;
}

/// One message fits. Its sender says no more, and others want the room.
#[tokio::test(flavor = "multi_thread")]
async fn who_holds_room_and_does_not_use_it_is_ended() {
    let limits = "cache_mb = 16\n[limits]\nrequest_bytes = '4MiB'\n";
    let (server, folder) = with_file(&format!("{limits}request_time = '1h'\n")).await;
    let connection = raw(&server).await;
    let silent = Begun::of(&connection, "silent").await;
    let has_room = async {
        while metric(&server, "durahub_request_bytes").await < 5e5 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, has_room).await.expect("room");
    let other = raw(&server).await;
    let mut waiting = Begun::of(&other, "waiting").await;
    waiting.stream.send_data(std::mem::take(&mut waiting.rest), true).unwrap();
    assert!(metric(&server, "durahub_request_bytes").await > 5e5, "it has an hour");

    // A running node takes over what it has from now on.
    let path = folder.path().join("durahub.toml");
    std::fs::write(&path, format!("{limits}request_time = '1s'\n")).unwrap();
    let taken_over = async {
        while !server.log().contains("read again") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_over).await.expect("the new time");
    drop(silent);
    assert_eq!(answer(waiting.answer).await.0, Code::Ok);
    let silent = Begun::of(&connection, "silent").await;
    let (code, trailers) = answer(silent.answer).await;
    assert_eq!(code, Code::DeadlineExceeded);
    assert!(text(&trailers).contains("within 1s (limits.request_time)"), "{}", text(&trailers));

    // One that says a little now and then may go on, for as long as nobody waits.
    let Begun { answer: mut slow, mut stream, rest } = Begun::of(&connection, "slow").await;
    let say =
        |stream: &mut SendStream<Bytes>, byte| stream.send_data(rest.slice(byte..=byte), false);
    for byte in 0..15 {
        say(&mut stream, byte).unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!((&mut slow).now_or_never().is_none(), "it was ended");
    }
    let mut waiting = Begun::of(&other, "waiting-too").await;
    waiting.stream.send_data(std::mem::take(&mut waiting.rest), true).unwrap();
    let goes_on = async {
        for byte in 15..REST {
            let _ = say(&mut stream, byte);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let (code, trailers) = tokio::select! {
        ended = answer(slow) => ended,
        () = goes_on => panic!("it goes on"),
    };
    assert_eq!(code, Code::DeadlineExceeded);
    assert!(text(&trailers).contains("others wait for the room"), "{}", text(&trailers));
    assert_eq!(answer(waiting.answer).await.0, Code::Ok);
    assert!(server.client().get("slow").await.is_none());
}

/// 1 MiB for large messages, 25 may wait.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_that_wait_are_refused_and_told_when_to_ask_again() {
    let server = TestServer::start_with_args(&["--request-bytes=4MiB"]).await;
    let sender = raw(&server).await;
    let mut begun = Vec::new();
    for n in 0..40 {
        begun.push(Begun::of(&sender, &format!("large-{n}")).await);
    }
    let full = async {
        while metric(&server, "durahub_requests_waiting").await < 25.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.expect("the places are taken");
    let all = futures::future::join_all(begun.into_iter().map(Begun::finish)).await;
    let (taken, refused): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(code, _)| *code == Code::Ok);
    assert_eq!((taken.len(), refused.len()), (26, 14));
    for (code, trailers) in refused {
        assert_eq!(code, Code::ResourceExhausted);
        assert!(text(&trailers).contains("limits.request_bytes"), "{}", text(&trailers));
        assert_eq!(trailers["grpc-retry-pushback-ms"], "1000");
    }
    let again = Begun::of(&sender, "again").await.finish().await;
    assert_eq!(again.0, Code::Ok);
}

/// Headers are bytes of a request as well: calls with many of them wait for room as others do, and hold none once they
/// are read, however long they wait for an instance.
#[tokio::test(flavor = "multi_thread")]
async fn large_headers_wait_for_room_and_hold_it_until_they_are_read() {
    let server = TestServer::start_with_args(&["--connection-request-bytes=1MiB"]).await;
    server.client().start("open", "Nobody", "").await;
    let sender = raw(&server).await;
    // A quarter of a MiB holds four.
    let mut small = Vec::new();
    for n in 0..4 {
        small.push(Begun::with(&sender, start(&format!("small-{n}"), 60_000)).await);
    }
    let have_room = async {
        while metric(&server, "durahub_request_bytes").await < 240_000.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, have_room).await.expect("four have room");
    let get = wire::GetInstanceRequest { instance_id: "open".into(), ..Default::default() };
    let mut waits = Vec::new();
    for bytes in [60_000; 8].into_iter().chain([3_000]) {
        let path = "/TaskHubSidecarService/WaitForInstanceCompletion";
        let call = call(path).header("x-much", "x".repeat(bytes));
        let (answer, mut stream) = open(&sender, call).await;
        stream.send_data(framed(&get), true).unwrap();
        waits.push(answer);
    }
    let all_wait = async {
        while metric(&server, "durahub_requests_waiting").await < 8.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_wait).await.expect("eight wait");
    for begun in small {
        assert_eq!(begun.finish().await.0, Code::Ok);
    }
    let are_read = async {
        while metric(&server, "durahub_request_bytes").await > 0.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, are_read).await.expect("room again");
    assert_eq!(metric(&server, "durahub_requests_waiting").await, 0.0);
    for wait in &mut waits {
        assert!(wait.now_or_never().is_none(), "it waits for its instance");
    }
    server.client().terminate("open", "").await;
    for wait in waits {
        assert_eq!(answer(wait).await.0, Code::Ok);
    }
}

#[tokio::test]
async fn a_request_is_one_message_and_one_of_a_probe_is_short() {
    let server = TestServer::start().await;
    let sender = raw(&server).await;
    let send = async |path: &str, bytes: Bytes| {
        let (got, mut stream) = open(&sender, call(path)).await;
        stream.send_data(bytes, true).unwrap();
        answer(got).await
    };
    let twice = [large("one"), large("two")].concat();
    let (code, trailers) = send(START, twice.into()).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(text(&trailers).contains("one message"), "{}", text(&trailers));
    assert!(server.client().get("one").await.is_none());

    let check = |bytes: usize| [&[0][..], &(bytes as u32).to_be_bytes(), &vec![0; bytes]].concat();
    let health = "/grpc.health.v1.Health/Check";
    assert_eq!(send(health, check(0).into()).await.0, Code::Ok);
    let (code, trailers) = send(health, check(5_000).into()).await;
    assert_eq!(code, Code::ResourceExhausted);
    assert!(text(&trailers).contains("4096 bytes"), "{}", text(&trailers));
}

/// The one call with more messages than one: few of them at the same time on one connection.
#[tokio::test]
async fn talks_are_few_at_a_time() {
    let server = TestServer::start().await;
    let sender = raw(&server).await;
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let mut talks = Vec::new();
    let mut refused = Vec::new();
    for _ in 0..9 {
        let (answer, stream) = open(&sender, call(path)).await;
        let begins = tokio::time::timeout(PATIENCE, answer).await.expect("it begins").unwrap();
        match begins.headers().get("grpc-status") {
            None => talks.push((begins.into_body(), stream)),
            Some(_) => refused.push(begins),
        }
    }
    assert_eq!((talks.len(), refused.len()), (8, 1));
    let told = text(refused[0].headers());
    assert!(told.contains("too many calls of this kind"), "{told}");
    // Each goes on as it likes, and makes room when it ends.
    let list = tonic_reflection::pb::v1::ServerReflectionRequest {
        message_request: Some(
            tonic_reflection::pb::v1::server_reflection_request::MessageRequest::ListServices(
                String::new(),
            ),
        ),
        ..Default::default()
    };
    for (mut body, mut stream) in talks {
        stream.send_data(framed(&list), false).unwrap();
        stream.send_data(framed(&list), true).unwrap();
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
        }
        let first = 5 + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 2 * first, "two answers");
    }
    let (got, mut stream) = open(&sender, call(path)).await;
    stream.send_data(framed(&list), true).unwrap();
    assert_eq!(answer(got).await.0, Code::Ok);
}
