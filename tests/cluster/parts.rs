//! Five nodes of which three hold each partition: every gateway serves all of them, whatever moves or dies.

use std::time::{Duration, Instant};

use durahub_proto::wire;

use crate::feeds::start;
use crate::load::{Load, one_per_partition};
use crate::nodes::{Cluster, PATIENCE, Shape};
use crate::support::actions::complete;
use crate::support::{Program, WorkerOptions};

const FIVE: Shape = Shape { members: 5, partitions: 5, links: false, snapshot_every: 200 };

/// Calls of all kinds through all gateways, while one node dies and comes back, one leaves, and a third dies while
/// replicas move.
#[tokio::test(flavor = "multi_thread")]
async fn every_gateway_serves_all_partitions_while_they_move() {
    let mut cluster = Cluster::start_as(FIVE).await;
    let mut load = Load::begin(&cluster).await;
    load.progress(40).await;
    // A node that holds a part of them, and comes back to it.
    cluster.kill9(2);
    load.progress(20).await;
    cluster.restart(2).await;
    cluster.balanced(5).await;
    let output = cluster.operate(5, &["remove-node", "1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Somewhere in the middle of it.
    tokio::time::sleep(Duration::from_millis(700)).await;
    cluster.kill9(4);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.restart(4).await;
    cluster.gone(5, 1).await;
    load.remove_node(1);
    cluster.terminate(1).await;
    cluster.balanced(4).await;
    load.progress(20).await;
    load.every_partition_serves(Instant::now()).await;
    // What was given up is gone from the disk, on every node that gave something up.
    let until = Instant::now() + PATIENCE;
    let told = |text: &str| {
        let logs = cluster.running().into_iter().map(|id| cluster.log_text(id));
        logs.map(|log| log.matches(text).count()).sum::<usize>()
    };
    while told("\"nothing is left of a replica that was given up\"")
        < told("\"a replica is given up\"")
    {
        assert!(Instant::now() < until, "something is left");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(told("\"a replica is given up\"") > 0, "replicas moved");
    load.end(&cluster, "five nodes").await;
}

/// Waits through each gateway, for instances of each partition: woken at once, and alive over a change of leader.
#[tokio::test(flavor = "multi_thread")]
async fn waits_at_any_gateway_are_woken() {
    let mut cluster = Cluster::start_as(FIVE).await;
    let mut waits = Vec::new();
    for node in 1..=5 {
        for id in one_per_partition(&cluster, &format!("waited-{node}")) {
            let client = cluster.client(node);
            start(&client, &id, "Waited", "").await;
            waits.push((node, id));
        }
    }
    let waiting: Vec<_> = waits
        .iter()
        .map(|(node, id)| {
            let (client, id) = (cluster.client(*node), id.clone());
            tokio::spawn(async move {
                let request = wire::GetInstanceRequest {
                    instance_id: id.clone(),
                    get_inputs_and_outputs: true,
                };
                let answer = client.rpc().wait_for_instance_completion(request).await;
                (id, Instant::now(), answer)
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Leaders change under them, on a node without a client.
    let leader = cluster.leader(1, 1).expect("a leader");
    let busy = leader;
    cluster.kill9(busy);
    let through = cluster.running()[0];
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(
        waiting.iter().zip(&waits).all(|(wait, (node, _))| *node == busy || !wait.is_finished())
    );
    let program = Program::new().orchestrator("Waited", |_| vec![complete(1, "done")]);
    let _worker = program.run(&cluster.client(through), WorkerOptions::default());
    for (wait, (node, _)) in waiting.into_iter().zip(&waits) {
        let ended =
            tokio::time::timeout(PATIENCE, wait).await.expect("it is woken").expect("no panic");
        if *node == busy {
            continue;
        }
        let (id, _, answer) = ended;
        let state = answer.expect("an answer").into_inner().orchestration_state.expect("a state");
        assert_eq!(state.output, Some("done".into()), "{id}");
    }
    cluster.restart(busy).await;
    cluster.balanced(5).await;
    // The last ones: woken within a moment of the end, wherever they wait.
    for node in 1..=5 {
        let (client, begun) = (cluster.client(node), Instant::now());
        for id in one_per_partition(&cluster, &format!("again-{node}")) {
            start(&client, &id, "Waited", "").await;
            assert_eq!(client.output(&id).await, "done", "{id}");
        }
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "waits of node {node} took {took:?}");
    }
}
