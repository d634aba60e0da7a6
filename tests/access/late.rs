//! Requests that are answered before all of them has come: a client that is refused often keeps its connection.

use std::collections::BTreeSet;

use durahub_proto::wire;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::support::TestServer;
use super::support::client::PATIENCE;

/// Calls: more than h2 takes late pieces of.
const CALLS: u32 = 400;

/// Kinds of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
/// Flags of frames.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a start. Words of HPACK's own table, and short strings as they are.
fn headers() -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8][..], text.as_bytes()].concat();
    let (post, http, authority, path, named) = (0x83, 0x86, 1, 4, 0);
    [
        vec![post, http, authority],
        text("durahub"),
        vec![path],
        text("/TaskHubSidecarService/StartInstance"),
        vec![named],
        text("content-type"),
        text("application/grpc"),
        vec![named],
        text("te"),
        text("trailers"),
    ]
    .concat()
}

/// What a frame says of itself.
struct Seen {
    kind: u8,
    flags: u8,
    stream: u32,
}

async fn next(tcp: &mut TcpStream) -> Seen {
    let reading = async {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        tcp.read_exact(&mut payload).await.unwrap();
        assert!(kind != GO_AWAY, "it ends: {payload:?}");
        Seen { kind, flags, stream: u32::from_be_bytes(stream) }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("a frame")
}

/// A client whose messages are still under way when the answers to its calls are, as over any long line.
#[tokio::test]
async fn a_client_that_is_refused_often_keeps_its_connection() {
    let server = TestServer::start_with_args(&["--connection-calls-in-flight=1"]).await;
    let mut tcp = TcpStream::connect(server.addresses.grpc).await.unwrap();
    let mut begin = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    begin.extend(frame(SETTINGS, 0, 0, &[]));
    begin.extend(frame(SETTINGS, ACK, 0, &[]));
    let streams: Vec<u32> = (0..CALLS).map(|call| 2 * call + 1).collect();
    for stream in &streams {
        begin.extend(frame(HEADERS, END_HEADERS, *stream, &headers()));
    }
    tcp.write_all(&begin).await.unwrap();
    // One waits for its message, whichever came first, and the others are refused meanwhile.
    let mut open: BTreeSet<u32> = streams.iter().copied().collect();
    while open.len() > 1 {
        let seen = next(&mut tcp).await;
        if seen.kind == HEADERS && seen.flags & END_STREAM > 0 {
            open.remove(&seen.stream);
        }
    }

    let start = wire::CreateInstanceRequest {
        instance_id: "late".into(),
        name: "Nobody".into(),
        ..Default::default()
    };
    let message = start.encode_to_vec();
    let message = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
    let mut rest = Vec::new();
    for stream in &streams {
        rest.extend(frame(DATA, END_STREAM, *stream, &message));
    }
    rest.extend(frame(PING, 0, 0, &[7; 8]));
    tcp.write_all(&rest).await.unwrap();
    let (mut is_served, mut is_answered) = (false, false);
    while !is_served || !is_answered {
        let seen = next(&mut tcp).await;
        assert!(seen.kind != RESET, "stream {} is reset", seen.stream);
        is_served |= open.contains(&seen.stream) && seen.flags & END_STREAM > 0;
        is_answered |= seen.kind == PING && seen.flags & ACK > 0;
    }
    assert!(server.client().get("late").await.is_some());
}
