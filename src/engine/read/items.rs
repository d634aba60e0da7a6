//! Open tasks and armed timers.

use std::ops::ControlFlow;

use crate::engine::state::{Address, Item, TaskRecord, TimerRecord, decode, keys};
use crate::engine::view::{View, after_prefix, scan_prefix};

/// An open task; `None` once it has been answered or is no longer wanted.
pub fn task(view: &dyn View, item: &Item) -> Option<TaskRecord> {
    view.get(&keys::task(item)).map(decode)
}

/// The open tasks of a generation.
pub(crate) fn tasks(view: &dyn View, at: &Address, generation: u64) -> Vec<Item> {
    let mut items = Vec::new();
    scan_prefix(view, &keys::tasks_of(at, generation), &mut |key, _| {
        items.extend(keys::parse_task(key));
        ControlFlow::Continue(())
    });
    items
}

/// An armed timer.
pub(crate) fn timer(view: &dyn View, item: &Item) -> Option<TimerRecord> {
    view.get(&keys::timer(item)).map(decode)
}

/// The armed timers of a generation, with the times they are due.
pub(crate) fn timers(view: &dyn View, at: &Address, generation: u64) -> Vec<(Item, i64)> {
    let mut items = Vec::new();
    scan_prefix(view, &keys::timers_of(at, generation), &mut |key, value| {
        let timer: TimerRecord = decode(bytes::Bytes::copy_from_slice(value));
        items.extend(keys::parse_timer(key).map(|item| (item, timer.due)));
        ControlFlow::Continue(())
    });
    items
}

/// The key under which the timer of a row is due, if it is the row of a timer.
pub(crate) fn due_row(key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
    let item = keys::parse_timer(key)?;
    let timer: TimerRecord = decode(bytes::Bytes::copy_from_slice(value));
    Some(keys::due(timer.due, &item))
}

/// The timers of the partition that are due at `time`, earliest first, at most `limit`.
pub(crate) fn due(view: &dyn View, time: i64, limit: usize) -> Vec<(i64, Item)> {
    let mut items = Vec::new();
    view.scan(&keys::all_due(), &keys::due_after(time), &mut |key, _| {
        items.extend(keys::parse_due(key));
        if items.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    items
}

/// When the next timer of the partition is due, in nanoseconds since the Unix epoch.
pub fn next_due(view: &dyn View) -> Option<i64> {
    let mut next = None;
    view.scan(&keys::all_due(), &after_prefix(&keys::all_due()), &mut |key, _| {
        next = keys::parse_due(key).map(|(time, _)| time);
        ControlFlow::Break(())
    });
    next
}
