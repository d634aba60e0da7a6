//! Leaders that move as planned while workers have work in hand: it stays with them, and nothing runs twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use durahub_proto::wire;
use parking_lot::Mutex;
use wire::operation_result::ResultType;

use crate::feeds::{PARTITIONS, partition_of, spread, start};
use crate::nodes::{Cluster, PATIENCE};
use crate::support::actions::{complete, schedule_task};
use crate::support::{Client, Program, Worker, WorkerOptions};

/// What comes back after a worker is lost has come back by then: the usual grace and a margin.
const AFTER_GRACE: Duration = Duration::from_secs(7);

/// Turns of `Slow` instances schedule one activity and give back its result.
fn slow() -> Program {
    Program::new().orchestrator("Slow", |history| match history.result(1) {
        None => vec![schedule_task(1, "Slow", history.input())],
        Some(result) => vec![complete(2, &result.expect("it never fails"))],
    })
}

/// Activities, turns and entities that are answered by hand.
fn by_hand() -> WorkerOptions {
    let mut options = WorkerOptions::default().serving(&["Held"], &["Slow"]);
    if let Some(filters) = &mut options.filters {
        filters.entities.push(wire::EntityFilter { name: "thing".into() });
    }
    options
}

/// Moves the lead of every partition to another node, and sees it there.
fn move_all(cluster: &Cluster) {
    for partition in 1..=PARTITIONS as usize {
        let leader = cluster.leader(1, partition).expect("a leader");
        hand_over(cluster, partition, leader % 3 + 1);
    }
}

