//! Heads and the index rows that follow them.

use bytes::Bytes;

use super::encode;
use crate::engine::state::{Address, InstanceRecord, decode, keys, listing};
use crate::engine::view::{Changes, View};

/// Writes the head of an instance; moves its index rows when its status has changed.
pub(super) fn write_head(
    view: &dyn View,
    at: &Address,
    record: &InstanceRecord,
    changes: &mut Changes,
) {
    if record.listed == Some(record.status) {
        changes.insert(keys::instance(at), Some(encode(record)));
        return;
    }
    // Rare in the life of an instance, so the look at what was there before costs little.
    unlist(view, at, changes);
    for row in listing::rows(at, record) {
        changes.insert(row, Some(Bytes::new()));
    }
    let record = InstanceRecord { listed: Some(record.status), ..record.clone() };
    changes.insert(keys::instance(at), Some(encode(&record)));
}

/// Removes the index rows of the head that stands there now, this command's changes included.
pub(super) fn unlist(view: &dyn View, at: &Address, changes: &mut Changes) {
    let key = keys::instance(at);
    let stored = match changes.get(&key) {
        Some(changed) => changed.clone(),
        None => view.get(&key),
    };
    if let Some(old) = stored.map(decode::<InstanceRecord>) {
        for row in listing::rows(at, &old) {
            changes.insert(row, None);
        }
    }
}
