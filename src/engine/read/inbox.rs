//! Waiting events of an instance.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::engine::state::{Address, Place, keys};
use crate::engine::view::{View, after_prefix, scan_prefix};

/// All waiting events, in order.
pub(crate) fn inbox(view: &dyn View, at: &Address) -> Vec<(Place, Bytes)> {
    let mut events = Vec::new();
    scan_prefix(view, &keys::inbox_of(at), &mut collect(&mut events));
    events
}

/// Visits the waiting events in order, until `visit` breaks.
pub(crate) fn visit_inbox(
    view: &dyn View,
    at: &Address,
    visit: &mut dyn FnMut(Place, &[u8]) -> ControlFlow<()>,
) {
    scan_prefix(view, &keys::inbox_of(at), &mut |key, value| match keys::parse_inbox(key) {
        Some((_, place)) => visit(place, value),
        None => ControlFlow::Continue(()),
    });
}

/// Places of the first waiting events.
pub(crate) fn inbox_places(view: &dyn View, at: &Address, limit: usize) -> Vec<Place> {
    let mut places = Vec::new();
    scan_prefix(view, &keys::inbox_of(at), &mut |key, _| {
        places.extend(keys::parse_inbox(key).map(|(_, place)| place));
        if places.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    places
}

/// The waiting events up to and including `through`.
pub(crate) fn inbox_through(view: &dyn View, at: &Address, through: Place) -> Vec<(Place, Bytes)> {
    let mut events = Vec::new();
    let end = after_prefix(&keys::inbox(at, through));
    view.scan(&keys::inbox_of(at), &end, &mut collect(&mut events));
    events
}

/// The first waiting event.
pub(crate) fn first_event(view: &dyn View, at: &Address) -> Option<Bytes> {
    let mut first = None;
    visit_inbox(view, at, &mut |_, event| {
        first = Some(Bytes::copy_from_slice(event));
        ControlFlow::Break(())
    });
    first
}

/// Place of the first waiting event.
pub(crate) fn first_waiting(view: &dyn View, at: &Address) -> Option<Place> {
    first_in(view, &keys::inbox_of(at), at)
}

/// Place of the first waiting event behind `place`.
pub(crate) fn first_waiting_after(view: &dyn View, at: &Address, place: Place) -> Option<Place> {
    first_in(view, &after_prefix(&keys::inbox(at, place)), at)
}

fn first_in(view: &dyn View, from: &[u8], at: &Address) -> Option<Place> {
    let mut first = None;
    view.scan(from, &after_prefix(&keys::inbox_of(at)), &mut |key, _| {
        first = keys::parse_inbox(key).map(|(_, place)| place);
        ControlFlow::Break(())
    });
    first
}

fn collect(events: &mut Vec<(Place, Bytes)>) -> impl FnMut(&[u8], &[u8]) -> ControlFlow<()> {
    |key, value| {
        if let Some((_, place)) = keys::parse_inbox(key) {
            events.push((place, Bytes::copy_from_slice(value)));
        }
        ControlFlow::Continue(())
    }
}
