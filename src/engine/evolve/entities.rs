//! Heads of entities and the index rows that follow each of them.

use bytes::Bytes;

use super::encode;
use crate::engine::read;
use crate::engine::state::{Address, EntityRecord, entity_keys};
use crate::engine::view::{Changes, View};

/// Writes the head of an entity; moves its index row when it has changed in another second.
pub(super) fn write(at: &Address, record: &EntityRecord, changes: &mut Changes) {
    let second = entity_keys::second(record.modified);
    if record.listed != Some(second) {
        unlist(at, record, changes);
        changes.insert(entity_keys::changed(at, second), Some(Bytes::new()));
    }
    let contended = record.is_contended();
    if record.contended != contended {
        changes.insert(entity_keys::locked(at), contended.then(Bytes::new));
    }
    let record = EntityRecord { listed: Some(second), contended, ..record.clone() };
    changes.insert(entity_keys::entity(at), Some(encode(&record)));
}

/// Removes the head of an entity and its index rows.
pub(super) fn remove(view: &dyn View, at: &Address, changes: &mut Changes) {
    if let Some(record) = read::entity(view, at) {
        unlist(at, &record, changes);
        if record.contended {
            changes.insert(entity_keys::locked(at), None);
        }
    }
    changes.insert(entity_keys::entity(at), None);
}

fn unlist(at: &Address, record: &EntityRecord, changes: &mut Changes) {
    if let Some(second) = record.listed {
        changes.insert(entity_keys::changed(at, second), None);
    }
}
