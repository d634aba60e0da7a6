//! A whole dispatcher on a partition in memory: what happens in the background leaves no rows behind (R1 of
//! architecture.md).

use std::time::Duration;

use durahub_cluster::GroupId;
use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;

use super::caller::{dispatcher, next, start};
use crate::dispatch::{Dispatcher, Retention, StreamOptions};
use crate::engine::command::{ClearHub, Command, CreateHub, Purge, Target};
use crate::engine::{View, read};
use crate::machine::RowsView;

/// Starts an instance and completes its first turn with these actions.
async fn run(dispatcher: &Dispatcher, actions: Vec<Action>) {
    start(dispatcher).await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let completion_token = next(&mut stream).await.completion_token;
    let action =
        |(id, action)| wire::OrchestratorAction { id, orchestrator_action_type: Some(action) };
    let response = wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token,
        actions: (1..).zip(actions).map(action).collect(),
        ..Default::default()
    };
    dispatcher.complete_turn(1, response, ()).await.expect("commits");
}

fn end() -> Action {
    Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
        orchestration_status: wire::OrchestrationStatus::Completed.into(),
        ..Default::default()
    })
}

fn look<T>(dispatcher: &Dispatcher, read: impl FnOnce(&dyn View) -> T) -> T {
    dispatcher.partition_of(1, "a").peek(|rows| read(&RowsView(rows)))
}

async fn comes_true(what: impl Fn() -> bool) -> bool {
    for _ in 0..3_000 {
        if what() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn delivered_messages_leave_the_outbox() {
    let (node, dispatcher, _leading) = dispatcher().await;
    let send = |n: i32| {
        let instance_id = format!("nobody{n}");
        let instance = Some(wire::OrchestrationInstance { instance_id, execution_id: None });
        Action::SendEvent(wire::SendEventAction { instance, name: "E".into(), data: None })
    };
    run(&dispatcher, (0..50).map(send).chain([end()]).collect()).await;
    assert!(comes_true(|| look(&dispatcher, |view| read::delivered(view, 1).is_some())).await);
    let outbox = || look(&dispatcher, |view| read::outbox_after(view, None, 100));
    assert!(comes_true(|| outbox().is_empty()).await, "{} messages stay", outbox().len());
    node.stop().await;
}

#[tokio::test]
async fn what_a_purge_leaves_is_swept() {
    let (node, dispatcher, _leading) = dispatcher().await;
    // Tasks outlive the turn that ended the instance, and are more than one command removes.
    let task = wire::ScheduleTaskAction { name: "T".into(), ..Default::default() };
    let tasks = (0..2_000).map(|_| Action::ScheduleTask(task.clone()));
    run(&dispatcher, tasks.chain([end()]).collect()).await;
    let targets = vec![Target { instance: "a".into(), generation: 0 }];
    let purge = Command::Purge(Purge { hub: 1, targets, ..Default::default() });
    dispatcher.partition_of(1, "a").propose(purge.into_bytes()).await.expect("commits");
    assert!(look(&dispatcher, read::sweep_due), "some of it stays at first");
    assert!(comes_true(|| !look(&dispatcher, read::sweep_due)).await, "for ever");
    let open = look(&dispatcher, read::open_work);
    assert!(open.is_empty(), "{} tasks are left", open.len());
    node.stop().await;
}

/// A hub is deleted while a worker has an item of it; what the worker says then is about nothing.
#[tokio::test]
async fn a_deleted_hub_leaves_no_tables_behind() {
    let (node, dispatcher, _leading) = dispatcher().await;
    start(&dispatcher).await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let completion_token = next(&mut stream).await.completion_token;
    let clear = Command::ClearHub(ClearHub { hub: 1 });
    dispatcher.partition_of(1, "a").propose(clear.into_bytes()).await.expect("commits");
    assert!(comes_true(|| dispatcher.0.hubs.lock().is_empty()).await);

    drop(stream);
    let instance_id = "a".into();
    let response =
        wire::OrchestratorResponse { instance_id, completion_token, ..Default::default() };
    dispatcher.complete_turn(1, response, ()).await.expect("is OK");
    assert!(comes_true(|| dispatcher.0.hubs.lock().is_empty()).await);
    node.stop().await;
}

/// Retention looks again when something is due, not all the time.
#[tokio::test]
async fn retention_sleeps_until_something_is_due() {
    let (node, dispatcher, _leading) = dispatcher().await;
    let metadata = node.group(GroupId::METADATA).clone();
    let create = Command::CreateHub(CreateHub { name: "h".into(), recreate: false });
    metadata.propose(create.into_bytes()).await.expect("commits");
    let minute = Duration::from_secs(60);
    let mut rules = dispatcher.rules();
    assert_eq!(dispatcher.pass(&metadata).await, None, "nothing goes, ever");
    rules.retention = Retention { completed: Some(minute), ..Retention::default() };
    dispatcher.set_rules(rules);
    assert_eq!(dispatcher.pass(&metadata).await, Some(minute), "whatever ends now is due then");

    run(&dispatcher, vec![end()]).await;
    let ended = dispatcher.0.clock.now();
    while dispatcher.0.clock.now() < ended + 500_000_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let due = dispatcher.pass(&metadata).await.expect("a time");
    assert!(due <= minute - Duration::from_millis(500), "{due:?}");
    rules.retention.completed = Some(Duration::from_millis(1));
    dispatcher.set_rules(rules);
    dispatcher.pass(&metadata).await;
    assert!(look(&dispatcher, |view| !read::has_instances(view, 1)), "it is gone");
    node.stop().await;
}
