//! Entities as an orchestration sees them: operations that it sends, answers that it gets, and the one critical
//! section that it may be in (sections 5.3 and 5.5).
//!
//! The head of the orchestration says which locks it has asked for and not given back. Whatever ends the
//! generation takes the section out of the head and sends the ends of its locks in the same commit, so no
//! lock can outlive its holder, however the generation ends and whoever is down at that moment (S10): the
//! ends wait in the outbox. A section is one at most, and all sets are locked in one order, so no two
//! orchestrations wait for each other (R5.36).

use std::collections::BTreeSet;

use bytes::Bytes;
use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;

use super::Plan;
use super::actions::{Sorted, event_type};
use super::signal::signaled;
use super::turn::Turn;
use crate::engine::event::{NO_ID, history};
use crate::engine::read;
use crate::engine::state::message::{Body, OperationEnded, OperationMessage, ReleaseMessage};
use crate::engine::state::{
    Address, Holder, InstanceRecord, LockRequest, Operation, Section, Sender, entity_id, is_entity,
};
use crate::engine::time::nanos;

/// The answer to a call becomes history of the generation that called, if that still runs (R5.18).
pub(crate) fn operation_ended(plan: &mut Plan<'_>, at: &Address, ended: OperationEnded) {
    let OperationEnded { generation, request_id, output, failure } = ended;
    let record = read::head(plan.view, at)
        .filter(|record| record.generation == generation && !record.is_terminal());
    if let Some(record) = record {
        let event = history(NO_ID, plan.stamp.now, answer(request_id, output, failure));
        plan.receive(at, &record, event);
    }
}

fn answer(
    request_id: String,
    output: Option<durahub_proto::Text>,
    failure: Option<wire::TaskFailureDetails>,
) -> EventType {
    match failure {
        Some(failure) => EventType::EntityOperationFailed(wire::EntityOperationFailedEvent {
            request_id,
            failure_details: Some(failure),
        }),
        None => EventType::EntityOperationCompleted(wire::EntityOperationCompletedEvent {
            request_id,
            output,
        }),
    }
}

/// All locks are held. A section that was left meanwhile is being given back already.
pub(crate) fn lock_granted(plan: &mut Plan<'_>, at: &Address, holder: Holder) {
    let Some(mut record) = read::head(plan.view, at) else { return };
    if record.generation != holder.owner.generation {
        return;
    }
    let Some(section) = &mut record.section else { return };
    if section.holder(holder.owner.clone()) != holder || section.granted {
        return;
    }
    section.granted = true;
    let granted = wire::EntityLockGrantedEvent { critical_section_id: holder.section };
    let event = history(NO_ID, plan.stamp.now, EventType::EntityLockGranted(granted));
    plan.receive(at, &record, event);
    plan.write(at, record);
}

/// Checks what a turn wants of entities, before any of it is done.
///
/// # Errors
/// Says which action cannot be carried out.
pub(crate) fn check(
    record: &InstanceRecord,
    sorted: Sorted,
    id_length: u32,
) -> Result<Sorted, String> {
    let mut section = record.section.clone();
    for (id, action) in &sorted.actions {
        match action {
            // How entities are addressed without entity actions; this server does not speak it (R5.35).
            Action::SendEvent(action) => {
                let target = action.instance.as_ref().map_or("", |it| it.instance_id.as_str());
                if is_entity(target) {
                    return Err(format!(
                        "action {id}: sendEvent to the entity {target}; this server takes entity operations as \
                         sendEntityMessage only, which workers of the scheduler's own packages send"
                    ));
                }
            }
            Action::SendEntityMessage(action) => {
                check_message(&mut section, action, id_length)
                    .map_err(|problem| format!("action {id}: {problem}"))?;
            }
            _ => {}
        }
    }
    Ok(sorted)
}

