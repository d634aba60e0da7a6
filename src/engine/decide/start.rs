//! `Start`: a new instance, or a new generation in place of an old instance (section 2.1).

use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{self, OrchestrationStatus};

use super::Plan;
use crate::engine::command::Start;
use crate::engine::event::{START_ID, failure, history};
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::message::{Parent, StartMessage};
use crate::engine::state::{Address, FORMAT, InstanceRecord, Item, TimerKind, TimerRecord};
use crate::engine::time::nanos;
use crate::engine::{Effect, read};

pub(crate) fn start(plan: &mut Plan<'_>, command: Start) -> Answer {
    let request = command.request;
    let at = Address::new(command.hub, request.instance_id.clone());
    if read::hub_closed(plan.view, at.hub) {
        return Err(Reject::HubDeleted);
    }
    let existing = read::head(plan.view, &at);
    match reuse(request.orchestration_id_reuse_policy.as_ref(), existing.as_ref())? {
        Reuse::Keep => return Ok(Reply::Started { instance: at.instance }),
        Reuse::Refuse => return Err(Reject::AlreadyExists { instance: at.instance }),
        Reuse::Create => {}
    }
    create(plan, &at, existing.as_ref(), request, None);
    Ok(Reply::Started { instance: at.instance })
}

/// Starts an orchestration that another one asked for. An id that is in use is told to the parent (R4.38),
/// one whose instance has ended is used again (R4.37).
pub(crate) fn start_by_message(plan: &mut Plan<'_>, at: &Address, message: StartMessage) {
    let StartMessage { request, parent } = message;
    let existing = read::head(plan.view, at);
    if existing.as_ref().is_some_and(|existing| !existing.is_terminal()) {
        if let Some(parent) = parent {
            let text = format!(
                "orchestration instance already exists: {}; it has not ended, so no child can have its id",
                at.instance
            );
            let mut details = failure("SubOrchestrationAlreadyExists", text);
            // It will end one day, so trying again is not in vain.
            details.is_non_retriable = false;
            plan.answer(at.hub, &parent, None, Some(details));
        }
        return;
    }
    create(plan, at, existing.as_ref(), request, parent);
}

/// Begins the first generation of an instance, in place of whatever was there.
pub(crate) fn create(
    plan: &mut Plan<'_>,
    at: &Address,
    existing: Option<&InstanceRecord>,
    request: wire::CreateInstanceRequest,
    parent: Option<Parent>,
) {
    if let Some(old) = existing {
        plan.clear_inbox(at);
        plan.release_locks(at, &mut old.clone());
        plan.discard(at, old);
    }
    let (parent, link) = parent.map(|Parent { info, link }| (info, link)).unzip();
    let now = plan.stamp.now;
    let execution_id = match request.execution_id {
        Some(id) if !id.is_empty() => id.as_str().to_owned(),
        _ => new_execution_id(plan.stamp.seed),
    };
    // The epoch means "none was given": one client always sends it (R2.5).
    let requested = request.scheduled_start_timestamp.filter(|start| nanos(start) != 0);
    let due = requested.as_ref().map(nanos).filter(|due| *due > now);

    let record = InstanceRecord {
        format: FORMAT,
        name: request.name.clone(),
        version: request.version.clone(),
        status: OrchestrationStatus::Pending.into(),
        created: now,
        updated: now,
        execution_id: execution_id.clone(),
        generation: plan.stamp.sequence,
        scheduled_start: requested,
        start_timer: due.map(|_| 0),
        next_number: u64::from(due.is_some()),
        tags: request.tags.clone(),
        parent_trace: request.parent_trace_context.clone(),
        parent: parent.clone(),
        link,
        ..Default::default()
    };
    let started = wire::ExecutionStartedEvent {
        name: request.name,
        version: request.version,
        input: request.input,
        orchestration_instance: Some(wire::OrchestrationInstance {
            instance_id: at.instance.clone(),
            execution_id: Some(execution_id.into()),
        }),
        parent_instance: parent,
        scheduled_start_timestamp: requested,
        parent_trace_context: request.parent_trace_context,
        tags: request.tags,
        ..Default::default()
    };
    if let Some(due) = due {
        let item = Item { at: at.clone(), generation: record.generation, number: 0 };
        let kind = TimerKind::Start.into();
        plan.arm(item, TimerRecord { format: FORMAT, kind, due, ..Default::default() });
    }
    plan.receive(at, &record, history(START_ID, now, EventType::ExecutionStarted(started)));
    plan.tell(Effect::InstanceStarted { hub: at.hub });
    plan.write(at, record);
}

enum Reuse {
    Create,
    Keep,
    Refuse,
}

/// What the reuse policy says about an existing instance (R2.14 to R2.21).
fn reuse(
    policy: Option<&wire::OrchestrationIdReusePolicy>,
    existing: Option<&InstanceRecord>,
) -> Result<Reuse, Reject> {
    use OrchestrationStatus::{Pending, Running, Suspended, Terminated};
    const IGNORE: i32 = 1;

    if let Some(policy) = policy {
        let allows = |status| policy.replaceable_status().any(|allowed| allowed == status);
        let allows_live = [Pending, Running, Suspended].into_iter().any(allows);
        // Clients that still send an action mean the old rules, which had no such check.
        if policy.legacy_action == 0 && allows_live && !allows(Terminated) {
            return Err(Reject::InvalidReusePolicy);
        }
    }
    let Some(existing) = existing else { return Ok(Reuse::Create) };
    Ok(match policy {
        None if existing.is_terminal() => Reuse::Create,
        None => Reuse::Refuse,
        Some(policy) => {
            let listed = policy.replaceable_status().any(|status| status == existing.status());
            match (listed, policy.legacy_action) {
                (true, IGNORE) => Reuse::Keep,
                (true, _) => Reuse::Create,
                (false, _) => Reuse::Refuse,
            }
        }
    })
}

/// An execution id: 32 hex digits (R2.11, R2.12).
pub(crate) fn new_execution_id(seed: u64) -> String {
    format!("{:016x}{:016x}", mix(seed), mix(seed ^ 0x9e37_79b9_7f4a_7c15))
}

/// Spreads the bits of a seed, so that related seeds give unrelated ids.
fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
