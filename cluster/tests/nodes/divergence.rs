//! A replica whose machine goes another way is found, stopped, and stays stopped.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::net::Net;
use crate::support::{number, propose, rows};
use durahub_cluster::GroupId;

const P1: GroupId = GroupId(1);

async fn quarantined(broken_leads: bool) {
    let mut net = Net::start(true, |config| {
        config.options.compare_every = Duration::from_millis(300);
    })
    .await;
    let leader = net.leader(P1, None).await;
    let broken = if broken_leads { leader } else { leader % 3 + 1 };
    let sound = (1..=3).find(|id| *id != broken).unwrap();
    // Hashing begins at the first look; only what comes later can be compared.
    for _ in 0..20 {
        propose(net.group(sound, P1), "add n 1").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    net.nodes[&broken].machine.broken.store(true, Ordering::SeqCst);
    let mut found = false;
    let mut count = 20;
    for _ in 0..200 {
        propose(net.group(sound, P1), "add n 1").await;
        count += 1;
        let status = net.nodes[&sound].node.admin().status().await.unwrap();
        let replicas = &status.groups[1].replicas;
        assert!(replicas.iter().all(|replica| !replica.quarantined || replica.node == broken));
        found = replicas.iter().any(|replica| replica.quarantined);
        if found {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(found, "the broken replica was not found");
    // The others go on, and what they say is right; the broken one says nothing any more.
    if broken_leads {
        net.leader(P1, Some(broken)).await;
    }
    propose(net.group(sound, P1), "add m 1").await;
    if !broken_leads {
        assert_eq!(number(net.group(sound, P1), "n").await, count);
    }
    assert!(net.group(broken, P1).read(|_| ()).await.is_err());
    let other = (1..=3).find(|id| *id != broken && *id != sound).unwrap();
    let same = async {
        while rows(net.group(sound, P1)) != rows(net.group(other, P1)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), same).await.unwrap();
    // Its other partitions serve on.
    propose(net.group(broken, GroupId(2)), "add k 1").await;
    net.stop_node(broken).await;
    let error = net.try_start_node(broken, |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("differs from that of most others"), "{error}");
    assert!(error.contains("join again with an empty data folder"), "{error}");
    net.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn follower_that_differs_is_stopped() {
    quarantined(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leader_that_differs_is_stopped_and_replaced() {
    quarantined(true).await;
}
