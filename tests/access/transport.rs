//! Over which connections: TLS, plaintext, and mutual TLS between nodes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tonic::Code;

use super::Guarded;
use super::calls::call;
use super::support::security::{Ca, Pair, channel};
use super::support::server::ServerOptions;
use super::support::{Client, TestServer};

/// R1.6, R1.21, R1.22: one port speaks TLS and, with programs of this machine, plaintext.
#[tokio::test]
async fn one_port_speaks_tls_and_to_this_machine_plaintext() {
    let guarded = Guarded::start(&[]).await;
    let token = guarded.token("contributor");
    let plain = guarded.server.client_in("a").with_token(token);
    plain.start("by-plaintext", "X", "").await;
    guarded.client("contributor").start("by-tls", "X", "").await;
    let request = durahub_proto::wire::GetInstanceRequest {
        instance_id: "by-plaintext".into(),
        ..Default::default()
    };
    let found = guarded.client("reader").rpc().get_instance(request).await;
    assert!(found.unwrap().into_inner().exists);

    // Another CA's server is not trusted; a certificate of another CA is not taken.
    let other = Ca::new("other");
    let other_ca = other.write(&guarded.path("other-ca.pem"));
    let stranger = Client::over(channel(&guarded.url(), Some(&other_ca), None));
    assert_eq!(stranger.rpc().hello(()).await.unwrap_err().code(), Code::Unavailable);
    let pair = other.issue(guarded.folder.path(), "other", &[], "cert-root");
    let forged = Client::over(channel(&guarded.url(), Some(&guarded.ca_file), Some(&pair)));
    assert_ne!(forged.rpc().hello(()).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(forged.with_token(token).rpc().hello(()).await.is_err());
}

#[tokio::test]
async fn plaintext_can_be_switched_off() {
    let guarded = Guarded::start(&["--tls-plaintext=never", "--tls-http=false"]).await;
    let token = guarded.token("contributor");
    let refused = guarded.server.client_in("a").with_token(token).rpc().hello(()).await;
    // The connection is closed without a word.
    assert!(refused.is_err());
    guarded.client("contributor").rpc().hello(()).await.unwrap();
}

/// Nobody who opens connections and says nothing keeps others out.
#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let guarded = Guarded::start(&[]).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(tokio::net::TcpStream::connect(guarded.server.addresses.grpc).await.unwrap());
    }
    let hello = async { guarded.client("worker").rpc().hello(()).await };
    tokio::time::timeout(Duration::from_secs(5), hello).await.expect("in time").unwrap();
    drop(held);
}

fn peer_args(ca: &Path, pair: &Pair) -> Vec<String> {
    vec![
        format!("--peer-tls-ca-file={}", ca.display()),
        format!("--peer-tls-cert-file={}", pair.cert.display()),
        format!("--peer-tls-key-file={}", pair.key.display()),
        "--partitions=2".to_owned(),
        "--replication-factor=1".to_owned(),
    ]
}

async fn node(args: Vec<String>) -> TestServer {
    TestServer::start_with(ServerOptions { args, ..Default::default() }).await
}

/// Starts a node that shall not get in, until its log says why.
fn refused_to_join(folder: &Path, args: &[String], reason: &str) {
    let log = folder.join("joiner.log");
    let file = std::fs::File::create(&log).unwrap();
    let any =
        ["--grpc-addr", "--http-addr", "--peer-addr"].map(|port| format!("{port}=127.0.0.1:0"));
    let mut joiner = Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(["serve", "--log-format=json", "--log-level=debug", "--data-dir"])
        .arg(folder.join(format!("data-{}", fastrand_like(args))))
        .args(any)
        .args(args)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let said = loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains(reason) || Instant::now() > until {
            break said;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = joiner.kill();
    joiner.wait().unwrap();
    assert!(said.contains(reason), "{reason:?} is missing in:\n{said}");
    assert!(!said.contains("\"listening\""), "{said}");
}

/// A name for a folder that no other call uses.
fn fastrand_like(args: &[String]) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    args.hash(&mut hasher);
    hasher.finish().to_string()
}

