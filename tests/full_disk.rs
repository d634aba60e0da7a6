//! A disk that is full: the server leaves at once, says why in one line, and has acknowledged nothing that
//! is not there when space returns (S1).
//!
//! Before it is full it runs short: see `full_disk/short.rs`. Here nothing is refused before, and the end comes twice,
//! with the real process: against a limit on the size of its files, which needs no rights, and on a
//! small file system of its own, which needs a user namespace. Where a machine allows none the second test
//! says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on should say where"
)]

#[path = "full_disk/short.rs"]
mod short;
mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use durahub_proto::wire;
use support::actions::{complete, schedule_task};
use support::server::ServerOptions;
use support::{Client, Program, TestServer, WorkerOptions};

/// Exit code for a storage fault.
const STORAGE_FAULT: i32 = 74;
/// Size of an input, in bytes.
const INPUT: usize = 20_000;
/// Clients that start instances at once.
const CLIENTS: usize = 8;
/// The part of a start that all inputs share; what stands before it names the instance.
fn input(id: &str) -> String {
    format!("{id} {}", "x".repeat(INPUT))
}

fn program() -> Program {
    Program::new()
        .orchestrator("Echo", |history| match history.result(1) {
            None => vec![schedule_task(1, "Length", history.input())],
            Some(length) => vec![complete(2, &length.expect("never fails"))],
        })
        .activity("Length", |input| Ok(input.len().to_string()))
}

