//! What a turn asks of other instances: children, events, terminations (section 4.3).
//!
//! What goes to the sender itself does not travel: it is in the inbox with the commit of the turn, ahead of
//! nothing that was there before (R4.56).

use bytes::Bytes;
use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use super::children::answer;
use super::turn::Turn;
use crate::engine::event::{NO_ID, failure, history};
use crate::engine::state::message::{Body, Link, Parent, StartMessage, TerminateMessage};
use crate::engine::state::{Address, ChildRecord, FORMAT, InstanceRecord, is_entity};

impl Turn {
    pub(super) fn create_child(
        &mut self,
        plan: &mut Plan<'_>,
        id: i32,
        action: wire::CreateSubOrchestrationAction,
    ) {
        let trace = action.parent_trace_context.or_else(|| self.record.parent_trace.clone());
        let instance = match action.instance_id.is_empty() {
            // One client leaves it to the server (R4.36).
            true => format!("{}:{id:04x}", self.at.instance),
            false => action.instance_id,
        };
        self.appended.push(history(
            id,
            self.now,
            EventType::SubOrchestrationInstanceCreated(
                wire::SubOrchestrationInstanceCreatedEvent {
                    instance_id: instance.clone(),
                    name: action.name.clone(),
                    version: action.version.clone(),
                    input: action.input.clone(),
                    parent_trace_context: trace.clone(),
                    tags: action.tags.clone(),
                },
            ),
        ));
        if let Some(problem) = self.refuse_child(&instance) {
            let details = failure("DurahubInvalidInstanceId", problem);
            self.refused.push(history(NO_ID, self.now, answer(id, None, Some(details))));
            return;
        }
        let item = self.next_item();
        let request = wire::CreateInstanceRequest {
            name: action.name,
            version: action.version,
            input: action.input,
            tags: action.tags,
            parent_trace_context: trace,
            ..Default::default()
        };
        let link = Link { generation: item.generation, number: item.number };
        let parent = Some(parent_of(&self.at, &self.record, id, link));
        plan.send(self.at.hub, instance.clone(), Body::Start(StartMessage { request, parent }));
        let child = ChildRecord { format: FORMAT, instance, task_id: id, ..Default::default() };
        self.children.push((item, child));
    }

    /// Why no child can have that id: its creation fails, the turn does not (R2.4).
    fn refuse_child(&self, instance: &str) -> Option<String> {
        let (length, limit) = (instance.chars().count(), self.id_length as usize);
        if limit > 0 && length > limit {
            return Some(format!(
                "instanceId: the length of the child's id is {length} characters, the limit is {limit}; \
                 choose a shorter id"
            ));
        }
        if is_entity(instance) {
            return Some(format!(
                "instanceId: {instance} names an entity; a sub-orchestration needs another id"
            ));
        }
        (instance == self.at.instance).then(|| {
            format!("instanceId: {instance} is the id of the parent; a child needs another id")
        })
    }

    pub(super) fn send_event(
        &mut self,
        plan: &mut Plan<'_>,
        id: i32,
        action: wire::SendEventAction,
    ) {
        let instance = action.instance.map(|target| target.instance_id).unwrap_or_default();
        let wire::SendEventAction { name, data: input, .. } = action;
        self.appended.push(history(
            id,
            self.now,
            EventType::EventSent(wire::EventSentEvent {
                instance_id: instance.clone(),
                name: name.clone(),
                input: input.clone(),
            }),
        ));
        let raised = wire::EventRaisedEvent { name, input };
        if instance == self.at.instance {
            self.to_self.push(history(NO_ID, self.now, EventType::EventRaised(raised)));
        } else {
            plan.send(self.at.hub, instance, Body::Raise(raised));
        }
    }

    pub(super) fn terminate_other(
        &mut self,
        plan: &mut Plan<'_>,
        action: wire::TerminateOrchestrationAction,
    ) {
        let wire::TerminateOrchestrationAction { instance_id, reason, recurse } = action;
        if instance_id == self.at.instance {
            let event = wire::ExecutionTerminatedEvent { input: reason, recurse };
            self.to_self.push(history(NO_ID, self.now, EventType::ExecutionTerminated(event)));
            self.ends_self = true;
        } else {
            let message = TerminateMessage { output: reason, recurse, from: None };
            plan.send(self.at.hub, instance_id, Body::Terminate(message));
        }
    }

    /// Puts what the turn sent to its own instance into the inbox of the generation that follows.
    pub(super) fn receive_own(
        plan: &mut Plan<'_>,
        at: &Address,
        record: &mut InstanceRecord,
        events: Vec<Bytes>,
        ends_self: bool,
    ) {
        record.terminating |= ends_self;
        for event in events {
            plan.receive(at, record, event);
        }
    }
}

/// An instance as its child will know it (R4.34).
pub(super) fn parent_of(at: &Address, record: &InstanceRecord, task_id: i32, link: Link) -> Parent {
    let info = wire::ParentInstanceInfo {
        task_scheduled_id: task_id,
        name: Some(record.name.as_str().into()),
        version: record.version.clone(),
        orchestration_instance: Some(wire::OrchestrationInstance {
            instance_id: at.instance.clone(),
            execution_id: Some(record.execution_id.as_str().into()),
        }),
    };
    Parent { info, link }
}
