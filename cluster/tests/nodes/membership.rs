//! Nodes come, go and come back: what is refused, and that nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::net::Net;
use crate::support::{number, propose, rows};
use bytes::Bytes;
use durahub_cluster::admin::AdminError;
use durahub_cluster::{GroupId, Storage};

const P1: GroupId = GroupId(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_nodes_become_five_and_three_again_under_load() {
    let mut net = Net::start(true, |config| {
        config.options.snapshot_every = 300;
        config.options.keep_entries = 10;
    })
    .await;
    propose(net.group(1, P1), "put large 200000").await;
    let stop = Arc::new(AtomicBool::new(false));
    // Through a node that stays.
    let (group, stopped) = (net.group(3, P1).clone(), Arc::clone(&stop));
    let counting = tokio::spawn(async move {
        let mut done = 0_u64;
        while !stopped.load(Ordering::SeqCst) {
            group.propose(Bytes::from_static(b"add n 1")).await.unwrap();
            done += 1;
        }
        done
    });
    net.join_node(4).await;
    net.join_node(5).await;
    let status = net.balanced().await;
    assert_eq!(status.nodes.iter().map(|node| node.node).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    // A node without the rows reads what was acknowledged.
    let read = number(net.group(5, P1), "n").await;
    assert!(read > 0);
    for id in [1, 2] {
        net.nodes[&3].node.admin().remove_node(id).await.unwrap();
        for _ in 0..400 {
            let status = net.nodes[&3].node.admin().status().await.unwrap();
            if status.nodes.iter().all(|node| node.node != id) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        net.stop_node(id).await;
        net.balanced().await;
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged = counting.await.unwrap();
    for id in [3, 4, 5] {
        assert!(net.group(id, P1).is_here());
        assert_eq!(number(net.group(id, P1), "n").await, acknowledged);
        assert_eq!(rows(net.group(id, P1))["large"].len(), 200_000);
    }
    // Whoever was removed stays out, with its folder and without.
    let told = Arc::clone(&net.expelled);
    net.start_node(1).await;
    for _ in 0..400 {
        if !told.lock().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = told.lock().first().cloned().unwrap();
    assert!(first.starts_with("1: node 1 was removed from the cluster"), "{first}");
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn emptied_folder_and_other_cluster_are_refused() {
    let mut net = Net::start(true, |_| {}).await;
    propose(net.group(1, P1), "add n 1").await;
    let addresses = net.addresses();
    net.stop_node(2).await;
    let Storage::Folder(path) = net.storage(2) else { panic!("on disk") };
    std::fs::remove_dir_all(&path).unwrap();
    // The members are asked at the addresses of the list, so here it must hold real ones.
    let error = net
        .try_start_node(2, |config| {
            config.options.initial_members = addresses.clone();
        })
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("belongs to cluster"), "{error}");
    assert!(!path.exists(), "a refusal leaves no folder behind");
    // With the list that made the cluster it is greeted, and told to go.
    net.start_node(2).await;
    let told = Arc::clone(&net.expelled);
    for _ in 0..400 {
        if !told.lock().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let first = told.lock().first().cloned().unwrap();
    assert!(first.contains("node 2 is known with another data folder"), "{first}");
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn operators_are_told_what_makes_no_sense() {
    let net = Net::start(false, |_| {}).await;
    let admin = net.nodes[&2].node.admin();
    let refused = |result: Result<(), AdminError>| match result {
        Err(AdminError::Refused(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(admin.remove_node(9).await).contains("node 9 is not a member"));
    assert!(refused(admin.drain(9, false).await).contains("node 9 is not a member"));
    assert!(refused(admin.transfer_leader(7, 1).await).contains("there is no partition 7"));
    assert!(refused(admin.transfer_leader(1, 9).await).contains("node 9 has no vote"));

    let leader = net.leader(P1, None).await;
    let to = leader % 3 + 1;
    admin.transfer_leader(1, to).await.unwrap();
    assert_eq!(net.leader(P1, None).await, to);

    admin.drain(to, false).await.unwrap();
    for _ in 0..100 {
        let status = admin.status().await.unwrap();
        if status.nodes.iter().any(|node| node.node == to && node.leads == 0) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = admin.status().await.unwrap();
    let drained = status.nodes.iter().find(|node| node.node == to).unwrap();
    assert_eq!((drained.leads, drained.votes_in), (0, 3));
    admin.drain(to, true).await.unwrap();
    net.balanced().await;
    net.stop().await;
}

/// When a whole cluster stops, its nodes drain at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_that_drain_at_once_do_not_pass_leads_round() {
    let net = Net::start(false, |_| {}).await;
    let terms = || [0, 1, 2].map(|group| net.group(1, GroupId(group)).progress().term);
    let before = terms();
    let within = Duration::from_secs(2);
    let draining = net.nodes.values().map(|running| running.node.hand_over_all(within));
    futures::future::join_all(draining).await;
    for (before, after) in before.into_iter().zip(terms()) {
        assert!(after <= before + 1, "{before} {after}");
    }
    net.stop().await;
}
