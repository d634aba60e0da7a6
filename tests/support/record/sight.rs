//! The checker of records: it accepts a sound history and sees each kind of damage.

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{HistoryEvent, OrchestrationState, OrchestrationStatus};
use prost::Message;
use prost_types::Timestamp;

use durahub_proto::wire::{
    EventRaisedEvent, ExecutionCompletedEvent, ExecutionStartedEvent, OrchestratorStartedEvent,
    SubOrchestrationInstanceCompletedEvent, SubOrchestrationInstanceCreatedEvent,
    TaskCompletedEvent, TaskScheduledEvent, TimerCreatedEvent, TimerFiredEvent,
};

use crate::record::ledger::{
    Attempt, EVENT, Kind, Record, Sent, Servers, Step, activity_input, child,
};
use crate::record::linear::{self, Did, Operation};
use crate::record::told::examine;
use crate::record::worker::output;

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

/// A history of this kind as it should be, with its ledger and state.
fn sound(kind: Kind) -> (Record, OrchestrationState, Vec<HistoryEvent>) {
    let mut record = Record::new(kind, "\"in\"", Servers::One);
    let mut events: Vec<HistoryEvent> = Vec::new();
    let (mut results, mut answers) = (Vec::new(), Vec::new());
    let mut clock = 100;
    let mut push = |id: i32, clock: i64, event: EventType| {
        events.push(HistoryEvent {
            event_id: id,
            timestamp: Some(at(clock)),
            event_type: Some(event),
        });
    };
    push(-1, clock, EventType::OrchestratorStarted(OrchestratorStartedEvent {}));
    let started = ExecutionStartedEvent {
        name: kind.name().into(),
        input: Some("\"in\"".into()),
        ..Default::default()
    };
    push(0, clock, EventType::ExecutionStarted(started));
    for (id, step) in (1..).zip(kind.steps()) {
        let due = clock + 5;
        match step {
            Step::Activity => {
                let input = Some(activity_input("i", id).into());
                push(
                    id,
                    clock,
                    EventType::TaskScheduled(TaskScheduledEvent { input, ..Default::default() }),
                );
            }
            Step::Timer(_) => push(
                id,
                clock,
                EventType::TimerCreated(TimerCreatedEvent { fire_at: Some(at(due)) }),
            ),
            Step::Child => {
                let (instance_id, input) = child("i", id);
                let created = SubOrchestrationInstanceCreatedEvent {
                    instance_id,
                    input: Some(input.into()),
                    ..Default::default()
                };
                push(id, clock, EventType::SubOrchestrationInstanceCreated(created));
            }
            Step::Events(_) => {}
        }
        clock += 10;
        push(-1, clock, EventType::OrchestratorStarted(OrchestratorStartedEvent {}));
        match step {
            Step::Activity => {
                let result = format!("\"result {id}\"");
                let attempt = Attempt {
                    result: result.clone(),
                    life: 0,
                    dispatched: 1,
                    acknowledged: Some((2, 0)),
                };
                record.tasks.insert(id, vec![attempt]);
                results.push(result.clone());
                let completed =
                    TaskCompletedEvent { task_scheduled_id: id, result: Some(result.into()) };
                push(-1, clock, EventType::TaskCompleted(completed));
            }
            Step::Timer(_) => {
                push(
                    -1,
                    clock,
                    EventType::TimerFired(TimerFiredEvent { fire_at: Some(at(due)), timer_id: id }),
                );
            }
            Step::Child => {
                let answer = SubOrchestrationInstanceCompletedEvent {
                    task_scheduled_id: id,
                    result: Some("[]".into()),
                };
                answers.push("[]".to_owned());
                push(-1, clock, EventType::SubOrchestrationInstanceCompleted(answer));
            }
            Step::Events(count) => {
                for number in 0..*count {
                    let payload = format!("\"event {number}\"");
                    record.events.push(Sent { payload: payload.clone(), sends: 1 });
                    let raised =
                        EventRaisedEvent { name: EVENT.into(), input: Some(payload.into()) };
                    push(-1, clock, EventType::EventRaised(raised));
                }
            }
        }
    }
    let output = output(results.iter().chain(&answers).map(String::as_str));
    let completed = ExecutionCompletedEvent {
        orchestration_status: OrchestrationStatus::Completed.into(),
        result: Some(output.as_str().into()),
        ..Default::default()
    };
    push(kind.steps().len() as i32 + 1, clock, EventType::ExecutionCompleted(completed));
    let state = OrchestrationState {
        name: kind.name().to_owned(),
        input: Some("\"in\"".into()),
        output: Some(output.into()),
        orchestration_status: OrchestrationStatus::Completed.into(),
        ..Default::default()
    };
    (record, state, events)
}

