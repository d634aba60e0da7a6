//! Rows as the next command of a batch must see them: what is stored, changed by the commands before it.
//!
//! A batch of commands is written once, at its end. Until then its changes live here, and both reads and
//! ordered scans see them merged, deletions included.

use std::ops::{Bound, ControlFlow};

use bytes::Bytes;

use crate::machine::{Changes, Rows};

/// Stored rows under the changes of a batch.
pub(crate) struct Overlay<'a> {
    base: &'a dyn Rows,
    changes: Changes,
}

impl<'a> Overlay<'a> {
    pub(crate) fn new(base: &'a dyn Rows) -> Self {
        Self { base, changes: Changes::new() }
    }

    /// Lays the changes of one command on top.
    pub(crate) fn extend(&mut self, changes: Changes) {
        if self.changes.is_empty() {
            self.changes = changes;
        } else {
            self.changes.extend(changes);
        }
    }

    /// The changes of the whole batch.
    pub(crate) fn into_changes(self) -> Changes {
        self.changes
    }
}

impl Rows for Overlay<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match self.changes.get(key) {
            Some(value) => value.clone(),
            None => self.base.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        scan_under(&self.changes, from, to, visit, |visit| self.base.scan(from, to, visit));
    }
}

/// Scans `from..to` of rows under `changes`; `scan_base` visits the rows without them.
pub(crate) fn scan_under(
    changes: &Changes,
    from: &[u8],
    to: &[u8],
    visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    scan_base: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>),
) {
    if from >= to {
        return;
    }
    let mut changed =
        changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))).peekable();
    if changed.peek().is_none() {
        return scan_base(visit);
    }
    let mut broke = false;
    scan_base(&mut |key, value| {
        while let Some((other, change)) = changed.next_if(|(other, _)| other.as_slice() <= key) {
            let replaces = other.as_slice() == key;
            if let Some(change) = change
                && visit(other, change).is_break()
            {
                broke = true;
                return ControlFlow::Break(());
            }
            if replaces {
                return ControlFlow::Continue(());
            }
        }
        let flow = visit(key, value);
        broke = flow.is_break();
        flow
    });
    if broke {
        return;
    }
    for (key, change) in changed {
        if let Some(change) = change
            && visit(key, change).is_break()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Map(BTreeMap<Vec<u8>, Bytes>);

    impl Rows for Map {
        fn get(&self, key: &[u8]) -> Option<Bytes> {
            self.0.get(key).cloned()
        }
        fn scan(
            &self,
            from: &[u8],
            to: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        ) {
            for (key, value) in
                self.0.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)))
            {
                if visit(key, value).is_break() {
                    return;
                }
            }
        }
    }

    fn map(rows: &[(&str, &str)]) -> BTreeMap<Vec<u8>, Bytes> {
        rows.iter()
            .map(|(key, value)| (key.as_bytes().to_vec(), Bytes::copy_from_slice(value.as_bytes())))
            .collect()
    }

    fn scan(rows: &dyn Rows, from: &str, to: &str, limit: usize) -> String {
        let mut seen = Vec::new();
        rows.scan(from.as_bytes(), to.as_bytes(), &mut |key, value| {
            seen.push(format!(
                "{}={}",
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(value)
            ));
            if seen.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        seen.join(" ")
    }

    #[test]
    fn reads_and_scans_see_earlier_commands() {
        let base = Map(map(&[("b", "1"), ("d", "1"), ("f", "1")]));
        let mut overlay = Overlay::new(&base);
        let change =
            |value: Option<&str>| value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        overlay.extend(Changes::from([
            (b"a".to_vec(), change(Some("2"))),
            (b"d".to_vec(), change(None)),
            (b"e".to_vec(), change(Some("2"))),
            (b"f".to_vec(), change(Some("2"))),
            (b"g".to_vec(), change(Some("2"))),
        ]));
        assert_eq!(scan(&overlay, "a", "z", 99), "a=2 b=1 e=2 f=2 g=2");
        assert_eq!(scan(&overlay, "b", "g", 99), "b=1 e=2 f=2");
        assert_eq!(scan(&overlay, "a", "z", 2), "a=2 b=1");
        assert_eq!(scan(&overlay, "a", "z", 3), "a=2 b=1 e=2");
        assert_eq!(scan(&overlay, "g", "a", 9), "");
        assert_eq!(overlay.get(b"d"), None);
        assert_eq!(overlay.get(b"b").as_deref(), Some(&b"1"[..]));
        // A later command of the batch may bring a deleted row back.
        overlay.extend(Changes::from([(b"d".to_vec(), change(Some("3"))), (b"a".to_vec(), None)]));
        assert_eq!(scan(&overlay, "a", "z", 99), "b=1 d=3 e=2 f=2 g=2");
    }
}
