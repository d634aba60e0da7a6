//! The tables of a hub, driven by hand: no clock, no rows, no network. [`workers`] has what kinds of
//! workers need. [`caller`] and [`background`] have a whole dispatcher on a partition in memory, [`feeds`] two of
//! them with a link between; in [`moving`] its lead goes and comes, in [`waits`] others wait at it; in [`elsewhere`] one
//! of two nodes takes itself for the leader; [`trees`] is about answers that are too large.

mod background;
mod caller;
mod elsewhere;
mod feeds;
mod moving;
mod trees;
mod waits;
mod workers;

use std::time::Duration;

use super::hub::{Assignment, Claim, End, Hub, Key, Kind, LeaseTimes, Note, Offer, RoomNote};
use crate::engine::Class;

const SECOND: i64 = 1_000_000_000;

fn hub() -> Hub {
    Hub::new(LeaseTimes {
        turn: Duration::from_secs(300),
        entity: Duration::from_secs(60),
        activity: None,
        grace: Duration::from_secs(5),
    })
}

fn turn(instance: &str) -> Key {
    Key::Turn { instance: instance.into() }
}

fn activity(number: u64) -> Key {
    Key::Activity { instance: "a".into(), generation: 1, number }
}

fn class() -> Class {
    Class { name: "N".into(), version: String::new() }
}

fn stream(hub: &mut Hub, id: u64, capacity: usize) {
    hub.open_stream(id, Offer { room: [capacity; Kind::COUNT], ..Default::default() });
}

fn assign(hub: &mut Hub, now: i64, lease: u64) -> Option<(Key, u64)> {
    hub.assign(now, lease).map(|Assignment { key, stream, .. }| (key, stream))
}

#[test]
fn an_item_is_outstanding_once_and_what_arrives_meanwhile_makes_it_ready_again() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hub.ready(turn("a"), class(), 0);
    assert_eq!(assign(&mut hub, 0, 7), Some((turn("a"), 1)));
    assert_eq!(assign(&mut hub, 0, 8), None);
    hub.ready(turn("a"), class(), 0);
    assert_eq!(assign(&mut hub, 0, 8), None, "R3.16");
    assert_eq!(hub.claim(&turn("a"), 7), Claim::Current);
    assert_eq!(hub.claim(&turn("a"), 7), Claim::Underway, "the same completion twice");
    hub.finish(&turn("a"), 7, End::Done, 0);
    assert_eq!(assign(&mut hub, 0, 9), Some((turn("a"), 1)), "no wake-up is lost");
    hub.finish(&turn("a"), 9, End::Done, 0);
    assert_eq!(assign(&mut hub, 0, 10), None);
    assert_eq!(hub.claim(&turn("a"), 9), Claim::Unleased);
}

#[test]
fn streams_get_no_more_than_they_can_hold_and_the_freest_comes_first() {
    let mut hub = hub();
    stream(&mut hub, 1, 1);
    stream(&mut hub, 2, 2);
    for number in 0..5 {
        hub.ready(activity(number), class(), 0);
    }
    let given: Vec<_> = (0..5).filter_map(|lease| assign(&mut hub, 0, lease)).collect();
    assert_eq!(given, [(activity(0), 2), (activity(1), 2), (activity(2), 1)]);
    hub.finish(&activity(2), 2, End::Done, 0);
    assert_eq!(assign(&mut hub, 0, 9), Some((activity(3), 1)));
    assert_eq!(hub.counts(Kind::Activity), (1, 3));
}

#[test]
fn a_closed_stream_gives_back_after_the_grace_and_a_late_completion_still_counts() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    hub.ready(activity(1), class(), 0);
    assert!(assign(&mut hub, 0, 1).is_some() && assign(&mut hub, 0, 2).is_some());
    hub.close_stream(1, 0);
    stream(&mut hub, 2, 10);
    assert!(hub.expire(4 * SECOND).is_empty());
    assert_eq!(hub.claim(&turn("a"), 1), Claim::Current, "R1.42");
    assert_eq!(hub.expire(5 * SECOND), [activity(1)], "what is being committed is not taken away");
    assert_eq!(assign(&mut hub, 5 * SECOND, 3), Some((activity(1), 2)));
    assert_eq!(hub.claim(&activity(1), 2), Claim::Stale, "R3.54");
    hub.finish(&turn("a"), 1, End::Done, 5 * SECOND);
    assert_eq!(hub.next_deadline(), None, "no lease time on an activity of a live stream (R3.51)");
}

