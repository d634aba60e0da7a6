//! What the history of one instance tells, held against what the ledger knows of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{HistoryEvent, OrchestrationState, OrchestrationStatus};
use prost::Message;
use prost_types::Timestamp;

use super::ledger::{Attempt, EVENT, Record, Servers, Step, activity_input, child};
use super::worker::{later, output};

/// Everything that is wrong with one instance: its history first, then what the ledger knows, then its state.
pub(crate) fn examine(
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
        answers: Vec::new(),
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
    answers: Vec<String>,
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
        let mut open_children = Vec::new();
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
                EventType::SubOrchestrationInstanceCreated(created) => {
                    let (id, input) = child(self.instance, event.event_id);
                    if created.instance_id != id || text(&created.input) != Some(&input) {
                        self.wrong(format!("child {} was not asked for like this", event.event_id));
                    }
                    open_children.push(event.event_id);
                    (Place::Actions, None)
                }
                EventType::SubOrchestrationInstanceCompleted(answer) => {
                    let before = open_children.len();
                    open_children.retain(|open| *open != answer.task_scheduled_id);
                    if open_children.len() == before {
                        self.wrong(format!(
                            "child {} answered twice, or was never asked for (S9)",
                            answer.task_scheduled_id
                        ));
                    }
                    self.answers.push(text(&answer.result).unwrap_or_default().to_owned());
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
        if !open_children.is_empty() {
            self.wrong(format!("children {open_children:?} never answered (S9)"));
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
                    // An old leader of a cluster may still push what it had in hand.
                    if self.record.servers == Servers::One
                        && attempts.iter().any(|other| other.dispatched > at)
                    {
                        self.wrong(format!("task {task} was handed out again after its result was acknowledged (S5)"));
                    }
                    continue;
                }
                // Two attempts at once: whichever answer came first has won (R3.50). The other attempt is a
                // later one that was out before this answer, or one of an earlier life that answered late.
                // Of a cluster any leader may take any of them: all that were out before this answer.
                let rivals = |other: &Attempt| match self.record.servers {
                    Servers::Many => other.dispatched < at,
                    Servers::One => {
                        (attempt.dispatched < other.dispatched && other.dispatched < at)
                            || other.life < attempt.life
                    }
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
        let results = self.results.iter().map(|(_, result)| result.as_str());
        let expected = output(results.chain(self.answers.iter().map(String::as_str)));
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
