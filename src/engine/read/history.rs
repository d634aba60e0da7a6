//! The committed history of a generation.

use std::ops::{ControlFlow, Range};

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

/// A part of a history.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct HistoryPart {
    /// Its events, encoded.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub events: Vec<Bytes>,
    /// Number of the event that follows.
    #[prost(uint32, tag = "2")]
    pub next: u32,
}

/// The events of a generation from number `range.start` on, which begins a row, and not beyond `range.end`:
/// whole rows, until they have `bytes`. `None` if they are gone.
pub fn history_part(
    view: &dyn View,
    at: &Address,
    generation: u64,
    range: Range<u32>,
    bytes: usize,
) -> Option<HistoryPart> {
    let mut part = HistoryPart { events: Vec::new(), next: range.start };
    let mut size = 0;
    let from = keys::history(at, generation, range.start);
    let end = keys::history(at, generation, range.end);
    view.scan(&from, &end, &mut |key, value| {
        // A gap: the rows are being swept.
        if *key != keys::history(at, generation, part.next) {
            return ControlFlow::Break(());
        }
        let before = part.events.len();
        part.events.extend(Events::of(Bytes::copy_from_slice(value)));
        part.next += (part.events.len() - before) as u32;
        size += value.len();
        if size < bytes { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    (part.next > range.start).then_some(part)
}

/// The history row that begins with event number `first`.
pub(crate) fn chunk(view: &dyn View, at: &Address, generation: u64, first: u32) -> Option<Bytes> {
    view.get(&keys::history(at, generation, first))
}
