//! Holds the ledger against what the server says when all is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{
    GetInstanceRequest, HistoryEvent, OrchestrationState, OrchestrationStatus,
    StreamInstanceHistoryRequest,
};
use prost::Message;
use prost_types::Timestamp;
use tonic::transport::Channel;

use crate::ledger::{EVENT, Ledger, Record, Step, activity_input};
use crate::load::{Client, within};
use crate::worker::{later, output};

/// Waits until every instance has ended (L1), or says which have not.
pub(crate) async fn drain(
    channel: Channel,
    ledger: &Ledger,
    limit: Duration,
) -> anyhow::Result<()> {
    let mut client = Client::new(channel);
    let deadline = Instant::now() + limit;
    let mut open: Vec<String> = ledger.instances().into_keys().collect();
    loop {
        let mut still = Vec::new();
        for instance in open {
            match state(&mut client, &instance).await? {
                Some(state) if is_terminal(state.orchestration_status) => {}
                _ => still.push(instance),
            }
        }
        if still.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let shown = &still[..still.len().min(10)];
            anyhow::bail!(
                "{} instances did not end within {limit:?} (L1), such as {shown:?}",
                still.len()
            );
        }
        open = still;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Everything that is wrong with any instance.
pub(crate) async fn all(channel: Channel, ledger: &Ledger) -> anyhow::Result<Vec<String>> {
    let mut client = Client::new(channel);
    let mut violations = Vec::new();
    for (instance, record) in ledger.instances() {
        let wrong = match state(&mut client, &instance).await? {
            None => vec!["acknowledged, and now it does not exist (S1)".to_owned()],
            Some(state) => {
                let mut events = Vec::new();
                let request = StreamInstanceHistoryRequest {
                    instance_id: instance.clone(),
                    ..Default::default()
                };
                let mut chunks =
                    client.stream_instance_history(within(10, request)).await?.into_inner();
                while let Some(chunk) = chunks.message().await? {
                    events.extend(chunk.events);
                }
                examine(&instance, &record, &state, &events)
            }
        };
        violations.extend(
            wrong.into_iter().map(|what| format!("{instance} ({}): {what}", record.kind.name())),
        );
    }
    Ok(violations)
}

async fn state(client: &mut Client, instance: &str) -> anyhow::Result<Option<OrchestrationState>> {
    let request =
        GetInstanceRequest { instance_id: instance.to_owned(), get_inputs_and_outputs: true };
    Ok(client.get_instance(within(10, request)).await?.into_inner().orchestration_state)
}

fn is_terminal(status: i32) -> bool {
    use OrchestrationStatus::{Completed, Failed, Terminated};
    [Completed, Failed, Terminated].into_iter().any(|terminal| terminal as i32 == status)
}

/// Everything that is wrong with one instance: its history first, then what the ledger knows, then its state.
fn examine(
    instance: &str,
    record: &Record,
    state: &OrchestrationState,
    encoded: &[Bytes],
) -> Vec<String> {
    let mut violations = Vec::new();
    let decoded: Result<Vec<_>, _> =
        encoded.iter().map(|event| HistoryEvent::decode(event.clone())).collect();
    let Ok(events) = decoded else {
        return vec!["an event of its history cannot be read (S3)".to_owned()];
    };
    if !encoded.starts_with(&record.past) {
        violations.push("its history is not what a worker had been shown (S3)".to_owned());
    }
    let mut told = Told {
        instance,
        record,
        violations,
        results: Vec::new(),
        events: Vec::new(),
        completed: None,
    };
    told.read(&events);
    told.compare_with_steps(&events);
    told.compare_results();
    told.compare_events();
    told.compare_state(state);
    told.violations
}

/// What the history of an instance tells.
struct Told<'a> {
    instance: &'a str,
    record: &'a Record,
    violations: Vec<String>,
    results: Vec<(i32, String)>,
    events: Vec<String>,
    completed: Option<String>,
}

/// Where in a turn an event stands (R4.5).
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Place {
    Beginning,
    Inbox,
    Actions,
    End,
}

