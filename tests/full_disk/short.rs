//! A disk that runs short, with the real process on a small file system of its own: new work is refused first, then
//! everything that grows; what runs ends, nothing acknowledged is lost, and all comes back by itself.

use std::sync::mpsc;
use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::OrchestrationStatus::{Completed, Running, Terminated};
use durahub_proto::wire::purge_instances_request::Request as Purged;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::support::actions::{complete, create_timer, schedule_task};
use super::support::client::PATIENCE;
use super::support::server::ServerOptions;
use super::support::{Client, Program, TestServer, WorkerOptions};
use super::{SmallDisk, on_small_disk};

/// The file system, in bytes.
const DISK: u64 = 256 << 20;
const LOW: u64 = 128 << 20;
const CRITICAL: u64 = 64 << 20;
/// Instances that wait for an event when space runs short.
const WAITING: usize = 8;

/// Asks until a call is answered in the way that is wanted; returns what it was refused with, or `None`.
async fn until<T>(
    what: &str,
    mut call: impl AsyncFnMut(usize) -> Result<T, Status>,
    is_wanted: impl Fn(&Result<T, Status>) -> bool,
) -> Option<Status> {
    let begun = Instant::now();
    for round in 0.. {
        let answer = call(round).await;
        if is_wanted(&answer) {
            return answer.err();
        }
        assert!(begun.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    None
}

fn start(id: &str, name: &str) -> wire::CreateInstanceRequest {
    wire::CreateInstanceRequest {
        instance_id: id.into(),
        name: name.into(),
        input: Some(id.into()),
        ..Default::default()
    }
}

fn event(id: &str, name: &str) -> wire::RaiseEventRequest {
    wire::RaiseEventRequest { instance_id: id.into(), name: name.into(), input: None }
}

/// Holds a refusal against what it must say.
fn check(refused: &Status, setting: &str) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    for part in
        ["node 1 is short of disk space", "bytes are free", setting, "purge ended instances"]
    {
        assert!(refused.message().contains(part), "{part:?} is missing in {}", refused.message());
    }
    assert_eq!(refused.metadata().get("grpc-retry-pushback-ms").unwrap(), "5000");
}

async fn metric(server: &TestServer, series: &str) -> f64 {
    let (_, text) = server.http_get("/metrics").await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(series));
    // What never was is not written.
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

fn lines(server: &TestServer, text: &str) -> usize {
    server.log().lines().filter(|line| line.contains(text)).count()
}

/// Waits for an event, runs an activity, and says what it got; `Slow` runs an activity that ends when told.
fn program(release: mpsc::Receiver<()>) -> Program {
    let release = std::sync::Mutex::new(release);
    Program::new()
        .orchestrator("Wait", |history| {
            if history.raised("go").is_empty() {
                return Vec::new();
            }
            match history.result(1) {
                None => vec![schedule_task(1, "Echo", history.input())],
                Some(result) => vec![complete(2, &result.unwrap())],
            }
        })
        .orchestrator("Slow", |history| match history.result(1) {
            None => vec![schedule_task(1, "Release", "")],
            Some(result) => vec![complete(2, &result.unwrap())],
        })
        .orchestrator("Sleep", |history| match history.fired(1) {
            false => vec![create_timer(1, Duration::from_secs(history.input().parse().unwrap()))],
            true => vec![complete(2, "awake")],
        })
        .activity("Echo", |input| Ok(input.to_owned()))
        .activity("Release", move |_| {
            release.lock().unwrap().recv().unwrap();
            Ok("released".to_owned())
        })
}

async fn finish(client: &Client, id: &str) {
    client.raise(id, "go", "").await;
    assert_eq!(client.output(id).await, id);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_work_is_refused_first_then_what_grows_and_all_comes_back_with_space() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    let marks = ["--storage-low-free", "128MiB", "--storage-critical-free", "64MiB"];
    assert_eq!((LOW, CRITICAL), (128 << 20, 64 << 20));
    let options = ServerOptions { args: marks.map(String::from).into(), ..Default::default() };
    let server = on_small_disk(&disk, options).await;
    let (client, pid) = (server.client(), server.pid());
    let (let_go, release) = mpsc::channel();
    let _worker = program(release).run(&client, WorkerOptions::default());

    // Work that runs when space gets short, and some that has ended.
    let waiting: Vec<String> = (0..WAITING).map(|number| format!("w{number}")).collect();
    for id in waiting.iter().chain(&["w-events".to_owned(), "w-ends".to_owned()]) {
        client.start_with(start(id, "Wait")).await;
        client.wait_status(id, Running).await;
    }
    client.start_with(start("slow", "Slow")).await;
    client.start_with(start("ended", "Wait")).await;
    finish(&client, "ended").await;
    assert_eq!(metric(&server, r#"durahub_pressure{source="disk"}"#).await, 0.0);

    // Low: what begins is refused.
    let fill = |name: &str, mib: u64| {
        let path = disk.path(name);
        assert!(disk.inside(&["fallocate", "--length", &format!("{mib}M"), &path]), "{name}");
    };
    fill("ballast-1", 150);
    let mut acknowledged = Vec::new();
    let mut rpc = client.rpc();
    let refused = until(
        "starts are taken",
        async |round| {
            let id = format!("s{round}");
            let answer = rpc.start_instance(start(&id, "Wait")).await;
            acknowledged.extend(answer.is_ok().then_some(id));
            answer
        },
        Result::is_err,
    );
    check(&refused.await.unwrap(), "(storage.low_free) it takes nothing new");
    let again = wire::RestartInstanceRequest {
        instance_id: "ended".into(),
        restart_with_new_instance_id: false,
    };
    check(&rpc.restart_instance(again).await.unwrap_err(), "storage.low_free");
    let mut elsewhere = client.in_hub("another").rpc();
    let hub = wire::CreateTaskHubRequest { recreate_if_exists: false };
    check(&elsewhere.create_task_hub(hub).await.unwrap_err(), "storage.low_free");
    // One that is there is no new one (R2.97).
    client.rpc().create_task_hub(hub).await.unwrap();
    // And what runs goes on to its end, activities and all.
    for id in &waiting[..WAITING / 2] {
        finish(&client, id).await;
    }
    assert_eq!(metric(&server, r#"durahub_pressure{source="disk"}"#).await, 1.0);
    let free = metric(&server, "durahub_disk_free_bytes").await as u64;
    assert!((CRITICAL..LOW).contains(&free), "{free}");

    // Critical: what grows is refused as well.
    fill("ballast-2", 50);
    let mut raised = 0;
    let refused = until(
        "events are taken",
        async |_| {
            let answer = rpc.raise_event(event("w-events", "note")).await;
            raised += usize::from(answer.is_ok());
            answer
        },
        Result::is_err,
    );
    check(&refused.await.unwrap(), "(storage.critical_free) it takes nothing that grows");
    let signal = wire::SignalEntityRequest {
        instance_id: "@counter@a".into(),
        name: "add".into(),
        ..Default::default()
    };
    check(&rpc.signal_entity(signal).await.unwrap_err(), "storage.critical_free");
    let resume = wire::ResumeRequest { instance_id: "w-events".into(), reason: None };
    check(&rpc.resume_instance(resume).await.unwrap_err(), "storage.critical_free");

    // What a worker has is taken in; what follows from it waits.
    let_go.send(()).unwrap();
    let leases = r#"durahub_leases{hub="default",kind="activity"}"#;
    let ready = r#"durahub_ready_items{hub="default",kind="turn"}"#;
    let begun = Instant::now();
    while metric(&server, leases).await > 0.0 || metric(&server, ready).await < 1.0 {
        assert!(begun.elapsed() < PATIENCE, "the result is not taken in");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.status("slow").await, Running);
    // Reading goes on, ending and removing too.
    assert_eq!(client.status("w0").await, Completed);
    assert!(!client.history("w0").await.is_empty());
    let all = rpc.query_instances(wire::QueryInstancesRequest::default()).await.unwrap();
    assert_eq!(all.into_inner().orchestration_state.len(), WAITING + 4 + acknowledged.len());
    assert_eq!(server.http_get("/readyz").await.unwrap().0, 200);
    let held = waiting.last().unwrap();
    client.suspend(held).await;
    client.terminate("w-ends", "enough").await;
    let batch = wire::InstanceBatch { instance_ids: vec!["w-events".into()] };
    let skip = wire::SkipGracefulOrchestrationTerminationsRequest {
        instance_batch: Some(batch),
        reason: None,
    };
    rpc.skip_graceful_orchestration_terminations(skip).await.unwrap();
    assert_eq!(client.status("w-events").await, Terminated);
    for id in ["ended", "w-events"] {
        let request = Some(Purged::InstanceId(id.into()));
        let purge = wire::PurgeInstancesRequest { request, ..Default::default() };
        let purged = rpc.purge_instances(purge).await.unwrap().into_inner();
        assert_eq!((purged.deleted_instance_count, client.get(id).await), (1, None), "{id}");
    }
    assert_eq!(metric(&server, r#"durahub_pressure{source="disk"}"#).await, 2.0);

    // Space returns, and with it everything, in the same process.
    assert!(disk.inside(&["rm", &disk.path("ballast-1"), &disk.path("ballast-2")]));
    let taken = until(
        "starts are not taken again",
        async |_| rpc.start_instance(start("after", "Wait")).await,
        Result::is_ok,
    );
    assert!(taken.await.is_none());
    assert_eq!(client.output("slow").await, "released");
    client.resume(held).await;
    assert_eq!(client.wait("w-ends").await.orchestration_status(), Terminated);
    for id in waiting[WAITING / 2..].iter().chain(&acknowledged).chain(&["after".to_owned()]) {
        finish(&client, id).await;
    }
    assert_eq!(server.pid(), pid);
    assert_eq!(metric(&server, r#"durahub_pressure{source="disk"}"#).await, 0.0);
    assert_eq!(lines(&server, "DISK SPACE IS CRITICAL"), 1);
    assert_eq!(lines(&server, "DISK SPACE IS BACK"), 1);
    assert!(raised < 200, "{raised} events before the first refusal");
}

/// A timer that is due while space is critically short fires once there is some, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn timers_wait_for_space() {
    let Some(disk) = SmallDisk::mount(DISK) else { return };
    let marks = ["--storage-low-free", "128MiB", "--storage-critical-free", "64MiB"];
    let options = ServerOptions { args: marks.map(String::from).into(), ..Default::default() };
    let server = on_small_disk(&disk, options).await;
    let client = server.client();
    let (_let_go, release) = mpsc::channel();
    let _worker = program(release).run(&client, WorkerOptions::default());
    let sleep = wire::CreateInstanceRequest { input: Some("6".into()), ..start("sleep", "Sleep") };
    let overdue = Instant::now() + Duration::from_secs(8);
    client.start_with(sleep).await;
    client.wait_status("sleep", Running).await;

    let ballast = disk.path("ballast");
    assert!(disk.inside(&["fallocate", "--length", "200M", &ballast]));
    let begun = Instant::now();
    while metric(&server, r#"durahub_pressure{source="disk"}"#).await < 2.0 {
        assert!(begun.elapsed() < PATIENCE, "nobody sees that the disk is full");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It is due, and nothing happens.
    tokio::time::sleep_until(overdue).await;
    assert_eq!(client.status("sleep").await, Running);
    assert_eq!(metric(&server, "durahub_timer_lag_seconds_count").await, 0.0);
    assert!(disk.inside(&["rm", &ballast]));
    assert_eq!(client.output("sleep").await, "awake");
}

/// On any file system: marks above what it has, taken back while the node runs.
#[tokio::test(flavor = "multi_thread")]
async fn marks_are_read_again_while_the_node_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("durahub.toml");
    std::fs::write(&file, "[storage]\nlow_free = '1024GiB'\ncritical_free = 0\n").unwrap();
    let args = vec!["--config".to_owned(), file.display().to_string()];
    let server = TestServer::start_with(ServerOptions { args, ..Default::default() }).await;
    let mut rpc = server.client().rpc();
    let refused = rpc.start_instance(start("a", "Wait")).await.unwrap_err();
    check(&refused, "below 1099511627776 (storage.low_free)");
    // It was short from the first moment, and made its task hub all the same.
    assert_eq!(server.client().get("a").await, None);
    std::fs::write(&file, "[storage]\nlow_free = '1KiB'\ncritical_free = 0\n").unwrap();
    let taken = until(
        "the new marks do not count",
        async |_| rpc.start_instance(start("a", "Wait")).await,
        Result::is_ok,
    );
    taken.await;
}
