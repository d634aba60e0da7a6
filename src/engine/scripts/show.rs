//! Events, effects, messages and records as scripts show them.

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{self, OrchestrationStatus};
use prost::Message as _;

use super::super::state::message::Body;
use super::super::state::{HubRecord, Item, MessageRecord};
use super::super::{Effect, Event};
use super::SECOND;
use super::entities::{brief_entity_event, show_entity_event, show_entity_message};

pub(in crate::engine) fn status_name(status: OrchestrationStatus) -> &'static str {
    status.as_str_name().trim_start_matches("ORCHESTRATION_STATUS_")
}

/// A history event as `TaskCompleted#-1(1) "result"`.
pub(in crate::engine) fn brief(event: &Bytes) -> String {
    let event = wire::HistoryEvent::decode(event.clone()).expect("an event");
    let text = |text: &Option<durahub_proto::Text>| match text {
        Some(text) => format!(" {:?}", text.as_str()),
        None => String::new(),
    };
    let (name, rest) = match event.event_type.expect("a type") {
        EventType::OrchestratorStarted(_) => ("OrchestratorStarted", String::new()),
        EventType::ExecutionStarted(e) => {
            let parent = e.parent_instance.map(|parent| {
                let of = parent.orchestration_instance.map(|of| of.instance_id).unwrap_or_default();
                format!(" of {of}({})", parent.task_scheduled_id)
            });
            let rest = format!(" {}{}{}", e.name, text(&e.input), parent.unwrap_or_default());
            ("ExecutionStarted", rest)
        }
        EventType::TaskScheduled(e) => ("TaskScheduled", format!(" {}{}", e.name, text(&e.input))),
        EventType::TaskCompleted(e) => {
            ("TaskCompleted", format!("({}){}", e.task_scheduled_id, text(&e.result)))
        }
        EventType::TaskFailed(e) => {
            let failure = e.failure_details.expect("details");
            ("TaskFailed", format!("({}) {:?}", e.task_scheduled_id, failure.error_message))
        }
        EventType::TimerCreated(_) => ("TimerCreated", String::new()),
        EventType::TimerFired(e) => ("TimerFired", format!("({})", e.timer_id)),
        EventType::EventRaised(e) => ("EventRaised", format!(" {}{}", e.name, text(&e.input))),
        EventType::ExecutionTerminated(e) => ("ExecutionTerminated", text(&e.input)),
        EventType::ExecutionSuspended(e) => ("ExecutionSuspended", text(&e.input)),
        EventType::ExecutionResumed(e) => ("ExecutionResumed", text(&e.input)),
        EventType::ExecutionCompleted(e) => {
            let failure = e.failure_details.as_ref().map(|f| format!(" {:?}", f.error_message));
            let rest = format!(
                " {}{}{}",
                status_name(e.orchestration_status()),
                text(&e.result),
                failure.unwrap_or_default()
            );
            ("ExecutionCompleted", rest)
        }
        EventType::SubOrchestrationInstanceCreated(e) => {
            ("SubCreated", format!(" {} {}{}", e.instance_id, e.name, text(&e.input)))
        }
        EventType::SubOrchestrationInstanceCompleted(e) => {
            ("SubCompleted", format!("({}){}", e.task_scheduled_id, text(&e.result)))
        }
        EventType::SubOrchestrationInstanceFailed(e) => {
            let failure = e.failure_details.expect("details (R4.39)");
            ("SubFailed", format!("({}) {:?}", e.task_scheduled_id, failure.error_message))
        }
        EventType::EventSent(e) => {
            ("EventSent", format!(" {} {}{}", e.instance_id, e.name, text(&e.input)))
        }
        EventType::ExecutionRewound(e) => ("ExecutionRewound", text(&e.reason)),
        other => brief_entity_event(other),
    };
    format!("{name}#{}{rest}", event.event_id)
}

/// How long ended instances of a hub stay.
pub(in crate::engine) fn kept(hub: &HubRecord) -> String {
    let retention = hub.retention.unwrap_or_default();
    let time = |what: &str, time: Option<u64>| {
        let time = time.map_or_else(|| "default".to_owned(), |ms| ms.to_string());
        format!("{what}={time}")
    };
    [
        time("completed", retention.completed),
        time("failed", retention.failed),
        time("terminated", retention.terminated),
    ]
    .join(" ")
}

