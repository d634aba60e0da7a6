//! A lead that goes from one node to the next, or away and back, with what workers have in hand.

use std::time::Duration;

use durahub_cluster::Leadership;
use durahub_proto::peer::TakeOver;
use futures::future::FutureExt as _;

use super::caller::{dispatcher, next, start};
use super::workers::{hand_out, work};
use super::*;
use crate::dispatch::hub::Moving;
use crate::dispatch::leader::Leader;
use crate::dispatch::{Dispatcher, StreamOptions, WorkStream};
use crate::engine::command::{Command, RaiseEvent};
use crate::engine::{Address, read};
use crate::machine::RowsView;

const MS: i64 = SECOND / 1_000;

/// An old leader's hub with an activity at stream 1, and what it tells of it.
fn old(task_id: i32) -> (Hub, Vec<Moving>) {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(activity(1), class(), 0);
    let to = hub.assign(0, 7).expect("an item");
    assert!(hub.assembled(&to, work(&to.key, task_id), 10, 0) && hub.put(&to, 10));
    hub.sent(1, 10);
    let held = hub.hold_back(|_| true);
    assert_eq!(held, [activity(1)]);
    let told = hub.tell(&held, 42, 0);
    assert_eq!(told.len(), 1);
    (hub, told)
}

#[test]
fn what_waits_is_held_back_and_what_is_not_sent_yet_never_is() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(activity(1), class(), 0);
    let to = hub.assign(0, 7).expect("an item");
    hub.ready(activity(2), class(), 0);
    assert_eq!(hub.hold_back(|_| true), []);
    assert!(!hub.assembled(&to, work(&to.key, 1), 10, 0), "it is the next leader's");
    assert_eq!(assign(&mut hub, 0, 8), None);
    assert_eq!(hub.counts(Kind::Activity), (0, 0));
    assert!(hub.settle(true).is_empty(), "its room is free again");
}

/// An item on its way may never arrive: whoever leads next must not wait for its worker.
#[test]
fn only_what_a_connection_has_taken_is_told() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    for number in 1..=3 {
        hub.ready(activity(number), class(), 0);
    }
    let assigned: Vec<_> = (1..=3).filter_map(|lease| hub.assign(0, lease)).collect();
    // They leave in another order than they were assigned in.
    for to in [&assigned[1], &assigned[0], &assigned[2]] {
        assert!(hub.assembled(to, work(&to.key, 1), 10, 0) && hub.put(to, 10));
    }
    let held = hub.hold_back(|_| true);
    let told = |hub: &mut Hub| {
        let mut told: Vec<_> = hub.tell(&held, 42, 0).iter().map(|it| it.work.key()).collect();
        told.sort();
        told
    };
    assert_eq!(told(&mut hub), []);
    hub.sent(1, 10);
    assert_eq!(told(&mut hub), [activity(2)]);
    assert!(hub.any_on_way(&held));
    hub.sent(1, 10);
    hub.sent(1, 10);
    assert!(!hub.any_on_way(&held));
    assert_eq!(told(&mut hub), [activity(1), activity(2), activity(3)]);
}

#[test]
fn what_went_with_the_lead_keeps_its_room_for_a_moment() {
    let (mut hub, _) = old(1);
    hub.resign(|_| true, 0);
    assert_eq!(hub.counts(Kind::Activity), (0, 0), "it is not counted twice");
    assert!(hub.is_busy(), "a gateway waits until the next leader has told of it");
    hub.recall(1, Kind::Activity, 0, 10);
    let back = |hub: &mut Hub| match hub.settle(true).as_slice() {
        [] => 0,
        [Note { about: RoomNote::Back(count), .. }] => *count,
        other => panic!("{other:?}"),
    };
    assert_eq!(back(&mut hub), 9);
    assert_eq!(hub.next_deadline(), Some(2 * SECOND));
    assert!(hub.expire(2 * SECOND).is_empty(), "nothing is handed out again");
    assert_eq!(back(&mut hub), 1);
    assert!(!hub.is_busy());

    // The lead comes back before that.
    let (mut hub, _) = old(1);
    hub.resign(|_| true, 0);
    hub.forget_moved(|_| true);
    assert!(!hub.is_busy() && hub.next_deadline().is_none());
}

