//! The committed history of a generation.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::instance::head;
use crate::engine::state::{Address, Events, keys};
use crate::engine::view::{View, scan_prefix};

/// The encoded events of the current generation, in order (R2.92). Empty if there is no such instance
/// (R2.93), or if `execution_id` names another generation (R2.95).
pub fn history(view: &dyn View, at: &Address, execution_id: Option<&str>) -> Vec<Bytes> {
    match head(view, at) {
        Some(record) if execution_id.is_none_or(|id| id == record.execution_id) => {
            events(view, at, record.generation, record.history_events)
        }
        _ => Vec::new(),
    }
}

/// The encoded events of a generation; `count` is how many there are.
pub(crate) fn events(view: &dyn View, at: &Address, generation: u64, count: u32) -> Vec<Bytes> {
    let mut events = Vec::with_capacity(count as usize);
    scan_prefix(view, &keys::history_of(at, generation), &mut |_, value| {
        events.extend(Events::of(Bytes::copy_from_slice(value)));
        ControlFlow::Continue(())
    });
    events
}

/// The history row that begins with event number `first`.
pub(crate) fn chunk(view: &dyn View, at: &Address, generation: u64, first: u32) -> Option<Bytes> {
    view.get(&keys::history(at, generation, first))
}
