//! Entities go: their state by a purge (R2.90), all of them with their hub.

use std::collections::BTreeSet;

use super::Plan;
use super::entity::Entity;
use crate::engine::command::PurgeEntities;
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::Address;
use crate::engine::{Event, read};

/// Deletes the states of entities; the answer counts them. What waits for one, waits on, and begins anew.
pub(crate) fn purge_entities(plan: &mut Plan<'_>, command: PurgeEntities) -> Answer {
    let mut count = 0;
    let instances: BTreeSet<String> = command.instances.into_iter().collect();
    for instance in instances {
        let mut entity = Entity::load(plan, &Address::new(command.hub, instance));
        if !entity.record.has_state {
            continue;
        }
        count += 1;
        entity.record.has_state = false;
        entity.record.version = plan.stamp.sequence;
        entity.record.modified = plan.stamp.now;
        plan.push(Event::EntityStateWritten { at: entity.at.clone(), state: None });
        entity.settle(plan);
    }
    Ok(Reply::Purged { count })
}

/// Removes some of what the entities of a deleted hub have, at most so many rows. Whether anything was left.
pub(crate) fn clear_entities(plan: &mut Plan<'_>, hub: u32, rows: usize) -> bool {
    let keys = read::entity_rows_of_hub(plan.view, hub, rows);
    let found = !keys.is_empty();
    if found {
        plan.push(Event::EntityRowsSwept { keys });
    }
    found
}
