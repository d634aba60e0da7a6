//! What an instance does, what its result must be, and the orchestrators that do it. Pure.
//!
//! | Workload | Orchestration | What it does | Result |
//! | --- | --- | --- | --- |
//! | `sequence` | `BenchSequence` | `count` activities in a row, each on the last one's output | last value |
//! | `fanout` | `BenchFanout` | `count` activities at once, activity k on `seed + k` | fold in order of scheduling |
//! | `events` | `BenchEvents` | takes `count` events `BenchEvent`, event k carrying `seed + k` | fold in order of arrival |
//!
//! An instance's input is `{"seed":S,"count":N,"payload":BYTES}`. Payloads are JSON texts: a number,
//! then filling, `"17xxxx"`. The activity `BenchStep` answers its input plus one, at the same length.
//! A fold is `h = (31 h + value) mod 1000000007` from 0. A result is a bare number.
//! A worker in any language that serves these four names can take the place of the built-in one.
//!
//! A result that does not match means that the server lost, repeated, swapped or changed something. The
//! orchestrators check more than the result can show: a second result for a task or one that
//! nobody asked for fails the instance. An event that the generator sent twice, because its call broke
//! before the answer came, carries a `+` after the number; only such a one may repeat.

use bytes::Bytes;
use clap::ValueEnum;
use durahub_proto::{Text, wire};
use prost::Message;
use serde::{Deserialize, Serialize};
use wire::orchestrator_action::OrchestratorActionType;

/// Name of the one activity.
pub(super) const ACTIVITY: &str = "BenchStep";
/// Name of the external event.
pub(super) const EVENT: &str = "BenchEvent";

/// What each instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Activities one after the other.
    Sequence,
    /// Activities all at once, then their results.
    Fanout,
    /// External events that the generator raises one after the other.
    Events,
    /// Five loads on entities, one after the other: signals to one, signals over 1,000, calls, two of lock pairs.
    Entities,
}

impl Kind {
    /// Those whose unit is an instance.
    pub(super) const ALL: [Kind; 3] = [Kind::Sequence, Kind::Fanout, Kind::Events];

    /// The orchestration's name on the wire.
    pub(super) fn orchestration(self) -> &'static str {
        match self {
            Kind::Sequence => "BenchSequence",
            Kind::Fanout => "BenchFanout",
            Kind::Events => "BenchEvents",
            // It has several of its own.
            Kind::Entities => "",
        }
    }

    /// Activities or events per instance when none were asked for.
    pub(super) fn default_count(self) -> u32 {
        if self == Kind::Fanout { 20 } else { 5 }
    }
}

/// What all instances of a run have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) kind: Kind,
    /// Activities or events per instance.
    pub(super) count: u32,
    /// Bytes of each payload.
    pub(super) payload: u32,
}

/// An orchestration's input.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Input {
    seed: u64,
    count: u32,
    payload: u32,
}

