//! Everything that waits for a worker: what a new leader rebuilds its queues from.
//!
//! Costs what is open, not what is stored: inbox and task rows exist only while something waits.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::entity::{entities_with_queue, entity};
use super::instance::head;
use crate::engine::Effect;
use crate::engine::effect::Class;
use crate::engine::state::{Address, TaskRecord, decode, entity_name, keys};
use crate::engine::view::{View, scan_prefix};

/// The effects that tell of all open work, as if it had become open just now. Timers: see `next_due`.
pub fn open_work(view: &dyn View) -> Vec<Effect> {
    let mut instances: Vec<Address> = Vec::new();
    scan_prefix(view, &keys::all_inboxes(), &mut |key, _| {
        if let Some((at, _)) = keys::parse_inbox(key)
            && instances.last() != Some(&at)
        {
            instances.push(at);
        }
        ControlFlow::Continue(())
    });
    let turns = instances.into_iter().filter_map(|at| {
        let record = head(view, &at).filter(|record| record.is_dispatchable())?;
        let class =
            Class { name: record.name.clone(), version: record.filter_version().to_owned() };
        Some(Effect::TurnReady { at, class })
    });
    let mut effects: Vec<Effect> = turns.collect();
    let entities = entities_with_queue(view)
        .into_iter()
        .filter(|at| entity(view, at).is_some_and(|record| record.is_runnable()));
    effects.extend(entities.map(|at| {
        let name = entity_name(&at.instance).unwrap_or_default().to_owned();
        Effect::EntityReady { at, class: Class { name, version: String::new() } }
    }));
    scan_prefix(view, &keys::all_tasks(), &mut |key, value| {
        let task: TaskRecord = decode(Bytes::copy_from_slice(value));
        let class = Class { name: task.name, version: task.filter_version };
        effects.extend(keys::parse_task(key).map(|item| Effect::ActivityReady { item, class }));
        ControlFlow::Continue(())
    });
    effects
}
