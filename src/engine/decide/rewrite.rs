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
    // Ids may repeat; then rows and events of one id come in the same order.
    let mut rows: BTreeMap<(i32, String), VecDeque<(Item, ChildRecord)>> = BTreeMap::new();
    for (item, child) in children {
        let id = (child.task_id, child.instance.clone());
        rows.entry(id).or_default().push_back((item, child));
    }
    let (mut kept, mut child_failed) = (Vec::new(), false);
    for (index, event) in events.iter().enumerate() {
        let Some(EventType::SubOrchestrationInstanceCreated(created)) = &event.event_type else {
            continue;
        };
        let failure = failed_children.get(&index);
        let id = (event.event_id, created.instance_id.clone());
        match rows.get_mut(&id).and_then(VecDeque::pop_front) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::history;
    use crate::engine::state::Address;

    const NAMES: Names<'_> = Names { execution: "new", parent: Some("parent's new") };

    fn instance(execution: &str) -> Option<wire::OrchestrationInstance> {
        let execution_id = Some(execution.into());
        Some(wire::OrchestrationInstance { instance_id: "i".into(), execution_id })
    }

    fn started() -> EventType {
        EventType::ExecutionStarted(wire::ExecutionStartedEvent {
            name: "Order".into(),
            input: Some("in".into()),
            orchestration_instance: instance("old"),
            parent_instance: Some(wire::ParentInstanceInfo {
                task_scheduled_id: 7,
                orchestration_instance: instance("parent's old"),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn created(id: i32, instance: &str) -> Bytes {
        let created = SubOrchestrationInstanceCreatedEvent {
            instance_id: instance.into(),
            ..Default::default()
        };
        history(id, 0, EventType::SubOrchestrationInstanceCreated(created))
    }

    fn child_failed(task_scheduled_id: i32) -> Bytes {
        let failed = wire::SubOrchestrationInstanceFailedEvent {
            task_scheduled_id,
            failure_details: Some(Default::default()),
        };
        history(-1, 0, EventType::SubOrchestrationInstanceFailed(failed))
    }

    fn row(number: u64, task_id: i32, instance: &str) -> (Item, ChildRecord) {
        let item = Item { at: Address::new(1, "i"), generation: 1, number };
        (item, ChildRecord { task_id, instance: instance.into(), ..Default::default() })
    }

    /// R4.76: the new names, and nothing else of it.
    #[test]
    fn the_start_carries_the_new_names() {
        let old = [history(0, 5, started())];
        let new = rewrite(&old, Vec::new(), &NAMES);
        let event = HistoryEvent::decode(new.events[0].clone()).unwrap();
        let Some(EventType::ExecutionStarted(mut it)) = event.event_type else {
            panic!("{event:?}")
        };
        let parent = it.parent_instance.as_mut().unwrap();
        assert_eq!(parent.orchestration_instance, instance("parent's new"));
        assert_eq!(it.orchestration_instance, instance("new"));
        parent.orchestration_instance = instance("parent's old");
        it.orchestration_instance = instance("old");
        assert_eq!(history(0, 5, EventType::ExecutionStarted(it)), old[0]);
    }

    /// R4.78: a call or a lock that nobody answered is asked for again; what was answered stays.
    #[test]
    fn entity_calls_without_an_answer_are_removed() {
        let call = |id: &str| {
            let request_id = id.to_owned();
            let call = wire::EntityOperationCalledEvent { request_id, ..Default::default() };
            history(1, 0, EventType::EntityOperationCalled(call))
        };
        let request = |id: &str| {
            let critical_section_id = id.to_owned();
            let it = wire::EntityLockRequestedEvent { critical_section_id, ..Default::default() };
            history(2, 0, EventType::EntityLockRequested(it))
        };
        let granted = wire::EntityLockGrantedEvent { critical_section_id: "held".into() };
        let answered =
            wire::EntityOperationCompletedEvent { request_id: "done".into(), output: None };
        let old = [
            call("done"),
            call("open"),
            request("held"),
            request("wanted"),
            history(-1, 0, EventType::EntityLockGranted(granted)),
            history(-1, 0, EventType::EntityOperationCompleted(answered)),
        ];
        let new = rewrite(&old, Vec::new(), &NAMES);
        let kept = [&old[0], &old[2], &old[4], &old[5]].map(Bytes::clone);
        assert_eq!(new.events, kept);
        assert!(new.is_due);
    }

    /// R4.77, R4.80: children that failed are waited for; one tried again under its id is done with.
    #[test]
    fn failed_children_are_asked_again_and_retried_ones_once() {
        let old = [
            created(1, "a"),
            created(2, "b"),
            child_failed(1),
            created(1, "a"),
            child_failed(1),
            child_failed(2),
        ];
        let rows = vec![row(0, 1, "a"), row(1, 2, "b"), row(2, 1, "a")];
        let new = rewrite(&old, rows, &NAMES);
        assert_eq!(new.events, old[..4]);
        let asked: Vec<_> =
            new.children.iter().map(|(item, _, asked)| (item.number, asked.is_some())).collect();
        assert_eq!(asked, [(0, false), (1, true), (2, true)]);
        assert!(!new.is_due, "it has nothing to do but to wait");
    }

    /// A child that was refused has no row: its failure stays, and an unheard one makes the code ask again.
    #[test]
    fn refused_children_stay_refused() {
        let old = [created(1, "too long"), child_failed(1), created(2, "too long")];
        let new = rewrite(&old, Vec::new(), &NAMES);
        assert_eq!(new.events, old[..2]);
        assert!(new.children.is_empty() && new.is_due);
    }
}