impl Told<'_> {
    fn wrong(&mut self, what: impl Into<String>) {
        self.violations.push(what.into());
    }

    /// Order and identity of events, one terminal event per task, timers on time (R4.1 to R4.6, S5, S6).
    fn read(&mut self, events: &[HistoryEvent]) {
        let types: Vec<_> = events.iter().map(|event| event.event_type.as_ref()).collect();
        if !matches!(
            types.as_slice(),
            [Some(EventType::OrchestratorStarted(_)), Some(EventType::ExecutionStarted(_)), ..]
        ) {
            self.wrong("does not begin with orchestratorStarted, executionStarted (R4.1)");
        }
        if !matches!(types.last(), Some(Some(EventType::ExecutionCompleted(_)))) {
            self.wrong("does not end with executionCompleted (R4.1)");
        }
        let mut clock: Option<Timestamp> = None;
        let mut place = Place::End;
        let mut started = false;
        let mut open_tasks = Vec::new();
        let mut timers: BTreeMap<i32, Timestamp> = BTreeMap::new();
        for event in events {
            let Some(time) = event.timestamp else {
                return self.wrong("an event without a timestamp (R4.6)");
            };
            let Some(kind) = event.event_type.as_ref() else {
                return self.wrong("an event without a type (R4.12)");
            };
            let (here, id) = match kind {
                EventType::OrchestratorStarted(_) => {
                    if clock.as_ref().is_some_and(|clock| !later(&time, clock)) {
                        self.wrong(format!(
                            "the clock of turns goes from {clock:?} to {time} (R3.27)"
                        ));
                    }
                    clock = Some(time);
                    place = Place::Beginning;
                    (Place::Beginning, Some(-1))
                }
                EventType::ExecutionStarted(start) => {
                    if std::mem::replace(&mut started, true) {
                        self.wrong("executionStarted a second time (R4.1)");
                    }
                    if start.name != self.record.kind.name()
                        || text(&start.input) != Some(&self.record.input)
                    {
                        self.wrong("executionStarted is not what was sent (R4.7)");
                    }
                    (Place::Inbox, Some(0))
                }
                EventType::TaskScheduled(task) => {
                    if text(&task.input) != Some(&activity_input(self.instance, event.event_id)) {
                        self.wrong(format!("task {} was not scheduled like this", event.event_id));
                    }
                    open_tasks.push(event.event_id);
                    (Place::Actions, None)
                }
                EventType::TaskCompleted(task) => {
                    let before = open_tasks.len();
                    open_tasks.retain(|open| *open != task.task_scheduled_id);
                    if open_tasks.len() == before {
                        self.wrong(format!(
                            "task {} has a second result, or one without a task (S5)",
                            task.task_scheduled_id
                        ));
                    }
                    self.results.push((
                        task.task_scheduled_id,
                        text(&task.result).unwrap_or_default().to_owned(),
                    ));
                    (Place::Inbox, Some(-1))
                }
                EventType::TimerCreated(timer) => {
                    timers.insert(event.event_id, timer.fire_at.unwrap_or_default());
                    (Place::Actions, None)
                }
                EventType::TimerFired(timer) => {
                    match timers.remove(&timer.timer_id) {
                        None => self.wrong(format!(
                            "timer {} fired twice, or was never set (S6)",
                            timer.timer_id
                        )),
                        Some(due) if timer.fire_at != Some(due) => {
                            self.wrong("a timer fired with another fireAt (R4.6)")
                        }
                        Some(due) if clock.as_ref().is_none_or(|clock| later(&due, clock)) => {
                            self.wrong(format!(
                                "a timer due {due} fired in the turn at {clock:?} (S6)"
                            ));
                        }
                        Some(_) => {}
                    }
                    (Place::Inbox, Some(-1))
                }
                EventType::EventRaised(raised) => {
                    if raised.name != EVENT {
                        self.wrong(format!("an event named {} (R2.42)", raised.name));
                    }
                    self.events.push(text(&raised.input).unwrap_or_default().to_owned());
                    (Place::Inbox, Some(-1))
                }
                EventType::ExecutionCompleted(completed) => {
                    if completed.orchestration_status() != OrchestrationStatus::Completed {
                        self.wrong(format!(
                            "ended {:?}: {:?}",
                            completed.orchestration_status(),
                            completed.failure_details
                        ));
                    }
                    self.completed = text(&completed.result).map(str::to_owned);
                    (Place::End, None)
                }
                other => {
                    return self.wrong(format!("an event that nothing here causes: {other:?}"));
                }
            };
            if here < place {
                self.wrong(format!(
                    "event {} stands in the wrong place of its turn (R4.5)",
                    event.event_id
                ));
            }
            place = here;
            if id.is_some_and(|id| id != event.event_id) {
                self.wrong(format!("event id {} instead of {id:?} (R4.3)", event.event_id));
            }
        }
        if !open_tasks.is_empty() {
            self.wrong(format!("tasks {open_tasks:?} have no result (S5)"));
        }
        if !timers.is_empty() {
            self.wrong(format!("timers {:?} never fired (S6)", timers.keys()));
        }
    }

    /// The orchestration did each of its steps, once, in order.
    fn compare_with_steps(&mut self, events: &[HistoryEvent]) {
        let steps = self.record.kind.steps();
        let mut expected: Vec<_> = (1..)
            .zip(steps)
            .filter(|(_, step)| !matches!(step, Step::Events(_)))
            .map(|(id, _)| id)
            .collect();
        expected.push(steps.len() as i32 + 1);
        let done: Vec<_> = events.iter().map(|event| event.event_id).filter(|id| *id > 0).collect();
        if done != expected {
            self.wrong(format!("its actions are {done:?} instead of {expected:?}"));
        }
    }

    /// No acknowledged result is lost, none was made up, and no finished task was handed out again (S1, S5).
    fn compare_results(&mut self) {
        for (task, result) in self.results.clone() {
            let attempts = self.record.tasks.get(&task).map(Vec::as_slice).unwrap_or_default();
            let Some(accepted) = attempts.iter().position(|attempt| attempt.result == result)
            else {
                self.wrong(format!("task {task} has a result that no worker gave: {result}"));
                continue;
            };
            for (number, attempt) in attempts.iter().enumerate() {
                let Some(at) = attempt.surely_acknowledged() else { continue };
                if number == accepted {
                    if attempts.iter().any(|other| other.dispatched > at) {
                        self.wrong(format!("task {task} was handed out again after its result was acknowledged (S5)"));
                    }
                    continue;
                }
                // Two attempts at once: whichever answer came first has won (R3.50). The other attempt is a
                // later one that was out before this answer, or one of an earlier life that answered late.
                let rivals = |other: &crate::ledger::Attempt| {
                    (attempt.dispatched < other.dispatched && other.dispatched < at)
                        || other.life < attempt.life
                };
                if !rivals(&attempts[accepted]) {
                    self.wrong(format!(
                        "task {task}: result {} was acknowledged and lost, {result} stands in its place (S1)",
                        attempt.result
                    ));
                }
            }
        }
    }

    /// Every event arrived, once unless it was sent more often, in the order of its sender (S7).
    fn compare_events(&mut self) {
        let mut last = None;
        for sent in &self.record.events {
            let times = self.events.iter().filter(|payload| **payload == sent.payload).count();
            if times == 0 || times > sent.sends as usize {
                self.violations.push(format!(
                    "event {} arrived {times} times, sent {} times (S7)",
                    sent.payload, sent.sends
                ));
            }
            let first = self.events.iter().position(|payload| *payload == sent.payload);
            if first.is_some() && first < last {
                self.violations
                    .push(format!("event {} arrived before one sent earlier (S7)", sent.payload));
            }
            last = first.or(last);
        }
        for payload in &self.events {
            if !self.record.events.iter().any(|sent| sent.payload == *payload) {
                self.violations.push(format!("event {payload} arrived, but nobody sent it (S7)"));
            }
        }
    }

    /// State and history agree (R2.25, R4.51).
    fn compare_state(&mut self, state: &OrchestrationState) {
        let expected = output(self.results.iter().map(|(_, result)| result.as_str()));
        if state.orchestration_status() != OrchestrationStatus::Completed {
            self.wrong(format!("its status is {:?}", state.orchestration_status()));
        }
        if self.completed.as_ref() != Some(&expected) || text(&state.output) != Some(&expected) {
            self.wrong(format!(
                "its output is {:?} and {:?} in history, not {expected}",
                text(&state.output),
                self.completed
            ));
        }
        if state.name != self.record.kind.name() || text(&state.input) != Some(&self.record.input) {
            self.wrong("its name or input is not what was sent (R2.25)");
        }
        if state.failure_details.is_some() {
            self.wrong("failure details on a completed instance (R2.27)");
        }
    }
}

