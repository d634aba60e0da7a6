//! A failed history, rewritten so that its orchestration can try again (section 4.10).
//!
//! What failed is taken out, so that the replayed code asks for it anew: a failed activity with its
//! scheduling, the failure of a child (the child itself is asked again by its parent's server), the end. What
//! was open when the instance failed is taken out too, or it would be waited for in vain (R4.78). All
//! else stays. A failure that was followed by another attempt under the same id stays with that attempt:
//! the code has dealt with it, and replays the same way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{self, HistoryEvent, SubOrchestrationInstanceCreatedEvent};
use prost::Message as _;
use prost_types::Timestamp;

use crate::engine::state::{ChildRecord, Item};

/// What the new generation begins with.
pub(crate) struct Rewritten {
    /// Its history.
    pub(crate) events: Vec<Bytes>,
    /// Which of them workers are not shown.
    pub(crate) hidden: Vec<u32>,
    /// All children, with the event that asked for it where the answer is still to come.
    pub(crate) children: Vec<(Item, ChildRecord, Option<SubOrchestrationInstanceCreatedEvent>)>,
    /// Timers that have not fired: their ids and times.
    pub(crate) timers: Vec<(i32, Option<Timestamp>)>,
    /// Whether the worker must run before anything else can happen (R4.80).
    pub(crate) is_due: bool,
}

/// The names of the new generations.
pub(crate) struct Names<'a> {
    /// Execution id of the instance.
    pub(crate) execution: &'a str,
    /// Execution id of its parent, if that was rewound too.
    pub(crate) parent: Option<&'a str>,
}

/// Rewrites the history of a failed generation that asked for these children.
pub(crate) fn rewrite(
    encoded: &[Bytes],
    children: Vec<(Item, ChildRecord)>,
    names: &Names<'_>,
) -> Rewritten {
    // A history holds what this server wrote; what it cannot read it cannot judge, and keeps.
    let events: Vec<HistoryEvent> = encoded
        .iter()
        .map(|event| HistoryEvent::decode(event.clone()).unwrap_or_default())
        .collect();
    let pairs = Pairs::of(&events);
    let mut removed: BTreeSet<usize> = pairs.ends.clone();

    let failed = pairs.failed(&pairs.tasks);
    let open = pairs.tasks.open.values().flatten().chain(pairs.calls.values());
    removed
        .extend(failed.iter().flat_map(|(asked, answer)| [*asked, *answer]).chain(open.copied()));
    let mut must_ask_again = removed.len() > pairs.ends.len();

    let failed_children: BTreeMap<usize, usize> =
        pairs.failed(&pairs.children).into_iter().collect();
    let open: BTreeSet<usize> = pairs.children.open.values().flatten().copied().collect();
    let mut rows = children;
    let (mut kept, mut child_failed) = (Vec::new(), false);
    for (index, event) in events.iter().enumerate() {
        let Some(EventType::SubOrchestrationInstanceCreated(created)) = &event.event_type else {
            continue;
        };
        let row = rows.iter().position(|(_, child)| {
            child.task_id == event.event_id && child.instance == created.instance_id
        });
        let failure = failed_children.get(&index);
        match row.map(|row| rows.remove(row)) {
            Some((item, child)) => {
                let waits = failure.is_some() || open.contains(&index);
                child_failed |= failure.is_some();
                removed.extend(failure);
                kept.push((item, child, waits.then(|| created.clone())));
            }
            // It was refused, as it will be again. If the code did not hear of that, it asks again.
            None if open.contains(&index) => must_ask_again |= removed.insert(index),
            None => {}
        }
    }

    let mut rewritten = Rewritten {
        events: Vec::with_capacity(events.len()),
        hidden: Vec::new(),
        children: kept,
        timers: pairs.timers(&events),
        is_due: must_ask_again || !child_failed,
    };
    for (index, (bytes, event)) in encoded.iter().zip(events).enumerate() {
        if removed.contains(&index) {
            continue;
        }
        if matches!(event.event_type, Some(EventType::ExecutionRewound(_))) {
            rewritten.hidden.push(rewritten.events.len() as u32);
        }
        rewritten.events.push(match event.event_type {
            Some(EventType::ExecutionStarted(started)) => {
                rename(event.event_id, event.timestamp, started, names)
            }
            _ => bytes.clone(),
        });
    }
    rewritten
}

