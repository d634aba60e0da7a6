//! Everything that waits for a worker: what a new leader rebuilds its queues from.
//!
//! Costs what is open, not what is stored: inbox and task rows exist only while something waits.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::entity::{entities_with_queue, entity, first_operation};
use super::inbox::first_event;
use super::instance::head;
use crate::engine::Effect;
use crate::engine::effect::Class;
use crate::engine::event::time_of;
use crate::engine::state::{Address, EntityRecord, TaskRecord, decode, entity_name, keys};
use crate::engine::view::{View, scan_prefix};

/// Something that waits.
#[derive(Debug)]
pub struct Open {
    /// Since when, in nanoseconds since the Unix epoch.
    pub since: i64,
    /// What was told when it became open.
    pub effect: Effect,
}

/// All that waits for a worker, oldest first. Timers: see `next_due`.
pub fn open_work(view: &dyn View) -> Vec<Open> {
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
        let since = first_event(view, &at).map_or(0, |event| time_of(&event));
        Some(Open { since, effect: Effect::TurnReady { at, class } })
    });
    let mut open: Vec<Open> = turns.collect();
    open.extend(entities_with_queue(view).into_iter().filter_map(|at| {
        let record = entity(view, &at).filter(EntityRecord::is_runnable)?;
        let since = first_operation(view, &at, &record).map_or(0, |event| time_of(&event));
        let name = entity_name(&at.instance).unwrap_or_default().to_owned();
        Some(Open {
            since,
            effect: Effect::EntityReady { at, class: Class { name, version: String::new() } },
        })
    }));
    scan_prefix(view, &keys::all_tasks(), &mut |key, value| {
        let task: TaskRecord = decode(Bytes::copy_from_slice(value));
        let class = Class { name: task.name, version: task.filter_version };
        let since = task.scheduled;
        let effect = keys::parse_task(key).map(|item| Effect::ActivityReady { item, class });
        open.extend(effect.map(|effect| Open { since, effect }));
        ControlFlow::Continue(())
    });
    // Stable: what began at one time keeps its order.
    open.sort_by_key(|open| open.since);
    open
}