fn text(payload: &Option<durahub_proto::Text>) -> Option<&str> {
    payload.as_ref().map(durahub_proto::Text::as_str)
}

/// The check itself: it accepts a sound history and sees each kind of damage.
mod sight {
    use durahub_proto::wire::{
        EventRaisedEvent, ExecutionCompletedEvent, ExecutionStartedEvent, OrchestratorStartedEvent,
        TaskCompletedEvent, TaskScheduledEvent, TimerCreatedEvent, TimerFiredEvent,
    };

    use super::*;
    use crate::ledger::{Attempt, Kind, Sent};

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    /// A history of this kind as it should be, with its ledger and state.
    fn sound(kind: Kind) -> (Record, OrchestrationState, Vec<HistoryEvent>) {
        let mut record = Record {
            kind,
            input: "\"in\"".to_owned(),
            events: Vec::new(),
            tasks: BTreeMap::new(),
            past: Vec::new(),
        };
        let mut events: Vec<HistoryEvent> = Vec::new();
        let mut results = Vec::new();
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
                        EventType::TaskScheduled(TaskScheduledEvent {
                            input,
                            ..Default::default()
                        }),
                    );
                }
                Step::Timer(_) => push(
                    id,
                    clock,
                    EventType::TimerCreated(TimerCreatedEvent { fire_at: Some(at(due)) }),
                ),
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
                        EventType::TimerFired(TimerFiredEvent {
                            fire_at: Some(at(due)),
                            timer_id: id,
                        }),
                    );
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
        let output = output(results.iter().map(String::as_str));
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
        let encoded: Vec<_> =
            events.iter().map(|event| Bytes::from(event.encode_to_vec())).collect();
        examine("i", &record, &state, &encoded).join("\n")
    }

    fn place(events: &[HistoryEvent], wanted: fn(&EventType) -> bool) -> usize {
        events
            .iter()
            .position(|event| event.event_type.as_ref().is_some_and(wanted))
            .expect("is there")
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
            events[fired - 1].timestamp =
                events[fired - 3].timestamp.map(|time| at(time.seconds + 1));
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
}