/// The worker's stream is there: the item stays with it as long as it lives.
#[test]
fn a_lease_goes_on_at_the_next_leader() {
    let (_, told) = old(7);
    let mut next = hub();
    stream(&mut next, 9, 0);
    let here = |moving: Moving| Moving { stream: Some(9), ..moving };
    next.take_over(100, (activity(1), class(), 0), here(told[0].clone()), 0);
    assert_eq!(next.counts(Kind::Activity), (0, 1));
    assert_eq!(next.next_deadline(), None, "it lasts as long as its stream");
    let took = Note { stream: 9, kind: Kind::Activity, about: RoomNote::Took(1) };
    assert_eq!(next.settle(true), [took], "its gateway did not lend the room");
    assert_eq!(next.taken_over(&activity(1), (42, 7)), Some(100), "under the old leader's numbers");
    assert_eq!(next.taken_over(&activity(1), (42, 8)), None);
    assert_eq!(next.outstanding("a", Some(7)), Some((100, work(&activity(1), 7))), "R3.44");

    // And at the one after that.
    let held = next.hold_back(|_| true);
    assert_eq!(next.tell(&held, 43, 0)[0].given, (42, 7));

    next.close_stream(9, 0);
    assert_eq!(next.expire(5 * SECOND), [activity(1)], "after the usual grace");
    assert_eq!(next.taken_over(&activity(1), (42, 7)), None);
}

#[test]
fn a_lease_whose_worker_is_not_there_ends_after_the_grace() {
    let (_, told) = old(1);
    for (left, ends) in [(None, 5_000), (Some(9_000), 5_000), (Some(200), 200)] {
        let mut next = hub();
        stream(&mut next, 9, 10);
        let moving = Moving { stream: None, left: left.map(|left| left * MS), ..told[0].clone() };
        next.take_over(100, (activity(1), class(), 0), moving, 0);
        assert_eq!(assign(&mut next, 0, 101), None, "its worker may come back");
        assert_eq!(next.next_deadline(), Some(ends * MS));
        assert_eq!(next.expire(ends * MS), [activity(1)]);
        assert_eq!(assign(&mut next, ends * MS, 101), Some((activity(1), 9)));
    }
}

#[test]
fn a_turn_lasts_no_longer_than_it_would_have() {
    let mut old = hub();
    stream(&mut old, 1, 10);
    old.ready(turn("a"), class(), 0);
    let (key, is_sent) = hand_out(&mut old, 0, 7, 0).expect("an item");
    assert!(is_sent);
    let told = |left| Moving {
        work: work(&key, 0),
        given: (42, 7),
        stream: Some(9),
        left: Some(left * SECOND),
    };
    for (left, ends) in [(30, 30), (900, 300)] {
        let mut next = hub();
        stream(&mut next, 9, 10);
        next.take_over(100, (turn("a"), class(), 0), told(left), 0);
        assert_eq!(next.next_deadline(), Some(ends * SECOND));
        // What came for it meanwhile is looked for once it is done.
        next.finish(&turn("a"), 100, End::Done, 0);
        assert_eq!(assign(&mut next, 0, 101), Some((turn("a"), 9)));
    }
}

/// A partition in memory whose lead goes and comes by hand.
async fn led() -> (crate::machine::Node, Dispatcher, tokio::task::JoinSet<()>, Leader, u64) {
    let (node, dispatcher, leading) = dispatcher().await;
    let partition = dispatcher.partitions()[0].clone();
    let mut leadership = partition.leadership();
    let term =
        match *leadership.wait_for(|it| matches!(it, Leadership::Leader { .. })).await.unwrap() {
            Leadership::Leader { term } => term,
            Leadership::Follower { .. } => unreachable!(),
        };
    while !dispatcher.has_rebuilt(&partition) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let leader = Leader::new(&dispatcher, &partition);
    (node, dispatcher, leading, leader, term)
}

fn open(dispatcher: &Dispatcher) -> WorkStream {
    let options = StreamOptions { hub: 1, ..Default::default() };
    dispatcher.open_stream(options, futures::future::pending())
}

fn response(item: &durahub_proto::wire::WorkItem) -> durahub_proto::wire::OrchestratorResponse {
    durahub_proto::wire::OrchestratorResponse {
        instance_id: "a".into(),
        completion_token: item.completion_token.clone(),
        ..Default::default()
    }
}

async fn raise(dispatcher: &Dispatcher) {
    let request = durahub_proto::wire::RaiseEventRequest {
        instance_id: "a".into(),
        name: "E".into(),
        input: None,
    };
    let raise = Command::RaiseEvent(RaiseEvent { hub: 1, request });
    dispatcher.partition_of(1, "a").propose(raise.into_bytes()).await.expect("commits");
}

fn turns(dispatcher: &Dispatcher) -> (usize, usize) {
    dispatcher.load()[0].turns
}

