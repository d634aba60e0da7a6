//! What purged instances and long generations left behind, and hubs that were deleted.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::engine::state::{Address, DeletedHubRecord, Leftover, TimerRecord, decode, keys};
use crate::engine::view::{View, after_prefix, scan_prefix};

/// The first notes of what is to be swept.
pub(crate) fn leftovers(view: &dyn View, limit: usize) -> Vec<Leftover> {
    let mut found = Vec::new();
    scan_prefix(view, &keys::all_leftovers(), &mut |key, value| {
        found.extend(keys::parse_leftover(key, value));
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

/// Whether anything is to be swept.
pub fn sweep_due(view: &dyn View) -> bool {
    !leftovers(view, 1).is_empty()
}

/// Rows of a leftover.
pub(crate) struct Found {
    pub(crate) keys: Vec<Vec<u8>>,
    /// What it took to look at them.
    pub(crate) bytes: usize,
    /// There are no more.
    pub(crate) done: bool,
}

/// Some rows of a leftover: at most `rows` keys (a timer has two), and values of about `bytes`.
pub(crate) fn rows_of(view: &dyn View, leftover: &Leftover, rows: usize, bytes: usize) -> Found {
    let Leftover { at, generation, whole } = leftover;
    let history = keys::history_of(at, 0);
    let mut ranges = vec![(history, keys::history_of(at, *generation))];
    if *whole {
        ranges.push((keys::tasks_of(at, 0), keys::tasks_of(at, *generation)));
        ranges.push((keys::timers_of(at, 0), keys::timers_of(at, *generation)));
        ranges.push((keys::children_of(at, 0), keys::children_of(at, *generation)));
    }
    let mut found = Found { keys: Vec::new(), bytes: 0, done: true };
    for (from, last) in ranges {
        if !found.done {
            break;
        }
        view.scan(&from, &after_prefix(&last), &mut |key, value| {
            if found.keys.len() >= rows || found.bytes >= bytes {
                found.done = false;
                return ControlFlow::Break(());
            }
            found.bytes += value.len();
            if let Some(item) = keys::parse_timer(key) {
                let timer: TimerRecord = decode(Bytes::copy_from_slice(value));
                found.keys.push(keys::due(timer.due, &item));
            }
            found.keys.push(key.to_vec());
            ControlFlow::Continue(())
        });
    }
    found
}

/// The first instances of a hub, entities included.
pub(crate) fn instances_of(view: &dyn View, hub: u32, limit: usize) -> Vec<Address> {
    let mut found = Vec::new();
    scan_prefix(view, &keys::instances_from(hub, ""), &mut |key, _| {
        found.extend(keys::parse_instance(key));
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

/// Whether a hub has any instance in this partition.
pub fn has_instances(view: &dyn View, hub: u32) -> bool {
    !instances_of(view, hub, 1).is_empty()
}

/// Whether a hub still has something to be swept.
pub(crate) fn hub_sweep_due(view: &dyn View, hub: u32) -> bool {
    let mut found = false;
    scan_prefix(view, &keys::leftovers_of(hub), &mut |_, _| {
        found = true;
        ControlFlow::Break(())
    });
    found
}

/// Whether this partition takes nothing new for a hub, because it was deleted.
pub(crate) fn hub_closed(view: &dyn View, hub: u32) -> bool {
    view.get(&keys::closed_hub(hub)).is_some()
}

/// The hubs that were deleted and may still have instances, as the metadata group knows them.
pub fn deleted_hubs(view: &dyn View) -> Vec<DeletedHubRecord> {
    let mut hubs = Vec::new();
    scan_prefix(view, &keys::deleted_hubs(), &mut |_, value| {
        hubs.push(decode(Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    });
    hubs
}
