//! One node alone: proposals, reads, restarts, batches, large rows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::{config, folder, number, propose, rows, stamps, start};
use bytes::Bytes;
use durahub_cluster::{Error, GroupId, Leadership, Node, NodeConfig, StartError, Storage};
use futures::future::join_all;

const P1: GroupId = GroupId(1);

#[tokio::test(flavor = "multi_thread")]
async fn proposals_are_applied_and_read_back() {
    let (node, machine) = start(Storage::Memory, 2).await;
    let group = node.group(P1);
    assert_eq!(propose(group, "add a 2").await, "2");
    assert_eq!(propose(group, "add a 3").await, "5");
    assert_eq!(number(group, "a").await, 5);
    assert_eq!(number(node.group(GroupId(2)), "a").await, 0);
    assert_eq!(machine.effects.lock().unwrap()[&1], ["add => 2", "add => 5"]);
    assert!(matches!(*group.leadership().borrow(), Leadership::Leader { term } if term > 0));
    assert_eq!(node.directory().leader(P1), Some(1));
    assert_eq!((node.partitions(), group.id()), (2, P1));
    node.stop().await;
    assert_eq!(group.propose(Bytes::from_static(b"add a 1")).await, Err(Error::Stopping));
    assert!(group.read(|_| ()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_keeps_state_and_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut identity = None;
    for round in 1..=4 {
        let (node, _) = start(folder(dir.path()), 3).await;
        assert_eq!(identity.get_or_insert_with(|| node.identity().clone()), node.identity());
        for id in 0..=3 {
            let group = node.group(GroupId(id));
            // Everything committed before is there as soon as the node is.
            assert_eq!(rows(group).len(), usize::from(round > 1), "group {id} in round {round}");
            assert_eq!(propose(group, "add n 1").await, round.to_string());
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_of_many_groups_is_quick() {
    let dir = tempfile::tempdir().unwrap();
    let mut times = Vec::new();
    for _ in 0..6 {
        let started = Instant::now();
        let (node, _) = start(folder(dir.path()), 8).await;
        times.push(started.elapsed());
        join_all((0..=8).map(|id| propose(node.group(GroupId(id)), "add n 1"))).await;
        node.stop().await;
    }
    times.remove(0);
    times.sort();
    println!("restarts of 9 groups: {times:?}");
    // A generous limit: well below an election timeout, which is what waiting for one would cost.
    assert!(times[times.len() / 2] < Duration::from_millis(1200), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_proposals_share_entries() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(folder(dir.path()), 1).await;
    let group = node.group(P1);
    let before = group.progress().last_index.unwrap();
    let replies = join_all((0..2000).map(|_| propose(group, "add n 1"))).await;
    let entries = group.progress().last_index.unwrap() - before;
    assert!(entries < 400, "{entries} entries for 2000 commands");
    // Each command saw the changes of the ones before it, in the same entry too.
    let distinct: BTreeSet<u64> = replies.iter().map(|reply| reply.parse().unwrap()).collect();
    assert_eq!((distinct.len(), distinct.last()), (2000, Some(&2000)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_see_earlier_commands_of_their_batch() {
    let (node, _) = start(Storage::Memory, 1).await;
    let group = node.group(P1).clone();
    let commands = (0..100).flat_map(|n| {
        [format!("add k{n} 1"), "count".to_owned(), format!("del k{n}"), "count".to_owned()]
    });
    let commands: Vec<String> = commands.collect();
    let mut replies = Vec::new();
    // Up to 30 futures are polled, and so proposed, in order.
    for together in commands.chunks(20) {
        replies.extend(join_all(together.iter().map(|command| propose(&group, command))).await);
    }
    for (command, reply) in commands.iter().zip(&replies).skip(1).step_by(4) {
        assert_eq!((command.as_str(), reply.as_str()), ("count", "1"));
    }
    assert!(replies.iter().skip(3).step_by(4).all(|reply| reply == "0"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_and_commands_survive() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(folder(dir.path()), 1).await;
    propose(node.group(P1), "put big 3000000").await;
    propose(node.group(P1), "put gone 500000").await;
    propose(node.group(P1), "del gone").await;
    let long = format!("add {} 1 {}", "k".repeat(200), "p".repeat(2_000_000));
    assert_eq!(propose(node.group(P1), &long).await, "1");
    let error = node.group(P1).propose(Bytes::from(vec![b'x'; 9 << 20])).await.unwrap_err();
    assert!(
        matches!(error, Error::TooLarge { bytes, limit } if bytes == 9 << 20 && limit == 8 << 20)
    );
    node.stop().await;
    assert_eq!(
        std::fs::read_dir(dir.path().join("data/sled/1/blobs")).unwrap().count(),
        0,
        "sled wrote blob files"
    );

    let (node, _) = start(folder(dir.path()), 1).await;
    let found = rows(node.group(P1));
    assert_eq!(found["big"].len(), 3_000_000);
    assert_eq!(found.len(), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_never_runs_backwards_and_stamps_differ() {
    let dir = tempfile::tempdir().unwrap();
    let (stamp, clock) = stamps();
    let mut last = (0, 0);
    let mut seeds = BTreeSet::new();
    for now in [5_000, 3_000, 9_000, 1_000] {
        clock.store(now, Ordering::Relaxed);
        let config = NodeConfig {
            cache_bytes: 16 << 20,
            ..NodeConfig::new(1, folder(dir.path()), 1, Arc::clone(&stamp))
        };
        let node =
            Node::start(config, Arc::new(crate::support::Counters::default())).await.unwrap();
        let stamps = join_all((0..50).map(|_| propose(node.group(P1), "stamp"))).await;
        for text in stamps {
            let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().unwrap()).collect();
            assert!(numbers[0] >= last.0 && numbers[2] > last.1, "{numbers:?} after {last:?}");
            assert!(numbers[0] >= now as u64);
            assert!(seeds.insert(numbers[1]), "seed drawn twice");
            last = (numbers[0], numbers[2]);
        }
        node.stop().await;
    }
    assert_eq!(last.0, 9_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn compaction_purges_the_log_and_restart_still_works() {
    let dir = tempfile::tempdir().unwrap();
    let configure = || {
        let mut config = config(folder(dir.path()), 1);
        config.options.snapshot_every = 300;
        config.options.keep_entries = 50;
        config
    };
    let node =
        Node::start(configure(), Arc::new(crate::support::Counters::default())).await.unwrap();
    let group = node.group(P1);
    for _ in 0..2000 {
        propose(group, "add n 1").await;
    }
    let mut purged = 0;
    for _ in 0..100 {
        purged = group.progress().purged_index.unwrap_or(0);
        if purged > 1000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(purged > 1000, "purged up to {purged}");
    node.stop().await;
    let node =
        Node::start(configure(), Arc::new(crate::support::Counters::default())).await.unwrap();
    assert_eq!(number(node.group(P1), "n").await, 2000);
    assert_eq!(propose(node.group(P1), "add n 1").await, "2001");
    node.stop().await;
}

/// Clients repeat what was answered with `Stopping`: it must never have been committed (R1.32).
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_denies_nothing_that_it_commits() {
    let dir = tempfile::tempdir().unwrap();
    let mut denied = BTreeSet::new();
    for round in 0..20 {
        let (node, _) = start(folder(dir.path()), 1).await;
        let group = node.group(P1).clone();
        let proposals = join_all((0..400).map(|number| {
            let (group, key) = (group.clone(), format!("{round}-{number}"));
            async move {
                if number >= 100 {
                    tokio::time::sleep(Duration::from_micros(20 * number)).await;
                }
                let answer = group.propose(format!("add {key} 1").into()).await;
                (key, answer)
            }
        }));
        let stop = async {
            tokio::time::sleep(Duration::from_micros(300 * round)).await;
            node.stop().await;
        };
        let (answers, ()) = tokio::join!(proposals, stop);
        denied.extend(
            answers
                .into_iter()
                .filter_map(|(key, answer)| (answer == Err(Error::Stopping)).then_some(key)),
        );
    }
    assert!(!denied.is_empty(), "no proposal came too late");
    let (node, _) = start(folder(dir.path()), 1).await;
    let stored: BTreeSet<String> = rows(node.group(P1)).into_keys().collect();
    let both: Vec<_> = stored.intersection(&denied).collect();
    assert!(both.is_empty(), "denied and yet committed: {both:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn folder_in_use_or_of_other_shape_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (node, _) = start(folder(dir.path()), 2).await;
    let path = dir.path();
    let attempt = |partitions| async move {
        let machine = Arc::new(crate::support::Counters::default());
        Node::start(config(folder(path), partitions), machine).await.err().unwrap()
    };
    assert!(matches!(attempt(2).await, StartError::InUse { .. }));
    node.stop().await;
    assert!(matches!(attempt(3).await, StartError::OtherPartitions { found: 2, wanted: 3, .. }));
    assert!(matches!(attempt(0).await, StartError::Setting { name: "partitions", .. }));
}
