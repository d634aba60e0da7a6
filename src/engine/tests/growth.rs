//! Limits of one instance: reaching one fails or refuses that instance, with a reason that names it.

use super::*;
use crate::engine::Reject;

fn started(limits: Limits) -> World {
    let mut world = World { limits, ..World::new() };
    assert!(world.start(request("a")).is_ok());
    world
}

/// The failure of an instance after one turn with these actions.
fn failure_of(world: &mut World, actions: Vec<wire::OrchestratorAction>) -> Option<String> {
    let turn = world.turn("a").expect("a turn").id;
    let done = world.commit(&turn, actions);
    assert!(done.is_ok(), "the worker is not bothered");
    let failure = world.state("a").failure_details?;
    assert!(failure.is_non_retriable, "R4.11");
    assert_eq!(activities(&done), [], "nothing that it asked for is carried out");
    Some(failure.error_message)
}

#[test]
fn too_many_events_in_a_history_fail_the_instance() {
    let mut world = started(Limits { history_events: 5, ..Limits::USUAL });
    assert_eq!(failure_of(&mut world, vec![task(1), task(2), task(3)]), None, "just fits");
    assert!(world.raise("a", "E").is_ok());
    let failure = failure_of(&mut world, vec![]).expect("OS and E are two more");
    assert!(failure.contains("7 events, the limit is 5 (limits.max_history_events)"), "{failure}");
    assert!(world.start(request("a")).is_ok(), "it can be started again");
}

#[test]
fn a_turn_that_ends_or_begins_anew_never_exceeds_a_limit() {
    let tight = Limits { history_events: 1, history_bytes: 1, pending: 1, ..Limits::USUAL };
    let mut world = started(tight);
    let again = end(wire::OrchestrationStatus::ContinuedAsNew, None);
    let again = action(3, Action::CompleteOrchestration(again));
    let turn = world.turn("a").expect("a turn").id;
    assert!(world.commit(&turn, vec![task(1), task(2), again]).is_ok());
    assert_eq!(world.state("a").orchestration_status(), wire::OrchestrationStatus::Running);
    let turn = world.turn("a").expect("a turn").id;
    assert!(world.commit(&turn, vec![complete(1, Some("done"))]).is_ok());
    assert_eq!(world.state("a").orchestration_status(), wire::OrchestrationStatus::Completed);
}

#[test]
fn too_many_bytes_in_a_history_fail_the_instance() {
    let mut world = started(Limits { history_bytes: 1_000, ..Limits::USUAL });
    let large = wire::ScheduleTaskAction {
        name: "A".into(),
        input: Some("x".repeat(2_000).into()),
        ..Default::default()
    };
    let failure = failure_of(&mut world, vec![action(1, Action::ScheduleTask(large))]);
    assert!(failure.is_some_and(|text| text.contains("limits.max_history_bytes")));
}

#[test]
fn too_much_at_once_fails_the_instance_and_answers_make_room() {
    let mut world = started(Limits { pending: 2, ..Limits::USUAL });
    let turn = world.turn("a").expect("a turn").id;
    let done = world.commit(&turn, vec![task(1), task(2)]);
    let items = activities(&done);
    assert!(world.answer(&items[0], "r").is_ok());
    assert_eq!(failure_of(&mut world, vec![task(3)]), None, "one was answered");
    assert!(world.answer(&items[1], "r").is_ok());
    let failure = failure_of(&mut world, vec![task(4), task(5)]).expect("three");
    assert!(failure.contains("waits for 3") && failure.contains("limit is 2"), "{failure}");
}

#[test]
fn too_many_waiting_events_are_refused_until_some_were_taken_in() {
    let mut world = started(Limits { waiting_events: 2, ..Limits::USUAL });
    assert!(world.raise("a", "1").is_ok() && world.raise("a", "2").is_ok());
    let refused = world.raise("a", "3");
    assert_eq!(refused.answer, Err(Reject::InboxFull { instance: "a".into(), limit: 2 }));
    assert!(!refused.changed);
    assert!(world.start(request("b")).is_ok() && world.raise("b", "1").is_ok(), "only that one");
    let turn = world.turn("a").expect("a turn").id;
    assert!(world.commit(&turn, Vec::new()).is_ok());
    assert!(world.raise("a", "3").is_ok());

    // Continue-as-new counts what it carries.
    let turn = world.turn("a").expect("a turn");
    let mut again = end(wire::OrchestrationStatus::ContinuedAsNew, None);
    again.carryover_events = vec![turn.new[1].clone()];
    assert!(world.raise("a", "4").is_ok());
    let again = action(1, Action::CompleteOrchestration(again));
    assert!(world.commit(&turn.id, vec![again]).is_ok());
    assert!(!world.raise("a", "5").is_ok(), "3 was carried, 4 waits");
}

/// S13: whatever a replica was configured with, the limits in the log decide.
#[test]
fn limits_travel_with_the_command() {
    let mut world = started(Limits { waiting_events: 1, ..Limits::USUAL });
    assert!(world.raise("a", "1").is_ok());
    assert!(!world.raise("a", "2").is_ok());
    world.limits = Limits { waiting_events: 0, ..Limits::USUAL };
    assert!(world.raise("a", "2").is_ok(), "0 is no limit");
    world.check_replay();
}

/// R4.62: a loop of generations has no end of its own, and leaves nothing behind.
#[test]
fn generations_have_no_limit() {
    let mut world = started(Limits::USUAL);
    let rows = world.rows.len();
    for round in 0..2_000 {
        let turn = world.turn("a").expect("a turn").id;
        let again = end(wire::OrchestrationStatus::ContinuedAsNew, Some(&round.to_string()));
        assert!(world.commit(&turn, vec![action(1, Action::CompleteOrchestration(again))]).is_ok());
    }
    assert_eq!(world.state("a").input, Some("1999".into()));
    assert_eq!(world.rows.len(), rows);
}