fn hand_over(cluster: &Cluster, partition: usize, to: u64) {
    let through = cluster.running()[0];
    let output =
        cluster.operate(through, &["transfer-leader", &partition.to_string(), &to.to_string()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

async fn signal(client: &Client, entity: &str) {
    let request = wire::SignalEntityRequest {
        instance_id: entity.into(),
        name: "set".into(),
        input: Some("\"it\"".into()),
        request_id: format!("signal of {entity}"),
        ..Default::default()
    };
    client.rpc().signal_entity(request).await.expect("signalled");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_workers_have_stays_with_them_while_leaders_move() {
    let cluster = Cluster::start().await;
    let client = cluster.client(2);
    let _turns = slow().run(&cluster.client(1), WorkerOptions::default().serving(&["Slow"], &[]));
    let mut holder = Worker::connect(&cluster.client(3), by_hand()).await;
    let (slow, held, things) = (spread("move-", 3), spread("turn-", 1), spread("@thing@", 1));
    for id in &slow {
        client.start(id, "Slow", id).await;
    }
    for id in &held {
        client.start(id, "Held", "").await;
    }
    for id in &things {
        signal(&client, id).await;
    }
    let (mut activities, mut turns, mut batches) = (Vec::new(), Vec::new(), Vec::new());
    for _ in &slow {
        activities.push(holder.next_activity().await);
    }
    for _ in &held {
        turns.push(holder.next_turn().await);
        batches.push(holder.next_entity().await);
    }

    // It has all the room in the world, and is handed nothing of what the other one has.
    let mut other = Worker::connect(&cluster.client(2), by_hand()).await;
    for _ in 0..3 {
        move_all(&cluster);
        other.expect_nothing(Duration::from_millis(100)).await;
    }
    other.expect_nothing(AFTER_GRACE).await;
    holder.expect_nothing(Duration::from_millis(100)).await;

    // What comes later finds its way, while they still have it.
    let late = spread("late-", 1);
    for id in &late {
        client.start(id, "Slow", id).await;
    }
    let mut seen = BTreeSet::new();
    while seen.len() < late.len() {
        for worker in [&mut holder, &mut other] {
            let Ok(Some(item)) = worker.next_within(Duration::from_millis(50)).await else {
                continue;
            };
            let Some(wire::work_item::Request::ActivityRequest(request)) = item.request else {
                panic!("handed out again: {:?}", item.request)
            };
            let activity = crate::support::Activity { token: item.completion_token, request };
            assert!(late.iter().any(|id| id == activity.instance()), "{}", activity.instance());
            worker.complete_activity(&activity, "late").await;
            seen.insert(activity.instance().to_owned());
        }
    }

    // Answers come through any gateway, to whoever leads now.
    for activity in &activities {
        other.complete_activity(activity, activity.instance()).await;
    }
    for turn in &turns {
        holder.complete_turn(turn, vec![complete(1, "held")]).await;
    }
    for batch in &batches {
        let success = wire::OperationResultSuccess::default();
        let results =
            vec![wire::OperationResult { result_type: Some(ResultType::Success(success)) }];
        let state = Some("\"done\"".into());
        let result = wire::EntityBatchResult { results, entity_state: state, ..Default::default() };
        holder.complete_entity(batch, result).await;
    }
    for id in &slow {
        assert_eq!(&client.output(id).await, id);
    }
    for id in &held {
        assert_eq!(client.output(id).await, "held", "{id}");
    }
    other.expect_nothing(Duration::from_millis(300)).await;
    holder.expect_nothing(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stderr)]
async fn activities_run_once_while_leaders_move() {
    let cluster = Cluster::start().await;
    let runs = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
    let counted = Arc::clone(&runs);
    let program = Program::new()
        .orchestrator("Three", |history| {
            let id = &history.instance;
            let done = (1..=3).take_while(|step| history.result(*step).is_some()).count() as i32;
            match done {
                3 => vec![complete(4, "done")],
                done => vec![schedule_task(done + 1, "Count", &format!("{id}/{done}"))],
            }
        })
        .activity("Count", move |input| {
            *counted.lock().entry(input.to_owned()).or_default() += 1;
            std::thread::sleep(Duration::from_millis(fastrand::u64(..30)));
            Ok(String::new())
        });
    let _workers: Vec<_> =
        (1..=3).map(|node| program.run(&cluster.client(node), WorkerOptions::default())).collect();
    let moved = Arc::new(AtomicBool::new(false));
    let (client, over) = (cluster.client(2), Arc::clone(&moved));
    let load = tokio::spawn(async move {
        let mut ids = Vec::new();
        while !over.load(Ordering::Acquire) {
            let id = format!("three-{}", ids.len());
            start(&client, &id, "Three", "").await;
            ids.push(id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ids
    });
    let mut moves = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        move_all(&cluster);
        moves += PARTITIONS;
    }
    moved.store(true, Ordering::Release);
    let ids = load.await.expect("the load ends");
    let client = cluster.client(1);
    for id in &ids {
        assert_eq!(client.output(id).await, "done", "{id}");
    }
    let runs = runs.lock();
    eprintln!("{} orchestrations, {} activities, {moves} moves", ids.len(), runs.len());
    assert_eq!(runs.len(), 3 * ids.len());
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "of {} activities ran more than once: {twice:?}", runs.len());
}

/// The next leader knows what workers have, and dies with it: all of it is handed out again.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_of_the_next_leader_hands_everything_out_again() {
    let mut cluster = Cluster::start().await;
    let ids = spread("lost-", 3);
    let first = partition_of(&ids[0]);
    let leader = cluster.leader(1, first).expect("a leader");
    // Three nodes: the leader, the next one, and the worker's.
    let (next, worker_at) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let _turns =
        slow().run(&cluster.client(worker_at), WorkerOptions::default().serving(&["Slow"], &[]));
    let mut holder = Worker::connect(&cluster.client(worker_at), by_hand()).await;
    let client = cluster.client(worker_at);
    for id in &ids {
        client.start(id, "Slow", id).await;
    }
    let mut held = Vec::new();
    for _ in &ids {
        held.push(holder.next_activity().await);
    }
    for partition in 1..=PARTITIONS as usize {
        if cluster.leader(worker_at, partition) != Some(next) {
            hand_over(&cluster, partition, next);
        }
    }
    cluster.kill9(next);
    // Its leases are gone; those who lead now know none, and the worker goes as well.
    drop(holder);
    let mut again = Worker::connect(&cluster.client(worker_at), by_hand()).await;
    let mut seen = BTreeSet::new();
    let until = Instant::now() + PATIENCE;
    while seen.len() < ids.len() {
        assert!(Instant::now() < until, "only {seen:?}");
        let activity = again.next_activity().await;
        again.complete_activity(&activity, "again").await;
        seen.insert(activity.instance().to_owned());
    }
    for id in &ids {
        assert_eq!(client.output(id).await, "again", "{id}");
    }
}
