//! Three nodes in one process, connected by function calls: replication, failover, catching up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::support::held::{Held, HeldTransport, long};
use crate::support::{Counters, config, number, propose, rows};
use bytes::Bytes;
use durahub_cluster::peers::LocalNetwork;
use durahub_cluster::{GroupId, Leadership, Node, Storage};

const P1: GroupId = GroupId(1);

fn leads(node: &Node<Counters>, group: GroupId) -> bool {
    matches!(*node.group(group).leadership().borrow(), Leadership::Leader { .. })
}

struct Cluster {
    network: Arc<LocalNetwork>,
    held: Arc<Held>,
    dir: Option<tempfile::TempDir>,
    nodes: BTreeMap<u64, Node<Counters>>,
}

impl Cluster {
    async fn start(on_disk: bool) -> Self {
        let dir = on_disk.then(|| tempfile::tempdir().unwrap());
        let (network, held) = (LocalNetwork::new(), Arc::default());
        let mut cluster = Self { network, held, dir, nodes: BTreeMap::new() };
        for id in 1..=3 {
            cluster.start_node(id).await;
        }
        cluster
    }

    async fn start_node(&mut self, id: u64) {
        let storage = self
            .dir
            .as_ref()
            .map_or(Storage::Memory, |dir| Storage::Folder(dir.path().join(id.to_string())));
        let mut config = config(storage, 2);
        config.node_id = id;
        config.options.initial_members = (1..=3).map(|id| (id, format!("node-{id}"))).collect();
        let (inner, held) = (self.network.transport(id), Arc::clone(&self.held));
        config.options.transport = Arc::new(HeldTransport { inner, held });
        config.options.snapshot_every = 200;
        config.options.keep_entries = 10;
        let node = Node::start(config, Arc::new(Counters::default())).await.unwrap();
        self.network.join(id, &node.service());
        self.nodes.insert(id, node);
    }

