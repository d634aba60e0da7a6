//! Any node takes proposals and reads; a command is applied once, whatever happens to leaders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::net::Net;
use crate::support::{Counters, number, propose};
use bytes::Bytes;
use durahub_cluster::{Error, GroupId, Partition};

const P1: GroupId = GroupId(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_node_takes_proposals_and_reads_what_was_acknowledged_elsewhere() {
    let net = Net::start(false, |_| {}).await;
    for round in 0..60 {
        let (writer, reader) = (round % 3 + 1, (round / 3) % 3 + 1);
        assert_eq!(propose(net.group(writer, P1), "add n 1").await, (round + 1).to_string());
        assert_eq!(number(net.group(reader, P1), "n").await, round + 1);
    }
    let long = vec![b'x'; 9 << 20];
    let follower = (1..=3).find(|id| net.group(*id, P1).progress().leader != Some(*id)).unwrap();
    let refused = net.group(follower, P1).propose(Bytes::from(long)).await;
    assert_eq!(refused, Err(Error::TooLarge { bytes: 9 << 20, limit: 8 << 20 }));
    net.stop().await;
}

/// Counts up through one node until told to stop; returns how many calls were acknowledged.
async fn count(group: Partition<Counters>, stop: Arc<AtomicBool>, slowest: Arc<AtomicU64>) -> u64 {
    let mut done = 0;
    while !stop.load(Ordering::SeqCst) {
        let begun = Instant::now();
        group.propose(Bytes::from_static(b"add n 1")).await.unwrap();
        slowest.fetch_max(begun.elapsed().as_millis() as u64, Ordering::SeqCst);
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_fails_and_none_counts_twice_while_leaders_come_and_go() {
    let net = Net::start(false, |_| {}).await;
    let (stop, slowest) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicU64>::default());
    let counting: Vec<_> = (1..=3)
        .flat_map(|id| [id; 4])
        .map(|id| {
            let group = net.group(id, P1).clone();
            tokio::spawn(count(group, Arc::clone(&stop), Arc::clone(&slowest)))
        })
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let leader = net.leader(P1, None).await;
        let next = leader % 3 + 1;
        let _ = net.group(leader, P1).transfer_leader(next).await;
        tokio::time::sleep(Duration::from_millis(700)).await;
        // Links break in the middle of calls: nobody knows what became of those.
        let leader = net.leader(P1, None).await;
        for other in (1..=3).filter(|other| *other != leader) {
            net.cut(other, leader, true);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        for other in (1..=3).filter(|other| *other != leader) {
            net.cut(other, leader, false);
        }
    }
    // And the leader is lost altogether, for longer than an election takes.
    let leader = net.leader(P1, None).await;
    net.isolate(leader, true);
    net.leader(P1, Some(leader)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    net.isolate(leader, false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = 0;
    for task in counting {
        acknowledged += task.await.unwrap();
    }
    assert!(acknowledged > 500, "{acknowledged} calls");
    assert_eq!(number(net.group(1, P1), "n").await, acknowledged);
    let slowest = slowest.load(Ordering::SeqCst);
    assert!(slowest < 10_000, "the slowest call took {slowest} ms");
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn minority_refuses_writes_and_reads() {
    let net = Net::start(false, |_| {}).await;
    propose(net.group(1, P1), "add n 1").await;
    for id in [2, 3] {
        net.isolate(id, true);
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    for id in 1..=3 {
        let begun = Instant::now();
        let write = net.group(id, P1).propose(Bytes::from_static(b"add n 1")).await;
        assert!(matches!(write, Err(Error::NotLeader { .. } | Error::Unavailable(_))), "{write:?}");
        let read = net.group(id, P1).read(|_| ()).await;
        assert!(matches!(read, Err(Error::NotLeader { .. } | Error::Unavailable(_))), "{read:?}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    }
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waits_behind_an_entry_without_a_quorum_hears_that_nothing_was_done() {
    let net = Net::start(false, |_| {}).await;
    let leader = net.leader(P1, None).await;
    propose(net.group(leader, P1), "add n 1").await;
    for id in (1..=3).filter(|id| *id != leader) {
        net.isolate(id, true);
    }
    // While the lease holds the leader takes it in; nobody will ever know what becomes of it here.
    let group = net.group(leader, P1).clone();
    let stuck = tokio::spawn(async move { group.propose(Bytes::from_static(b"add n 1")).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..2 {
        let refused = net.group(leader, P1).propose(Bytes::from_static(b"add n 100")).await;
        assert!(matches!(refused, Err(Error::NotLeader { .. })), "{refused:?}");
    }
    for id in (1..=3).filter(|id| *id != leader) {
        net.isolate(id, false);
    }
    let _ = stuck.await.unwrap();
    assert!(number(net.group(leader, P1), "n").await <= 2, "a command that was refused was done");
    net.stop().await;
}