fn found(
    kind: Kind,
    damage: impl FnOnce(&mut Record, &mut OrchestrationState, &mut Vec<HistoryEvent>),
) -> String {
    let (mut record, mut state, mut events) = sound(kind);
    damage(&mut record, &mut state, &mut events);
    let encoded: Vec<_> = events.iter().map(|event| Bytes::from(event.encode_to_vec())).collect();
    examine("i", &record, &state, &encoded).join("\n")
}

fn place(events: &[HistoryEvent], wanted: fn(&EventType) -> bool) -> usize {
    events.iter().position(|event| event.event_type.as_ref().is_some_and(wanted)).expect("is there")
}

#[test]
fn accepts_what_is_sound() {
    for kind in Kind::ALL {
        assert_eq!(found(kind, |_, _, _| {}), "", "{kind:?}");
    }
}

#[test]
fn sees_a_lost_result() {
    let seen = found(Kind::Sequence, |record, _, _| {
        let attempts = record.tasks.get_mut(&2).expect("task 2");
        attempts[0].result = "\"mine\"".into();
        attempts.push(Attempt {
            result: "\"result 2\"".into(),
            life: 1,
            dispatched: 3,
            acknowledged: None,
        });
    });
    assert!(seen.contains("acknowledged and lost"), "{seen}");
}

#[test]
fn allows_a_result_that_a_rival_beat() {
    let seen = found(Kind::Sequence, |record, _, _| {
        let attempts = record.tasks.get_mut(&2).expect("task 2");
        attempts[0] = Attempt {
            result: "\"mine\"".into(),
            life: 0,
            dispatched: 1,
            acknowledged: Some((4, 0)),
        };
        attempts.push(Attempt {
            result: "\"result 2\"".into(),
            life: 0,
            dispatched: 2,
            acknowledged: Some((3, 0)),
        });
    });
    assert_eq!(seen, "");
}

#[test]
fn sees_a_finished_task_handed_out_again() {
    let seen = found(Kind::Sequence, |record, _, _| {
        let attempts = record.tasks.get_mut(&2).expect("task 2");
        attempts.push(Attempt {
            result: "\"again\"".into(),
            life: 1,
            dispatched: 3,
            acknowledged: None,
        });
    });
    assert!(seen.contains("handed out again"), "{seen}");
}

#[test]
fn sees_a_second_result_and_a_missing_one() {
    let result = |event: &EventType| matches!(event, EventType::TaskCompleted(_));
    let seen = found(Kind::Sequence, |_, _, events| {
        let at = place(events, result);
        events.insert(at, events[at].clone());
    });
    assert!(seen.contains("second result"), "{seen}");
    let seen = found(Kind::Sequence, |_, _, events| {
        events.remove(place(events, result));
    });
    assert!(seen.contains("have no result"), "{seen}");
}

#[test]
fn sees_an_early_timer() {
    let seen = found(Kind::Timed, |_, _, events| {
        let fired = place(events, |event| matches!(event, EventType::TimerFired(_)));
        events[fired - 1].timestamp = events[fired - 3].timestamp.map(|time| at(time.seconds + 1));
    });
    assert!(seen.contains("(S6)"), "{seen}");
}

#[test]
fn sees_lost_doubled_swapped_and_foreign_events() {
    let raised = |event: &EventType| matches!(event, EventType::EventRaised(_));
    let lost = found(Kind::Eventful, |_, _, events| {
        events.remove(place(events, raised));
    });
    assert!(lost.contains("arrived 0 times"), "{lost}");
    let doubled = found(Kind::Eventful, |_, _, events| {
        let at = place(events, raised);
        events.insert(at, events[at].clone());
    });
    assert!(doubled.contains("arrived 2 times"), "{doubled}");
    let swapped = found(Kind::Eventful, |_, _, events| {
        let at = place(events, raised);
        events.swap(at, at + 1);
    });
    assert!(swapped.contains("before one sent earlier"), "{swapped}");
    let foreign = found(Kind::Eventful, |record, _, _| {
        record.events.pop();
    });
    assert!(foreign.contains("nobody sent it"), "{foreign}");
}

#[test]
fn sees_changed_history_and_a_wrong_order() {
    let changed =
        found(Kind::Sequence, |record, _, _| record.past.push(Bytes::from_static(b"other")));
    assert!(changed.contains("(S3)"), "{changed}");
    let order = found(Kind::Sequence, |_, _, events| {
        let at = place(events, |event| matches!(event, EventType::TaskCompleted(_)));
        events.swap(at, at + 1);
    });
    assert!(order.contains("(R4.5)"), "{order}");
}

