//! Keys, tokens and certificates are replaced while streams are open, and no stream notices that does not stand on
//! what was taken away.

use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::work_item::Request as Item;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Streaming};

use super::Guarded;
use super::support::security::{Ca, Pair, Signer, key_set};
use super::support::{Client, TestServer};

/// An open worker stream.
struct Stream {
    items: Streaming<wire::WorkItem>,
    starts: Client,
    started: u32,
}

impl Stream {
    async fn open(worker: &Client, starts: Client) -> Stream {
        let request = wire::GetWorkItemsRequest {
            max_concurrent_orchestration_work_items: 100,
            ..Default::default()
        };
        let items = worker.rpc().get_work_items(request).await.unwrap().into_inner();
        Stream { items, starts, started: 0 }
    }

    /// The stream ends, with this code.
    async fn ends(&mut self, code: Code) {
        let end = async {
            loop {
                if let Err(status) = self.items.message().await {
                    return status;
                }
            }
        };
        let end = tokio::time::timeout(Duration::from_secs(30), end).await.expect("an end");
        assert_eq!(end.code(), code, "{end}");
    }

    /// A new instance must arrive on the stream that is open.
    async fn lives(&mut self) {
        self.started += 1;
        let id = format!("live-{}", self.started);
        self.starts.start(&id, "Live", "").await;
        let arrival = async {
            loop {
                let item = self.items.message().await.expect("the stream lives").expect("no end");
                if let Some(Item::OrchestratorRequest(turn)) = item.request
                    && turn.instance_id == id
                {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), arrival).await.expect("a work item");
    }
}

async fn code(client: &Client) -> Code {
    client.rpc().hello(()).await.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn until(client: &Client, wanted: Code) {
    let change = async {
        while code(client).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), change).await.expect("a change");
}

#[tokio::test]
async fn keys_of_a_file_rotate_while_a_stream_is_open() {
    let guarded = Guarded::start(&[]).await;
    let over = Client::over(guarded.channel(None)).in_hub("a");
    let by = |signer: &Signer| over.with_token(&signer.token(&json!({ "role": "contributor" })));
    let (old, next) = (&guarded.signer, Signer::new("two"));
    let mut stream = Stream::open(&by(old), guarded.client("contributor")).await;
    stream.lives().await;

    // The next key is published; nothing but the change of the file tells the server.
    std::fs::write(guarded.path("keys.json"), key_set(&[old, &next])).unwrap();
    until(&by(&next), Code::Ok).await;
    assert_eq!(code(&by(old)).await, Code::Ok);
    stream.lives().await;
    // The old one is taken away, and with it what stands on it.
    let mut newer = Stream::open(&by(&next), guarded.client("contributor")).await;
    std::fs::write(guarded.path("keys.json"), key_set(&[&next])).unwrap();
    until(&by(old), Code::Unauthenticated).await;
    assert_eq!(code(&by(&next)).await, Code::Ok);
    stream.ends(Code::Unauthenticated).await;
    newer.started = stream.started;
    newer.lives().await;
}

/// A server of one document, on plain HTTP of this machine. Counts how often it was asked, and says nothing where
/// the document is empty.
struct Issuer {
    url: String,
    keys: std::sync::Arc<std::sync::Mutex<(String, u32)>>,
}

impl Issuer {
    async fn start(keys: String) -> Issuer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let keys = std::sync::Arc::new(std::sync::Mutex::new((keys, 0)));
        let shared = keys.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = socket.read(&mut request).await;
                let body = {
                    let mut shared = shared.lock().unwrap();
                    shared.1 += 1;
                    shared.0.clone()
                };
                if body.is_empty() {
                    tokio::spawn(async move {
                        std::future::pending::<()>().await;
                        drop(socket)
                    });
                    continue;
                }
                let head = "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n";
                let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        Issuer { url, keys }
    }

    fn set(&self, keys: String) {
        self.keys.lock().unwrap().0 = keys;
    }

    fn asked(&self) -> u32 {
        self.keys.lock().unwrap().1
    }
}

