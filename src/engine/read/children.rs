//! The children of an orchestration.

use std::ops::ControlFlow;

use bytes::Bytes;

use crate::engine::state::{Address, ChildRecord, Item, decode, keys};
use crate::engine::view::{View, scan_prefix};

/// The children that a generation asked for, in the order in which it did, those that have ended included.
///
/// The instance that a row names may be somebody else's by now: before anything is done to it,
/// `InstanceRecord::is_child` must confirm it with the row's `ChildRecord::link`.
pub fn children(view: &dyn View, at: &Address, generation: u64) -> Vec<(Item, ChildRecord)> {
    let mut children = Vec::new();
    scan_prefix(view, &keys::children_of(at, generation), &mut |key, value| {
        let child = decode(Bytes::copy_from_slice(value));
        children.extend(keys::parse_child(key).map(|item| (item, child)));
        ControlFlow::Continue(())
    });
    children
}

/// One of them.
pub(crate) fn child(view: &dyn View, item: &Item) -> Option<ChildRecord> {
    view.get(&keys::child(item)).map(decode)
}
