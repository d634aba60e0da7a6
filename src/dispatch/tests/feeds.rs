//! Two dispatchers with a link between: a gateway without work of its own, and the leader whose work it hands on.

use std::time::Duration;

use durahub_cluster::Feed;
use durahub_proto::wire;
use futures::{FutureExt as _, StreamExt as _};
use tokio::task::JoinHandle;

use super::caller::{dispatcher, next, start};
use crate::dispatch::{Dispatcher, StreamOptions, WorkStream};

/// Number of the leader's node, as the gateway knows it.
const LEADER: u64 = 2;

fn link(gateway: &Dispatcher, leader: &Dispatcher) -> JoinHandle<()> {
    let (mine, theirs) = Feed::pair();
    leader.program().accept(1, theirs);
    let gateway = gateway.clone();
    tokio::spawn(async move { gateway.follow(LEADER, mine).await })
}

fn worker(at: &Dispatcher, turns: i32) -> WorkStream {
    let request = wire::GetWorkItemsRequest {
        max_concurrent_orchestration_work_items: turns,
        ..Default::default()
    };
    at.open_stream(StreamOptions { hub: 1, request }, futures::future::pending())
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it does not happen");
}

fn response(item: &wire::WorkItem) -> wire::OrchestratorResponse {
    wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: item.completion_token.clone(),
        ..Default::default()
    }
}

/// L3 of architecture.md, R3.50: what was with a worker of a lost gateway comes back after the grace; until then
/// its completion counts.
#[tokio::test]
async fn a_lost_link_ends_leases_like_a_lost_stream() {
    let (first, gateway, _one) = dispatcher().await;
    let (second, leader, _two) = dispatcher().await;
    let mut stream = worker(&gateway, 1);
    let linked = link(&gateway, &leader);
    start(&leader).await;
    // All room was the gateway's own; the leader has to ask for it.
    let item = next(&mut stream).await;
    assert!(leader.is_busy());
    assert_eq!(leader.load()[0].turns, (0, 1));
    assert_eq!(leader.load()[0].streams, 0, "it is counted where it is connected");
    linked.abort();
    until(|| leader.load()[0].turns == (0, 1) && linked.is_finished()).await;
    leader.complete_turn(1, response(&item), ()).await.expect("commits");
    assert_eq!(leader.load()[0].turns, (0, 0), "it counts, as it would have over the link");
    first.stop().await;
    second.stop().await;
}

/// Items that never reached a worker are ready again at once, whatever the grace is.
#[tokio::test]
async fn what_a_closed_stream_did_not_take_goes_to_somebody_else_at_once() {
    let (first, gateway, _one) = dispatcher().await;
    let (second, leader, _two) = dispatcher().await;
    let _linked = link(&gateway, &leader);
    let unread = worker(&gateway, 10);
    start(&leader).await;
    until(|| leader.load().first().is_some_and(|hub| hub.turns == (0, 1))).await;
    drop(unread);
    let mut stream = worker(&gateway, 10);
    let item = next(&mut stream).await;
    leader.complete_turn(1, response(&item), ()).await.expect("commits");
    assert_eq!(leader.load()[0].turns, (0, 0));
    first.stop().await;
    second.stop().await;
}

/// A gateway that goes away is handed nothing more, and is busy until its workers are done.
#[tokio::test]
async fn a_paused_gateway_waits_for_what_others_lead() {
    let (first, gateway, _one) = dispatcher().await;
    let (second, leader, _two) = dispatcher().await;
    let _linked = link(&gateway, &leader);
    let mut stream = worker(&gateway, 3);
    start(&leader).await;
    let item = next(&mut stream).await;
    gateway.pause();
    assert!(gateway.is_busy());
    let mut late = worker(&gateway, 3);
    leader.complete_turn(1, response(&item), ()).await.expect("commits");
    until(|| !gateway.is_busy()).await;
    let request =
        wire::RaiseEventRequest { instance_id: "a".into(), name: "E".into(), input: None };
    let raise =
        crate::engine::Command::RaiseEvent(crate::engine::command::RaiseEvent { hub: 1, request });
    leader.partition_of(1, "a").propose(raise.into_bytes()).await.expect("commits");
    until(|| leader.load()[0].turns == (1, 0)).await;
    let mut elsewhere = worker(&leader, 1);
    assert!(next(&mut elsewhere).await.request.is_some());
    for stream in [&mut stream, &mut late] {
        let Some(item) = stream.next().now_or_never() else { continue };
        let ping = item.expect("it goes on").expect("no end");
        assert!(matches!(ping.request, Some(wire::work_item::Request::HealthPing(_))));
    }
    first.stop().await;
    second.stop().await;
}