#[tokio::test]
async fn keys_of_a_url_are_fetched_when_a_token_names_a_new_one() {
    let (old, next) = (Signer::new("one"), Signer::new("two"));
    let issuer = Issuer::start(key_set(&[&old])).await;
    let server = TestServer::start_with_args(&[
        "--auth-mode=jwt",
        &format!("--auth-jwt-jwks-url={}", issuer.url),
        "--auth-jwt-issuer",
        super::ISSUER,
        "--auth-jwt-audience",
        super::AUDIENCE,
        "--auth-grants=claim.role:worker=contributor@default",
        // It is the new key that makes the server ask, not the time.
        "--auth-jwt-jwks-refresh=24h",
    ])
    .await;
    let by =
        |signer: &Signer| server.client().with_token(&signer.token(&json!({ "role": "worker" })));
    let mut stream = Stream::open(&by(&old), by(&old)).await;
    stream.lives().await;
    assert_eq!(code(&by(&next)).await, Code::Unauthenticated);
    issuer.set(key_set(&[&old, &next]));
    until(&by(&next), Code::Ok).await;
    stream.lives().await;
    // Whoever sends tokens of unknown keys makes the server ask every few seconds at most.
    let (before, stranger) = (issuer.asked(), Signer::new("three"));
    for _ in 0..50 {
        assert_eq!(code(&by(&stranger)).await, Code::Unauthenticated);
    }
    assert!(issuer.asked() - before <= 2, "asked {} times", issuer.asked() - before);
}

/// Calls with tokens of unknown keys wait while the issuer is asked, and not all of them: nobody knows who they are.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_that_wait_for_the_issuer_are_bounded() {
    let issuer = Issuer::start(key_set(&[&Signer::new("one")])).await;
    let server = TestServer::start_with_args(&[
        "--auth-mode=jwt",
        &format!("--auth-jwt-jwks-url={}", issuer.url),
        "--auth-jwt-issuer",
        super::ISSUER,
        "--auth-jwt-audience",
        super::AUDIENCE,
    ])
    .await;
    let stranger = Signer::new("two").token(&json!({}));
    issuer.set(String::new());
    // Until it is asked again, which it is not at once after the start.
    let before = issuer.asked();
    let first = server.client().with_token(&stranger);
    let first = tokio::spawn(async move { while code(&first).await != Code::Ok {} });
    let asked = async {
        while issuer.asked() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.expect("a question");
    let clients = [server.client().with_token(&stranger), server.client().with_token(&stranger)];
    let mut calls: futures::stream::FuturesUnordered<_> =
        (0..1100).map(|call| code(&clients[call % 2])).collect();
    // One place is that of the first.
    for _ in 0..77 {
        let refused = tokio::time::timeout(Duration::from_secs(30), calls.next()).await;
        assert_eq!(refused.expect("an answer"), Some(Code::Unauthenticated));
    }
    assert!(calls.next().now_or_never().is_none(), "the others wait for the issuer");
    first.abort();
}

#[tokio::test]
async fn tokens_and_grants_change_while_a_stream_is_open() {
    let guarded = Guarded::start(&[]).await;
    let mut stream = Stream::open(&guarded.client("worker"), guarded.client("contributor")).await;
    stream.lives().await;
    let mut other = Stream::open(&guarded.client("admin"), guarded.client("contributor")).await;
    let path = guarded.path("tokens.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    // The worker's token is withdrawn: no new call, and its stream ends, but no other one.
    let without = text.split("[[token]]").filter(|entry| !entry.contains("'worker'"));
    let without: Vec<_> = without.collect();
    std::fs::write(&path, without.join("[[token]]")).unwrap();
    until(&guarded.client("worker"), Code::Unauthenticated).await;
    stream.ends(Code::Unauthenticated).await;
    other.started = stream.started;
    other.lives().await;
    std::fs::write(&path, text).unwrap();
    until(&guarded.client("worker"), Code::Ok).await;
    other.lives().await;
}

/// The serial number of the certificate that a new connection is shown.
async fn shown(guarded: &Guarded) -> bool {
    let client = Client::over(guarded.channel(None));
    client.rpc().hello(()).await.is_err_and(|status| status.code() == Code::Unauthenticated)
}

#[tokio::test]
async fn certificates_are_replaced_without_a_dropped_stream() {
    let mut guarded = Guarded::start(&[]).await;
    let contributor = guarded.client("contributor");
    let mut stream = Stream::open(&guarded.client("worker"), contributor).await;
    stream.lives().await;

    // Another CA, so that a connection shows which certificate the server has.
    let next = Ca::new("next");
    let folder = guarded.folder.path().to_owned();
    let pair = next.issue(&folder, "next", &["localhost"], "server");
    let Pair { cert, key } = guarded.server_pair.clone();
    let old_ca = guarded.ca_file.clone();

    // A key without its certificate is not taken; the old pair stays.
    let old_key = std::fs::read(&key).unwrap();
    std::fs::copy(&pair.key, &key).unwrap();
    guarded.hang_up();
    while !guarded.server.log().contains("not read again, the old one stays") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(shown(&guarded).await, "the old certificate is shown");
    std::fs::write(&key, old_key).unwrap();

    std::fs::copy(&pair.cert, &cert).unwrap();
    std::fs::copy(&pair.key, &key).unwrap();
    guarded.ca_file = next.write(&folder.join("next-ca.pem"));
    let change = async {
        while !shown(&guarded).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), change).await.expect("the new certificate");
    guarded.ca_file = old_ca;
    assert!(!shown(&guarded).await, "the old certificate is gone");
    // The connection of before, and its stream.
    stream.lives().await;
}

