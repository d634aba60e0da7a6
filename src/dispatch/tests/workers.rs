//! What kinds of workers need: no tokens, parts of completions, long histories, work given back.

use durahub_proto::wire;

use super::*;
use crate::dispatch::filter::Filter;
use crate::dispatch::hub::Kept;
use crate::dispatch::token::{ActivityWork, Work};
use crate::engine::command::{BatchId, TaskId, TurnId};

pub(super) fn work(key: &Key, task_id: i32) -> Work {
    match key {
        Key::Turn { instance } => {
            Work::Turn(TurnId { hub: 1, instance: instance.to_string(), ..Default::default() })
        }
        Key::Activity { instance, generation, number } => {
            let (generation, number) = (*generation, *number);
            let task = TaskId { hub: 1, instance: instance.to_string(), generation, number };
            Work::Activity(ActivityWork { task, task_id })
        }
        Key::Entity { instance } => {
            Work::Entity(BatchId { hub: 1, instance: instance.to_string(), ..Default::default() })
        }
    }
}

/// Leases and assembles the next item.
pub(super) fn hand_out(hub: &mut Hub, now: i64, lease: u64, task_id: i32) -> Option<(Key, bool)> {
    let to = hub.assign(now, lease)?;
    let sent = hub.assembled(&to, work(&to.key, task_id), 10, now);
    Some((to.key, sent))
}

#[test]
fn a_completion_without_a_token_means_the_single_item_outstanding() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hub.ready(activity(1), class(), 0);
    hub.ready(activity(2), class(), 0);
    assert!(hub.outstanding("a", None).is_none(), "nothing is handed out yet");
    for lease in 1..=3 {
        hand_out(&mut hub, 0, lease, 7);
    }
    assert_eq!(hub.outstanding("a", Some(7)), None, "two are: neither is meant");
    assert_eq!(hub.outstanding("a", Some(8)), None);
    assert_eq!(hub.outstanding("a", None), Some((1, work(&turn("a"), 0))), "R3.44");
    hub.finish(&activity(1), 2, End::Done, 0);
    assert_eq!(hub.outstanding("a", Some(7)), Some((3, work(&activity(2), 7))));
}

#[test]
fn a_worker_without_tokens_never_holds_two_activities_of_one_name() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hand_out(&mut hub, 0, 1, 0);
    assert!(hub.outstanding("a", None).is_some(), "now the hub knows such a worker");
    hub.ready(activity(1), class(), 0);
    hub.ready(activity(2), class(), 0);
    assert_eq!(hand_out(&mut hub, 0, 2, 7), Some((activity(1), true)));
    assert_eq!(hand_out(&mut hub, 0, 3, 7), Some((activity(2), false)), "held back");
    assert_eq!(hub.counts(Kind::Activity), (1, 1));
    hub.finish(&activity(1), 2, End::Done, 0);
    assert!(hub.expire(SECOND).is_empty());
    assert_eq!(hand_out(&mut hub, SECOND, 4, 7), Some((activity(2), true)));
}

#[test]
fn a_lost_turn_is_repeated_exactly_for_workers_without_tokens() {
    for tokenless in [false, true] {
        let mut hub = hub();
        stream(&mut hub, 1, 10);
        hub.ready(turn("a"), class(), 0);
        hand_out(&mut hub, 0, 1, 0);
        if tokenless {
            assert!(hub.outstanding("a", None).is_some());
        }
        hub.expire(300 * SECOND);
        let again = hub.assign(300 * SECOND, 2).expect("handed out again");
        assert_eq!(again.turn.is_some(), tokenless, "R3.53: others may get more events");
    }
}

#[test]
fn a_late_completion_counts_while_nobody_else_has_the_item() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    assert!(assign(&mut hub, 0, 1).is_some());
    hub.close_stream(1, 0);
    assert_eq!(hub.expire(5 * SECOND), [turn("a")]);
    assert_eq!(hub.claim(&turn("a"), 9), Claim::Unleased, "another lease");
    assert_eq!(hub.claim(&turn("a"), 1), Claim::Current, "R3.50");
    assert_eq!(hub.counts(Kind::Turn), (0, 1));
    hub.finish(&turn("a"), 1, End::Done, 5 * SECOND);
    assert_eq!(hub.counts(Kind::Turn), (0, 0));

    hub.ready(turn("b"), class(), 0);
    stream(&mut hub, 2, 10);
    assert!(assign(&mut hub, 0, 3).is_some());
    hub.finish(&turn("b"), 3, End::Abandoned, 0);
    hub.expire(SECOND);
    assert_eq!(hub.claim(&turn("b"), 3), Claim::Unleased, "what was given back is used up");
}

#[test]
fn what_was_given_back_goes_to_somebody_else_if_there_is_one() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    assert_eq!(assign(&mut hub, 0, 1), Some((turn("a"), 1)));
    hub.finish(&turn("a"), 1, End::Abandoned, 0);
    hub.expire(SECOND);
    assert_eq!(assign(&mut hub, SECOND, 2), Some((turn("a"), 1)), "nobody else is there");
    hub.finish(&turn("a"), 2, End::Abandoned, SECOND);
    stream(&mut hub, 2, 1);
    hub.expire(3 * SECOND);
    assert_eq!(assign(&mut hub, 3 * SECOND, 3), Some((turn("a"), 2)), "R3.63");
}

