//! Three nodes over TCP: replication, long entries, cut links, new addresses, snapshots.

use std::time::Duration;

use crate::support::net::Net;
use crate::support::{number, propose, rows};
use bytes::Bytes;
use durahub_cluster::{Error, GroupId};

const P1: GroupId = GroupId(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn long_entry_arrives_and_nobody_loses_the_lead_over_it() {
    let net = Net::start(false, |config| {
        config.options.command_bytes = 64 << 20;
        config.options.entry_bytes = 64 << 20;
    })
    .await;
    let leader = net.leader(P1, None).await;
    propose(net.group(leader, P1), "put warm 10").await;
    let term = net.group(leader, P1).progress().term;
    // The command itself is long; the row it writes is not.
    let mut command = b"add long 1 ".to_vec();
    command.resize(60 << 20, b'x');
    let long = net.group(leader, P1).propose(Bytes::from(command));
    let others = async {
        for n in 0..50 {
            propose(
                net.group(net.leader(GroupId(2), None).await, GroupId(2)),
                &format!("add k{n} 1"),
            )
            .await;
        }
    };
    let (reply, ()) = tokio::join!(long, others);
    assert_eq!(reply.unwrap(), Bytes::from_static(b"1"));
    assert_eq!(net.converge(P1).await, 2);
    assert_eq!(net.converge(GroupId(2)).await, 50);
    assert_eq!(net.group(leader, P1).progress().term, term);
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cut_off_leader_is_replaced_and_takes_no_writes() {
    let net = Net::start(false, |config| {
        config.options.propose_timeout = Duration::from_secs(5);
    })
    .await;
    let old = net.leader(P1, None).await;
    assert_eq!(propose(net.group(old, P1), "add n 7").await, "7");
    net.isolate(old, true);
    let new = net.leader(P1, Some(old)).await;
    assert_eq!(propose(net.group(new, P1), "add n 1").await, "8");
    // Alone, it acknowledges neither writes nor reads.
    let late = net.group(old, P1).propose(Bytes::from_static(b"add n 100")).await;
    assert!(matches!(late, Err(Error::Unavailable(_) | Error::NotLeader { .. })), "{late:?}");
    let stale = net.group(old, P1).read(|_| ()).await;
    assert!(matches!(stale, Err(Error::Unavailable(_) | Error::NotLeader { .. })), "{stale:?}");
    net.isolate(old, false);
    assert_eq!(net.converge(P1).await, 1);
    let leader = net.leader(P1, None).await;
    assert_eq!(number(net.group(leader, P1), "n").await, 8);
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_cut_way_between_followers_disturbs_nobody() {
    let net = Net::start(false, |_| {}).await;
    let leader = net.leader(P1, None).await;
    let term = net.group(leader, P1).progress().term;
    let followers: Vec<u64> = (1..=3).filter(|id| *id != leader).collect();
    net.cut(followers[0], followers[1], true);
    net.cut(followers[1], followers[0], true);
    for n in 0..40 {
        propose(net.group(leader, P1), &format!("add k{n} 1")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(net.converge(P1).await, 40);
    assert_eq!(net.group(leader, P1).progress().term, term);
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn node_that_comes_back_elsewhere_catches_up_by_snapshot() {
    let mut net = Net::start(true, |config| {
        config.options.snapshot_every = 200;
        config.options.keep_entries = 10;
    })
    .await;
    let leader = net.leader(P1, None).await;
    propose(net.group(leader, P1), "put large 300000").await;
    propose(net.group(leader, P1), "put gone 300000").await;
    net.converge(P1).await;
    let follower = (1..=3).find(|id| *id != leader).unwrap();
    net.stop_node(follower).await;
    propose(net.group(leader, P1), "del gone").await;
    for n in 0..1500 {
        propose(net.group(leader, P1), &format!("add k{n} 1")).await;
    }
    for _ in 0..500 {
        if net.group(leader, P1).progress().purged_index.is_some_and(|purged| purged > 500) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(net.group(leader, P1).progress().purged_index.unwrap() > 500);
    net.start_node(follower).await;
    assert_eq!(net.converge(P1).await, 1501);
    propose(net.group(leader, P1), "add after 1").await;
    assert_eq!(net.converge(P1).await, 1502);
    assert!(rows(net.group(follower, P1)).contains_key("after"));
    net.stop().await;
}
