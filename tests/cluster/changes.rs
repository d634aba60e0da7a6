//! Nodes that restart one by one, come, go and are replaced, while the cluster works.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::nodes::{Cluster, Shape};
use crate::{measures, setting};

/// How long the load is watched before and after a rolling restart, to compare latencies.
const WATCHED: Duration = Duration::from_secs(20);
/// How long an orchestration may take to be counted: longer than nearly all.
const COUNTED_AFTER: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr)]
async fn rolling_restart_fails_no_call() {
    let mut cluster = Cluster::start().await;
    let load = Load::begin(&cluster).await;
    let begun = Instant::now();
    if measures() {
        tokio::time::sleep(WATCHED).await;
    }
    let restarting = Instant::now();
    for _ in 0..setting("DURAHUB_CLUSTER_ROUNDS", 1) {
        for id in 1..=3 {
            cluster.terminate(id).await;
            cluster.restart(id).await;
            cluster.balanced(3).await;
            load.progress(20).await;
        }
    }
    if measures() {
        let restarted = Instant::now();
        tokio::time::sleep(WATCHED).await;
        let ended = Instant::now();
        tokio::time::sleep(COUNTED_AFTER).await;
        eprintln!("orchestrations before: {}", load.latencies(begun..restarting));
        eprintln!("orchestrations during: {}", load.latencies(restarting..restarted));
        eprintln!("orchestrations after:  {}", load.latencies(restarted..ended));
    }
    let figures = load.end(&cluster, "rolling restart").await;
    assert!(figures.failed.is_empty(), "calls failed: {:#?}", figures.failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_become_five_and_three_again_and_one_is_replaced() {
    // The log is short, so whoever comes later finds its beginning gone.
    let shape = Shape { snapshot_every: 100, ..Shape::default() };
    let mut cluster = Cluster::start_as(shape).await;
    let mut load = Load::begin(&cluster).await;
    for id in 4..=5 {
        cluster.join(id).await;
        load.add_node(&cluster, id);
        cluster.balanced(id as usize).await;
        load.progress(20).await;
    }
    for id in 1..=2 {
        // What guards a chart that would stop it: the others may go on without it once it was removed.
        let keep: Vec<_> = (id + 1..=5).map(|kept| cluster.node(kept).peer.clone()).collect();
        let check = ["check-scale-in", "--keep", &keep.join(",")];
        let guarded = cluster.operate(5, &check);
        let told = String::from_utf8_lossy(&guarded.stderr).into_owned();
        assert!(!guarded.status.success(), "{told}");
        assert!(told.contains(&format!("still in the cluster: node {id} ")), "{told}");
        let output = cluster.operate(5, &["remove-node", &id.to_string()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        cluster.gone(5, id).await;
        let output = cluster.operate(5, &check);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        load.remove_node(id);
        cluster.terminate(id).await;
        cluster.balanced(5 - id as usize).await;
        load.progress(20).await;
    }
    let entries = |cluster: &Cluster| {
        let status = cluster.status(4);
        status["partitions"][1]["replicas"][0]["appliedIndex"].as_u64().unwrap_or(0)
    };
    while entries(&cluster) < 4 * shape.snapshot_every {
        load.progress(10).await;
    }
    // A node whose disk is gone: it is taken out, and a new one comes in its place.
    cluster.kill9(3);
    load.remove_node(3);
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    let output = cluster.operate(4, &["remove-node", "3"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.join(6).await;
    load.add_node(&cluster, 6);
    cluster.gone(4, 3).await;
    cluster.balanced(3).await;
    load.progress(20).await;
    let snapshots = cluster.snapshots(6);
    let status = cluster.status(6);
    assert!(snapshots > 0, "the new node has the log from its beginning: {status:#}");
    let table = String::from_utf8(cluster.operate(6, &["status"]).stdout).unwrap();
    assert!(table.contains("NODE") && table.contains("0 (metadata)"), "{table}");
    load.end(&cluster, "3 to 5 to 3").await;
}

/// It leads everything when it is alone, but it is not any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_began_alone_is_a_member_like_any_other() {
    let mut cluster = Cluster::start_as(Shape { members: 1, ..Shape::default() }).await;
    cluster.client(1).start("Register-before", "Register", "").await;
    for id in 2..=4 {
        cluster.join(id).await;
    }
    // Four nodes, three copies of each partition: it holds a part of them.
    cluster.balanced(4).await;
    cluster.kill9(1);
    cluster.restart(1).await;
    assert!(cluster.client(1).get("Register-before").await.is_some(), "acknowledged, and gone");
    cluster.balanced(4).await;
}