    /// The leader of a group among the nodes that are not `except`.
    async fn leader(&self, group: GroupId, except: Option<u64>) -> u64 {
        for _ in 0..1000 {
            for (id, node) in &self.nodes {
                if leads(node, group) && Some(*id) != except {
                    return *id;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("group {group} has no leader");
    }

    /// Waits until each node leads one group, so that the controller moves none: the leader of partition 1, and another
    /// node.
    async fn balanced(&self) -> (u64, u64) {
        for _ in 0..1000 {
            let leads_one = |node: &Node<Counters>| {
                [GroupId(0), P1, GroupId(2)].iter().filter(|group| leads(node, **group)).count()
                    == 1
            };
            if self.nodes.values().all(leads_one) {
                let leader = self.leader(P1, None).await;
                return (leader, leader % 3 + 1);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("leaders are not spread");
    }

    /// Waits until all nodes but `except` hold the same rows; returns their number.
    async fn converge(&self, group: GroupId, except: Option<u64>) -> usize {
        let mut found = Vec::new();
        for _ in 0..1000 {
            let nodes = self.nodes.iter().filter(|(id, _)| Some(**id) != except);
            found = nodes.map(|(_, node)| rows(node.group(group))).collect();
            if found.windows(2).all(|pair| pair[0] == pair[1]) && !found[0].is_empty() {
                return found[0].len();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nodes differ: {:?}", found.iter().map(BTreeMap::len).collect::<Vec<_>>());
    }

    async fn stop(self) {
        futures::future::join_all(self.nodes.values().map(Node::stop)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn commands_reach_every_node() {
    let cluster = Cluster::start(false).await;
    for group in [GroupId(0), P1, GroupId(2)] {
        let leader = cluster.leader(group, None).await;
        for n in 0..50 {
            propose(cluster.nodes[&leader].group(group), &format!("add k{n} 1")).await;
        }
        assert_eq!(cluster.converge(group, None).await, 50);
        let follower = cluster.nodes.keys().copied().find(|id| *id != leader).unwrap();
        // A follower hands the command on, and reads what it did.
        assert_eq!(propose(cluster.nodes[&follower].group(group), "add k0 1").await, "2");
        assert_eq!(number(cluster.nodes[&follower].group(group), "k0").await, 2);
    }
    let ids: Vec<_> = cluster.nodes.values().map(|node| node.identity().cluster.clone()).collect();
    assert_eq!(ids[0], ids[1]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_node_takes_over_and_the_old_leader_steps_down() {
    let cluster = Cluster::start(false).await;
    let old = cluster.leader(P1, None).await;
    propose(cluster.nodes[&old].group(P1), "add n 7").await;
    cluster.network.set_cut(old, true);
    let new = cluster.leader(P1, Some(old)).await;
    // The new leader reports itself only after it has applied what the old one committed.
    assert_eq!(rows(cluster.nodes[&new].group(P1)).len(), 1);
    assert_eq!(propose(cluster.nodes[&new].group(P1), "add n 1").await, "8");
    // Whatever the cut-off leader still accepts is never acknowledged.
    let late = cluster.nodes[&old].group(P1).propose(Bytes::from_static(b"add n 100"));
    let late = tokio::time::timeout(Duration::from_secs(5), late).await;
    assert!(!matches!(late, Ok(Ok(_))), "{late:?}");
    cluster.network.set_cut(old, false);
    for _ in 0..1000 {
        if rows(cluster.nodes[&old].group(P1)) == rows(cluster.nodes[&new].group(P1)) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    cluster.converge(P1, None).await;
    let leader = cluster.leader(P1, None).await;
    assert_eq!(number(cluster.nodes[&leader].group(P1), "n").await, 8);
    cluster.stop().await;
}

async fn stopped_follower_catches_up(on_disk: bool) {
    let mut cluster = Cluster::start(on_disk).await;
    let leader = cluster.leader(P1, None).await;
    let follower = cluster.nodes.keys().copied().find(|id| *id != leader).unwrap();
    propose(cluster.nodes[&leader].group(P1), "put large 20000").await;
    propose(cluster.nodes[&leader].group(P1), "put gone 20000").await;
    cluster.converge(P1, None).await;
    if on_disk {
        cluster.nodes.remove(&follower).unwrap().stop().await;
    } else {
        cluster.network.set_cut(follower, true);
    }
    let group = cluster.nodes[&leader].group(P1).clone();
    propose(&group, "del gone").await;
    for n in 0..1500 {
        propose(&group, &format!("add k{n} 1")).await;
    }
    for _ in 0..500 {
        if group.progress().purged_index.is_some_and(|purged| purged > 500) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let purged = group.progress().purged_index.unwrap();
    assert!(purged > 500, "purged up to {purged}");
    if on_disk {
        cluster.start_node(follower).await;
    } else {
        cluster.network.set_cut(follower, false);
    }
    // The entries it lacks are gone, so it must have come by a snapshot.
    assert_eq!(cluster.converge(P1, None).await, 1501);
    propose(&group, "add after 1").await;
    assert_eq!(cluster.converge(P1, None).await, 1502);
    if let Some(dir) = &cluster.dir {
        // Neither side keeps a file: it was made while it was sent, and what was installed lies in the rows.
        for id in 1..=3 {
            let folder = dir.path().join(id.to_string()).join("snap/1");
            let files = std::fs::read_dir(folder).map_or(0, Iterator::count);
            assert_eq!(files, 0, "node {id} keeps snapshot files");
        }
        // What was installed survives a restart.
        cluster.nodes.remove(&follower).unwrap().stop().await;
        cluster.start_node(follower).await;
        assert!(rows(cluster.nodes[&follower].group(P1)).len() >= 1500);
        assert_eq!(cluster.converge(P1, None).await, 1502);
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cut_off_follower_catches_up_by_snapshot_in_memory() {
    stopped_follower_catches_up(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stopped_follower_catches_up_by_snapshot_on_disk() {
    stopped_follower_catches_up(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leadership_moves_on_request() {
    let cluster = Cluster::start(false).await;
    let old = cluster.leader(P1, None).await;
    propose(cluster.nodes[&old].group(P1), "add n 1").await;
    let target = cluster.nodes.keys().copied().find(|id| *id != old).unwrap();
    cluster.converge(P1, None).await;
    cluster.nodes[&old].group(P1).transfer_leader(target).await.unwrap();
    let mut leadership = cluster.nodes[&target].group(P1).leadership();
    let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
    tokio::time::timeout(Duration::from_secs(2), leads).await.unwrap().unwrap();
    assert_eq!(propose(cluster.nodes[&target].group(P1), "add n 1").await, "2");
    cluster.stop().await;
}

/// Whoever lacks an entry ignores a request to take over; it is asked again, and has the entry by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_lacked_an_entry_takes_over_all_the_same() {
    let cluster = Cluster::start(false).await;
    let (leader, next) = cluster.balanced().await;
    let (old, new) = (cluster.nodes[&leader].group(P1), cluster.nodes[&next].group(P1));
    cluster.held.from.send_replace(Some(next));
    cluster.held.elections.store(true, Ordering::SeqCst);
    assert_eq!(propose(old, &long()).await, "1");
    assert_eq!(rows(new).len(), 0);
    old.transfer_leader(next).await.unwrap();
    let mut ignored = cluster.held.from.subscribe();
    let ignored = ignored.wait_for(Option::is_none);
    tokio::time::timeout(Duration::from_secs(10), ignored).await.unwrap().unwrap();
    let mut leadership = new.leadership();
    let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
    tokio::time::timeout(Duration::from_secs(10), leads).await.unwrap().unwrap();
    cluster.held.elections.store(false, Ordering::SeqCst);
    assert_eq!(propose(new, "add n 1").await, "2");
    cluster.stop().await;
}

/// Readers do not wait, one after the other, for a replica that lags.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_wait_once_for_a_replica_that_is_behind() {
    let cluster = Cluster::start(false).await;
    let (leader, other) = cluster.balanced().await;
    let (group, behind) = (cluster.nodes[&leader].group(P1), cluster.nodes[&other].group(P1));
    cluster.held.from.send_replace(Some(other));
    assert_eq!(propose(group, &long()).await, "1");
    let begun = Instant::now();
    for _ in 0..10 {
        assert!(!behind.catch_up().await.unwrap());
        assert_eq!(behind.query(Bytes::from_static(b"n")).await.unwrap(), b"1"[..]);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "ten reads took {took:?}");
    // As soon as it has come along, it is read again.
    cluster.held.from.send_replace(None);
    let current = async { while !behind.catch_up().await.unwrap() {} };
    tokio::time::timeout(Duration::from_secs(10), current).await.unwrap();
    assert_eq!(rows(behind).len(), 1);
    cluster.stop().await;
}