#[test]
fn the_oldest_goes_first_whatever_order_it_became_known_in() {
    let mut hub = hub();
    hub.ready(turn("young"), class(), 30);
    hub.ready(turn("old"), class(), 10);
    hub.ready(turn("middle"), class(), 20);
    stream(&mut hub, 1, 10);
    let order: Vec<Key> =
        (1..=3).filter_map(|lease| Some(assign(&mut hub, 99, lease)?.0)).collect();
    assert_eq!(order, [turn("old"), turn("middle"), turn("young")]);
}

#[test]
fn kinds_take_turns_on_a_slow_connection() {
    let mut hub = hub();
    for number in 0..200 {
        hub.ready(turn(&number.to_string()), class(), 0);
    }
    hub.ready(activity(1), class(), 99);
    stream(&mut hub, 1, 1_000);
    let second = (1..=2).filter_map(|lease| Some(assign(&mut hub, 99, lease)?.0)).last();
    assert_eq!(second, Some(activity(1)), "R3.21: a flood of turns holds up no activity");
}

#[test]
fn a_new_version_moves_a_waiting_item_to_the_workers_of_that_version() {
    let version = |version: &str| Class { name: "n".into(), version: version.into() };
    let serving = |text: &str| {
        let name = wire::OrchestrationFilter { name: "N".into(), versions: vec![text.into()] };
        Offer {
            filter: Filter::new(Some(wire::WorkItemFilters {
                orchestrations: vec![name],
                ..Default::default()
            })),
            room: [10; Kind::COUNT],
            ..Default::default()
        }
    };
    let mut hub = hub();
    hub.open_stream(1, serving("1"));
    hub.open_stream(2, serving("2"));
    hub.ready(turn("a"), version("1"), 0);
    assert_eq!(assign(&mut hub, 0, 1), Some((turn("a"), 1)));
    hub.ready(turn("a"), version("2"), 0);
    hub.finish(&turn("a"), 1, End::Done, 0);
    assert_eq!(assign(&mut hub, 0, 2), Some((turn("a"), 2)), "R4.55, while it was with a worker");
    hub.close_stream(2, 0);
    hub.expire(5 * SECOND);
    hub.ready(turn("a"), version("1"), 0);
    assert_eq!(assign(&mut hub, 0, 3), Some((turn("a"), 1)), "and while it waited");
}

#[test]
fn a_history_that_is_too_large_waits_for_a_worker_that_can_stream_it() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    let to = hub.assign(0, 1).expect("handed out");
    assert!(!to.streams_history);
    assert!(!hub.set_aside(&to, 0), "nobody can: it has to fail (R3.31)");
    let room = [5; Kind::COUNT];
    hub.open_stream(2, Offer { streams_history: true, room, ..Default::default() });
    assert!(hub.set_aside(&to, 0));
    let to = hub.assign(0, 2).expect("handed out again");
    assert_eq!((to.stream, to.streams_history), (2, true), "though stream 1 has more room");
}

fn part(index: i32, actions: std::ops::Range<i32>, status: &str) -> wire::OrchestratorResponse {
    #[expect(deprecated, reason = "R3.65")]
    wire::OrchestratorResponse {
        chunk_index: Some(index),
        actions: actions.map(|id| wire::OrchestratorAction { id, ..Default::default() }).collect(),
        custom_status: Some(status.into()),
        num_events_processed: (index > 0).then_some(0),
        orchestration_trace_context: (index == 0).then(Default::default),
        ..Default::default()
    }
}

#[test]
fn a_completion_in_parts_is_put_together() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hub.assign(0, 1).expect("handed out");
    let mut keep = |part| hub.keep_part(&turn("a"), 1, part, 1_000);
    assert_eq!(keep(part(1, 0..1, "")), Kept::Gap, "the first part is missing");
    assert_eq!(keep(part(0, 0..9, "")), Kept::Yes);
    assert_eq!(keep(part(0, 0..2, "x")), Kept::Yes, "sent again: it begins anew (R3.68)");
    assert_eq!(keep(part(1, 9..9, "x")), Kept::Yes);
    assert_eq!(keep(part(1, 2..3, "x")), Kept::Yes, "sent again: it takes the place (R3.68)");
    assert_eq!(keep(part(3, 0..1, "")), Kept::Gap);
    assert_eq!(hub.keep_part(&turn("a"), 2, part(2, 0..1, ""), 1_000), Kept::Stale);
    assert_eq!(hub.claim(&turn("a"), 1), Claim::Current);
    let parts = hub.parts(&turn("a"), 1);
    let whole = parts.whole(part(2, 3..4, "last")).expect("nothing is missing");
    let again = hub.parts(&turn("a"), 1).whole(part(2, 3..4, "last"));
    assert_eq!(again.as_ref(), Some(&whole), "the last part may come again");
    assert_eq!(whole.actions.iter().map(|action| action.id).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(whole.custom_status, Some("last".into()));
    assert_eq!(whole.num_events_processed, None, "R3.67: 0 in later parts means nothing");
    assert!(whole.orchestration_trace_context.is_some(), "R3.67");
}

#[test]
fn parts_go_with_their_lease_and_have_a_limit() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hub.assign(0, 1).expect("handed out");
    assert_eq!(hub.keep_part(&turn("a"), 1, part(0, 0..2, ""), 1_000), Kept::Yes);
    hub.finish(&turn("a"), 1, End::Abandoned, 0);
    hub.expire(SECOND);
    hub.assign(SECOND, 2).expect("handed out again");
    assert!(hub.parts(&turn("a"), 2).whole(part(1, 2..3, "")).is_none(), "R3.68");
    let kept = hub.keep_part(&turn("a"), 2, part(0, 0..100, ""), 50);
    assert!(matches!(kept, Kept::TooLarge(51..)), "{kept:?}");
}
