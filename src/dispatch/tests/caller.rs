//! A whole dispatcher on partitions in memory: callers that go away while their completion is committed, and
//! callers that send it again meanwhile.

use std::sync::Arc;
use std::time::Duration;

use durahub_cluster::{GroupId, NodeConfig, Storage};
use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Type;
use futures::{FutureExt as _, StreamExt as _};

use crate::clock::Clock;
use crate::dispatch::{
    CurrentRules, Dispatcher, Leaders, LeaseTimes, Limits, Retention, Rules, Settings,
    StreamOptions, WorkStream,
};
use crate::engine::{self, Command, command};
use crate::machine::{Node, Orchestrations};
use crate::spans::Spans;

/// A dispatcher on a node alone.
pub(super) async fn dispatcher() -> (Node, Dispatcher, tokio::task::JoinSet<()>) {
    dispatcher_with(1, |_| ()).await
}

/// A dispatcher on a node of that number, with one partition in memory.
pub(super) async fn dispatcher_with(
    node: u64,
    change: impl FnOnce(&mut NodeConfig),
) -> (Node, Dispatcher, tokio::task::JoinSet<()>) {
    let clock = Clock::system();
    let (listener, leaders) = Leaders::new(1);
    let stamp = {
        let clock = clock.clone();
        Arc::new(move || (clock.now(), clock.entropy()))
    };
    let mut config = NodeConfig::new(node, Storage::Memory, 1, stamp);
    change(&mut config);
    let node = Node::start(config, Arc::new(Orchestrations::new(listener))).await.expect("starts");
    let minute = Duration::from_secs(60);
    let settings = Settings {
        leases: LeaseTimes { turn: minute, entity: minute, activity: None, grace: minute },
        health_ping: minute,
        item_bytes: 1 << 20,
        stream_history_above: 1 << 20,
        rules: CurrentRules::new(Rules {
            limits: Limits {
                engine: engine::Limits::USUAL,
                payload_bytes: 1 << 10,
                custom_status_bytes: 1 << 10,
                name_length: 100,
                tags_bytes: 1 << 10,
                completion_bytes: 1 << 20,
            },
            instance_id_length: 100,
            retention: Retention::default(),
        }),
        spans: Spans::off(),
    };
    let partitions = vec![node.group(GroupId(1)).clone()];
    let dispatcher = Dispatcher::new(settings, clock, partitions);
    let leading = leaders.run(&dispatcher);
    (node, dispatcher, leading)
}

/// Starts the instance "a".
pub(super) async fn start(dispatcher: &Dispatcher) {
    let request = wire::CreateInstanceRequest {
        instance_id: "a".into(),
        name: "N".into(),
        ..Default::default()
    };
    let start = Command::Start(command::Start { hub: 1, request });
    dispatcher.partition_of(1, "a").propose(start.into_bytes()).await.expect("commits");
}

pub(super) async fn next(stream: &mut WorkStream) -> wire::WorkItem {
    loop {
        let item = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        let item = item.expect("in time").expect("does not end").expect("no end");
        if !matches!(item.request, Some(wire::work_item::Request::HealthPing(_))) {
            return item;
        }
    }
}

/// R3.49: a call that is cancelled while it commits leaves no lease that nobody can end.
#[tokio::test]
async fn a_caller_that_goes_away_holds_nothing() {
    let (node, dispatcher, _leading) = dispatcher().await;
    start(&dispatcher).await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let first = next(&mut stream).await;

    let response = wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: first.completion_token,
        ..Default::default()
    };
    let call = dispatcher.complete_turn(1, response, ());
    assert!(call.now_or_never().is_none(), "it takes a commit, and is dropped before");

    // Whether or not that turn was committed, the instance goes on.
    let request =
        wire::RaiseEventRequest { instance_id: "a".into(), name: "E".into(), input: None };
    let raise = Command::RaiseEvent(command::RaiseEvent { hub: 1, request });
    dispatcher.partition_of(1, "a").propose(raise.into_bytes()).await.expect("commits");
    let mut events = 0;
    while events < 4 {
        let item = next(&mut stream).await;
        let Some(wire::work_item::Request::OrchestratorRequest(turn)) = &item.request else {
            panic!("a turn: {item:?}");
        };
        events = turn.past_events.len() + turn.new_events.len();
        let response = wire::OrchestratorResponse {
            instance_id: "a".into(),
            completion_token: item.completion_token,
            ..Default::default()
        };
        dispatcher.complete_turn(1, response, ()).await.expect("is OK");
    }
    assert!(!dispatcher.is_busy());
    node.stop().await;
}

