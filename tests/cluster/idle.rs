//! What a cluster costs that has nothing to do: by hand, with a release build, on a machine that is quiet.
//!
//! ```text
//! cargo build --release
//! DURAHUB_CLUSTER_MEASURE=1 DURAHUB_TEST_BINARY=target/release/durahub \
//!   cargo test --test cluster idle -- --ignored --nocapture
//! ```

use std::time::{Duration, Instant};

use crate::measures;
use crate::nodes::{Cluster, Shape};

/// Partitions of the cluster.
const PARTITIONS: u32 = 64;
/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Ticks of the kernel's CPU times per second: the same on every Linux that people use.
const TICKS: f64 = 100.0;
/// Share of one core that a node may use, and its memory, in bytes.
const CPU_LIMIT: f64 = 0.05;
const MEMORY_LIMIT: u64 = 150 << 20;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures for half a minute"]
#[allow(clippy::print_stderr)]
async fn idle_partitions_cost_next_to_nothing() {
    let cluster = Cluster::start_as(Shape { partitions: PARTITIONS, ..Shape::default() }).await;
    // What the start has left behind is settled first.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before: Vec<_> = (1..=3).map(|id| ticks(cluster.pid(id))).collect();
    let begun = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let lasted = begun.elapsed().as_secs_f64();
    for id in 1..=3 {
        let pid = cluster.pid(id);
        let used = (ticks(pid) - before[id as usize - 1]) / TICKS / lasted;
        let memory = resident(pid);
        eprintln!(
            "node {id}, {PARTITIONS} idle partitions: {:.1} % of a core, {} MiB, {} threads",
            used * 100.0,
            memory >> 20,
            std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
        );
        if measures() {
            assert!(used < CPU_LIMIT, "node {id} uses {used} of a core");
            assert!(memory < MEMORY_LIMIT, "node {id} uses {memory} bytes");
        }
    }
}

/// CPU time of a process so far, in ticks.
fn ticks(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program, in parentheses, may hold anything; fields are counted from behind it.
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let number = |at: usize| fields[at].parse::<f64>().unwrap();
    number(11) + number(12)
}

/// Memory of a process that is not shared with others, in bytes.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
