//! Links that deliver nothing: no split brain, no stale read, and recovery without help.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::nodes::{Cluster, Shape};
use crate::setting;

/// Ways that are cut, given the leader of partition 1 and the other two nodes.
type Cut = fn(u64, u64, u64) -> Vec<(u64, u64)>;

/// In each of these two nodes at least hear each other, so every partition has a majority.
const CUTS: [(&str, Cut); 6] = [
    ("followers do not hear each other: the leader is the bridge", |_, a, b| both(a, b)),
    ("a follower is the bridge between the leader and the other one", |l, a, _| both(l, a)),
    ("a follower does not hear the leader", |l, a, _| vec![(l, a)]),
    ("nobody hears the leader", |l, a, b| vec![(l, a), (l, b)]),
    ("the leader hears nobody", |l, a, b| vec![(a, l), (b, l)]),
    ("the leader is alone", |l, a, b| [both(l, a), both(l, b)].concat()),
];

fn both(a: u64, b: u64) -> Vec<(u64, u64)> {
    vec![(a, b), (b, a)]
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr)]
async fn cut_links_split_no_brain_and_heal_without_help() {
    let cluster = Cluster::start_as(Shape { links: true, ..Shape::default() }).await;
    let load = Load::begin(&cluster).await;
    for round in 0..setting("DURAHUB_CLUSTER_ROUNDS", 1) {
        for (name, cut) in CUTS {
            let leader = cluster.leader(1, 1).unwrap();
            let (a, b) = (leader % 3 + 1, (leader + 1) % 3 + 1);
            let begun = Instant::now();
            cluster.links.cut(cut(leader, a, b));
            // Long enough for those that hear nothing to act on it.
            tokio::time::sleep(Duration::from_secs(3)).await;
            load.every_partition_serves(Instant::now()).await;
            let partitions = 1..=cluster.shape.partitions as usize;
            let silences: Vec<_> = partitions.map(|it| load.silence(it, begun)).collect();
            cluster.links.heal();
            let healed = Instant::now();
            load.every_partition_serves(healed).await;
            cluster.balanced(3).await;
            eprintln!(
                "round {round}, {name}: partitions were silent for {silences:?}, balanced {:?} after it healed",
                healed.elapsed()
            );
        }
    }
    load.progress(20).await;
    load.end(&cluster, "cut links").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_all_stand_alone_acknowledge_nothing_and_come_back() {
    let cluster = Cluster::start_as(Shape { links: true, ..Shape::default() }).await;
    let load = Load::begin(&cluster).await;
    cluster.links.cut([both(1, 2), both(2, 3), both(1, 3)].concat());
    // Reads are answered as long as a lease holds, less than a second; afterwards nothing is.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let late = Instant::now();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for register in &load.registers.all {
        let last = register.last_acknowledged().unwrap();
        assert!(last < late, "{} was written without a majority", register.id);
    }
    cluster.links.heal();
    load.every_partition_serves(Instant::now()).await;
    cluster.balanced(3).await;
    load.end(&cluster, "all alone").await;
}
