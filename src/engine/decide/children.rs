//! Parents and children: one answer per child (S9), and ends that go down the tree (R2.51).

use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{self, OrchestrationStatus};
use durahub_proto::{Text, wire::TaskFailureDetails};

use super::Plan;
use crate::engine::event::{NO_ID, failure, history};
use crate::engine::state::message::{Body, ChildEnded, FromParent, Parent, TerminateMessage};
use crate::engine::state::{Address, ChildRecord, InstanceRecord, Item, Recursion};
use crate::engine::{Event, read};

/// A child's answer becomes history of the generation that asked for it, if that still waits (R4.40).
pub(crate) fn child_ended(plan: &mut Plan<'_>, at: &Address, ended: ChildEnded) {
    let record = read::head(plan.view, at)
        .filter(|record| record.generation == ended.link.generation && !record.is_terminal());
    let item = ended.link.item(at.clone());
    let child = read::child(plan.view, &item).filter(|child| !child.answered);
    let (Some(record), Some(mut child)) = (record, child) else { return };

    let event = answer(child.task_id, ended.result, ended.failure);
    plan.receive(at, &record, history(NO_ID, plan.stamp.now, event));
    child.answered = true;
    plan.push(Event::ChildWritten { item, child });
}

/// The history event that tells a parent of a child's end (R4.39).
pub(crate) fn answer(
    task_id: i32,
    result: Option<Text>,
    failure: Option<TaskFailureDetails>,
) -> EventType {
    match failure {
        Some(failure) => {
            EventType::SubOrchestrationInstanceFailed(wire::SubOrchestrationInstanceFailedEvent {
                task_scheduled_id: task_id,
                failure_details: Some(failure),
            })
        }
        None => EventType::SubOrchestrationInstanceCompleted(
            wire::SubOrchestrationInstanceCompletedEvent { task_scheduled_id: task_id, result },
        ),
    }
}

/// How an instance ended.
pub(crate) struct End {
    pub(crate) status: OrchestrationStatus,
    pub(crate) result: Option<Text>,
    pub(crate) failure: Option<TaskFailureDetails>,
}

impl Plan<'_> {
    /// Tells the parent of an instance, if it has one, how it ended.
    pub(crate) fn answer_parent(&mut self, at: &Address, record: &InstanceRecord, end: End) {
        let Some(parent) = record.parent() else { return };
        let End { status, result, failure: details } = end;
        if status == OrchestrationStatus::Completed {
            return self.answer(at.hub, &parent, result, None);
        }
        // Two clients read the details of any child that did not complete (R4.39).
        let details = details.unwrap_or_else(|| {
            let (kind, what) = match status {
                OrchestrationStatus::Terminated => ("SubOrchestrationTerminated", "was terminated"),
                _ => ("SubOrchestrationFailed", "failed and gave no details"),
            };
            let text = result.as_ref().map(Text::as_str).filter(|text| !text.is_empty());
            let made_up = || format!("sub-orchestration {} {what}", at.instance);
            failure(kind, text.map_or_else(made_up, str::to_owned))
        });
        self.answer(at.hub, &parent, None, Some(details));
    }

    /// Sends a parent the answer of a child.
    pub(crate) fn answer(
        &mut self,
        hub: u32,
        parent: &Parent,
        result: Option<Text>,
        failure: Option<TaskFailureDetails>,
    ) {
        let ended = ChildEnded { link: parent.link, result, failure };
        self.send(hub, parent.instance(), Body::ChildEnded(ended));
    }

    /// Asks children to end, and theirs (R2.51). A row whose child is somebody else's by now does no harm:
    /// the receiver compares the link.
    pub(crate) fn terminate_children<'a>(
        &mut self,
        at: &Address,
        children: impl IntoIterator<Item = &'a (Item, ChildRecord)>,
        recursion: &Recursion,
    ) {
        for (item, child) in children {
            let from = FromParent { instance: at.instance.clone(), link: child.link(item) };
            let message = TerminateMessage {
                output: recursion.output.clone(),
                recurse: true,
                from: Some(from),
            };
            self.send(at.hub, child.instance.clone(), Body::Terminate(message));
        }
    }
}
