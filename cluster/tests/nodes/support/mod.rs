//! A small machine and a bed for nodes.
//!
//! The machine's commands are words: `add KEY N` (not idempotent on purpose), `put KEY SIZE`, `del KEY`,
//! `stamp`. Replies and rows are text, so that a failing test is read easily.

pub(crate) mod held;
pub(crate) mod net;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use durahub_cluster::{
    Applied, Changes, GroupId, Machine, Node, NodeConfig, Partition, Rows, Stamp, StampSource,
    Storage,
};

/// The machine; remembers the effects that it was told.
#[derive(Default)]
pub(crate) struct Counters {
    pub effects: Mutex<BTreeMap<u32, Vec<String>>>,
    /// Counts wrong, as a broken machine would.
    pub broken: AtomicBool,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Machine for Counters {
    type Effect = String;

    fn apply(&self, rows: &dyn Rows, stamp: Stamp, command: &Bytes) -> Applied<String> {
        let command = text(command);
        let words: Vec<&str> = command.split(' ').collect();
        let mut changes = Changes::new();
        let reply = match words.as_slice() {
            ["add", key, n, ..] => {
                let old: u64 =
                    rows.get(key.as_bytes()).map_or(0, |value| text(&value).parse().unwrap());
                let wrong = u64::from(self.broken.load(Ordering::SeqCst));
                let new = (old + n.parse::<u64>().unwrap() + wrong).to_string();
                changes.insert(key.as_bytes().to_vec(), Some(Bytes::from(new.clone())));
                new
            }
            ["put", key, size] => {
                let value = vec![b'x'; size.parse().unwrap()];
                changes.insert(key.as_bytes().to_vec(), Some(Bytes::from(value)));
                "ok".into()
            }
            ["del", key] => {
                changes.insert(key.as_bytes().to_vec(), None);
                "ok".into()
            }
            ["count"] => {
                let mut count = 0;
                rows.scan(b"", b"\xff", &mut |_, _| {
                    count += 1;
                    ControlFlow::Continue(())
                });
                count.to_string()
            }
            ["stamp"] => format!("{} {} {}", stamp.now, stamp.seed, stamp.sequence),
            _ => format!("unknown command {command}"),
        };
        Applied {
            changes,
            reply: Bytes::from(reply.clone()),
            effects: vec![format!("{} => {reply}", words[0])],
        }
    }

    /// A query is a key, its answer the row.
    fn read(&self, rows: &dyn Rows, query: &Bytes) -> Option<Bytes> {
        (!query.is_empty()).then(|| rows.get(query).unwrap_or_default())
    }

    fn committed(&self, group: GroupId, effects: Vec<String>) {
        self.effects.lock().unwrap().entry(group.0).or_default().extend(effects);
    }
}

/// A clock that stands where it is put, and seeds that count, from elsewhere for each node.
pub(crate) fn stamps() -> (StampSource, Arc<AtomicI64>) {
    static NODES: AtomicU64 = AtomicU64::new(0);
    let clock = Arc::new(AtomicI64::new(1_000));
    let first = u64::from(std::process::id()) << 40 | NODES.fetch_add(1, Ordering::Relaxed) << 32;
    let (read, seeds) = (Arc::clone(&clock), AtomicU64::new(first));
    (Arc::new(move || (read.load(Ordering::Relaxed), seeds.fetch_add(1, Ordering::Relaxed))), clock)
}

pub(crate) fn config(storage: Storage, partitions: u32) -> NodeConfig {
    NodeConfig { cache_bytes: 32 << 20, ..NodeConfig::new(1, storage, partitions, stamps().0) }
}

pub(crate) async fn start(storage: Storage, partitions: u32) -> (Node<Counters>, Arc<Counters>) {
    let machine = Arc::new(Counters::default());
    (Node::start(config(storage, partitions), Arc::clone(&machine)).await.unwrap(), machine)
}

pub(crate) fn folder(path: &Path) -> Storage {
    Storage::Folder(path.join("data"))
}

pub(crate) async fn propose(partition: &Partition<Counters>, command: &str) -> String {
    text(&partition.propose(Bytes::copy_from_slice(command.as_bytes())).await.unwrap())
}

/// All rows of a group, local.
pub(crate) fn rows(partition: &Partition<Counters>) -> BTreeMap<String, Vec<u8>> {
    let mut seen = BTreeMap::new();
    partition.peek(|rows| {
        rows.scan(b"", b"\xff", &mut |key, value| {
            seen.insert(text(key), value.to_vec());
            ControlFlow::Continue(())
        });
    });
    seen
}

/// The number under a key, after everything committed, wherever the rows are.
pub(crate) async fn number(partition: &Partition<Counters>, key: &str) -> u64 {
    let key = Bytes::copy_from_slice(key.as_bytes());
    let is_here = partition.catch_up().await.unwrap();
    let here = partition.look(|rows| rows.get(&key).unwrap_or_default()).filter(|_| is_here);
    let value = match here {
        Some(value) => value,
        None => partition.query(key).await.unwrap(),
    };
    if value.is_empty() { 0 } else { text(&value).parse().unwrap() }
}
