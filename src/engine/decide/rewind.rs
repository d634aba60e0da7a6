//! `Rewind`: a failed instance tries again, in a new generation with a rewritten history (section 4.10).
//!
//! The rewrite is done here and not by a worker, so it works for every SDK (R4.75). Children that have not
//! answered are asked again by messages; what each does depends on what it is by then (R4.77).
//! `executionRewound` is kept for readers and hidden from workers, two of which fail on it (R4.82).

use bytes::Bytes;
use durahub_proto::Text;
use durahub_proto::wire::{self, OrchestrationStatus, history_event::EventType};

use super::Plan;
use super::children::End;
use super::critical;
use super::outgoing::parent_of;
use super::rewrite::{Names, Rewritten, rewrite};
use super::start::{create, new_execution_id, start_by_message};
use crate::engine::command::Rewind;
use crate::engine::event::{NO_ID, history};
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::message::{Body, Link, Parent, RewindMessage, StartMessage};
use crate::engine::state::{
    Address, ChildRecord, FORMAT, InstanceRecord, Item, TimerKind, TimerRecord,
};
use crate::engine::time::nanos;
use crate::engine::{Event, read};

/// Size of the rows that a rewritten history is kept in, in bytes.
const ROW_BYTES: usize = 256 * 1024;

pub(crate) fn rewind(plan: &mut Plan<'_>, command: Rewind) -> Answer {
    let wire::RewindInstanceRequest { instance_id, reason } = command.request;
    let at = Address::new(command.hub, instance_id);
    let Some(record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    if record.status() != OrchestrationStatus::Failed {
        return Err(Reject::NotFailed { instance: at.instance });
    }
    if failed_inside(plan, &at, &record) {
        return Err(Reject::LocksLost { instance: at.instance });
    }
    try_again(plan, &at, record, reason, None);
    Ok(Reply::Done)
}

/// Whether an instance failed with locks in its hands, which it has lost since (R2.65).
fn failed_inside(plan: &Plan<'_>, at: &Address, record: &InstanceRecord) -> bool {
    let events = read::events(plan.view, at, record.generation, record.history_events);
    critical::ends_inside(events)
}

/// Sees to it that a child answers its rewound parent.
pub(crate) fn rewind_by_parent(plan: &mut Plan<'_>, at: &Address, message: RewindMessage) {
    let RewindMessage { start, before, reason } = message;
    let Some(parent) = &start.parent else { return };
    let own = read::head(plan.view, at).filter(|record| record.is_child(parent.instance(), before));
    let Some(mut record) = own else {
        // It was purged, or its id is somebody else's by now: as at the first start (R2.64).
        return start_by_message(plan, at, start);
    };
    match record.status() {
        // It would believe that it still has its locks.
        OrchestrationStatus::Failed if failed_inside(plan, at, &record) => {
            create(plan, at, Some(&record), start.request, start.parent);
        }
        OrchestrationStatus::Failed => {
            let parent = parent.clone();
            try_again(plan, at, record, reason, Some(parent));
        }
        // Somebody ended it: its history would end it again.
        OrchestrationStatus::Terminated | OrchestrationStatus::Canceled => {
            create(plan, at, Some(&record), start.request, start.parent);
        }
        status => {
            let Parent { info, link } = parent.clone();
            (record.parent, record.link) = (Some(info), Some(link));
            if status == OrchestrationStatus::Completed {
                let (result, failure) = read::outcome(plan.view, at, &record);
                plan.answer_parent(at, &record, End { status, result, failure });
            }
            plan.write(at, record);
        }
    }
}

/// Begins a generation with what is left of a failed one. A parent that was rewound too is named anew.
fn try_again(
    plan: &mut Plan<'_>,
    at: &Address,
    old: InstanceRecord,
    reason: Option<Text>,
    parent: Option<Parent>,
) {
    let execution = new_execution_id(plan.stamp.seed);
    let events = read::events(plan.view, at, old.generation, old.history_events);
    let children = read::children(plan.view, at, old.generation);
    let parent_execution = parent.as_ref().and_then(|parent| {
        let instance = parent.info.orchestration_instance.as_ref()?;
        instance.execution_id.clone()
    });
    let names =
        Names { execution: &execution, parent: parent_execution.as_ref().map(Text::as_str) };
    let Rewritten { events, hidden, children, timers, is_due } = rewrite(&events, children, &names);

    plan.discard(at, &old);
    let (info, link) = match parent {
        Some(Parent { info, link }) => (Some(info), Some(link)),
        None => (old.parent.clone(), old.link),
    };
    let mut record = InstanceRecord {
        status: OrchestrationStatus::Running.into(),
        updated: plan.stamp.now,
        completed: None,
        execution_id: execution.clone(),
        generation: plan.stamp.sequence,
        parent: info,
        link,
        history_events: 0,
        history_bytes: 0,
        last_chunk: 0,
        // A new attempt gets a span of its own (R6.8).
        span: None,
        hidden,
        rewinding: is_due,
        raised_events: 0,
        pending: (children.len() + timers.len()) as u32,
        ..old
    };
    append_all(plan, at, &mut record, events);
    for (item, child, asked) in children {
        move_child(plan, at, &record, (item, child), asked, reason.as_ref());
    }
    for (id, fire_at) in timers {
        arm_again(plan, at, &mut record, id, fire_at);
    }
    let rewound = wire::ExecutionRewoundEvent {
        reason,
        parent_execution_id: parent_execution,
        instance_id: Some(at.instance.as_str().into()),
        ..Default::default()
    };
    let rewound = history(NO_ID, plan.stamp.now, EventType::ExecutionRewound(rewound));
    if is_due {
        plan.receive(at, &record, rewound);
    } else {
        // Nothing to do but to wait for children (R4.80).
        record.hidden.push(record.history_events);
        plan.append(at, &mut record, vec![rewound]);
    }
    plan.write(at, record);
}

/// Appends a whole history in rows of a reasonable size.
fn append_all(plan: &mut Plan<'_>, at: &Address, record: &mut InstanceRecord, events: Vec<Bytes>) {
    let (mut row, mut bytes) = (Vec::new(), 0);
    for event in events {
        bytes += event.len();
        row.push(event);
        if bytes >= ROW_BYTES {
            plan.append(at, record, std::mem::take(&mut row));
            bytes = 0;
        }
    }
    if !row.is_empty() {
        plan.append(at, record, row);
    }
}

/// Takes a child over into the new generation. One that owes an answer is asked, under its new link.
fn move_child(
    plan: &mut Plan<'_>,
    at: &Address,
    record: &InstanceRecord,
    (old, child): (Item, ChildRecord),
    asked: Option<wire::SubOrchestrationInstanceCreatedEvent>,
    reason: Option<&Text>,
) {
    let before = child.link(&old);
    let item = Item { generation: record.generation, ..old };
    let moved_from = if asked.is_some() { None } else { Some(before) };
    let moved = ChildRecord { answered: asked.is_none(), moved_from, ..child };
    if let Some(created) = asked {
        let link = Link { generation: item.generation, number: item.number };
        let parent = Some(parent_of(at, record, moved.task_id, link));
        let request = wire::CreateInstanceRequest {
            name: created.name,
            version: created.version,
            input: created.input,
            tags: created.tags,
            parent_trace_context: created.parent_trace_context,
            ..Default::default()
        };
        let message = RewindMessage {
            start: StartMessage { request, parent },
            before,
            reason: reason.cloned(),
        };
        plan.send(at.hub, moved.instance.clone(), Body::Rewind(message));
    }
    plan.push(Event::ChildWritten { item, child: moved });
}

fn arm_again(
    plan: &mut Plan<'_>,
    at: &Address,
    record: &mut InstanceRecord,
    timer_id: i32,
    fire_at: Option<prost_types::Timestamp>,
) {
    let item = Item { at: at.clone(), generation: record.generation, number: record.next_number };
    record.next_number += 1;
    let due = fire_at.as_ref().map_or(plan.stamp.now, nanos);
    let kind = TimerKind::Timer.into();
    plan.arm(item, TimerRecord { format: FORMAT, kind, due, timer_id, fire_at, operation: None });
}