/// A turn that schedules one activity is done; returns the activity.
async fn activity(dispatcher: &Dispatcher, stream: &mut WorkStream) -> wire::WorkItem {
    start(dispatcher).await;
    let turn = next(stream).await;
    let action = wire::ScheduleTaskAction { name: "T".into(), ..Default::default() };
    let action = Type::ScheduleTask(action);
    let response = wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: turn.completion_token,
        actions: vec![wire::OrchestratorAction { id: 1, orchestrator_action_type: Some(action) }],
        ..Default::default()
    };
    dispatcher.complete_turn(1, response, ()).await.expect("is OK");
    next(stream).await
}

fn result(activity: &wire::WorkItem) -> wire::ActivityResponse {
    wire::ActivityResponse {
        instance_id: "a".into(),
        task_id: 1,
        completion_token: activity.completion_token.clone(),
        ..Default::default()
    }
}

/// What is being committed is with nobody else, whoever has gone away: an activity does not run a second time.
#[tokio::test]
async fn a_caller_that_goes_away_does_not_make_its_work_run_again() {
    let (node, dispatcher, _leading) = dispatcher().await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let activity = activity(&dispatcher, &mut stream).await;
    let mut call = Box::pin(dispatcher.complete_activity(1, result(&activity), ()));
    assert!(futures::poll!(&mut call).is_pending(), "it takes a commit, and is dropped before");
    drop(call);
    let item = next(&mut stream).await;
    assert!(
        matches!(item.request, Some(wire::work_item::Request::OrchestratorRequest(_))),
        "the turn with its result comes, and not the activity again: {item:?}"
    );
    node.stop().await;
}

/// R3.56: a completion that is sent again is answered once it is known what became of the first.
#[tokio::test]
async fn a_completion_sent_twice_is_answered_when_it_is_durable() {
    let (node, dispatcher, _leading) = dispatcher().await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let activity = activity(&dispatcher, &mut stream).await;
    let mut first = Box::pin(dispatcher.complete_activity(1, result(&activity), ()));
    assert!(futures::poll!(&mut first).is_pending(), "it takes a commit");
    tokio::task::yield_now().await;
    let mut again = Box::pin(dispatcher.complete_activity(1, result(&activity), ()));
    assert!(futures::poll!(&mut again).is_pending());
    tokio::select! {
        biased;
        done = &mut first => done.expect("is OK"),
        _ = &mut again => panic!("it is told that its work is safe before it is"),
    }
    again.await.expect("is OK");
    node.stop().await;
}

/// A completion holds the room of its bytes for as long as it holds them, whoever has gone away.
#[tokio::test]
async fn a_completion_keeps_its_room_without_its_caller() {
    let (node, dispatcher, _leading) = dispatcher().await;
    let options = StreamOptions { hub: 1, ..Default::default() };
    let mut stream = dispatcher.open_stream(options, futures::future::pending());
    let activity = activity(&dispatcher, &mut stream).await;
    let room = Arc::new(());
    let held = Arc::downgrade(&room);
    let mut call = Box::pin(dispatcher.complete_activity(1, result(&activity), room));
    assert!(futures::poll!(&mut call).is_pending(), "it takes a commit, and is dropped before");
    drop(call);
    assert_eq!(held.strong_count(), 1, "its bytes are still there");
    next(&mut stream).await;
    let is_free = async {
        while held.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), is_free).await.expect("it is committed");
    node.stop().await;
}
