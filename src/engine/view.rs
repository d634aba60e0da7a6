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

/// Rows with changes over them that are not written yet.
pub(crate) struct Overlay<'a> {
    base: &'a dyn View,
    changes: &'a Changes,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a dyn View, changes: &'a Changes) -> Overlay<'a> {
        Overlay { base, changes }
    }
}

impl View for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match self.changes.get(key) {
            Some(change) => change.clone(),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        let mut over = self.changes.range(from.to_vec()..to.to_vec()).peekable();
        let mut flow = ControlFlow::Continue(());
        self.base.scan(from, to, &mut |key, value| {
            while let Some((changed, change)) =
                over.next_if(|(changed, _)| changed.as_slice() < key)
            {
                if let Some(put) = change {
                    flow = visit(changed, put);
                }
                if flow.is_break() {
                    return flow;
                }
            }
            flow = match over.next_if(|(changed, _)| changed.as_slice() == key) {
                Some((_, None)) => ControlFlow::Continue(()),
                Some((_, Some(put))) => visit(key, put),
                None => visit(key, value),
            };
            flow
        });
        for (key, change) in over {
            if flow.is_break() {
                return;
            }
            if let Some(put) = change {
                flow = visit(key, put);
            }
        }
    }
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

/// Rows that count how many of them were looked at.
#[cfg(test)]
pub(crate) struct Counted<'a> {
    rows: &'a BTreeMap<Vec<u8>, Bytes>,
    looked: std::cell::Cell<usize>,
}

#[cfg(test)]
impl<'a> Counted<'a> {
    pub(crate) fn new(rows: &'a BTreeMap<Vec<u8>, Bytes>) -> Counted<'a> {
        Counted { rows, looked: std::cell::Cell::new(0) }
    }

    /// Rows that were asked for or visited so far.
    pub(crate) fn looked(&self) -> usize {
        self.looked.get()
    }
}

#[cfg(test)]
impl View for Counted<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.looked.set(self.looked.get() + 1);
        View::get(self.rows, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        View::scan(self.rows, from, to, &mut |key, value| {
            self.looked.set(self.looked.get() + 1);
            visit(key, value)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_reads_as_if_its_changes_were_written() {
        let rows = |list: &[(u8, &'static str)]| -> BTreeMap<Vec<u8>, Bytes> {
            list.iter().map(|(key, value)| (vec![*key], Bytes::from(*value))).collect()
        };
        let base = rows(&[(1, "a"), (3, "c"), (5, "e"), (7, "g")]);
        let put = |text: &'static str| Some(Bytes::from(text));
        let changes: Changes = [
            (vec![0], put("z")),
            (vec![3], None),
            (vec![4], put("d")),
            (vec![5], put("E")),
            (vec![9], put("i")),
        ]
        .into();
        let overlay = Overlay::new(&base, &changes);
        let written = rows(&[(0, "z"), (1, "a"), (4, "d"), (5, "E"), (7, "g"), (9, "i")]);
        for (from, to) in [(0, 10), (0, 5), (3, 8), (8, 9), (4, 6)] {
            for limit in 1..8 {
                let collect = |view: &dyn View| {
                    let mut seen = Vec::new();
                    view.scan(&[from], &[to], &mut |key, value| {
                        seen.push((key.to_vec(), value.to_vec()));
                        if seen.len() < limit {
                            ControlFlow::Continue(())
                        } else {
                            ControlFlow::Break(())
                        }
                    });
                    seen
                };
                assert_eq!(collect(&overlay), collect(&written), "{from}..{to} limit {limit}");
            }
        }
        for key in 0..10 {
            assert_eq!(overlay.get(&[key]), View::get(&written, &[key]));
        }
    }

    #[test]
    fn the_end_of_a_prefix_carries_over_full_bytes() {
        assert_eq!(after_prefix(&[0x10, 0x01]), [0x10, 0x02]);
        assert_eq!(after_prefix(&[0x10, 0xff, 0xff]), [0x11]);
    }
}
