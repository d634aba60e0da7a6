//! Five nodes of which three hold each partition: all of them work with all partitions, and replicas come and go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::net::Net;
use crate::support::{number, propose, rows};
use bytes::Bytes;
use durahub_cluster::{Error, GroupId, Leadership};

const P1: GroupId = GroupId(1);

async fn five() -> Net {
    let mut net = Net::start(true, |config| {
        config.options.snapshot_every = 300;
        config.options.keep_entries = 10;
    })
    .await;
    propose(net.group(1, P1), "put large 200000").await;
    net.join_node(4).await;
    net.join_node(5).await;
    net.balanced().await;
    net
}

/// Starts a node again, which may be one that joined.
async fn again(net: &mut Net, id: u64) {
    if id > 3 { net.join_node(id).await } else { net.start_node(id).await }
}

fn holders(net: &Net, group: GroupId) -> BTreeSet<u64> {
    net.nodes.keys().copied().filter(|id| net.group(*id, group).is_here()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nodes_without_a_partition_propose_and_read_as_those_that_hold_it() {
    let mut net = five().await;
    for group in [P1, GroupId(2)] {
        assert_eq!(holders(&net, group).len(), 3);
        let mut expected = 0;
        for round in 0..40_u64 {
            let (writer, reader) = (round % 5 + 1, round / 5 % 5 + 1);
            expected += 1;
            let reply = propose(net.group(writer, group), "add n 1").await;
            assert_eq!(reply, expected.to_string());
            assert_eq!(number(net.group(reader, group), "n").await, expected);
        }
    }
    let other = (1..=5).find(|id| !net.group(*id, P1).is_here()).unwrap();
    let group = net.group(other, P1);
    assert_eq!(rows(group).len(), 0);
    assert_eq!(group.look(|_| ()), None);
    assert!(matches!(group.read(|_| ()).await, Err(Error::NotLeader { .. })));
    let leader = net.leader(P1, None).await;
    assert_eq!(*group.leadership().borrow(), Leadership::Follower { leader: Some(leader) });
    assert_eq!(net.nodes[&other].node.directory().leader(P1), Some(leader));
    let long = Bytes::from(vec![b'x'; 9 << 20]);
    let refused = group.propose(long).await;
    assert_eq!(refused, Err(Error::TooLarge { bytes: 9 << 20, limit: 8 << 20 }));
    // The leader goes; whoever does not hold the partition finds the next one.
    net.stop_node(leader).await;
    let before = number(net.group(other, P1), "n").await;
    assert_eq!(propose(net.group(other, P1), "add n 1").await, (before + 1).to_string());
    again(&mut net, leader).await;
    net.balanced().await;
    // Each node knows from its folder what it holds.
    for id in 1..=5 {
        let held = [P1, GroupId(2)].map(|group| net.group(id, group).is_here());
        net.stop_node(id).await;
        again(&mut net, id).await;
        for (group, held) in [P1, GroupId(2)].into_iter().zip(held) {
            assert_eq!(net.group(id, group).is_here(), held, "node {id}, partition {group}");
        }
    }
    assert_eq!(number(net.group(other, P1), "n").await, before + 1);
    net.stop().await;
}

/// A replica goes while it is read and written through, and comes back; nothing fails and nothing counts twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_go_on_while_replicas_come_and_go() {
    let mut net = five().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for id in 2..=5 {
        let (group, stop) = (net.group(id, P1).clone(), Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let (mut done, mut seen) = (0_u64, 0);
            while !stop.load(Ordering::SeqCst) {
                group.propose(Bytes::from_static(b"add n 1")).await.unwrap();
                done += 1;
                let now = number(&group, "n").await;
                assert!(now > seen, "{now} after {seen}");
                seen = now;
            }
            done
        }));
    }
    // One node leaves, so what it holds moves; then another one comes.
    let first = holders(&net, P1);
    net.nodes[&3].node.admin().remove_node(1).await.unwrap();
    for _ in 0..400 {
        let status = net.nodes[&3].node.admin().status().await.unwrap();
        if status.nodes.iter().all(|node| node.node != 1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    net.stop_node(1).await;
    net.balanced().await;
    net.join_node(6).await;
    net.balanced().await;
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = 0;
    for task in tasks {
        acknowledged += task.await.unwrap();
    }
    assert!(acknowledged > 100, "{acknowledged} calls; {first:?} held it");
    for id in 2..=6 {
        assert_eq!(number(net.group(id, P1), "n").await, acknowledged);
    }
    net.stop().await;
}
