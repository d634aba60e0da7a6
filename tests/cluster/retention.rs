//! Retention while leaders die: all that has stayed long enough goes, and nothing else does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use durahub_cluster::placement;
use durahub_proto::wire;

use crate::nodes::{Cluster, PATIENCE, binary};
use crate::support::actions::complete;
use crate::support::{Client, Program, WorkerOptions};

/// Instances that end and go, and such as stay.
const GO: usize = 1200;
const STAY: usize = 20;
/// Number of the hub `default`, and of partitions.
const HUB: u32 = 1;
const PARTITIONS: u32 = 4;
/// The partition whose leader dies.
const PARTITION: usize = 1;

/// Ends as its name says, or waits for `go`.
fn program() -> Program {
    Program::new().orchestrator("End", |history| match history.input() {
        "wait" if history.raised("go").is_empty() => vec![],
        _ => vec![complete(1, "done")],
    })
}

async fn start(client: &Client, ids: &[String], input: &str) {
    for some in ids.chunks(100) {
        let starts = some.iter().map(|id| client.start(id, "End", input));
        futures::future::join_all(starts).await;
    }
}

/// All ids of the hub, by pages.
async fn all(client: &Client) -> BTreeSet<String> {
    let (mut found, mut token) = (BTreeSet::new(), None);
    loop {
        let query = wire::InstanceQuery {
            max_instance_count: 1000,
            continuation_token: token,
            ..Default::default()
        };
        let request = wire::QueryInstancesRequest { query: Some(query) };
        // Another leader may be looked for at this moment.
        let Ok(page) = client.rpc().query_instances(request).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            (found, token) = (BTreeSet::new(), None);
            continue;
        };
        let page = page.into_inner();
        found.extend(page.orchestration_state.into_iter().map(|state| state.instance_id));
        token = page.continuation_token;
        if token.is_none() {
            return found;
        }
    }
}

async fn removed(cluster: &Cluster, node: u64) -> u64 {
    let text = cluster.metrics(node).await;
    let series = "durahub_instances_removed_total{hub=\"default\"} ";
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0, |value| value.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_dies_in_a_pass_leaves_the_rest_to_the_next() {
    let mut cluster = Cluster::start().await;
    let victim = cluster.leader(1, PARTITION).expect("a leader");
    let other = cluster.running().into_iter().find(|id| *id != victim).expect("another node");
    let client = cluster.client(other);
    let ids = |what: &str, count| (0..count).map(|n| format!("{what}-{n}")).collect::<Vec<_>>();
    let (go, stay) = (ids("go", GO), ids("stay", STAY));
    {
        let options = WorkerOptions { orchestrations: 200, ..Default::default() };
        let _worker = program().run(&client, options);
        start(&client, &stay, "wait").await;
        start(&client, &go, "now").await;
        for some in go.chunks(100) {
            futures::future::join_all(some.iter().map(|id| client.wait(id))).await;
        }
        futures::future::join_all(stay.iter().map(|id| client.wait_started(id))).await;
    }
    let histories: Vec<_> =
        futures::future::join_all(stay.iter().map(|id| client.history(id))).await;
    let its = |id: &String| placement::partition_of(HUB, id, PARTITIONS).0 as usize == PARTITION;
    let of_partition = go.iter().filter(|id| its(id)).count() as u64;
    assert!(of_partition > 200, "{of_partition}");

    let endpoint = format!("http://{}", cluster.node(other).grpc);
    let mut command = tokio::process::Command::new(binary());
    command.args(["hub", "--endpoint", &endpoint, "retention", "default", "--completed", "1s"]);
    let output = command.output().await.expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What the victim has removed so far is of the partitions that it leads, this one first.
    let until = Instant::now() + PATIENCE;
    while removed(&cluster, victim).await == 0 {
        assert!(Instant::now() < until, "nothing goes");
    }
    cluster.kill9(victim);

    let expected: BTreeSet<_> = stay.iter().cloned().collect();
    let until = Instant::now() + PATIENCE;
    loop {
        let found = all(&client).await;
        assert!(found.is_superset(&expected), "what should stay is gone: {found:?}");
        if found == expected {
            break;
        }
        assert!(Instant::now() < until, "{} are left", found.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The pass was not over: the next leader tells what it took, of which partition.
    let told = format!("\"partitions\":\"{PARTITION}: ");
    let others: Vec<_> = cluster.running();
    let until = Instant::now() + PATIENCE;
    while !others.iter().any(|id| {
        let log = cluster.log_text(*id);
        log.lines().any(|line| line.contains("removed by retention") && line.contains(&told))
    }) {
        assert!(Instant::now() < until, "no line of the log tells of partition {PARTITION}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // With the victim back, all nodes tell the same, and what stayed is whole.
    cluster.restart(victim).await;
    cluster.balanced(3).await;
    for id in 1..=3 {
        let client = cluster.client(id);
        assert_eq!(all(&client).await, expected, "through node {id}");
        for (id, history) in stay.iter().zip(&histories) {
            assert_eq!(&client.history(id).await, history, "{id}");
        }
    }
    let _worker = program().run(&client, WorkerOptions::default());
    for id in &stay {
        client.raise(id, "go", "").await;
        assert_eq!(client.output(id).await, "done", "{id}");
    }
    assert!(cluster.complaints().is_empty(), "{:#?}", cluster.complaints());
}
