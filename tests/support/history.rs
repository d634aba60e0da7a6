//! Reading histories: as a short text for assertions, and as questions that an orchestrator asks.

use std::collections::BTreeSet;
use std::time::SystemTime;

use bytes::Bytes;
use durahub_proto::wire;
use prost::Message;
use wire::HistoryEvent;
use wire::history_event::EventType;

/// Decodes encoded events.
pub fn decode(events: &[Bytes]) -> Vec<HistoryEvent> {
    let decode = |it: &Bytes| HistoryEvent::decode(it.clone()).expect("a history event decodes");
    events.iter().map(decode).collect()
}

/// A history as a short text, in the notation of the contract's appendix A:
/// `OrchestratorStarted#-1, ExecutionStarted#0, TaskScheduled#1, OrchestratorStarted#-1, TaskCompleted#-1(1)`.
///
/// The number after `#` is the event's id, the one in parentheses that of the event it answers.
pub fn compact(events: &[HistoryEvent]) -> String {
    events.iter().map(compact_event).collect::<Vec<_>>().join(", ")
}

fn compact_event(event: &HistoryEvent) -> String {
    let id = event.event_id;
    let Some(event_type) = &event.event_type else { return format!("(none)#{id}") };
    // The variant's name, which is how its debug text begins.
    let debug = format!("{event_type:?}");
    let name = debug.split('(').next().unwrap_or_default();
    match answered(event_type) {
        Some(task) => format!("{name}#{id}({task})"),
        None => format!("{name}#{id}"),
    }
}

/// The id of the event that this one answers.
fn answered(event: &EventType) -> Option<i32> {
    Some(match event {
        EventType::TaskCompleted(it) => it.task_scheduled_id,
        EventType::TaskFailed(it) => it.task_scheduled_id,
        EventType::SubOrchestrationInstanceCompleted(it) => it.task_scheduled_id,
        EventType::SubOrchestrationInstanceFailed(it) => it.task_scheduled_id,
        EventType::TimerFired(it) => it.timer_id,
        _ => return None,
    })
}

/// What an orchestrator is given in one turn.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// The instance.
    pub instance: String,
    /// Its generation.
    pub execution: String,
    /// Committed events.
    pub past: Vec<HistoryEvent>,
    /// Events of this turn.
    pub new: Vec<HistoryEvent>,
}

impl History {
    /// Decodes a request of the wire.
    pub fn of(request: &wire::OrchestratorRequest) -> Self {
        History {
            instance: request.instance_id.clone(),
            execution: request.execution_id.clone().map(String::from).unwrap_or_default(),
            past: decode(&request.past_events),
            new: decode(&request.new_events),
        }
    }

    /// Both parts in one text: `past | new`.
    pub fn compact(&self) -> String {
        format!("{} | {}", compact(&self.past), compact(&self.new))
    }

    /// All events in order.
    pub fn events(&self) -> impl Iterator<Item = &EventType> {
        self.past.iter().chain(&self.new).filter_map(|event| event.event_type.as_ref())
    }

    /// How the generation was started.
    pub fn started(&self) -> &wire::ExecutionStartedEvent {
        let mut started = self.events().filter_map(|event| match event {
            EventType::ExecutionStarted(started) => Some(started),
            _ => None,
        });
        let first = started.next().expect("a history has an ExecutionStarted (R3.25)");
        assert!(started.next().is_none(), "a history has one ExecutionStarted only (R3.25)");
        first
    }

    /// The orchestration's name.
    pub fn name(&self) -> &str {
        &self.started().name
    }

    /// The orchestration's input; unset reads as empty.
    pub fn input(&self) -> &str {
        self.started().input.as_ref().map_or("", |input| input.as_str())
    }

    /// The orchestration's clock: the time of the last `OrchestratorStarted`.
    pub fn now(&self) -> SystemTime {
        let started = self
            .past
            .iter()
            .chain(&self.new)
            .rev()
            .find(|event| matches!(event.event_type, Some(EventType::OrchestratorStarted(_))));
        let timestamp = started.and_then(|event| event.timestamp);
        let timestamp = timestamp.expect("a turn begins with a timed OrchestratorStarted");
        timestamp.try_into().expect("a time that fits")
    }

    /// The result of an activity or a child, if there is one. An unset result reads as empty.
    pub fn result(&self, id: i32) -> Option<Result<String, wire::TaskFailureDetails>> {
        let text =
            |it: &Option<durahub_proto::Text>| it.clone().map(String::from).unwrap_or_default();
        self.events().filter(|event| answered(event) == Some(id)).find_map(|event| match event {
            EventType::TaskCompleted(it) => Some(Ok(text(&it.result))),
            EventType::TaskFailed(it) => Some(Err(it.failure_details.clone().unwrap_or_default())),
            EventType::SubOrchestrationInstanceCompleted(it) => Some(Ok(text(&it.result))),
            EventType::SubOrchestrationInstanceFailed(it) => {
                Some(Err(it.failure_details.clone().unwrap_or_default()))
            }
            _ => None,
        })
    }

    /// Whether this timer has fired.
    pub fn fired(&self, id: i32) -> bool {
        self.events().any(|event| matches!(event, EventType::TimerFired(it) if it.timer_id == id))
    }

    /// The data of all events of this name, in order of arrival.
    pub fn raised(&self, name: &str) -> Vec<String> {
        let data = self.events().filter_map(|event| match event {
            EventType::EventRaised(it) if it.name.eq_ignore_ascii_case(name) => {
                Some(it.input.clone().map(String::from).unwrap_or_default())
            }
            _ => None,
        });
        data.collect()
    }

    /// The output that a terminate call asked for, if there was one.
    pub fn terminated(&self) -> Option<String> {
        self.events().find_map(|event| match event {
            EventType::ExecutionTerminated(it) => {
                Some(it.input.clone().map(String::from).unwrap_or_default())
            }
            _ => None,
        })
    }

    /// Whether the last suspend has not been followed by a resume.
    pub fn is_suspended(&self) -> bool {
        self.events().fold(false, |suspended, event| match event {
            EventType::ExecutionSuspended(_) => true,
            EventType::ExecutionResumed(_) => false,
            _ => suspended,
        })
    }

    /// Ids of all actions that have become history.
    pub fn actions(&self) -> BTreeSet<i32> {
        let events = self.past.iter().chain(&self.new);
        let events = events
            .filter(|event| !matches!(event.event_type, Some(EventType::ExecutionStarted(_))));
        events.map(|event| event.event_id).collect()
    }

    /// Ids of all activities and children that were answered well.
    pub fn succeeded(&self) -> BTreeSet<i32> {
        let ids = self.events().filter_map(|event| match event {
            EventType::TaskCompleted(it) => Some(it.task_scheduled_id),
            EventType::SubOrchestrationInstanceCompleted(it) => Some(it.task_scheduled_id),
            _ => None,
        });
        ids.collect()
    }

    /// Whether an action with this id has become history.
    pub fn has_action(&self, id: i32) -> bool {
        self.past.iter().chain(&self.new).any(|event| {
            event.event_id == id
                && !matches!(event.event_type, Some(EventType::ExecutionStarted(_)))
        })
    }
}