#[test]
fn a_lease_ends_by_its_time_while_the_stream_lives() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    assert!(assign(&mut hub, 0, 1).is_some());
    assert_eq!(hub.next_deadline(), Some(300 * SECOND));
    assert_eq!(hub.expire(300 * SECOND), [turn("a")]);
    assert_eq!(assign(&mut hub, 300 * SECOND, 2), Some((turn("a"), 1)));
}

/// Who handed in its completion may have given up: then somebody else gets the item, also one without a lease time.
#[test]
fn a_lease_goes_on_for_a_while_after_a_completion_that_was_not_committed() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(activity(1), class(), 0);
    assert!(assign(&mut hub, 0, 1).is_some());
    assert_eq!(hub.claim(&activity(1), 1), Claim::Current);
    hub.unclaim(&activity(1), 1, 0);
    assert_eq!(assign(&mut hub, 0, 2), None, "nobody else has it");
    assert_eq!(hub.claim(&activity(1), 1), Claim::Current, "it came again");
    hub.unclaim(&activity(1), 1, SECOND);
    assert_eq!(hub.next_deadline(), Some(15 * SECOND), "the first counts");
    assert_eq!(hub.expire(15 * SECOND), [activity(1)]);
    assert_eq!(hub.claim(&activity(1), 1), Claim::Current, "late, but nobody else has it");
    hub.finish(&activity(1), 1, End::Done, 15 * SECOND);
    assert_eq!(hub.next_deadline(), None);
    // One that ends sooner ends when it would have.
    hub.ready(turn("a"), class(), 0);
    assert!(assign(&mut hub, 0, 3).is_some());
    assert_eq!(hub.claim(&turn("a"), 3), Claim::Current);
    hub.unclaim(&turn("a"), 3, 290 * SECOND);
    assert_eq!(hub.next_deadline(), Some(300 * SECOND));
}

#[test]
fn an_abandoned_item_comes_back_later_each_time() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(turn("a"), class(), 0);
    let mut now = 0;
    for (lease, delay) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 60), (8, 60)] {
        assert!(assign(&mut hub, now, lease).is_some());
        hub.finish(&turn("a"), lease, End::Abandoned, now);
        hub.ready(turn("a"), class(), 0);
        assert_eq!(
            assign(&mut hub, now, 99),
            None,
            "an arrival does not shorten the delay (R3.62)"
        );
        assert_eq!(hub.next_deadline(), Some(now + delay * SECOND));
        now += delay * SECOND;
        assert!(hub.expire(now).is_empty());
    }
}

#[test]
fn a_stream_that_takes_nothing_gets_a_bounded_number_of_items() {
    let mut hub = hub();
    stream(&mut hub, 1, 100_000);
    for number in 0..1_000 {
        hub.ready(activity(number), class(), 0);
    }
    let given = (0..1_000).filter_map(|lease| assign(&mut hub, 0, lease)).count();
    assert_eq!(given, 64, "R1: memory stays bounded");
    assert!(hub.sent(1, 0), "room again: more may follow");
    assert!(assign(&mut hub, 0, 5_000).is_some() && assign(&mut hub, 0, 5_001).is_none());
}

#[test]
fn a_leader_that_resigns_forgets_what_it_led() {
    let mut hub = hub();
    stream(&mut hub, 1, 1);
    for instance in ["mine-1", "mine-2", "other"] {
        hub.ready(turn(instance), class(), 0);
    }
    assert_eq!(assign(&mut hub, 0, 1), Some((turn("mine-1"), 1)));
    hub.resign(|instance| instance.starts_with("mine"), 0);
    assert_eq!(hub.next_deadline(), None);
    assert_eq!(assign(&mut hub, 0, 2), Some((turn("other"), 1)));
    assert!(hub.is_busy());
}

/// What the gateway of stream 1 is told.
fn told(hub: &mut Hub) -> Vec<RoomNote> {
    let notes = hub.settle(true).into_iter();
    notes
        .map(|Note { stream, about, .. }| (stream == 1).then_some(about).expect("stream 1"))
        .collect()
}