#[tokio::test]
async fn the_next_leader_hands_out_nothing_that_a_worker_has() {
    let (node, dispatcher, _leading, mut leader, term) = led().await;
    leader.lead(Some(term)).await;
    start(&dispatcher).await;
    let mut stream = open(&dispatcher);
    let item = next(&mut stream).await;
    let partition = dispatcher.partitions()[0].clone();
    let leases = dispatcher.hold_back(&partition, term).await;
    assert_eq!(leases.len(), 1);
    dispatcher.hear_of_leases(TakeOver { partition: 1, term: term - 1, leases });
    leader.lead(None).await;
    leader.lead(Some(term)).await;
    assert_eq!(turns(&dispatcher), (0, 1), "it is with the worker");
    raise(&dispatcher).await;
    dispatcher.complete_turn(1, response(&item), ()).await.expect("commits");
    let more = next(&mut stream).await;
    dispatcher.complete_turn(1, response(&more), ()).await.expect("commits");
    assert_eq!(turns(&dispatcher), (0, 0));
    node.stop().await;
}

/// Told for another term, or of work that was done meanwhile: it is handed out as if nothing had been told.
#[tokio::test]
async fn what_was_told_and_does_not_fit_is_dropped() {
    let (node, dispatcher, _leading, mut leader, term) = led().await;
    leader.lead(Some(term)).await;
    start(&dispatcher).await;
    let mut stream = open(&dispatcher);
    let first = next(&mut stream).await;
    let partition = dispatcher.partitions()[0].clone();
    let leases = dispatcher.hold_back(&partition, term).await;
    for told_in in [term, term + 1] {
        dispatcher.hear_of_leases(TakeOver { partition: 1, term: told_in, leases: leases.clone() });
        leader.lead(None).await;
        leader.lead(Some(term)).await;
        assert!(next(&mut stream).now_or_never().is_some(), "told in {told_in}, led in {term}");
    }
    // The turn is done, and another one is due.
    dispatcher.complete_turn(1, response(&first), ()).await.expect("commits");
    raise(&dispatcher).await;
    dispatcher.hear_of_leases(TakeOver { partition: 1, term: term - 1, leases });
    leader.lead(None).await;
    leader.lead(Some(term)).await;
    let second = next(&mut stream).await;
    assert_ne!(second.completion_token, first.completion_token);
    dispatcher.complete_turn(1, response(&second), ()).await.expect("commits");
    assert_eq!(turns(&dispatcher), (0, 0), "no lease is left for what was done");
    node.stop().await;
}

/// R3.48: a token of before is good for an item that is handed out again, and ends its lease there.
#[tokio::test]
async fn leases_of_before_are_forgotten_when_the_lead_comes_back() {
    let (node, dispatcher, _leading, mut leader, term) = led().await;
    leader.lead(Some(term)).await;
    start(&dispatcher).await;
    let mut stream = open(&dispatcher);
    let first = next(&mut stream).await;
    leader.lead(None).await;
    leader.lead(Some(term)).await;
    let again = next(&mut stream).await;
    assert_ne!(first.completion_token, again.completion_token);
    dispatcher.complete_turn(1, response(&first), ()).await.expect("commits");
    let head = dispatcher.partitions()[0]
        .peek(|rows| read::head(&RowsView(rows), &Address::new(1, "a")).expect("is there"));
    assert!(head.history_events > 0, "the turn is committed");
    dispatcher.complete_turn(1, response(&again), ()).await.expect("is OK");
    assert_eq!(turns(&dispatcher), (0, 0), "and nobody has it any more");
    node.stop().await;
}

/// Timers that were about to be fired when the lead went are looked for when it comes back.
#[tokio::test]
async fn timers_go_on_after_a_lead_that_was_lost_while_they_fired() {
    let (node, _dispatcher, _leading, mut leader, term) = led().await;
    leader.lead(Some(term)).await;
    leader.firing = futures::future::pending().boxed().fuse();
    leader.next_due = Some(1);
    leader.lead(None).await;
    assert!(
        futures::future::FusedFuture::is_terminated(&leader.firing),
        "it would hold up all others"
    );
    assert_eq!(leader.next_due, None, "the next leader fires them");
    node.stop().await;
}

/// A hand-over came to nothing: what was held back is handed out again.
#[tokio::test]
async fn a_leader_that_leads_on_hands_out_what_it_held_back() {
    let (node, dispatcher, _leading, mut leader, term) = led().await;
    leader.lead(Some(term)).await;
    start(&dispatcher).await;
    let partition = dispatcher.partitions()[0].clone();
    dispatcher.begin_hold(&partition, term, 2);
    assert!(dispatcher.hold_back(&partition, term).await.is_empty());
    raise(&dispatcher).await;
    let mut stream = open(&dispatcher);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(turns(&dispatcher), (0, 0));
    leader.lead_on().await;
    let item = next(&mut stream).await;
    dispatcher.complete_turn(1, response(&item), ()).await.expect("commits");
    assert_eq!(turns(&dispatcher), (0, 0));
    node.stop().await;
}
