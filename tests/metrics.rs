//! Metrics of the real binary: each of them moves when what it counts happens, and none is described for
//! nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

#[path = "metrics/board.rs"]
mod board;
#[path = "metrics/logs.rs"]
mod logs;
mod support;
#[path = "metrics/traces.rs"]
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use durahub::telemetry::metrics::{Kind, METRICS};
use durahub_proto::own::task_hub_service_client::TaskHubServiceClient;
use durahub_proto::{own, wire};
use support::actions::{complete, create_timer, fail, failure, schedule_task};
use support::server::ServerOptions;
use support::{TestServer, Worker, WorkerOptions};

/// Value by series, as `name{label="value",...}`; histograms as their `_count` and `_sum`.
struct Scrape {
    text: String,
    values: BTreeMap<String, f64>,
}

async fn scrape(server: &TestServer) -> Scrape {
    let (status, text) = server.http_get("/metrics").await.unwrap();
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let values = lines.map(|line| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    });
    Scrape { values: values.collect(), text }
}

impl Scrape {
    fn get(&self, series: &str) -> f64 {
        self.values.get(series).copied().unwrap_or_default()
    }

    /// The names that a kind of comment line is about.
    fn named(&self, comment: &str) -> BTreeSet<&str> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix(comment));
        lines.filter_map(|line| line.split(' ').next()).collect()
    }
}