fn check_message(
    section: &mut Option<Section>,
    action: &wire::SendEntityMessageAction,
    id_length: u32,
) -> Result<(), String> {
    let target = |name: &str, id: Option<&durahub_proto::Text>| {
        let id = id.map_or("", durahub_proto::Text::as_str);
        check_id(id, id_length).map_err(|problem| format!("{name}: {problem}"))
    };
    match &action.entity_message_type {
        Some(Message::EntityOperationSignaled(signal)) => {
            target("entityOperationSignaled", signal.target_instance_id.as_ref())
        }
        Some(Message::EntityOperationCalled(call)) => {
            target("entityOperationCalled", call.target_instance_id.as_ref())
        }
        Some(Message::EntityLockRequested(request)) => {
            if let Some(section) = section {
                return Err(format!(
                    "entityLockRequested: this orchestration is in critical section {} already; leave it before \
                     locking other entities",
                    section.id
                ));
            }
            if request.lock_set.is_empty() {
                return Err("entityLockRequested: the lockSet is empty".to_owned());
            }
            for entity in &request.lock_set {
                check_id(entity, id_length).map_err(|it| format!("entityLockRequested: {it}"))?;
            }
            *section = Some(section_of(request, 0));
            Ok(())
        }
        Some(Message::EntityUnlockSent(unlock)) => {
            leave(section, unlock);
            Ok(())
        }
        None => Err("sendEntityMessage is of a kind that this server does not know".to_owned()),
    }
}

fn check_id(id: &str, limit: u32) -> Result<(), String> {
    let length = id.chars().count();
    if entity_id(id).is_none() {
        return Err(format!("{id:?} does not name an entity; the form is @name@key"));
    }
    if limit > 0 && length > limit as usize {
        return Err(format!(
            "the length of an entity's id is {length} characters, the limit is {limit}; choose a shorter key"
        ));
    }
    Ok(())
}

fn section_of(request: &wire::EntityLockRequestedEvent, index: u32) -> Section {
    // Sorted here, whatever a worker did: the order must be the same for all.
    let set: BTreeSet<String> = request.lock_set.iter().filter_map(|id| entity_id(id)).collect();
    Section {
        id: request.critical_section_id.clone(),
        set: set.into_iter().collect(),
        granted: false,
        request: index,
    }
}

/// What an unlock gives back.
enum Left {
    /// Nothing: it is not held, or was given back before (R5.33).
    Nothing,
    /// One lock, of the section that asked for it there.
    One { entity: String, request: u32 },
    /// The whole section, before all of it was granted.
    Unfinished(Section),
}

/// Takes an entity, or the whole section, out of what is held.
fn leave(section: &mut Option<Section>, unlock: &wire::EntityUnlockSentEvent) -> Left {
    let target = unlock.target_instance_id.as_ref().and_then(|target| entity_id(target.as_str()));
    let (Some(target), Some(own)) = (target, section.as_mut()) else { return Left::Nothing };
    let index = own.set.iter().position(|entity| *entity == target);
    let Some(index) = index.filter(|_| own.id == unlock.critical_section_id) else {
        return Left::Nothing;
    };
    if !own.granted {
        return section.take().map_or(Left::Nothing, Left::Unfinished);
    }
    own.set.remove(index);
    let request = own.request;
    if own.set.is_empty() {
        *section = None;
    }
    Left::One { entity: target, request }
}

impl Turn {
    /// Carries out an action that [`check`] has let through.
    pub(super) fn send_entity_message(
        &mut self,
        plan: &mut Plan<'_>,
        id: i32,
        action: wire::SendEntityMessageAction,
    ) {
        let Some(message) = action.entity_message_type else { return };
        let sender = Sender::new(&self.at, self.record.generation);
        // The history keeps what the worker sent (R4.25).
        let (event, body) = match message {
            Message::EntityOperationSignaled(signal) => {
                let target = signal.target_instance_id.clone();
                let due = signal.scheduled_time.as_ref().map(nanos);
                let operation = signaled(signal.clone(), self.now, Some(sender));
                let message = OperationMessage { operation, due };
                let body = target.map(|target| (target, Body::Operation(message)));
                (EventType::EntityOperationSignaled(signal), body)
            }
            Message::EntityOperationCalled(call) => {
                let target = call.target_instance_id.clone();
                let due = call.scheduled_time.as_ref().map(nanos);
                let message = OperationMessage { operation: self.called(&call, sender), due };
                let body = target.map(|target| (target, Body::Operation(message)));
                (EventType::EntityOperationCalled(call), body)
            }
            Message::EntityLockRequested(request) => {
                let index = self.record.history_events + self.appended.len() as u32;
                let section = section_of(&request, index);
                let holder = section.holder(sender);
                let first = section.set.first().map(|first| first.as_str().into());
                let lock = LockRequest { holder, set: section.set.clone(), position: 0, since: 0 };
                self.record.section = Some(section);
                let body = first.map(|first| (first, Body::Lock(lock)));
                (EventType::EntityLockRequested(request), body)
            }
            Message::EntityUnlockSent(unlock) => {
                match leave(&mut self.record.section, &unlock) {
                    Left::Nothing => {}
                    Left::One { entity, request } => {
                        let section = unlock.critical_section_id.clone();
                        let holder = Holder { owner: sender, section, request };
                        plan.release(self.at.hub, holder, entity);
                    }
                    Left::Unfinished(section) => {
                        plan.release_section(&self.at, sender.generation, section)
                    }
                }
                (EventType::EntityUnlockSent(unlock), None)
            }
        };
        self.appended.push(history(id, self.now, event));
        if let Some((target, body)) = body {
            let target = entity_id(target.as_str()).unwrap_or_default();
            plan.send(self.at.hub, target, body);
        }
    }

