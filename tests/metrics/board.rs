//! The Grafana board during a load: whatever it shows is there, and moves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::support::actions::{complete, create_timer, schedule_task};
use super::support::client::PATIENCE;
use super::support::server::ServerOptions;
use super::support::{TestServer, Worker, WorkerOptions};
use super::{Scrape, scrape};

/// What stands still on a node that is well and alone, and at what value, all series together.
const STILL: &[(&str, f64)] = &[
    ("durahub_build_info", 1.0),
    ("durahub_ready", 1.0),
    // Of eight partitions and the metadata group.
    ("durahub_partitions_led", 8.0),
    ("durahub_leader_term", 9.0),
    ("durahub_replica_quarantined", 0.0),
    // Disk and memory.
    ("durahub_pressure", 0.0),
];

/// The names of all metrics for which a panel asks.
fn asked_for() -> BTreeSet<String> {
    let board: serde_json::Value =
        serde_json::from_str(include_str!("../../deploy/grafana/durahub.json")).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let words = targets.flat_map(|target| {
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        let text = target["expr"].as_str().unwrap();
        text.split(move |letter| !is_part(letter)).filter(|word| word.starts_with("durahub_"))
    });
    words.map(str::to_owned).collect()
}

/// The sum of all series of each metric.
fn sums(scrape: &Scrape) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (series, value) in &scrape.values {
        let name = series.split_once('{').map_or(series.as_str(), |(name, _)| name);
        *sums.entry(name.to_owned()).or_default() += value;
    }
    sums
}

/// `durahub bench` with a client and a worker of its own.
async fn bench(server: &TestServer, workload: &str, instances: u32) {
    let endpoint = format!("http://{}", server.addresses.grpc);
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_durahub"))
        .args(["bench", workload, "--task-hub", workload, "--endpoint", &endpoint])
        .args(["--instances", &instances.to_string(), "--concurrency", "20"])
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{workload}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What no bench does: a timer, an item that is given up, and an answer that comes twice.
async fn mishaps(server: &TestServer) {
    let client = server.client_in("mishaps");
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    client.start("one", "Try", "").await;
    let turn = worker.next_turn().await;
    let actions = vec![schedule_task(1, "Do", ""), create_timer(2, Duration::from_millis(10))];
    worker.complete_turn(&turn, actions).await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, Vec::new()).await;
    worker.complete_turn(&turn, Vec::new()).await;
    let activity = worker.next_activity().await;
    worker.abandon_activity(&activity).await;
    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, "done").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(3, "done")]).await;
    client.wait("one").await;
}

/// A node serves the bench's workloads, and retention removes what they leave.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_board_shows_moves_during_a_load() {
    let hubs = ["default", "sequence", "fanout", "entities", "mishaps"];
    let server = TestServer::start_with(ServerOptions {
        // Logs that are compacted now and then, and instances that go.
        args: ["--retention-completed=1s", "--snapshot-every=100"].map(String::from).into(),
        task_hubs: hubs.map(String::from).into(),
        ..Default::default()
    })
    .await;
    let load = async {
        tokio::join!(
            bench(&server, "sequence", 600),
            bench(&server, "fanout", 60),
            bench(&server, "entities", 500),
            mishaps(&server)
        );
    };
    let still: BTreeMap<_, _> = STILL.iter().copied().collect();
    let asked_for = asked_for();
    assert!(asked_for.len() > 30 && still.keys().all(|name| asked_for.contains(*name)));
    let mut seen: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut look = async || {
        let sums = sums(&scrape(&server).await);
        for name in &asked_for {
            let values = seen.entry(name.clone()).or_default();
            // One that is not there yet has not moved when it comes with nothing.
            values.insert(sums.get(name).copied().unwrap_or_default().to_string());
        }
        let moves = |(_, values): &(&String, &BTreeSet<String>)| values.len() > 1;
        let moving: BTreeSet<_> = seen.iter().filter(moves).map(|(name, _)| name.clone()).collect();
        asked_for
            .iter()
            .filter(|name| !still.contains_key(name.as_str()) && !moving.contains(*name))
            .cloned()
            .collect::<Vec<_>>()
    };
    tokio::pin!(load);
    // What is looked at now and then, such as the size of the store, may move a little later.
    let mut is_over = false;
    let until = tokio::time::Instant::now() + 4 * PATIENCE;
    loop {
        let rest = look().await;
        if is_over && rest.is_empty() {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "these stand still: {rest:?}");
        tokio::select! {
            () = &mut load, if !is_over => is_over = true,
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
    }
    let there = sums(&scrape(&server).await);
    for (name, values) in &seen {
        assert!(there.contains_key(name), "{name} is not there");
        if let Some(value) = still.get(name.as_str()) {
            assert_eq!(Vec::from_iter(values), [&value.to_string()], "{name}");
        }
    }
}
