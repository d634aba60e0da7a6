//! An instance and all its rows go: at once, or behind a note that says what is to be swept.

use bytes::Bytes;

use super::listing;
use crate::engine::read;
use crate::engine::state::{Address, Leftover, keys};
use crate::engine::view::{Changes, View};

/// Removes the head and index rows of an instance, and its other rows unless they go later. The inbox was
/// emptied by events of their own.
pub(super) fn remove(
    view: &dyn View,
    at: &Address,
    generation: u64,
    later: bool,
    changes: &mut Changes,
) {
    listing::unlist(view, at, changes);
    changes.insert(keys::instance(at), None);
    let leftover = Leftover { at: at.clone(), generation, whole: true };
    if later {
        leave(leftover, changes);
    } else {
        let rows = read::rows_of(view, &leftover, usize::MAX, usize::MAX).keys;
        changes.extend(rows.into_iter().map(|key| (key, None)));
    }
}

/// Leaves a note of rows to be swept.
pub(super) fn leave(leftover: Leftover, changes: &mut Changes) {
    changes
        .insert(keys::leftover(&leftover), Some(Bytes::copy_from_slice(&[leftover.whole.into()])));
}
