//! What the engine reads and writes: ordered rows.
//!
//! A [`View`] is synchronous and cannot fail: a storage fault ends the process before the engine could
//! see it, so the engine has no error path to get wrong.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

/// Ordered rows of one partition.
pub trait View {
    /// The row stored under `key`.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Visits the rows with `from <= key < to` in ascending order, until `visit` breaks.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>);
}

/// Rows to put (`Some`) or to delete (`None`).
pub type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Visits all rows whose key begins with `prefix`, in ascending order.
pub(crate) fn scan_prefix(
    view: &dyn View,
    prefix: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) {
    view.scan(prefix, &after_prefix(prefix), visit);
}

/// The smallest key that is greater than every key beginning with `prefix`.
///
/// Prefixes here begin with a row kind below 0xff, so there always is one.
pub(crate) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}

/// Rows in memory: what tests and scripts run the engine on.
impl View for BTreeMap<Vec<u8>, Bytes> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        BTreeMap::get(self, key).cloned()
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        for (key, value) in self.range(from.to_vec()..to.to_vec()) {
            if visit(key, value).is_break() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_carries_over_full_bytes() {
        assert_eq!(after_prefix(&[0x10, 0x01]), [0x10, 0x02]);
        assert_eq!(after_prefix(&[0x10, 0xff, 0xff]), [0x11]);
    }
}