#[tokio::test]
async fn nodes_show_certificates_with_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ca = Ca::new("nodes");
    let ca_file = ca.write(&folder.join("ca.pem"));
    let good = ca.issue(folder, "good", &["127.0.0.1"], "a node");
    let wrong = ca.issue(folder, "wrong", &["node.elsewhere"], "another node");
    let foreign_ca = Ca::new("foreign");
    let foreign_file = foreign_ca.write(&folder.join("foreign.pem"));
    let foreign = foreign_ca.issue(folder, "foreign", &["127.0.0.1"], "a node");

    let first = node(peer_args(&ca_file, &good)).await;
    let at = first.addresses.peer.to_string();
    let join = |mut args: Vec<String>| {
        args.push(format!("--join={at}"));
        args
    };
    // A member: the two share the work, which the second's gateway shows.
    let second = node(join(peer_args(&ca_file, &good))).await;
    works(&second).await;
    assert!(first.log().contains("may join this cluster as a node"), "who may join is told");

    // The right CA and a wrong name, as the one that dials.
    refused_to_join(folder, &join(peer_args(&ca_file, &wrong)), "node.elsewhere");
    assert!(first.log().contains("a peer was refused"), "{}", first.log());
    // Another CA's certificate, and a node that trusts another CA.
    refused_to_join(folder, &join(peer_args(&ca_file, &foreign)), "transport error");
    assert!(first.log().contains("UnknownIssuer"), "{}", first.log());
    refused_to_join(folder, &join(peer_args(&foreign_file, &foreign)), "certificate");
    // No TLS at all.
    let plain = vec![format!("--join={at}")];
    refused_to_join(folder, &plain, "no member lets this node join yet");

    // A node whose certificate carries a wrong name, as the one that is dialled.
    let liar = node(peer_args(&ca_file, &wrong)).await;
    let mut args = peer_args(&ca_file, &good);
    args.push(format!("--join={}", liar.addresses.peer));
    refused_to_join(folder, &args, "not valid for name");

    // Without a certificate, nobody is a node; and with nothing else to show, no operator either.
    let https = format!("https://{at}");
    let nobody = channel(&https, Some(&ca_file), None);
    for path in [
        "/durahub.peer.v1.Peer/Identify",
        "/durahub.peer.v1.Peer/Join",
        "/durahub.peer.v1.Peer/InstallSnapshot",
        "/durahub.peer.v1.Peer/Link",
        "/durahub.peer.v1.Admin/Status",
    ] {
        let answer = call(&nobody, path, "default", None).await;
        // A link is judged by its greeting, which is missing here.
        let expected =
            if path.ends_with("Link") { Code::InvalidArgument } else { Code::Unauthenticated };
        assert_eq!(answer, Err(expected), "{path}");
    }
    // A certificate with a wrong name is no node's either.
    let named = channel(&https, Some(&ca_file), Some(&wrong));
    for path in ["/durahub.peer.v1.Peer/Join", "/durahub.peer.v1.Peer/InstallSnapshot"] {
        assert_eq!(call(&named, path, "default", None).await, Err(Code::Unauthenticated), "{path}");
    }
    // An operator with a certificate looks at the cluster: both nodes are in it.
    let operator = [
        ("DURAHUB_CA_FILE", &ca_file),
        ("DURAHUB_CERT_FILE", &good.cert),
        ("DURAHUB_KEY_FILE", &good.key),
    ];
    let status = Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(["cluster", "--endpoint", &https, "status", "--output", "json"])
        .envs(operator)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 2, "{status}");
}

/// Where every node's certificate carries one name, addresses do not matter, and other names do.
#[tokio::test]
async fn one_name_may_stand_for_all_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let ca = Ca::new("nodes");
    let ca_file = ca.write(&folder.join("ca.pem"));
    let good = ca.issue(folder, "good", &["peers.durahub"], "a node");
    let wrong = ca.issue(folder, "wrong", &["127.0.0.1"], "another node");
    let args = |pair: &Pair, join: Option<&TestServer>| {
        let mut args = peer_args(&ca_file, pair);
        args.push("--peer-tls-name=peers.durahub".to_owned());
        args.extend(join.map(|first| format!("--join={}", first.addresses.peer)));
        args
    };
    let first = node(args(&good, None)).await;
    let second = node(args(&good, Some(&first))).await;
    works(&second).await;
    refused_to_join(folder, &args(&wrong, Some(&first)), "127.0.0.1");
}

/// A call through this node reaches the leader of its partition, once there is one.
async fn works(node: &TestServer) {
    let request = durahub_proto::wire::CreateInstanceRequest {
        instance_id: "over-two".into(),
        name: "X".into(),
        ..Default::default()
    };
    let start = async {
        while let Err(status) = node.client().rpc().start_instance(request.clone()).await {
            assert_eq!(status.code(), Code::Unavailable, "{status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), start).await.expect("a leader");
}

#[tokio::test]
async fn an_open_node_says_so_loudly() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let file = std::fs::File::create(&log).unwrap();
    let mut open = Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(["serve", "--log-format=json", "--ephemeral", "--partitions=1"])
        .args(["--grpc-addr=0.0.0.0:0", "--http-addr=127.0.0.1:0", "--peer-addr=127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let said = loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("\"listening\"") || Instant::now() > until {
            break said;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let _ = open.kill();
    open.wait().unwrap();
    // Once in the log and once in the banner.
    let loud = "reachable from other machines without authentication (gRPC 0.0.0.0:";
    assert_eq!(said.matches(loud).count(), 2, "{said}");
    let closed = TestServer::start().await;
    assert!(!closed.log().contains("reachable from other machines"), "{}", closed.log());
}
