//! Three nodes as real processes on loopback, under load: killed, paused, restarted, joined and removed.
//!
//! What must hold, by ARCHITECTURE.md: an acknowledged call is never lost (S1), everything completes once faults
//! end (L1), work lost with a node is handed out again (L3), a minority refuses. Workers sit on every node.
//!
//! `DURAHUB_CLUSTER_KILLS` is the number of kills of the first test (default 6).

#![allow(clippy::unwrap_used)]

mod feeds;
mod load;
mod nodes;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use durahub_proto::wire;
use load::{Load, program};
use nodes::Cluster;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn every_node_serves_and_kill_9_of_any_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::begin(&cluster, &[1, 2, 3]);
    let kills = std::env::var("DURAHUB_CLUSTER_KILLS").ok().and_then(|text| text.parse().ok());
    for n in 0..kills.unwrap_or(6) {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        // In turn each node, and the leader of each partition.
        let other = n % 3 + 1;
        let victim = match n % 2 {
            0 => other,
            _ => cluster.leader(other, (n / 2 % 5) as usize).unwrap_or(other),
        };
        cluster.kill9(victim);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        cluster.restart(victim).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let slowest = load.slowest.load(Ordering::SeqCst);
    let count = load.end(&cluster, 2).await;
    assert!(count > 200, "only {count} instances were started");
    assert!(slowest < 8_000, "the slowest start took {slowest} ms");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_leader_is_replaced_and_comes_back_as_a_follower() {
    let cluster = Cluster::start().await;
    let load = Load::begin(&cluster, &[1, 2, 3]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Shorter than an election takes: nothing changes. Longer: another node leads.
    for (pause, replaced) in [(500, false), (6_000, true)] {
        let leader = cluster.leader(1, 1).unwrap();
        let other = leader % 3 + 1;
        cluster.signal(leader, "STOP");
        let begun = Instant::now();
        if replaced {
            let mut next = None;
            while next.is_none() && begun.elapsed() < Duration::from_secs(10) {
                tokio::time::sleep(Duration::from_millis(100)).await;
                next = cluster.leader(other, 1).filter(|next| *next != leader);
            }
            assert!(next.is_some(), "nobody replaces the paused leader");
        }
        tokio::time::sleep(Duration::from_millis(pause).saturating_sub(begun.elapsed())).await;
        cluster.signal(leader, "CONT");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let count = load.end(&cluster, 1).await;
    assert!(count > 100, "only {count} instances were started");
}

#[tokio::test(flavor = "multi_thread")]
async fn minority_refuses_with_unavailable_and_serves_again_with_a_majority() {
    let mut cluster = Cluster::start().await;
    let _workers: Vec<_> = (1..=3).map(|id| cluster.work(id, &program())).collect();
    cluster.client(1).start("before", "Greet", "before").await;
    cluster.kill9(2);
    cluster.kill9(3);
    tokio::time::sleep(Duration::from_secs(4)).await;
    for n in 0..3 {
        let request = wire::CreateInstanceRequest {
            instance_id: format!("never-{n}"),
            name: "Greet".into(),
            ..Default::default()
        };
        let refused = cluster.client(1).rpc().start_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let request =
            wire::GetInstanceRequest { instance_id: "before".into(), get_inputs_and_outputs: true };
        let refused = cluster.client(1).rpc().get_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    }
    cluster.restart(2).await;
    let load = Load::begin(&cluster, &[1, 2]);
    // Partitions that were led elsewhere elect first.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(load.end(&cluster, 1).await > 10);
    for n in 0..3 {
        let request = wire::GetInstanceRequest {
            instance_id: format!("never-{n}"),
            get_inputs_and_outputs: false,
        };
        let answer = cluster.client(1).rpc().get_instance(request).await.unwrap().into_inner();
        assert!(!answer.exists, "a call that was refused as UNAVAILABLE was done");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_restarted_one_by_one_joined_and_removed_under_load() {
    let mut cluster = Cluster::start().await;
    let mut load = Load::begin(&cluster, &[1, 2, 3]);
    for id in 1..=3 {
        cluster.terminate(id).await;
        cluster.restart(id).await;
        cluster.balanced(3).await;
    }
    cluster.join(4).await;
    load.add_worker(&cluster, 4);
    cluster.balanced(4).await;
    let output = cluster.operate(4, &["remove-node", "2"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let until = Instant::now() + nodes::PATIENCE;
    while cluster.status(1)["nodes"].as_array().unwrap().iter().any(|node| node["node"] == 2) {
        assert!(Instant::now() < until, "node 2 is not removed: {:#}", cluster.status(1));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // Clients of the removed node would have to go elsewhere: they end before it does.
    let count = load.end(&cluster, 4).await;
    assert!(count > 100, "only {count} instances were started");
    cluster.terminate(2).await;
    let table = String::from_utf8(cluster.operate(3, &["status"]).stdout).unwrap();
    assert!(table.contains("NODE") && table.contains("0 (metadata)"), "{table}");

    // The id of a removed node is not used again, and neither is that of a node that lost its folder.
    let (code, said) = cluster.refused(2).await;
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains("node 2 was removed from the cluster"), "{said}");
    cluster.kill9(3);
    std::fs::remove_dir_all(cluster.data(3)).unwrap();
    let (code, said) = cluster.refused(3).await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("node 3 was here before with another data folder"), "{said}");
    assert!(!cluster.data(3).exists());
}
