//! Nodes that die, stand still, or are too few.

use std::time::{Duration, Instant};

use durahub_proto::wire;
use tonic::Code;

use crate::load::{Load, one_per_partition};
use crate::nodes::{Cluster, PATIENCE};
use crate::{measures, setting};

/// How long a killed node stays away: longer than it takes to replace a leader.
const AWAY: Duration = Duration::from_millis(2500);
/// Within this time a partition that lost its leader serves again (L2).
const SERVES_AGAIN: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr)]
async fn kill_9_of_any_node_and_of_leaders_loses_nothing() {
    let mut cluster = Cluster::start().await;
    let load = Load::begin(&cluster).await;
    let partitions = cluster.shape.partitions as usize;
    let mut silences = Vec::new();
    for n in 0..setting("DURAHUB_CLUSTER_KILLS", 4) as usize {
        // In turn each node, and the leader of each group, the metadata group included.
        let node = n as u64 % 3 + 1;
        let leader = cluster.leader(node, n / 2 % (partitions + 1));
        let victim = if n % 2 == 0 { node } else { leader.unwrap_or(node) };
        let led: Vec<_> =
            (1..=partitions).filter(|it| cluster.leader(node, *it) == Some(victim)).collect();
        let killed = Instant::now();
        cluster.kill9(victim);
        tokio::time::sleep(AWAY).await;
        load.every_partition_serves(Instant::now()).await;
        silences.extend(led.iter().map(|partition| load.silence(*partition, killed)));
        cluster.restart(victim).await;
        load.progress(20).await;
    }
    silences.sort_unstable();
    let figures = load.end(&cluster, "kill -9").await;
    eprintln!("kill -9: partitions that lost their leader served again after {silences:?}");
    assert!(!silences.is_empty(), "no kill hit a leader");
    assert!(figures.ended > 50, "only {} orchestrations ended", figures.ended);
    if measures() {
        assert!(silences.iter().all(|silence| *silence <= SERVES_AGAIN), "{silences:?}");
        assert!(figures.delayed * 100 <= figures.ended, "{} were delayed", figures.delayed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_leader_is_replaced_and_comes_back_as_a_follower() {
    let cluster = Cluster::start().await;
    let load = Load::begin(&cluster).await;
    // Shorter than an election takes, and longer.
    for (pause, replaced) in [(500, false), (4_000, true)] {
        let leader = cluster.leader(1, 1).unwrap();
        let other = leader % 3 + 1;
        cluster.signal(leader, "STOP");
        let begun = Instant::now();
        while replaced && cluster.leader(other, 1).is_none_or(|next| next == leader) {
            assert!(begun.elapsed() < PATIENCE, "nobody replaces the paused leader");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(pause).saturating_sub(begun.elapsed())).await;
        cluster.signal(leader, "CONT");
        load.every_partition_serves(Instant::now()).await;
        load.progress(20).await;
    }
    cluster.balanced(3).await;
    load.end(&cluster, "SIGSTOP").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn minority_refuses_with_unavailable_and_serves_again_with_a_majority() {
    let mut cluster = Cluster::start().await;
    cluster.client(1).start("before", "Greet", "before").await;
    cluster.kill9(2);
    cluster.kill9(3);
    let start = |id: &str| wire::CreateInstanceRequest {
        instance_id: id.into(),
        name: "Greet".into(),
        ..Default::default()
    };
    let get = |id: &str| wire::GetInstanceRequest {
        instance_id: id.into(),
        get_inputs_and_outputs: false,
    };
    // Until the leaders here have noticed, the outcome of a write may be unknown.
    let begun = Instant::now();
    let noticed = one_per_partition(&cluster, "early").into_iter().map(async |id| {
        let client = cluster.client(1);
        loop {
            match client.rpc().start_instance(start(&id)).await.map_err(|status| status.code()) {
                Err(Code::Unavailable) => break,
                Err(Code::Unknown) => assert!(begun.elapsed() < PATIENCE, "it never notices"),
                other => panic!("a node without a majority answers {other:?}"),
            }
        }
    });
    futures::future::join_all(noticed).await;
    for n in 0..3 {
        let refused = cluster.client(1).rpc().start_instance(start(&format!("never-{n}"))).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
        let refused = cluster.client(1).rpc().get_instance(get("before")).await;
        assert_eq!(refused.unwrap_err().code(), Code::Unavailable);
    }
    cluster.restart(2).await;
    let load = Load::begin(&cluster).await;
    load.progress(20).await;
    assert!(cluster.client(2).get("before").await.is_some(), "acknowledged, and gone");
    for n in 0..3 {
        let gone = cluster.client(1).get(&format!("never-{n}")).await;
        assert!(gone.is_none(), "a call that was refused as UNAVAILABLE was done");
    }
    load.end(&cluster, "minority").await;
}