    /// A call as it waits for its entity, with the caller that some workers leave out (R3.39).
    fn called(&self, call: &wire::EntityOperationCalledEvent, sender: Sender) -> Operation {
        let request_id = call.request_id.clone();
        let call = wire::EntityOperationCalledEvent {
            parent_instance_id: Some(self.at.instance.as_str().into()),
            parent_execution_id: Some(self.record.execution_id.as_str().into()),
            ..call.clone()
        };
        let event = history(NO_ID, self.now, EventType::EntityOperationCalled(call));
        Operation { event, request_id, sender: Some(sender), is_call: true }
    }
}

impl Plan<'_> {
    /// Gives back whatever a generation that ends here has locked or asked for (R5.31, R5.32).
    pub(crate) fn release_locks(&mut self, at: &Address, record: &mut InstanceRecord) {
        if let Some(section) = record.section.take() {
            self.release_section(at, record.generation, section);
        }
    }

    fn release_section(&mut self, at: &Address, generation: u64, section: Section) {
        let holder = section.holder(Sender::new(at, generation));
        let Section { set, granted, .. } = section;
        let mut entities = set.iter().cloned();
        if !granted && let Some(first) = entities.next() {
            // The request may be anywhere on its way: its end follows it. The others are told besides, so that
            // no lock waits for an entity before it whose partition is down.
            let release = ReleaseMessage { holder: holder.clone(), set: set.clone(), position: 0 };
            self.send(at.hub, first, Body::Release(release));
        }
        for entity in entities {
            self.release(at.hub, holder.clone(), entity);
        }
    }

    fn release(&mut self, hub: u32, holder: Holder, entity: String) {
        let release = ReleaseMessage { holder, set: Vec::new(), position: 0 };
        self.send(hub, entity, Body::Release(release));
    }
}

/// Whether a history tells of a critical section that was entered and not left (R2.65).
pub(crate) fn ends_inside(events: impl IntoIterator<Item = Bytes>) -> bool {
    let mut open: Option<(String, BTreeSet<String>, bool)> = None;
    for event in events {
        match event_type(&event) {
            Some(EventType::EntityLockRequested(it)) => {
                let set = it.lock_set.iter().filter_map(|id| entity_id(id)).collect();
                open = Some((it.critical_section_id.clone(), set, false));
            }
            Some(EventType::EntityLockGranted(it)) => {
                if let Some((id, _, granted)) = &mut open {
                    *granted |= *id == it.critical_section_id;
                }
            }
            Some(EventType::EntityUnlockSent(it)) => {
                let target = it.target_instance_id.as_ref().and_then(|id| entity_id(id.as_str()));
                if let (Some((id, set, _)), Some(target)) = (&mut open, target)
                    && *id == it.critical_section_id
                {
                    set.remove(&target);
                }
            }
            _ => {}
        }
    }
    open.is_some_and(|(_, set, granted)| granted && !set.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::failure;

    #[test]
    fn sets_are_locked_in_one_order_whatever_a_worker_does() {
        let set = |ids: &[&str]| {
            let lock_set = ids.iter().map(|id| (*id).to_owned()).collect();
            section_of(&wire::EntityLockRequestedEvent { lock_set, ..Default::default() }, 1).set
        };
        assert_eq!(set(&["@B@x", "@a@y", "@b@x", "@a@y"]), ["@a@y", "@b@x"]);
        assert_eq!(set(&["@a@y", "@b@x"]), set(&["@b@x", "@A@y"]));
    }

    #[test]
    fn failure_details_say_which_call_failed() {
        let failed = answer("r1".into(), None, Some(failure("Oops", "no")));
        assert!(matches!(failed, EventType::EntityOperationFailed(it) if it.request_id == "r1"));
    }
}
