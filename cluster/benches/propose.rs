//! Proposals per second through the real log: clients wait for each answer before they send the next.
//!
//! `cargo bench -p durahub-cluster --bench propose`. A case is engine, groups, clients; 300-byte commands,
//! one row written per command.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::ItemsCount;
use durahub_cluster::{
    Applied, Changes, GroupId, Machine, Node, NodeConfig, Rows, Stamp, StampSource, Storage,
};

fn main() {
    divan::main();
}

/// Writes one row per command, over a bounded set of keys, as work items do.
struct Slots;

impl Machine for Slots {
    type Effect = ();

    fn apply(&self, _: &dyn Rows, stamp: Stamp, command: &Bytes) -> Applied<()> {
        let key = (stamp.seed % 100_000).to_be_bytes().to_vec();
        Applied {
            changes: Changes::from([(key, Some(command.clone()))]),
            reply: Bytes::new(),
            effects: Vec::new(),
        }
    }

    fn read(&self, _: &dyn Rows, _: &Bytes) -> Option<Bytes> {
        None
    }

    fn committed(&self, _: GroupId, _: Vec<()>) {}
}

fn stamp() -> StampSource {
    let seed = AtomicU64::new(0);
    Arc::new(move || (0, seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)))
}

const CASES: &[(u32, u32)] = &[(1, 1), (1, 64), (1, 256), (8, 1), (8, 64), (8, 256)];

#[divan::bench(args = CASES, sample_count = 5, sample_size = 1)]
fn sled(bencher: Bencher<'_, '_>, (groups, clients): (u32, u32)) {
    let dir = tempfile::tempdir().expect("a folder");
    run(bencher, Storage::Folder(dir.path().join("data")), groups, clients);
}

#[divan::bench(args = CASES, sample_count = 5, sample_size = 1)]
fn memory(bencher: Bencher<'_, '_>, (groups, clients): (u32, u32)) {
    run(bencher, Storage::Memory, groups, clients);
}

/// A number from the environment, to try other settings without building again.
fn setting(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(bencher: Bencher<'_, '_>, storage: Storage, groups: u32, clients: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(setting("WORKERS").unwrap_or(2))
        .enable_all()
        .build()
        .expect("a runtime");
    let mut config = NodeConfig::new(1, storage, groups, stamp());
    if let Some(entries) =
        std::env::var("ENTRIES_IN_FLIGHT").ok().and_then(|text| text.parse().ok())
    {
        config.options.entries_in_flight = entries;
    }
    let node = runtime.block_on(Node::start(config, Arc::new(Slots))).expect("a node");
    let per_client = (20_000 / clients).clamp(50, 2_000);
    let command = Bytes::from(vec![7; 300]);
    let mut times = Vec::new();
    bencher.counter(ItemsCount::new(per_client * clients)).bench_local(|| {
        runtime.block_on(async {
            let tasks = (0..clients).map(|client| {
                let group = node.group(GroupId(client % groups + 1)).clone();
                let command = command.clone();
                tokio::spawn(async move {
                    let mut times = Vec::with_capacity(per_client as usize);
                    for _ in 0..per_client {
                        let started = Instant::now();
                        group.propose(command.clone()).await.expect("a reply");
                        times.push(started.elapsed().as_micros());
                    }
                    times
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                times.extend(task.await.expect("a client"));
            }
        });
    });
    times.sort_unstable();
    if std::env::var_os("LATENCIES").is_some() && !times.is_empty() {
        let at = |part: usize| times[(times.len() - 1) * part / 100];
        #[allow(clippy::print_stderr, reason = "a bench tells what it measured")]
        {
            eprintln!("  groups {groups} clients {clients}: p50 {} us, p99 {} us", at(50), at(99));
        }
    }
    runtime.block_on(node.stop());
}