/// Starts instances until the server has gone. Returns the ids whose start was acknowledged.
async fn fill(client: &Client, gone: Arc<AtomicBool>) -> Vec<String> {
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let (client, gone) = (client.clone(), gone.clone());
        clients.spawn(async move {
            let mut acknowledged = Vec::new();
            for count in 0.. {
                let id = format!("{number}-{count}");
                let request = wire::CreateInstanceRequest {
                    instance_id: id.clone(),
                    name: "Echo".into(),
                    input: Some(input(&id).into()),
                    ..Default::default()
                };
                match client.rpc().start_instance(request).await {
                    Ok(_) => acknowledged.push(id),
                    Err(_) if gone.load(Ordering::Acquire) => break,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
            acknowledged
        });
    }
    clients.join_all().await.concat()
}

/// Fills the disk of a running server, lets `make_room` give it space, and looks at what is there.
async fn lives_through_it(
    mut server: TestServer,
    why: &str,
    make_room: impl FnOnce(&mut TestServer),
) {
    let worker = program().run(&server.client(), WorkerOptions::default());
    let gone = Arc::new(AtomicBool::new(false));
    let filling = tokio::spawn({
        let (client, gone) = (server.client(), gone.clone());
        async move { fill(&client, gone).await }
    });
    let status = server.ended().await;
    gone.store(true, Ordering::Release);
    let acknowledged = filling.await.unwrap();
    drop(worker);

    let log = server.log();
    assert_eq!(status.code(), Some(STORAGE_FAULT), "{status}");
    let errors: Vec<_> = log.lines().filter(|line| line.contains("\"ERROR\"")).collect();
    assert_eq!(errors.len(), 1, "one line says why:\n{}", errors.join("\n"));
    for part in ["storage fault, leaving the process", why, "make room for the data folder"] {
        assert!(errors[0].contains(part), "{part:?} is missing in {}", errors[0]);
    }
    assert!(acknowledged.len() > CLIENTS, "the disk had room for {}", acknowledged.len());

    // Still full: it may come up for a moment or not at all, but must not tell anybody to throw data away.
    let mut early = server.command().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _ = early.kill();
    let early = early.wait_with_output().unwrap();
    let text = String::from_utf8(early.stderr).unwrap();
    if early.status.code() == Some(1) {
        let told: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(told.len(), 1, "{text}");
        assert!(told[0].contains("is full: make room and start again"), "{text}");
    }
    assert!(!text.contains("backup"), "{text}");

    make_room(&mut server);
    server.restart().await;
    let client = server.client();
    let _worker = program().run(&client, WorkerOptions::default());
    for id in &acknowledged {
        let state = client.get(id).await.unwrap_or_else(|| panic!("{id} was acknowledged"));
        assert_eq!(state.input.map(String::from), Some(input(id)), "{id}");
        assert_eq!(client.output(id).await, (INPUT + id.len() + 1).to_string(), "{id}");
    }
    client.start("after", "Echo", "four").await;
    assert_eq!(client.output("after").await, "4");
    eprintln!("{} starts were acknowledged, and all are there", acknowledged.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_grow() {
    // Blocks of 512 bytes. Ignored, the signal leaves a write that fails, as on a full disk.
    let limited = r#"trap '' XFSZ; ulimit -f 40960; exec "$@""#;
    let within = ["sh", "-c", limited, "sh"].map(String::from).into();
    let server = TestServer::start_with(ServerOptions { within, ..Default::default() }).await;
    lives_through_it(server, "file too large", |server| {
        server.set_options(ServerOptions::default())
    })
    .await;
}

/// A mount namespace with a small file system in it, which goes away with its process.
struct SmallDisk {
    process: Child,
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, and the reason on standard error, where the machine does not allow it.
    fn mount(bytes: u64) -> Option<SmallDisk> {
        let folder = tempfile::tempdir().unwrap();
        let script =
            r#"mount -t tmpfs -o size="$1" none "$2" && touch "$2/mounted" && exec sleep 600"#;
        let process = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .args([&bytes.to_string(), folder.path().to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut disk = match process {
            Ok(process) => SmallDisk { process, folder },
            Err(error) => {
                eprintln!("skipped: this machine cannot run unshare: {error}");
                return None;
            }
        };
        loop {
            if let Some(status) = disk.process.try_wait().unwrap() {
                let mut why = String::new();
                let output = disk.process.stderr.as_mut().unwrap();
                std::io::Read::read_to_string(output, &mut why).unwrap();
                eprintln!("skipped: no small file system for this user ({status}): {}", why.trim());
                return None;
            }
            if disk.inside(&["test", "-e", &disk.path("mounted")]) {
                return Some(disk);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    /// What a command stands behind to run inside.
    fn enter(&self) -> Vec<String> {
        let process = self.process.id().to_string();
        ["nsenter", "--target", &process, "--user", "--mount", "--preserve-credentials"]
            .map(String::from)
            .into()
    }

    /// Runs a command inside; whether it succeeded.
    fn inside(&self, command: &[&str]) -> bool {
        let enter = self.enter();
        let mut inside = Command::new(&enter[0]);
        inside.args(&enter[1..]).args(command).stderr(Stdio::null());
        inside.status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts a server whose data lies on the small file system.
async fn on_small_disk(disk: &SmallDisk, options: ServerOptions) -> TestServer {
    // The server's own data folder becomes a link into the small file system.
    let linked = format!(r#"[ -e "$4" ] || ln -s "{}" "$4"; exec "$@""#, disk.path("data"));
    assert!(disk.inside(&["mkdir", &disk.path("data")]));
    let mut within = disk.enter();
    within.extend(["sh", "-c", &linked, "sh"].map(String::from));
    let server = TestServer::start_with(ServerOptions { within, ..options }).await;
    assert!(!Path::new(&disk.path("data")).exists(), "the data is inside, not out here");
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_is_full() {
    let Some(disk) = SmallDisk::mount(96 << 20) else { return };
    let ballast = disk.path("ballast");
    assert!(disk.inside(&["fallocate", "--length", "72M", &ballast]), "take most of it");
    let unwatched = ["--storage-low-free=0", "--storage-critical-free=0"];
    let options = ServerOptions { args: unwatched.map(String::from).into(), ..Default::default() };
    let server = on_small_disk(&disk, options).await;
    lives_through_it(server, "no storage space", |_| assert!(disk.inside(&["rm", &ballast]))).await;
}