pub(in crate::engine) fn show_event(event: &Event) -> Option<String> {
    let item = |item: &Item| format!("{}/{}", item.at.instance, item.number);
    Some(match event {
        Event::HubCreated { name, hub } => format!("hub {name} is {}", hub.id),
        Event::RetentionSet { name, hub } => format!("hub {name} keeps {}", kept(hub)),
        Event::GenerationDiscarded { at, later, .. } => {
            format!(
                "{} discards its generation{}",
                at.instance,
                if *later { ", swept later" } else { "" }
            )
        }
        Event::InstanceRemoved { at, later, .. } => {
            format!("{} is gone{}", at.instance, if *later { ", swept later" } else { "" })
        }
        Event::LeftoverSwept { leftover, keys, done } => format!(
            "{} rows of {} swept{}",
            keys.len(),
            leftover.at.instance,
            if *done { ", the last" } else { "" }
        ),
        Event::HubDeleted { hub } => format!("hub {} was {}", hub.name, hub.id),
        Event::HubClosed { hub } => format!("hub {hub} is closed"),
        Event::HubForgotten { id } => format!("hub {id} is forgotten"),
        Event::InstanceWritten { at, record } => {
            format!("{} is {}", at.instance, status_name(record.status()))
        }
        Event::EventReceived { at, event, .. } => format!("{} ← {}", at.instance, brief(event)),
        Event::EventTaken { .. } => return None,
        Event::HistoryAppended { at, events, .. } => events
            .iter()
            .map(|event| format!("{} + {}", at.instance, brief(event)))
            .collect::<Vec<_>>()
            .join("\n"),
        Event::TaskOpened { item: i, task } => format!("task {} {} opened", item(i), task.name),
        Event::TaskClosed { item: i } => format!("task {} closed", item(i)),
        Event::TimerArmed { item: i, timer } => {
            format!("timer {} armed for {}", item(i), timer.due as f64 / SECOND as f64)
        }
        Event::TimerCleared { item: i, .. } => format!("timer {} cleared", item(i)),
        Event::ChildWritten { item: i, child } => {
            let state = if child.answered { "has answered" } else { "is to answer" };
            format!("child {} {} {state}", item(i), child.instance)
        }
        Event::MessageSent { message, .. } => format!("✉ {}", show_message(message)),
        // Places are of no interest to a reader.
        Event::MessageDelivered { .. } | Event::MessagesTaken { .. } => return None,
        other => return show_entity_event(other),
    })
}

pub(in crate::engine) fn is_for_counting(effect: &Effect) -> bool {
    matches!(effect, Effect::InstanceStarted { .. } | Effect::InstanceEnded { .. })
}

pub(in crate::engine) fn show_message(message: &MessageRecord) -> String {
    let what = match message.body.as_ref().expect("a body") {
        Body::Start(it) => format!("start {}", it.request.name),
        Body::ChildEnded(it) => match &it.failure {
            Some(failure) => format!("child failed {:?}", failure.error_message),
            None => format!("child completed {:?}", it.result.as_ref().map(|text| text.as_str())),
        },
        Body::Raise(it) => format!("event {}", it.name),
        Body::Terminate(it) => format!("terminate{}", if it.recurse { " recursively" } else { "" }),
        Body::Rewind(_) => "rewind".into(),
        other => show_entity_message(other),
    };
    format!("to {}: {what}", message.instance)
}

pub(in crate::engine) fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::TurnReady { at, class } => format!("turn ready: {} {}", at.instance, class.name),
        Effect::ActivityReady { item, class } => {
            format!("activity ready: {}/{} {}", item.at.instance, item.number, class.name)
        }
        Effect::EntityReady { at, class } => {
            format!("entity ready: {} {}", at.instance, class.name)
        }
        Effect::MessageSent => "message sent".into(),
        Effect::InstanceGone { at } => format!("gone: {}", at.instance),
        Effect::SweepDue => "sweep due".to_owned(),
        Effect::HubGone { hub } => format!("hub gone: {hub}"),
        Effect::RetentionSet => "retention set".to_owned(),
        Effect::TimerSet { due } => format!("timer set: {}", *due as f64 / SECOND as f64),
        Effect::InstanceChanged { at, status } => {
            format!("changed: {} {}", at.instance, status_name(*status))
        }
        Effect::InstanceStarted { .. } => "started".to_owned(),
        Effect::InstanceEnded { status, nanos, .. } => {
            format!("ended: {} after {}", status_name(*status), *nanos as f64 / SECOND as f64)
        }
    }
}