#[test]
fn room_that_is_used_up_is_asked_for_and_what_is_owed_goes_back_after_its_use() {
    use RoomNote::{Back, Want};
    let mut hub = hub();
    stream(&mut hub, 1, 1);
    for number in 0..4 {
        hub.ready(activity(number), class(), 0);
    }
    assert!(assign(&mut hub, 0, 1).is_some() && assign(&mut hub, 0, 2).is_none());
    assert_eq!(told(&mut hub), [Want(3)]);
    assert_eq!(told(&mut hub), [], "once");
    // Lent and called back at the same time: it serves for one item first.
    hub.lend(1, Kind::Activity, 1);
    hub.recall(1, Kind::Activity, 0, 1);
    assert!(assign(&mut hub, 0, 3).is_some() && assign(&mut hub, 0, 4).is_none());
    assert_eq!(told(&mut hub), [], "2 are still asked for");
    hub.finish(&activity(0), 1, End::Done, 0);
    assert!(assign(&mut hub, 0, 5).is_none(), "its room is owed");
    assert_eq!(told(&mut hub), [Back(1)]);
    hub.finish(&activity(1), 3, End::Done, 0);
    assert!(assign(&mut hub, 0, 6).is_some(), "no more is owed");
    // What is idle goes back when there is nothing for it.
    hub.recall(1, Kind::Activity, 5, 0);
    hub.lend(1, Kind::Activity, 2);
    assert!(assign(&mut hub, 0, 7).is_some() && assign(&mut hub, 0, 8).is_none());
    assert_eq!(told(&mut hub), [Back(1)]);
    assert_eq!(hub.counts(Kind::Activity), (0, 2));
}

#[test]
fn a_want_is_taken_back_when_nothing_waits_any_more() {
    use RoomNote::Want;
    let mut hub = hub();
    stream(&mut hub, 1, 0);
    assert_eq!(told(&mut hub), []);
    hub.ready(turn("a"), class(), 0);
    assert_eq!(told(&mut hub), [Want(1)]);
    hub.resign(|_| true, 0);
    assert_eq!(told(&mut hub), [Want(0)]);
    hub.ready(turn("b"), class(), 0);
    assert!(hub.settle(false).is_empty(), "a node that hands out nothing wants nothing");
    assert_eq!(told(&mut hub), [Want(1)]);
}

fn entity(name: &str) -> Key {
    Key::Entity { instance: name.into() }
}

/// R3.16, R3.51, R5.42: a batch has a time of its own; what came for the entity meanwhile is not lost.
#[test]
fn a_batch_comes_back_when_its_lease_has_ended() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    hub.ready(entity("@a@1"), class(), 0);
    assert_eq!(assign(&mut hub, 0, 7), Some((entity("@a@1"), 1)));
    hub.ready(entity("@a@1"), class(), 1);
    assert_eq!(assign(&mut hub, 1, 8), None, "one at a time");
    assert_eq!(hub.expire(59 * SECOND), []);
    assert_eq!(hub.expire(60 * SECOND), [entity("@a@1")]);
    assert_eq!(assign(&mut hub, 60 * SECOND, 9), Some((entity("@a@1"), 1)));
    assert_eq!(hub.claim(&entity("@a@1"), 7), Claim::Stale);
    assert_eq!(hub.claim(&entity("@a@1"), 9), Claim::Current);
    hub.finish(&entity("@a@1"), 9, End::Done, 60 * SECOND);
    assert_eq!(assign(&mut hub, 60 * SECOND, 10), None);
}

/// R3.62, R3.73: the delay doubles from a second to a minute, however much is told of the entity meanwhile; once a
/// batch has worked it begins anew.
#[test]
fn a_batch_that_fails_as_a_whole_waits_longer_each_time() {
    let mut hub = hub();
    stream(&mut hub, 1, 10);
    let (mut now, mut lease) = (0, 0);
    hub.ready(entity("@a@1"), class(), now);
    for round in 0..2 {
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            lease += 1;
            assert!(assign(&mut hub, now, lease).is_some(), "round {round}, {seconds} s");
            hub.ready(entity("@a@1"), class(), now);
            hub.finish(&entity("@a@1"), lease, End::Abandoned, now);
            hub.ready(entity("@a@1"), class(), now);
            hub.expire(now + seconds * SECOND - 1);
            assert_eq!(assign(&mut hub, now, lease), None, "round {round}, {seconds} s");
            now += seconds * SECOND;
            assert_eq!(hub.expire(now), [], "no lease has ended");
        }
        lease += 1;
        assert!(assign(&mut hub, now, lease).is_some());
        hub.finish(&entity("@a@1"), lease, End::Done, now);
        hub.ready(entity("@a@1"), class(), now);
    }
}
