//! The model: what was accepted of one instance, and what must be seen of it because of that.

use std::collections::{BTreeMap, VecDeque};

use durahub_proto::wire::OrchestrationStatus as Status;

use super::super::*;
use crate::engine::state::is_terminal;

/// One instance.
#[derive(Default)]
pub(super) struct Instance {
    /// External events that were accepted and that no turn has taken, in order.
    pub(super) raised: VecDeque<String>,
    /// Results that were accepted for the current generation, in order.
    pub(super) results: Vec<String>,
    /// Timers of the current generation that must fire: id and time.
    pub(super) timers: Vec<(i32, i64)>,
    /// The generation, as clients see it, and its history so far.
    execution: String,
    past: Vec<Bytes>,
    /// What is final once it has ended.
    ended: Option<wire::OrchestrationState>,
    /// A turn was announced and not taken in since.
    pub(super) told: bool,
    /// Asked to end; dispatched though suspended.
    pub(super) terminating: bool,
}

impl Instance {
    /// A new generation in place of whatever was.
    pub(super) fn restart(&mut self) {
        *self = Instance { told: self.told, ..Instance::default() };
    }

    /// The generation goes on in a new one: raised events stay, results and timers do not.
    pub(super) fn renew(&mut self) {
        self.results.clear();
        self.timers.clear();
        self.past.clear();
        self.execution.clear();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// Looks at all that can be seen, and compares.
    pub(super) fn check(&mut self, world: &World, name: &str) {
        let state = world.state(name);
        let past = read::history(&world.rows, &at(name), None);
        let execution = state.execution_id.clone().map(String::from).unwrap_or_default();
        assert!(!execution.is_empty(), "R2.12");
        if self.execution.is_empty() {
            self.execution = execution;
        } else {
            assert_eq!(self.execution, execution, "a generation changes only by what changes it");
        }
        assert!(past.starts_with(&self.past), "S3: a history is append-only");
        self.past = past;
        let events: Vec<_> = self.past.iter().map(decode).collect();
        check_history(&events, world.now);
        self.check_answers(&events);

        let status = state.orchestration_status();
        if let Some(ended) = &self.ended {
            assert_eq!(*ended, state, "S8: a terminal status is final");
        } else if is_terminal(status) {
            self.ended = Some(state.clone());
            self.raised.clear();
        }
        let last = events.last().and_then(|event| event.event_type.clone());
        let completed = matches!(last, Some(EventType::ExecutionCompleted(_)));
        assert_eq!(completed, is_terminal(status), "R4.1");
        assert_eq!(state.completed_timestamp.is_some(), completed, "R2.30");
        assert!(!matches!(status, Status::ContinuedAsNew | Status::Canceled), "R2.31");
        self.check_turn(world, name, status);
    }

    /// What a worker would be handed now.
    fn check_turn(&mut self, world: &World, name: &str, status: Status) {
        let Some(turn) = world.turn(name) else {
            // Whoever was told looked in vain, and has to be told again.
            self.told = false;
            return;
        };
        assert!(!is_terminal(status), "R4.52");
        assert!(status != Status::Suspended || self.terminating, "R4.64");
        assert!(self.told, "a turn that nobody was told of: the wake-up is lost");
        assert_eq!(turn.past, self.past, "R3.24");
        assert!(turn.new.len() > 1, "R3.19");
        let whole: Vec<_> = turn.past.iter().chain(&turn.new).map(decode).collect();
        check_history(&whole, i64::MAX);
        let starts = whole
            .iter()
            .filter(|it| matches!(it.event_type, Some(EventType::ExecutionStarted(_))))
            .count();
        assert_eq!(starts, 1, "R3.25");
        let waiting = raised(&whole[turn.past.len()..]);
        let expected: Vec<_> = self.raised.iter().take(waiting.len()).cloned().collect();
        assert_eq!(waiting, expected, "S7: events arrive in order");
    }

    /// Answers in the history are those that were accepted, in that order, each once.
    fn check_answers(&self, events: &[wire::HistoryEvent]) {
        let seen = results(events);
        let expected: Vec<_> = self.results.iter().take(seen.len()).cloned().collect();
        assert_eq!(seen, expected, "S5, R4.29");
        for (id, due) in fired(events) {
            assert!(self.timers.contains(&(id, due)), "S6: only what was created fires");
        }
        assert!(fired(events).len() <= self.timers.len(), "S6: once");
    }

    /// Everything that could arrive has.
    pub(super) fn check_finished(&self, world: &World, name: &str) {
        if self.has_ended() {
            return;
        }
        let events = world.history(name);
        assert_eq!(self.raised, VecDeque::<String>::new(), "S7: every accepted event arrives");
        assert_eq!(results(&events), self.results, "S5: every accepted result arrives");
        let (mut seen, mut expected) = (fired(&events), self.timers.clone());
        seen.sort_unstable();
        expected.sort_unstable();
        assert_eq!(seen, expected, "S6: every timer fires once");
    }
}

/// What is true of every history (R4.1, R4.3, R4.5, R4.6).
fn check_history(events: &[wire::HistoryEvent], now: i64) {
    let mut clock = i64::MIN;
    let mut open: BTreeMap<(bool, i32), i32> = BTreeMap::new();
    for (index, event) in events.iter().enumerate() {
        let time = event.timestamp.as_ref().map(crate::engine::time::nanos).expect("R4.6");
        let id = event.event_id;
        let mut answered = |timer: bool, task: i32| {
            assert_eq!(id, -1, "R4.3");
            let left = open.entry((timer, task)).or_default();
            *left -= 1;
            assert!(*left >= 0, "S5: no answer without what it answers, and none twice");
        };
        match event.event_type.as_ref().expect("R3.26") {
            EventType::OrchestratorStarted(_) => {
                assert!(time > clock, "R3.27: the clock of a turn is later than the last one's");
                (clock, _) = (time, assert_eq!(id, -1, "R4.3"));
            }
            EventType::ExecutionStarted(_) => assert_eq!((index, id), (1, 0), "R4.1, R4.3"),
            EventType::TaskScheduled(_) => *open.entry((false, id)).or_default() += 1,
            EventType::TimerCreated(_) => *open.entry((true, id)).or_default() += 1,
            EventType::TaskCompleted(it) => answered(false, it.task_scheduled_id),
            EventType::TaskFailed(it) => answered(false, it.task_scheduled_id),
            EventType::TimerFired(it) => {
                answered(true, it.timer_id);
                let due = it.fire_at.as_ref().map(crate::engine::time::nanos).expect("R4.6");
                assert!(due <= now && due <= clock, "R4.46: no timer fires early");
            }
            EventType::ExecutionCompleted(_) => assert_eq!(index, events.len() - 1, "R4.52"),
            EventType::EventRaised(_)
            | EventType::ExecutionSuspended(_)
            | EventType::ExecutionResumed(_)
            | EventType::ExecutionTerminated(_) => assert_eq!(id, -1, "R4.3"),
            other => panic!("R3.26: {other:?}"),
        }
        assert!(index > 0 || clock == time, "R4.1: orchestratorStarted comes first");
    }
}

/// Names of the external events among these.
pub(super) fn raised(events: &[wire::HistoryEvent]) -> Vec<String> {
    let names = events.iter().filter_map(|event| match &event.event_type {
        Some(EventType::EventRaised(it)) => Some(it.name.clone()),
        _ => None,
    });
    names.collect()
}

fn results(events: &[wire::HistoryEvent]) -> Vec<String> {
    let results = events.iter().filter_map(|event| match &event.event_type {
        Some(EventType::TaskCompleted(it)) => it.result.clone().map(String::from),
        _ => None,
    });
    results.collect()
}

fn fired(events: &[wire::HistoryEvent]) -> Vec<(i32, i64)> {
    let fired = events.iter().filter_map(|event| match &event.event_type {
        Some(EventType::TimerFired(it)) => {
            Some((it.timer_id, it.fire_at.as_ref().map_or(0, crate::engine::time::nanos)))
        }
        _ => None,
    });
    fired.collect()
}