/// `executionStarted` with the names of the new generations (R4.76).
fn rename(
    event_id: i32,
    timestamp: Option<Timestamp>,
    mut started: wire::ExecutionStartedEvent,
    names: &Names<'_>,
) -> Bytes {
    if let Some(own) = &mut started.orchestration_instance {
        own.execution_id = Some(names.execution.into());
    }
    let parent = started.parent_instance.as_mut().and_then(|it| it.orchestration_instance.as_mut());
    if let (Some(parent), Some(execution)) = (parent, names.parent) {
        parent.execution_id = Some(execution.into());
    }
    let event_type = Some(EventType::ExecutionStarted(started));
    HistoryEvent { event_id, timestamp, event_type }.encode_to_vec().into()
}

/// Which event answers which.
#[derive(Default)]
struct Pairs {
    tasks: Asked,
    children: Asked,
    timers: Asked,
    /// Entity calls and lock requests that nobody answered, by request.
    calls: BTreeMap<String, usize>,
    /// `executionCompleted`.
    ends: BTreeSet<usize>,
}

/// Events of one kind that ask for something, by the id that repeats, in order.
#[derive(Default)]
struct Asked {
    open: BTreeMap<i32, VecDeque<usize>>,
    /// The last event that asked under an id.
    last: BTreeMap<i32, usize>,
    /// Question and failure.
    failed: Vec<(i32, usize, usize)>,
}

impl Asked {
    fn ask(&mut self, id: i32, index: usize) {
        self.open.entry(id).or_default().push_back(index);
        self.last.insert(id, index);
    }

    fn answer(&mut self, id: i32, failure: Option<usize>) {
        let asked = self.open.get_mut(&id).and_then(VecDeque::pop_front);
        if let (Some(asked), Some(failure)) = (asked, failure) {
            self.failed.push((id, asked, failure));
        }
    }
}

impl Pairs {
    fn of(events: &[HistoryEvent]) -> Pairs {
        let mut pairs = Pairs::default();
        for (index, event) in events.iter().enumerate() {
            let id = event.event_id;
            match event.event_type.as_ref() {
                Some(EventType::TaskScheduled(_)) => pairs.tasks.ask(id, index),
                Some(EventType::TaskCompleted(it)) => {
                    pairs.tasks.answer(it.task_scheduled_id, None)
                }
                Some(EventType::TaskFailed(it)) => {
                    pairs.tasks.answer(it.task_scheduled_id, Some(index))
                }
                Some(EventType::SubOrchestrationInstanceCreated(_)) => {
                    pairs.children.ask(id, index)
                }
                Some(EventType::SubOrchestrationInstanceCompleted(it)) => {
                    pairs.children.answer(it.task_scheduled_id, None)
                }
                Some(EventType::SubOrchestrationInstanceFailed(it)) => {
                    pairs.children.answer(it.task_scheduled_id, Some(index))
                }
                Some(EventType::TimerCreated(_)) => pairs.timers.ask(id, index),
                Some(EventType::TimerFired(it)) => pairs.timers.answer(it.timer_id, None),
                Some(EventType::EntityOperationCalled(it)) => {
                    pairs.calls.insert(it.request_id.clone(), index);
                }
                Some(EventType::EntityLockRequested(it)) => {
                    pairs.calls.insert(it.critical_section_id.clone(), index);
                }
                Some(EventType::EntityOperationCompleted(it)) => {
                    pairs.calls.remove(&it.request_id);
                }
                Some(EventType::EntityOperationFailed(it)) => {
                    pairs.calls.remove(&it.request_id);
                }
                Some(EventType::EntityLockGranted(it)) => {
                    pairs.calls.remove(&it.critical_section_id);
                }
                Some(EventType::ExecutionCompleted(_)) => {
                    pairs.ends.insert(index);
                }
                _ => {}
            }
        }
        pairs
    }

    /// Questions and failures that nobody tried again under the same id.
    fn failed(&self, asked: &Asked) -> Vec<(usize, usize)> {
        let last = |id: &i32, index: &usize| asked.last.get(id) == Some(index);
        let failed = asked.failed.iter().filter(|(id, index, _)| last(id, index));
        failed.map(|(_, index, failure)| (*index, *failure)).collect()
    }

    fn timers(&self, events: &[HistoryEvent]) -> Vec<(i32, Option<Timestamp>)> {
        let mut open: Vec<usize> = self.timers.open.values().flatten().copied().collect();
        open.sort_unstable();
        let timer = |index: usize| match events.get(index)?.event_type.as_ref()? {
            EventType::TimerCreated(created) => Some((events[index].event_id, created.fire_at)),
            _ => None,
        };
        open.into_iter().filter_map(timer).collect()
    }
}
