//! A whole dispatcher on a partition in memory: what happens in the background leaves no rows behind (R1 of
//! architecture.md).

use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;

use super::caller::{dispatcher, next, start};
use crate::dispatch::{Dispatcher, StreamOptions};
use crate::engine::command::{Command, Purge, Target};
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
    dispatcher.complete_turn(1, response).await.expect("commits");
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
