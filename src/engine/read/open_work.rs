//! Everything that waits for a worker: what a new leader rebuilds its queues from.
//!
//! Costs what is open, not what is stored: inbox and task rows exist only while something waits.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::instance::head;
use crate::engine::Effect;
use crate::engine::effect::Class;
use crate::engine::state::{Address, TaskRecord, decode, keys};
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
    scan_prefix(view, &keys::all_tasks(), &mut |key, value| {
        let task: TaskRecord = decode(Bytes::copy_from_slice(value));
        let class = Class { name: task.name, version: task.filter_version };
        effects.extend(keys::parse_task(key).map(|item| Effect::ActivityReady { item, class }));
        ControlFlow::Continue(())
    });
    effects
}
