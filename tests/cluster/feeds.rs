//! Work feeds: a worker at any gateway works for the leaders on all nodes.
//!
//! Workers sit on one node, clients on another, leaders everywhere; gateways and leaders are killed with work in
//! flight.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use durahub_cluster::placement;
use durahub_proto::wire;
use tonic::Code;
use wire::OrchestrationStatus;
use wire::history_event::EventType;

use crate::nodes::{Cluster, PATIENCE};
use crate::support::actions::{complete, create_timer_at, schedule_task, send_event, start_child};
use crate::support::scaler;
use crate::support::{Client, Program, Worker, WorkerOptions};

/// Number of the hub `default`, and of partitions.
const HUB: u32 = 1;
pub(crate) const PARTITIONS: u32 = 4;

/// Everything that an orchestration may wait for: a child, an activity, a timer, an event from outside and one
/// from another orchestration.
fn program() -> Program {
    Program::new()
        .orchestrator("Parent", |history| {
            let id = &history.instance;
            let mut actions = vec![
                start_child(1, &format!("{id}-child"), "Child", id),
                create_timer_at(2, history.now() + Duration::from_millis(300)),
            ];
            if let (Some(Ok(child)), true) = (history.result(1), history.fired(2)) {
                let (outside, inside) = (history.raised("go"), history.raised("hello"));
                if let (Some(go), Some(hello)) = (outside.first(), inside.first()) {
                    actions.push(complete(3, &format!("{child} {go} {hello}")));
                }
            }
            actions
        })
        .orchestrator("Child", |history| {
            let parent = history.input().to_owned();
            let mut actions = vec![
                schedule_task(1, "Hello", &parent),
                send_event(2, &parent, "hello", "from the child"),
            ];
            if let Some(Ok(hello)) = history.result(1) {
                actions.push(complete(3, &hello));
            }
            actions
        })
        .activity("Hello", |name| Ok(format!("hello {name}")))
}

pub(crate) fn partition_of(instance: &str) -> usize {
    placement::partition_of(HUB, instance, PARTITIONS).0 as usize
}

/// Ids of instances, so many in each partition.
pub(crate) fn spread(prefix: &str, each: usize) -> Vec<String> {
    let mut found: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for n in 0.. {
        let id = format!("{prefix}{n}");
        let part = found.entry(partition_of(&id)).or_default();
        if part.len() < each {
            part.push(id);
        }
        if found.len() == PARTITIONS as usize && found.values().all(|part| part.len() == each) {
            break;
        }
    }
    found.into_values().flatten().collect()
}