impl Plan {
    /// The input of the instance with this seed.
    pub(super) fn input(&self, seed: u64) -> Text {
        let Plan { count, payload, .. } = self;
        Text::from(format!(r#"{{"seed":{seed},"count":{count},"payload":{payload}}}"#))
    }

    /// The result that this instance must have.
    pub(super) fn expected(&self, seed: u64) -> String {
        let values = 1..=u64::from(self.count);
        match self.kind {
            Kind::Sequence => (seed + u64::from(self.count)).to_string(),
            Kind::Fanout => fold(values.map(|k| seed + k + 1)).to_string(),
            Kind::Events => fold(values.map(|k| seed + k)).to_string(),
            Kind::Entities => String::new(),
        }
    }

    /// Events to raise on each instance.
    pub(super) fn events(&self) -> u32 {
        if self.kind == Kind::Events { self.count } else { 0 }
    }

    /// Billable actions of one instance as DTS counts them: a start is 1, an activity 2, an event 1.
    pub(super) fn actions(&self) -> u64 {
        let each = if self.kind == Kind::Events { 1 } else { 2 };
        1 + each * u64::from(self.count)
    }
}

fn fold(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, |hash, value| (hash * 31 + value) % 1_000_000_007)
}

/// A number as a payload of about `size` bytes: never shorter than the number needs.
pub(super) fn payload(value: u64, repeated: bool, size: usize) -> Text {
    let mut text = format!("\"{value}{}", if repeated { "+" } else { "" });
    let filling = size.saturating_sub(text.len() + 1);
    text.extend(std::iter::repeat_n('x', filling));
    text.push('"');
    Text::from(text)
}

/// The number in a payload, and whether it is marked as repeated.
pub(super) fn number(text: &str) -> Option<(u64, bool)> {
    let text = text.strip_prefix('"')?;
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    Some((text[..end].parse().ok()?, text[end..].starts_with('+')))
}

/// What the activity answers to its input; `None` when the input is none of ours.
pub(super) fn step(input: &Text) -> Option<Text> {
    number(input.as_str()).map(|(value, _)| payload(value + 1, false, input.len()))
}

/// Plays one turn: the actions that follow from the history, which is `past` and then `new`.
///
/// `None` when the orchestration is none of ours or its input makes no sense. Whatever looks wrong
/// in the history completes the instance as failed, with the reason.
pub(super) fn turn(past: &[Bytes], new: &[Bytes]) -> Option<Vec<wire::OrchestratorAction>> {
    let mut story: Option<Story> = None;
    for bytes in past.iter().chain(new) {
        let Ok(event) = Event::decode(bytes.clone()) else {
            return Some(vec![failure("an event of the history cannot be decoded".into())]);
        };
        if let Some(started) = event.started {
            story = Some(Story::begin(started)?);
        } else if let Some(story) = &mut story
            && let Err(reason) = story.take(event)
        {
            return Some(vec![failure(reason)]);
        }
    }
    Some(story?.decide())
}

/// The few fields of the wire's `HistoryEvent` that matter here; the rest is skipped while decoding.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(message, optional, tag = "3")]
    started: Option<Started>,
    #[prost(message, optional, tag = "5")]
    terminated: Option<Terminated>,
    #[prost(message, optional, tag = "6")]
    scheduled: Option<()>,
    #[prost(message, optional, tag = "7")]
    completed: Option<Completed>,
    #[prost(message, optional, tag = "8")]
    failed: Option<()>,
    #[prost(message, optional, tag = "17")]
    raised: Option<Raised>,
}

#[derive(Clone, PartialEq, Message)]
struct Started {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "3")]
    input: Option<Text>,
}

#[derive(Clone, PartialEq, Message)]
struct Terminated {
    #[prost(message, optional, tag = "1")]
    output: Option<Text>,
}

#[derive(Clone, PartialEq, Message)]
struct Completed {
    #[prost(int32, tag = "1")]
    task: i32,
    #[prost(message, optional, tag = "2")]
    result: Option<Text>,
}

#[derive(Clone, PartialEq, Message)]
struct Raised {
    #[prost(message, optional, tag = "2")]
    data: Option<Text>,
}

/// What an instance has been through so far.
struct Story {
    kind: Kind,
    input: Input,
    scheduled: usize,
    /// Result of the task with id `index + 1`.
    results: Vec<Option<u64>>,
    done: usize,
    events: Vec<u64>,
    terminated: Option<Option<Text>>,
}

impl Story {
    fn begin(started: Started) -> Option<Self> {
        let kind = Kind::ALL.into_iter().find(|kind| kind.orchestration() == started.name)?;
        let input = serde_json::from_str(started.input?.as_str()).ok()?;
        let (results, events) = (Vec::new(), Vec::new());
        Some(Self { kind, input, scheduled: 0, results, done: 0, events, terminated: None })
    }

    fn take(&mut self, event: Event) -> Result<(), String> {
        if event.scheduled.is_some() {
            self.scheduled += 1;
            self.results.push(None);
        } else if let Some(completed) = event.completed {
            self.take_result(completed)?;
        } else if let Some(raised) = event.raised {
            self.take_event(raised)?;
        } else if event.failed.is_some() {
            return Err("an activity failed".into());
        } else if let Some(terminated) = event.terminated {
            self.terminated = Some(terminated.output);
        }
        Ok(())
    }

