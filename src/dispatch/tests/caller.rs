//! A whole dispatcher on partitions in memory: what happens when the caller of a completion goes away.

use std::sync::Arc;
use std::time::Duration;

use durahub_cluster::{GroupId, NodeConfig, Storage};
use durahub_proto::wire;
use futures::{FutureExt as _, StreamExt as _};

use crate::clock::Clock;
use crate::dispatch::{
    Dispatcher, Leaders, LeaseTimes, Limits, Retention, Settings, StreamOptions, WorkStream,
};
use crate::engine::{self, Command, command};
use crate::machine::{Node, Orchestrations};

pub(super) async fn dispatcher() -> (Node, Dispatcher, tokio::task::JoinSet<()>) {
    let clock = Clock::system();
    let (listener, leaders) = Leaders::new(1);
    let stamp = {
        let clock = clock.clone();
        Arc::new(move || (clock.now(), clock.entropy()))
    };
    let config = NodeConfig::new(1, Storage::Memory, 1, stamp);
    let node = Node::start(config, Arc::new(Orchestrations::new(listener))).await.expect("starts");
    let minute = Duration::from_secs(60);
    let settings = Settings {
        leases: LeaseTimes { turn: minute, entity: minute, activity: None, grace: minute },
        health_ping: minute,
        item_bytes: 1 << 20,
        instance_id_length: 100,
        stream_history_above: 1 << 20,
        retention: Retention::default(),
        limits: Limits {
            engine: engine::Limits::USUAL,
            payload_bytes: 1 << 10,
            custom_status_bytes: 1 << 10,
            name_length: 100,
            tags_bytes: 1 << 10,
            completion_bytes: 1 << 20,
        },
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
    let call = dispatcher.complete_turn(1, response);
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
        dispatcher.complete_turn(1, response).await.expect("is OK");
    }
    assert!(!dispatcher.is_busy());
    node.stop().await;
}