/// What a file says that nobody may look at while it is read: a pipe.
struct Pipe(std::path::PathBuf);

impl Pipe {
    fn new(path: std::path::PathBuf) -> Pipe {
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        Pipe(path)
    }

    /// Gives the next reader this text; ends once there is one.
    async fn give(&self, text: &'static str) {
        let path = self.0.clone();
        tokio::task::spawn_blocking(move || std::fs::write(path, text)).await.unwrap().unwrap();
    }

    /// Waits until somebody reads, and keeps the end from coming.
    async fn reader(&self) -> std::fs::File {
        let path = self.0.clone();
        let open = move || std::fs::OpenOptions::new().write(true).open(path).unwrap();
        tokio::task::spawn_blocking(open).await.unwrap()
    }
}

/// The issuer takes a key away while the files are read again: reading them does not bring it back.
#[tokio::test]
async fn a_reload_brings_back_no_key_that_was_taken_away_meanwhile() {
    const GRANTS: &str = "grants = ['claim.role:worker=contributor@default']\n";
    let (old, next) = (Signer::new("one"), Signer::new("two"));
    let issuer = Issuer::start(key_set(&[&old, &next])).await;
    let folder = tempfile::tempdir().unwrap();
    let grants = Pipe::new(folder.path().join("grants.toml"));
    let args = [
        "--auth-mode=jwt".to_owned(),
        format!("--auth-jwt-jwks-url={}", issuer.url),
        format!("--auth-jwt-issuer={}", super::ISSUER),
        format!("--auth-jwt-audience={}", super::AUDIENCE),
        format!("--auth-grants-file={}", grants.0.display()),
        "--auth-jwt-jwks-refresh=1s".to_owned(),
    ];
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let (server, ()) = tokio::join!(TestServer::start_with_args(&args), grants.give(GRANTS));
    let by =
        |signer: &Signer| server.client().with_token(&signer.token(&json!({ "role": "worker" })));
    until(&by(&old), Code::Ok).await;
    let signal = format!("kill -HUP {}", server.pid());
    assert!(std::process::Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    // It has begun to read; now the key goes.
    let mut reading = grants.reader().await;
    issuer.set(key_set(&[&next]));
    until(&by(&old), Code::Unauthenticated).await;
    std::io::Write::write_all(&mut reading, GRANTS.as_bytes()).unwrap();
    drop(reading);
    let read = async {
        while !server.log().contains("\"what\":\"authentication\"") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), read).await.expect("the files are read");
    assert!(server.log().contains("read again"));
    assert_eq!(code(&by(&old)).await, Code::Unauthenticated);
    assert_eq!(code(&by(&next)).await, Code::Ok);
}

/// A file that could not be used is tried again although it looks the same: half written then, whole now.
#[tokio::test]
async fn what_could_not_be_used_is_tried_again() {
    let guarded = Guarded::start(&[]).await;
    let path = guarded.path("tokens.toml");
    let whole = std::fs::read_to_string(&path).unwrap();
    let time = std::time::SystemTime::now();
    let put = |text: &str| {
        let new = guarded.path("new");
        std::fs::write(&new, text).unwrap();
        std::fs::File::options().write(true).open(&new).unwrap().set_modified(time).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    // As long as the other one, and of the same time.
    let without = whole.split("[[token]]").filter(|entry| !entry.contains("'worker'"));
    let without = without.collect::<Vec<_>>().join("[[token]]");
    let filled = format!("{without}{}", "#".repeat(whole.len() - without.len()));
    put(&"[".repeat(whole.len()));
    let failures = || guarded.server.log().matches("not read again, the old one stays").count();
    while failures() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(code(&guarded.client("worker")).await, Code::Ok, "the old ones stay");
    put(&filled);
    until(&guarded.client("worker"), Code::Unauthenticated).await;
    assert_eq!(failures(), 1, "told once");
    assert_eq!(code(&guarded.client("contributor")).await, Code::Ok);
}
