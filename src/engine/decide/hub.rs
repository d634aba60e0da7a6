//! Task hubs: a name gets a number, and loses it; what the number had goes bit by bit (section 2.13).
//!
//! A number never returns, so a name can be used again at once. The metadata group remembers deleted hubs
//! until every partition is clear of them; a partition remembers for ever, so that a call that was under way
//! when its hub was deleted cannot leave anything behind.

use super::Plan;
use super::purge_entities::clear_entities;
use crate::engine::command::{ClearHub, CreateHub, DeleteHub, ForgetHub, SetRetention};
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::{DeletedHubRecord, FORMAT, HubRecord};
use crate::engine::{Effect, Event, read};

/// Instances that one command removes.
const INSTANCES: usize = 64;
/// Waiting events that one command removes.
const EVENTS: usize = 1024;

pub(crate) fn create_hub(plan: &mut Plan<'_>, command: CreateHub) -> Answer {
    match read::hub(plan.view, &command.name) {
        Some(hub) if !command.recreate => return Ok(Reply::Hub { id: hub.id }),
        Some(hub) => delete(plan, command.name.clone(), &hub),
        None => {}
    }
    let id = read::last_hub(plan.view) + 1;
    let hub = HubRecord { format: FORMAT, id, created: plan.stamp.now, retention: None };
    plan.push(Event::HubCreated { name: command.name, hub });
    Ok(Reply::Hub { id })
}

/// Deletes a hub; one that is not there is no error.
pub(crate) fn delete_hub(plan: &mut Plan<'_>, command: DeleteHub) -> Answer {
    if let Some(hub) = read::hub(plan.view, &command.name) {
        delete(plan, command.name, &hub);
    }
    Ok(Reply::Done)
}

fn delete(plan: &mut Plan<'_>, name: String, hub: &HubRecord) {
    let deleted = plan.stamp.now;
    let id = hub.id;
    plan.push(Event::HubDeleted { hub: DeletedHubRecord { format: FORMAT, id, name, deleted } });
    // Every node has the metadata, but not every node has a partition that will tell of it.
    plan.tell(Effect::HubGone { hub: id });
}

/// Closes a deleted hub in this partition, and removes some of its instances, whatever they are doing. The
/// answer tells whether any rows are left.
pub(crate) fn clear_hub(plan: &mut Plan<'_>, command: ClearHub) -> Answer {
    let hub = command.hub;
    if !read::hub_closed(plan.view, hub) {
        plan.push(Event::HubClosed { hub });
        plan.tell(Effect::HubGone { hub });
    }
    let instances = read::instances_of(plan.view, hub, INSTANCES);
    let mut events = EVENTS;
    for at in &instances {
        let waiting = read::inbox_places(plan.view, at, events + 1);
        if waiting.len() > events {
            // More than one command may remove: the instance itself goes with the last of them.
            for place in waiting.into_iter().take(events) {
                plan.push(Event::EventTaken { at: at.clone(), place });
            }
            break;
        }
        events -= waiting.len();
        if let Some(record) = read::head(plan.view, at) {
            plan.remove(at, &record);
        }
    }
    let entities_left = instances.is_empty() && clear_entities(plan, hub, EVENTS);
    let done = instances.is_empty() && !entities_left && !read::hub_sweep_due(plan.view, hub);
    Ok(Reply::Step { done })
}

/// Forgets a deleted hub that no partition has anything of.
pub(crate) fn forget_hub(plan: &mut Plan<'_>, command: ForgetHub) -> Answer {
    plan.push(Event::HubForgotten { id: command.id });
    Ok(Reply::Done)
}

/// Writes down how long ended instances of a hub stay. Dispatch does it ([`purge`](super::purge)); nothing goes
/// by this command.
pub(crate) fn set_retention(plan: &mut Plan<'_>, command: SetRetention) -> Answer {
    // The gateway has just seen it.
    let mut hub = read::hub(plan.view, &command.name).ok_or(Reject::HubDeleted)?;
    let id = hub.id;
    let mut retention = hub.retention.unwrap_or_default();
    for (kept, new) in [
        (&mut retention.completed, command.completed),
        (&mut retention.failed, command.failed),
        (&mut retention.terminated, command.terminated),
    ] {
        if let Some(new) = new {
            *kept = new.milliseconds;
        }
    }
    hub.retention = Some(retention);
    plan.push(Event::RetentionSet { name: command.name, hub });
    plan.tell(Effect::RetentionSet);
    Ok(Reply::Hub { id })
}