/// Starts an instance as an SDK with retries does.
pub(crate) async fn start(client: &Client, id: &str, name: &str, input: &str) {
    let begun = Instant::now();
    loop {
        let request = wire::CreateInstanceRequest {
            instance_id: id.into(),
            name: name.into(),
            input: Some(input.into()),
            ..Default::default()
        };
        match client.rpc().start_instance(request).await {
            Ok(_) => return,
            Err(status) if status.code() == Code::AlreadyExists => return,
            Err(status) => assert!(begun.elapsed() < PATIENCE, "start {id}: {status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_on_one_node_and_clients_on_others_get_everything_done() {
    let cluster = Cluster::start().await;
    let _worker = program().run(&cluster.client(1), WorkerOptions::default());
    let (second, third) = (cluster.client(2), cluster.client(3));
    let ids = spread("all-", 6);
    for id in &ids {
        second.start(id, "Parent", "").await;
    }
    for id in &ids {
        third.raise(id, "go", "now").await;
    }
    for id in &ids {
        assert_eq!(second.output(id).await, format!("hello {id} now from the child"), "{id}");
    }

    // Reads and lists see through every node what was acknowledged through another.
    let statuses = vec![OrchestrationStatus::Completed.into()];
    for node in 1..=3 {
        let query = wire::InstanceQuery { runtime_status: statuses.clone(), ..Default::default() };
        let request = wire::QueryInstancesRequest { query: Some(query) };
        let page = cluster.client(node).rpc().query_instances(request).await.unwrap().into_inner();
        assert_eq!(page.orchestration_state.len(), 2 * ids.len(), "through node {node}");
    }
    let purge = wire::PurgeInstancesRequest {
        request: Some(wire::purge_instances_request::Request::PurgeInstanceFilter(
            wire::PurgeInstanceFilter { runtime_status: statuses, ..Default::default() },
        )),
        recursive: true,
        ..Default::default()
    };
    let purged = third.rpc().purge_instances(purge).await.unwrap().into_inner();
    assert_eq!(purged.deleted_instance_count as usize, 2 * ids.len());
    assert!(second.get(&ids[0]).await.is_none());

    // A task hub that is made through one node is there on all, and so is its end.
    let hub = |node| cluster.client(node).in_hub("made-here");
    let create = |recreate_if_exists| wire::CreateTaskHubRequest { recreate_if_exists };
    hub(2).rpc().create_task_hub(create(false)).await.unwrap();
    let options = WorkerOptions { task_hub: Some("made-here".into()), ..Default::default() };
    let _other = program().run(&cluster.client(3), options);
    hub(1).start("in-hub", "Child", "nobody").await;
    assert_eq!(hub(3).output("in-hub").await, "hello nobody");
    hub(3).rpc().create_task_hub(create(true)).await.unwrap();
    // Made anew: a node that has not heard of it refuses, and what another one takes is not lost.
    let until = Instant::now() + PATIENCE;
    loop {
        let request = wire::CreateInstanceRequest {
            instance_id: "again".into(),
            name: "Child".into(),
            input: Some("nobody".into()),
            ..Default::default()
        };
        match hub(1).rpc().start_instance(request).await {
            Ok(_) => break,
            Err(status) => {
                assert_eq!(status.code(), Code::NotFound, "{status}");
                assert!(Instant::now() < until, "{status}");
            }
        }
    }
    assert_eq!(hub(2).output("again").await, "hello nobody");
    hub(1).rpc().delete_task_hub(wire::DeleteTaskHubRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_with_one_place_serves_all_leaders_one_by_one() {
    let cluster = Cluster::start().await;
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let noted = (running, most.clone());
    let program = Program::new()
        .orchestrator("Many", |history| {
            let mut actions: Vec<_> = (1..=5).map(|id| schedule_task(id, "Work", "")).collect();
            if (1..=5).all(|id| history.result(id).is_some()) {
                actions.push(complete(6, "done"));
            }
            actions
        })
        .activity("Work", move |_| {
            let (running, most) = &noted;
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(String::new())
        });
    let options = WorkerOptions { orchestrations: 2, activities: 1, ..Default::default() };
    let _worker = program.run(&cluster.client(1), options);
    let ids = spread("one-", 5);
    let client = cluster.client(2);
    for id in &ids {
        client.start(id, "Many", "").await;
    }
    for id in &ids {
        assert_eq!(client.output(id).await, "done", "{id}");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1, "more than the worker asked for (R3.2)");
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_killed_gateway_are_handed_out_again_and_done_once() {
    let mut cluster = Cluster::start().await;
    let turns = Program::new().orchestrator("Slow", |history| match history.result(1) {
        None => vec![schedule_task(1, "Slow", history.input())],
        Some(result) => vec![complete(2, &result.expect("it never fails"))],
    });
    let only_turns = WorkerOptions::default().serving(&["Slow"], &[]);
    let only_activities = || WorkerOptions::default().serving(&[], &["Slow"]);
    let _turns = turns.run(&cluster.client(1), only_turns);
    let ids = spread("slow-", 3);
    let mut lost = Worker::connect(&cluster.client(3), only_activities()).await;
    for id in &ids {
        cluster.client(2).start(id, "Slow", id).await;
    }
    // All are with the worker on node 3, whoever leads them.
    let mut held = BTreeMap::new();
    while held.len() < ids.len() {
        let activity = lost.next_activity().await;
        assert!(held.insert(activity.instance().to_owned(), activity).is_none(), "twice");
    }
    // Some are answered, through another node than they came from.
    let through_first = Worker::connect(&cluster.client(1), only_activities()).await;
    for id in &ids[..2] {
        through_first.complete_activity(&held[id], "early").await;
        // Once more changes nothing (R3.60).
        through_first.complete_activity(&held[id], "late").await;
    }
    drop(through_first);
    cluster.kill9(3);
    let mut again = Worker::connect(&cluster.client(2), only_activities()).await;
    let mut seen = BTreeMap::new();
    while seen.len() < ids.len() - 2 {
        let activity = again.next_activity().await;
        again.complete_activity(&activity, "again").await;
        seen.insert(activity.instance().to_owned(), ());
    }
    let client = cluster.client(1);
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(client.output(id).await, if n < 2 { "early" } else { "again" }, "{id}");
        let history = client.history(id).await;
        let results = history.iter().filter_map(|event| event.event_type.as_ref());
        let results = results.filter(|event| matches!(event, EventType::TaskCompleted(_))).count();
        assert_eq!(results, 1, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_and_tokens_outlive_the_leader() {
    let mut cluster = Cluster::start().await;
    let id = spread("wait-", 1).remove(0);
    let leader = cluster.leader(1, partition_of(&id)).expect("a leader");
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    let (first, second) = (cluster.client(others[0]), cluster.client(others[1]));
    let mut worker = Worker::connect(&second, WorkerOptions::default()).await;
    start(&first, &id, "Anything", "").await;
    let waiting = {
        let (first, id) = (first.clone(), id.clone());
        tokio::spawn(async move { first.output(&id).await })
    };
    let turn = worker.next_turn_of(&id).await;
    cluster.kill9(leader);
    // The token is of the old leader; the wait goes on at a node that never led.
    let response = worker.response(&turn, vec![complete(1, "it lives")]);
    let until = Instant::now() + PATIENCE;
    while let Err(status) = second.rpc().complete_orchestrator_task(response.clone()).await {
        assert!(Instant::now() < until, "{status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(waiting.await.expect("the wait ends well"), "it lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_gateway_waits_for_work_that_others_lead() {
    let mut cluster = Cluster::start().await;
    let activities = || WorkerOptions::default().serving(&[], &["Slow"]);
    let turns = Program::new().orchestrator("Slow", |history| match history.result(1) {
        None => vec![schedule_task(1, "Slow", history.input())],
        Some(result) => vec![complete(2, &result.expect("it never fails"))],
    });
    let _turns = turns.run(&cluster.client(1), WorkerOptions::default().serving(&["Slow"], &[]));
    // Led by nodes that stay, and by the one that goes.
    let ids = spread("drain-", 1);
    let mut leaving = Worker::connect(&cluster.client(3), activities()).await;
    for id in &ids {
        cluster.client(2).start(id, "Slow", id).await;
    }
    let mut held = Vec::new();
    for _ in &ids {
        held.push(leaving.next_activity().await);
    }
    cluster.signal(3, "TERM");
    let until = Instant::now() + PATIENCE;
    let leads = |status: serde_json::Value| {
        let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().any(|node| node["node"] == 3 && node["leads"] != 0)
    };
    while leads(cluster.status(1)) {
        assert!(Instant::now() < until, "node 3 keeps leading");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Nobody else is handed what the worker still has, and nothing new comes to it.
    let mut other = Worker::connect(&cluster.client(2), activities()).await;
    let id = spread("late-", 1).remove(0);
    cluster.client(2).start(&id, "Slow", &id).await;
    let late = other.next_activity().await;
    assert_eq!(late.instance(), id, "what the leaving worker has is handed out twice");
    other.complete_activity(&late, "late").await;
    other.expect_nothing(Duration::from_secs(6)).await;
    for activity in &held {
        leaving.complete_activity(activity, "in time").await;
    }
    cluster.ended(3).await;
    for id in &ids {
        assert_eq!(cluster.client(1).output(id).await, "in time", "{id}");
    }
    assert_eq!(cluster.client(1).output(&id).await, "late");
}

/// KEDA's figures are of all leaders, whatever node is asked, and whole again once a dead one is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_hub_are_whole_through_every_node() {
    let mut cluster = Cluster::start().await;
    let ids = spread("figure-", 3);
    let count = ids.len() as i64;
    for id in &ids {
        cluster.client(1).start(id, "Parent", "").await;
    }
    for node in 1..=3 {
        let mut rpc = scaler::Rpc::new(cluster.client(node).channel());
        scaler::until(&mut rpc, "default", [count, 0, 0]).await;
    }
    // One leader has them in its hands, the others let theirs wait: all count.
    let options = WorkerOptions { orchestrations: 2, ..Default::default() };
    let mut worker = Worker::connect(&cluster.client(2), options).await;
    worker.next_turn().await;
    worker.next_turn().await;
    let mut rpc = scaler::Rpc::new(cluster.client(1).channel());
    scaler::until(&mut rpc, "default", [count, 0, 0]).await;

    cluster.kill9(3);
    let began = Instant::now();
    loop {
        // Never less than there is, however the leaders change meanwhile.
        match scaler::metric(&mut rpc, scaler::object("default", "Orchestration", "1")).await {
            Ok(found) => {
                assert_eq!(found, count);
                break;
            }
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        assert!(began.elapsed() < PATIENCE, "no figures after a node is lost");
    }
}
