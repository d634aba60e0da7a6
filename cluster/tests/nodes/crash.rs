//! Kills a node at random moments and looks for lost and doubled commands.
//!
//! The victim is this very test binary, started again with a folder to work in. Its clients count up, one
//! command at a time, and print each answer. After the kill a client's counter must stand at its last
//! answer, or one above: the command that was under way. Anything less was lost, anything more was applied
//! twice.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::{Counters, config, number, propose};
use durahub_cluster::{GroupId, Node, Storage};

const PARTITIONS: u32 = 3;
const CLIENTS: u32 = 12;
const ROUNDS: u32 = 8;
const COMMANDS: u64 = 1300;
const PURGED: u64 = 1100;
const FOLDER: &str = "DURAHUB_CRASH_TEST_FOLDER";

async fn start(folder: &Path) -> Node<Counters> {
    let mut config = config(Storage::Folder(folder.to_owned()), PARTITIONS);
    // Compaction and purge must be under way as well.
    config.options.snapshot_every = 200;
    config.options.keep_entries = 20;
    Node::start(config, Arc::new(Counters::default())).await.unwrap()
}

fn group_of(client: u32) -> GroupId {
    GroupId(client % PARTITIONS + 1)
}

#[test]
#[ignore = "the victim of the test below, which starts it"]
fn victim() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = Arc::new(start(Path::new(&folder)).await);
        let clients = (0..CLIENTS).map(|client| {
            let node = Arc::clone(&node);
            tokio::spawn(async move {
                let group = node.group(group_of(client));
                loop {
                    // Large values now and then, so that chunks are under way too.
                    let padding = "x".repeat(if client % 4 == 0 { 9_000 } else { 10 });
                    let value = propose(group, &format!("add c{client} 1 {padding}")).await;
                    println!("\nack {client} {value}");
                }
            })
        });
        futures::future::join_all(clients.collect::<Vec<_>>()).await;
    });
}

/// Starts this binary again as a victim that works in `folder`.
fn spawn(victim: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("crash::{victim}"), "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the victim of the test below, which starts it"]
fn victim_that_compacts() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let node = start(Path::new(&folder)).await;
        let group = node.group(GroupId(1));
        // One row that is written again and again. It is stored for its own sake at the 1,024th command only,
        // and the log is purged up to a later one.
        for _ in 0..COMMANDS {
            propose(group, "add n 1").await;
        }
        for _ in 0..2000 {
            if group.progress().purged_index.is_some_and(|purged| purged >= PURGED) {
                println!("\npurged");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

/// What the log no longer has must be in the stored rows, whatever still lay in memory.
#[test]
fn rows_are_stored_before_their_log_is_purged() {
    let dir = tempfile::tempdir().unwrap();
    let mut victim = spawn("victim_that_compacts", dir.path());
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "purged"), "the victim ended by itself");
    victim.kill().unwrap();
    victim.wait().unwrap();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let node = start(dir.path()).await;
        assert_eq!(number(node.group(GroupId(1)), "n").await, COMMANDS);
        node.stop().await;
    });
}

#[test]
fn killed_node_loses_and_doubles_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut answered: BTreeMap<u32, u64> = BTreeMap::new();
    let mut answers = 0;
    for round in 0..ROUNDS {
        let mut victim = spawn("victim", &folder);
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        // Differs from round to round, from the middle of the start to well under way.
        let deadline = Instant::now() + Duration::from_millis(40 + u64::from(round) * 97 % 500);
        let reader = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some(Ok(line)) = lines.next() {
                let mut words = line.split(' ');
                if let (Some("ack"), Some(client), Some(value), None) =
                    (words.next(), words.next(), words.next(), words.next())
                    && let (Ok(client), Ok(value)) = (client.parse::<u32>(), value.parse::<u64>())
                {
                    seen.push((client, value));
                }
            }
            seen
        });
        std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
        victim.kill().unwrap();
        victim.wait().unwrap();
        for (client, value) in reader.join().unwrap() {
            let last = answered.entry(client).or_default();
            assert!(value > *last, "client {client} counted {value} after {last}");
            *last = value;
            answers += 1;
        }
        runtime.block_on(async {
            let node = start(&folder).await;
            for client in 0..CLIENTS {
                let found = number(node.group(group_of(client)), &format!("c{client}")).await;
                let last = answered.get(&client).copied().unwrap_or(0);
                assert!(
                    found == last || found == last + 1,
                    "client {client}: answered {last}, found {found}"
                );
                answered.insert(client, found);
            }
            // Every other restart comes after a kill, not after a clean stop.
            node.stop().await;
        });
    }
    assert!(answers > 200, "only {answers} answers: the victim hardly ran");
}