/// One hub, one worker, and everything that can happen to an item, once each.
#[tokio::test]
async fn each_metric_moves_when_what_it_counts_happens() {
    let server = TestServer::start_with(ServerOptions {
        args: ["--orchestrator-lease", "3s"].map(String::from).into(),
        task_hubs: vec!["default".into(), "orders".into()],
        ..Default::default()
    })
    .await;
    let client = server.client_in("orders");

    // An item without a worker waits, and its age grows.
    client.start("m1", "Greet", "").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let waiting = scrape(&server).await;
    assert_eq!(waiting.get(r#"durahub_ready_items{hub="orders",kind="turn"}"#), 1.0);
    assert!(waiting.get(r#"durahub_oldest_ready_item_seconds{hub="orders",kind="turn"}"#) >= 0.05);
    assert_eq!(waiting.get(r#"durahub_worker_streams{hub="orders"}"#), 0.0);
    assert_eq!(waiting.get("durahub_partitions_led"), 8.0);

    // With a worker it is leased. Let the lease end: it comes back, and the late answer changes nothing.
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    let late = worker.next_turn().await;
    let leased = scrape(&server).await;
    assert_eq!(leased.get(r#"durahub_ready_items{hub="orders",kind="turn"}"#), 0.0);
    assert_eq!(leased.get(r#"durahub_oldest_ready_item_seconds{hub="orders",kind="turn"}"#), 0.0);
    assert_eq!(leased.get(r#"durahub_leases{hub="orders",kind="turn"}"#), 1.0);
    assert_eq!(leased.get(r#"durahub_worker_streams{hub="orders"}"#), 1.0);
    let turn = worker.next_turn().await;
    worker.complete_turn(&late, vec![complete(1, "too late")]).await;

    // A turn that schedules an activity and a timer; the activity is abandoned once.
    let actions = vec![schedule_task(1, "Hello", ""), create_timer(2, Duration::from_millis(10))];
    worker.complete_turn(&turn, actions).await;
    let turn = worker.next_turn().await;
    assert!(turn.history.compact().contains("TimerFired"));
    worker.complete_turn(&turn, Vec::new()).await;
    let activity = worker.next_activity().await;
    worker.abandon_activity(&activity).await;
    let activity = worker.next_activity().await;
    worker.complete_activity(&activity, "hi").await;
    let turn = worker.next_turn().await;
    worker.complete_turn(&turn, vec![complete(3, "ok")]).await;
    assert_eq!(client.output("m1").await, "ok");

    // Instances that end in the other ways, and a call that is refused.
    let tomorrow = std::time::SystemTime::now() + Duration::from_secs(86_400);
    let scheduled = wire::CreateInstanceRequest {
        instance_id: "m2".into(),
        name: "Greet".into(),
        scheduled_start_timestamp: Some(tomorrow.into()),
        ..Default::default()
    };
    client.start_with(scheduled).await;
    client.terminate("m2", "enough").await;
    client.start("m3", "Greet", "").await;
    let turn = worker.next_turn_of("m3").await;
    worker.complete_turn(&turn, vec![fail(1, failure("Oops", "no"))]).await;
    client.wait("m3").await;
    let nobody = durahub_proto::wire::SuspendRequest { instance_id: "nobody".into(), reason: None };
    client.rpc().suspend_instance(nobody).await.unwrap_err();

    // Three of m1, one of m3; m2 never ran.
    let turns = 4.0;
    let end = scrape(&server).await;
    let mut expected = vec![
        (r#"durahub_requests_total{rpc="StartInstance",code="OK"}"#, 3.0),
        (r#"durahub_requests_total{rpc="GetWorkItems",code="OK"}"#, 1.0),
        (r#"durahub_requests_total{rpc="SuspendInstance",code="NOT_FOUND"}"#, 1.0),
        (r#"durahub_request_duration_seconds_count{rpc="StartInstance"}"#, 3.0),
        (r#"durahub_request_duration_seconds_count{rpc="GetWorkItems"}"#, 0.0),
        (r#"durahub_instances_started_total{hub="orders"}"#, 3.0),
        (r#"durahub_instances_started_total{hub="default"}"#, 0.0),
        (
            r#"durahub_work_items_returned_total{hub="orders",kind="turn",reason="lease_ended"}"#,
            1.0,
        ),
        (
            r#"durahub_work_items_returned_total{hub="orders",kind="activity",reason="abandoned"}"#,
            1.0,
        ),
        (r#"durahub_answers_ignored_total{hub="orders",kind="turn"}"#, 1.0),
        (r#"durahub_actions_total{hub="orders",kind="turn"}"#, turns),
        (r#"durahub_actions_total{hub="orders",kind="activity"}"#, 1.0),
        // The lease that ended and the abandoned one were handed out twice.
        (r#"durahub_work_items_sent_total{hub="orders",kind="turn"}"#, turns + 1.0),
        (r#"durahub_work_items_sent_total{hub="orders",kind="activity"}"#, 2.0),
        (r#"durahub_work_item_wait_seconds_count{hub="orders",kind="turn"}"#, turns + 1.0),
        (r#"durahub_work_item_wait_seconds_count{hub="orders",kind="activity"}"#, 2.0),
        (r#"durahub_leases{hub="orders",kind="turn"}"#, 0.0),
        ("durahub_timer_lag_seconds_count", 1.0),
        ("durahub_ready", 1.0),
        (concat!("durahub_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}"), 1.0),
    ];
    for status in ["completed", "terminated", "failed"] {
        let finished =
            format!(r#"durahub_instances_finished_total{{hub="orders",status="{status}"}}"#);
        let timed =
            format!(r#"durahub_instance_duration_seconds_count{{hub="orders",status="{status}"}}"#);
        expected.extend([(&*finished.leak(), 1.0), (&*timed.leak(), 1.0)]);
    }
    for (series, value) in expected {
        assert_eq!(end.get(series), value, "{series}");
    }
    // The node has room, and says how much.
    for source in ["disk", "memory"] {
        assert_eq!(end.values[&format!(r#"durahub_pressure{{source="{source}"}}"#)], 0.0);
    }
    assert!(end.get("durahub_disk_free_bytes") > 0.0);
    let (used, budget) = ("durahub_memory_used_bytes", "durahub_memory_budget_bytes");
    assert!(0.0 < end.get(used) && end.get(used) < end.get(budget), "{}", end.get(used));
    // It waited 50 ms for a worker at least, and ran for three seconds because of the lease.
    assert!(end.get(r#"durahub_work_item_wait_seconds_sum{hub="orders",kind="turn"}"#) >= 0.05);
    let ran = r#"durahub_instance_duration_seconds_sum{hub="orders",status="completed"}"#;
    assert!((3.0..30.0).contains(&end.get(ran)), "{}", end.get(ran));
    assert!(end.get(r#"durahub_request_duration_seconds_sum{rpc="StartInstance"}"#) > 0.0);

    drop(worker);
    let until = tokio::time::Instant::now() + support::client::PATIENCE;
    while scrape(&server).await.get(r#"durahub_worker_streams{hub="orders"}"#) > 0.0 {
        assert!(tokio::time::Instant::now() < until, "the worker's stream is still counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    all_are_there(&end);

    // All three have ended, and go once retention says so.
    let times = Some(own::KeepFor { milliseconds: Some(1_000) });
    let request = own::SetRetentionRequest { completed: times, failed: times, terminated: times };
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("taskhub", "orders".parse().unwrap());
    let address = format!("http://{}", server.addresses.grpc);
    let mut rpc = TaskHubServiceClient::connect(address).await.unwrap();
    rpc.set_retention(request).await.unwrap();
    while scrape(&server).await.get(r#"durahub_instances_removed_total{hub="orders"}"#) < 3.0 {
        assert!(tokio::time::Instant::now() < until, "nothing is removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Everything described is there, everything there is described, with its kind and its labels.
fn all_are_there(scrape: &Scrape) {
    let cluster = include_str!("../cluster/src/metrics.rs");
    let cluster = cluster.split('"').filter(|text| text.starts_with("durahub_"));
    let named: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).chain(cluster).collect();
    assert!(named.len() > METRICS.len() + 5, "the names of the cluster package are found");
    for comment in ["# TYPE ", "# HELP "] {
        let there = scrape.named(comment);
        let difference: Vec<_> = there.symmetric_difference(&named).collect();
        assert!(difference.is_empty(), "{comment} has too much, or lacks: {difference:?}");
    }

    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let line = format!("# TYPE {} {kind}", metric.name);
        assert!(scrape.text.lines().any(|text| text == line), "{line}");
        let suffix = if metric.kind == Kind::Histogram { "_count" } else { "" };
        let name = format!("{}{suffix}", metric.name);
        let series = scrape.values.keys().filter(|series| series.split('{').next() == Some(&name));
        for series in series {
            let labels = series.split_once('{').map_or("", |(_, labels)| labels);
            let labels = labels.split(',').filter_map(|label| label.split_once('='));
            assert_eq!(
                labels.map(|(label, _)| label).collect::<Vec<_>>(),
                metric.labels,
                "{series}"
            );
        }
    }
}

/// A hub that took the name of a deleted one has the series to itself.
#[tokio::test]
async fn deleted_hubs_leave_their_series_to_the_next_of_their_name() {
    let server = TestServer::start().await;
    let client = server.client_in("default");
    for round in 0..20 {
        client.start(&format!("old{round}"), "Greet", "").await;
        let request = wire::CreateTaskHubRequest { recreate_if_exists: true };
        client.rpc().create_task_hub(request).await.unwrap();
    }
    // More than each of the old ones has: those go in the background, one by one.
    for new in ["new1", "new2", "new3"] {
        client.start(new, "Greet", "").await;
    }
    let ready = r#"durahub_ready_items{hub="default",kind="turn"}"#;
    for _ in 0..1_000 {
        if scrape(&server).await.get(ready) == 3.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(scrape(&server).await.get(ready), 3.0);
    assert_eq!(scrape(&server).await.get(r#"durahub_ready_items{hub="(other)",kind="turn"}"#), 0.0);
}

/// Whatever clients invent, the number of series stays: names of instances, orchestrations, tags, entities, task hubs
/// and calls.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_clients_choose_make_no_series() {
    let server = TestServer::start_with_args(&["--cache-mb=16"]).await;
    let client = server.client();
    let one = async |name: u32| {
        let (id, hub) = (format!("i{name}"), format!("h{name}"));
        let create = wire::CreateInstanceRequest {
            instance_id: id.clone(),
            name: format!("N{name}"),
            tags: std::iter::once((format!("t{name}"), format!("v{name}"))).collect(),
            ..Default::default()
        };
        client.start_with(create).await;
        client.terminate(&id, "").await;
        if name.is_multiple_of(10) {
            let signal = wire::SignalEntityRequest {
                instance_id: format!("@e{name}@k{name}"),
                name: format!("o{name}"),
                request_id: format!("00000000-0000-4000-8000-{name:012}"),
                ..Default::default()
            };
            client.rpc().signal_entity(signal).await.unwrap();
            let elsewhere = server.client_in(&hub).rpc();
            let nowhere = { elsewhere }.get_instance(wire::GetInstanceRequest::default()).await;
            assert_eq!(nowhere.unwrap_err().code(), tonic::Code::NotFound);
        }
    };
    one(0).await;
    let before = scrape(&server).await;
    for names in (1..=10_000).collect::<Vec<u32>>().chunks(100) {
        futures::future::join_all(names.iter().map(|name| one(*name))).await;
    }
    let after = scrape(&server).await;
    assert_eq!(before.values.keys().collect::<Vec<_>>(), after.values.keys().collect::<Vec<_>>());
    for name in ["i50", "N50", "t50", "v50", "e50", "k50", "o50", "h50"] {
        assert!(!after.text.contains(name), "{name}");
    }
    let started = r#"durahub_instances_started_total{hub="default"}"#;
    assert!(after.get(started) - before.get(started) >= 10_000.0);
}

/// Entities are work like any other: what waits, how long, and what a worker has.
#[tokio::test]
async fn entities_that_wait_and_that_run_are_counted() {
    let server = TestServer::start().await;
    let client = server.client_in("default");
    let signal = wire::SignalEntityRequest {
        instance_id: "@counter@1".into(),
        name: "add".into(),
        request_id: "00000000-0000-4000-8000-000000000001".into(),
        ..Default::default()
    };
    client.rpc().signal_entity(signal).await.unwrap();
    let ready = r#"durahub_ready_items{hub="default",kind="entity"}"#;
    let until = tokio::time::Instant::now() + support::client::PATIENCE;
    while scrape(&server).await.get(ready) != 1.0 {
        assert!(tokio::time::Instant::now() < until, "the entity is not counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waiting = scrape(&server).await;
    assert!(waiting.get(r#"durahub_oldest_ready_item_seconds{hub="default",kind="entity"}"#) > 0.0);
    let mut worker = Worker::connect(&client, WorkerOptions::default()).await;
    worker.next_entity().await;
    let running = scrape(&server).await;
    assert_eq!(running.get(ready), 0.0);
    assert_eq!(running.get(r#"durahub_leases{hub="default",kind="entity"}"#), 1.0);
}
