//! Connections are bounded, in all and per address: a flood from one address keeps no other one out, whether it is
//! of handshakes or of connections that say nothing, at each port.

use std::net::SocketAddr;
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::Guarded;
use super::support::client::PATIENCE;
use super::support::{Client, TestServer};

/// Longer than an answer takes, and shorter than a handshake may.
const SOON: Duration = Duration::from_secs(5);

/// A connection from an address of this machine; all of 127.0.0.0/8 is.
async fn from(address: &str, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{address}:0").parse().unwrap())?;
    socket.connect(to).await
}

/// Connections that say the first byte of a handshake, or nothing, and stay. They may be closed by the server.
async fn flood(address: &str, to: SocketAddr, count: usize, says: &[u8]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        // One that is closed at once may tell so as soon as here.
        if let Ok(mut stream) = from(address, to).await {
            let _ = stream.write_all(says).await;
            streams.push(stream);
        }
    }
    streams
}

/// How many of them the server has closed.
fn closed(streams: &mut [TcpStream]) -> usize {
    let mut byte = [0];
    // Whoever is not closed has not been told anything.
    streams.iter_mut().filter_map(|stream| stream.read(&mut byte).now_or_never()).count()
}

async fn value(server: &TestServer, series: &str) -> f64 {
    let (_, text) = server.http_get("/metrics").await.unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
    line.map_or(0.0, |line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

async fn until_at_least(server: &TestServer, series: &str, least: f64) {
    let reached = async {
        while value(server, series).await < least {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{series} < {least}"));
}

#[tokio::test]
async fn a_flood_of_handshakes_from_one_address_keeps_no_other_out() {
    let limits = ["--connections-per-address=50", "--connections=60", "--tls-http=false"];
    let guarded = Guarded::start(&[&limits[..], &["--auth-open-metrics"]].concat()).await;
    let (server, grpc) = (&guarded.server, guarded.server.addresses.grpc);
    let mut streams = flood("127.0.0.2", grpc, 150, &[0x16]).await;
    let refused = r#"durahub_connections_refused_total{port="grpc",reason="address"}"#;
    until_at_least(server, refused, 100.0).await;
    // The last ones first: who had a place keeps it.
    assert!(closed(&mut streams[..50]) == 0);
    assert!(value(server, r#"durahub_connections{port="grpc"}"#).await >= 50.0);

    let client = guarded.client("reader");
    let answer = tokio::time::timeout(SOON, client.rpc().hello(())).await;
    answer.expect("another address is served").unwrap();
    assert_eq!(server.log().matches("connections are refused").count(), 1, "one line");
    assert!(server.log().contains("limits.connections_per_address"));

    // Places are free again once their connections are gone.
    drop(streams);
    let again = async {
        loop {
            let mut stream = flood("127.0.0.2", grpc, 1, &[0x16]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if stream.len() == 1 && closed(&mut stream) == 0 {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("a place again");
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_out_of_any_port() {
    let limits = ["--connections-per-address=20", "--connections=30"];
    let server = TestServer::start_with_args(&limits).await;
    let ports = server.addresses;
    let mut kept = Vec::new();
    let refused =
        |port| format!("durahub_connections_refused_total{{port=\"{port}\",reason=\"address\"}}");
    for (port, to) in [("grpc", ports.grpc), ("http", ports.http)] {
        kept.push(flood("127.0.0.2", to, 60, &[]).await);
        until_at_least(&server, &refused(port), 40.0).await;
    }
    // What is set is for clients; the peer port has more room, and an end as well.
    let full = async {
        // They are closed after two seconds; a slow machine may need more than that for some hundred.
        while value(&server, &refused("peer")).await < 1.0 {
            kept.push(flood("127.0.0.2", ports.peer, 600, &[]).await);
        }
    };
    tokio::time::timeout(PATIENCE, full).await.expect("the peer port has an end");
    let hello = async { Client::new(ports.grpc).rpc().hello(()).await };
    tokio::time::timeout(SOON, hello).await.expect("gRPC is served").unwrap();
    let (status, _) = server.http_get("/livez").await.unwrap();
    assert_eq!(status, 200);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_durahub"));
    let peer = ports.peer.to_string();
    let told = command.args(["cluster", "status", "--endpoint", &peer]).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));

    // Together, addresses get what there is in all, and no more.
    let before = value(&server, r#"durahub_connections{port="grpc"}"#).await;
    let others = flood("127.0.0.3", ports.grpc, 20, &[]).await;
    let refused = r#"durahub_connections_refused_total{port="grpc",reason="all"}"#;
    until_at_least(&server, refused, 1.0).await;
    let after = value(&server, r#"durahub_connections{port="grpc"}"#).await;
    assert!(before >= 20.0 && after <= 30.0, "{before}, then {after}");
    drop((kept, others));
}

/// Who takes all places and says nothing has them for as long as a handshake may take, and no longer.
#[tokio::test]
async fn places_come_back_from_connections_that_say_nothing() {
    let server = TestServer::start_with_args(&["--connections-per-address=8"]).await;
    let ports = server.addresses;
    let mut silent = Vec::new();
    for to in [ports.grpc, ports.http, ports.peer] {
        silent.extend(flood("127.0.0.2", to, 8, &[]).await);
    }
    assert_eq!((silent.len(), closed(&mut silent)), (24, 0));
    for mut stream in silent {
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0])).await;
        assert_eq!(ended.expect("closed by the server").unwrap(), 0);
    }
}

#[tokio::test]
async fn more_connections_are_taken_once_the_file_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("durahub.toml");
    std::fs::write(&path, "[limits]\nconnections_per_address = 2\n").unwrap();
    let server = TestServer::start_with_args(&["--config", path.to_str().unwrap()]).await;
    let _kept = flood("127.0.0.2", server.addresses.grpc, 10, &[]).await;
    let refused = r#"durahub_connections_refused_total{port="grpc",reason="address"}"#;
    until_at_least(&server, refused, 8.0).await;
    std::fs::write(&path, "[limits]\nconnections_per_address = 100\n").unwrap();
    let change = async {
        while value(&server, r#"durahub_connections{port="grpc"}"#).await < 10.0 {
            let more = flood("127.0.0.2", server.addresses.grpc, 10, &[]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if value(&server, r#"durahub_connections{port="grpc"}"#).await >= 10.0 {
                return;
            }
            drop(more);
        }
    };
    tokio::time::timeout(PATIENCE, change).await.expect("the new limit");
}

/// Who says a little at a time keeps no place longer than who says nothing, at any port.
#[tokio::test]
async fn places_come_back_from_connections_that_say_little() {
    let server = TestServer::start_with_args(&["--connections-per-address=8"]).await;
    let ports = server.addresses;
    let head = format!("GET /livez HTTP/1.1\r\nhost: x\r\nx-slow: {}", "x".repeat(1000));
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let trickle = &async |to: SocketAddr, at_once: usize, text: &str| {
        let mut stream = from("127.0.0.2", to).await.unwrap();
        let (begins, goes_on) = text.split_at(at_once);
        stream.write_all(begins.as_bytes()).await.unwrap();
        let mut rest = goes_on.as_bytes();
        // What the server says first, such as its settings, is no end.
        let mut byte = [0];
        loop {
            let read = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut byte));
            match (read.await, rest.first()) {
                (Ok(Ok(0) | Err(_)), _) => return,
                (Ok(Ok(_)), _) | (Err(_), None) => {}
                (Err(_), Some(next)) => {
                    if stream.write_all(&[*next]).await.is_err() {
                        return;
                    }
                    rest = &rest[1..];
                }
            }
        }
    };
    let slow = [
        (ports.http, 30, head.as_str()),
        // A few bytes, and the last one never.
        (ports.grpc, 10, &preface[..23]),
        (ports.peer, 10, &preface[..23]),
        // Whoever begins well and then is silent answers no probe either.
        (ports.grpc, 24, preface),
        (ports.peer, 24, preface),
    ];
    let all = slow.map(|(to, at_once, text)| async move {
        let ended = tokio::time::timeout(PATIENCE, trickle(to, at_once, text)).await;
        ended.unwrap_or_else(|_| panic!("{to} keeps a connection that said {text:?}"));
    });
    futures::future::join_all(all).await;
}
