//! `CreateHub`: a name gets a number (section 2.13).

use super::Plan;
use crate::engine::command::CreateHub;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::{FORMAT, HubRecord};
use crate::engine::{Event, read};

pub(crate) fn create_hub(plan: &mut Plan<'_>, command: CreateHub) -> Answer {
    if let Some(hub) = read::hub(plan.view, &command.name) {
        return Ok(Reply::Hub { id: hub.id });
    }
    let id = read::last_hub(plan.view) + 1;
    let hub = HubRecord { format: FORMAT, id, created: plan.stamp.now };
    plan.push(Event::HubCreated { name: command.name, hub });
    Ok(Reply::Hub { id })
}