    fn take_result(&mut self, completed: Completed) -> Result<(), String> {
        let index = usize::try_from(completed.task).ok().and_then(|task| task.checked_sub(1));
        let slot = index.and_then(|index| self.results.get_mut(index));
        let (Some(slot), Some(index)) = (slot, index) else {
            return Err("a result came for a task that was not scheduled".into());
        };
        if slot.is_some() {
            return Err("a task got two results".into());
        }
        let value = completed.result.as_ref().and_then(|text| number(text.as_str()));
        // In both workloads task k turns seed + k - 1 or seed + k into one more.
        let before = self.input.seed + index as u64 + u64::from(self.kind == Kind::Fanout);
        match value {
            Some((value, _)) if value == before + 1 => *slot = Some(value),
            _ => return Err("a task got the wrong result".into()),
        }
        self.done += 1;
        Ok(())
    }

    fn take_event(&mut self, raised: Raised) -> Result<(), String> {
        let value = raised.data.as_ref().and_then(|text| number(text.as_str()));
        let Some((value, repeated)) = value else {
            return Err("an event carried something else than was raised".into());
        };
        match self.events.last() {
            Some(last) if *last == value && repeated => {}
            Some(last) if *last == value => return Err("an event came twice".into()),
            _ => self.events.push(value),
        }
        Ok(())
    }

    fn decide(self) -> Vec<wire::OrchestratorAction> {
        if let Some(output) = self.terminated {
            return vec![complete(wire::OrchestrationStatus::Terminated, output, None)];
        }
        let Input { seed, count, payload: size } = self.input;
        let (count, size) = (count as usize, size as usize);
        let finished = self.done.max(self.events.len()) >= count;
        let results = self.results.iter().flatten().copied();
        let value = match self.kind {
            Kind::Sequence if finished => self.results.last().copied().flatten().unwrap_or(seed),
            Kind::Fanout if finished => fold(results),
            Kind::Events if finished => fold(self.events.into_iter()),
            Kind::Sequence if self.scheduled == self.done => {
                let last = self.results.last().copied().flatten().unwrap_or(seed);
                return vec![schedule(self.scheduled + 1, payload(last, false, size))];
            }
            Kind::Fanout if self.scheduled == 0 => {
                let input = |k: usize| payload(seed + k as u64, false, size);
                return (1..=count).map(|k| schedule(k, input(k))).collect();
            }
            _ => return Vec::new(),
        };
        let result = Text::from(value.to_string());
        vec![complete(wire::OrchestrationStatus::Completed, Some(result), None)]
    }
}

fn schedule(id: usize, input: Text) -> wire::OrchestratorAction {
    let task = wire::ScheduleTaskAction {
        name: ACTIVITY.into(),
        input: Some(input),
        ..Default::default()
    };
    wire::OrchestratorAction {
        // Counts are limited to 100,000.
        id: i32::try_from(id).unwrap_or(i32::MAX),
        orchestrator_action_type: Some(OrchestratorActionType::ScheduleTask(task)),
    }
}

fn failure(reason: String) -> wire::OrchestratorAction {
    let details = wire::TaskFailureDetails {
        error_type: "BenchCheckFailed".into(),
        error_message: reason,
        is_non_retriable: true,
        ..Default::default()
    };
    complete(wire::OrchestrationStatus::Failed, None, Some(details))
}

fn complete(
    status: wire::OrchestrationStatus,
    result: Option<Text>,
    failure_details: Option<wire::TaskFailureDetails>,
) -> wire::OrchestratorAction {
    let action = wire::CompleteOrchestrationAction {
        orchestration_status: status.into(),
        result,
        failure_details,
        ..Default::default()
    };
    wire::OrchestratorAction {
        // Above every task's id, so that ids read in order of the history increase.
        id: 1_000_000,
        orchestrator_action_type: Some(OrchestratorActionType::CompleteOrchestration(action)),
    }
}