#[test]
fn sees_a_wrong_state() {
    let seen = found(Kind::Sequence, |_, state, _| state.output = Some("\"else\"".into()));
    assert!(seen.contains("output"), "{seen}");
    let seen = found(Kind::Sequence, |_, state, _| {
        state.orchestration_status = OrchestrationStatus::Failed.into()
    });
    assert!(seen.contains("status"), "{seen}");
}

#[test]
fn of_a_cluster_any_attempt_may_win_but_not_one_that_began_after_the_answer() {
    let two = |second: u64| {
        found(Kind::Sequence, |record, _, _| {
            record.servers = Servers::Many;
            let attempts = record.tasks.get_mut(&2).expect("task 2");
            let accepted = attempts.pop().expect("one");
            let attempt = |result: &str, dispatched, acknowledged| Attempt {
                result: result.into(),
                life: 0,
                dispatched,
                acknowledged,
            };
            attempts.push(attempt("\"mine\"", 5, Some((9, 0))));
            attempts.push(attempt(&accepted.result, second, None));
        })
    };
    assert_eq!(two(2), "");
    assert_eq!(two(7), "");
    assert!(two(10).contains("acknowledged and lost"));
}

#[test]
fn sees_a_child_that_answers_twice_or_never() {
    let answer =
        |event: &EventType| matches!(event, EventType::SubOrchestrationInstanceCompleted(_));
    let twice = found(Kind::Family, |_, _, events| {
        let at = place(events, answer);
        events.insert(at, events[at].clone());
    });
    assert!(twice.contains("answered twice"), "{twice}");
    let never = found(Kind::Family, |_, _, events| {
        events.remove(place(events, answer));
    });
    assert!(never.contains("never answered"), "{never}");
}

/// Operations as begin, end (0: unknown), and what was done: `w1` or `r1`.
fn linear(operations: &[(u64, u64, &str)]) -> Option<String> {
    let operations = operations.iter().map(|(begin, end, did)| {
        let value = did[1..].parse().expect("a value");
        let did = if did.starts_with('w') { Did::Write(value) } else { Did::Read(value) };
        Operation { begin: *begin, end: (*end > 0).then_some(*end), did, through: 1 }
    });
    linear::violation(&operations.collect::<Vec<_>>())
}

#[test]
fn accepts_what_could_have_happened_one_after_the_other() {
    assert_eq!(linear(&[(1, 2, "r0"), (3, 4, "w1"), (5, 6, "r1")]), None);
    // At the same time as the write: either value.
    assert_eq!(linear(&[(1, 2, "w1"), (3, 10, "w2"), (4, 5, "r1"), (6, 7, "r2")]), None);
    // Two writes at the same time, in either order.
    assert_eq!(linear(&[(1, 4, "w1"), (2, 3, "w2"), (5, 6, "r2")]), None);
    assert_eq!(linear(&[(1, 4, "w1"), (2, 3, "w2"), (5, 6, "r1")]), None);
    // A write of unknown outcome may come late, or never.
    assert_eq!(
        linear(&[(1, 2, "w1"), (3, 0, "w2"), (4, 5, "r1"), (6, 7, "w3"), (8, 9, "r2")]),
        None
    );
    assert_eq!(linear(&[(1, 0, "w1"), (2, 3, "w2"), (4, 5, "r2")]), None);
}

#[test]
fn sees_stale_reads_lost_writes_and_values_from_nowhere() {
    let stale = linear(&[(1, 2, "w1"), (3, 4, "w2"), (5, 6, "r1")]);
    assert!(stale.is_some_and(|text| text.contains("Read(1)")));
    // Once read, the new value stays.
    assert!(linear(&[(1, 2, "w1"), (3, 10, "w2"), (4, 5, "r2"), (6, 7, "r1")]).is_some());
    // Two sides of a split brain: each reads its own.
    assert!(linear(&[(1, 3, "w1"), (2, 4, "w2"), (5, 6, "r1"), (7, 8, "r2")]).is_some());
    // A write of unknown outcome happens once only, and not before it began.
    assert!(
        linear(&[(1, 0, "w1"), (2, 3, "r1"), (4, 5, "w2"), (6, 7, "r2"), (8, 9, "r1")]).is_some()
    );
    assert!(linear(&[(1, 2, "r1"), (3, 0, "w1")]).is_some());
    // A write that was refused, and so is not here.
    assert!(linear(&[(1, 2, "w1"), (3, 4, "r7")]).is_some());
    // An acknowledged write that is gone.
    assert!(linear(&[(1, 2, "w1"), (3, 4, "r0")]).is_some());
}
