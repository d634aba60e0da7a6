//! The engine that keeps nothing: ordered maps, for tests, simulation and `--ephemeral`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::RwLock;

use super::{Engine, Space, Visit, WriteBatch, check_limits, closed};

type Rows = BTreeMap<Vec<u8>, Bytes>;

/// An engine in memory.
#[derive(Default)]
pub(crate) struct MemoryEngine {
    spaces: RwLock<HashMap<Space, Rows>>,
    closed: AtomicBool,
}

impl MemoryEngine {
    fn check_open(&self) -> io::Result<()> {
        if self.closed.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }
}

impl Engine for MemoryEngine {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.check_open()?;
        Ok(self.spaces.read().get(&space).and_then(|rows| rows.get(key).cloned()))
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        self.check_open()?;
        if from >= to {
            return Ok(());
        }
        // The visitor may read again, so the lock is not held while it runs: rows are copied out in pages.
        let mut next: Vec<u8> = from.to_vec();
        let mut bound = Bound::Included(());
        loop {
            let page: Vec<(Vec<u8>, Bytes)> = {
                let spaces = self.spaces.read();
                let Some(rows) = spaces.get(&space) else { return Ok(()) };
                let lower = match bound {
                    Bound::Included(()) => Bound::Included(next.as_slice()),
                    _ => Bound::Excluded(next.as_slice()),
                };
                rows.range::<[u8], _>((lower, Bound::Excluded(to)))
                    .take(256)
                    .map(|(key, value)| (key.clone(), value.clone()))
                    .collect()
            };
            for (key, value) in &page {
                if visit(key, value).is_break() {
                    return Ok(());
                }
            }
            match page.into_iter().last() {
                Some((key, _)) => next = key,
                None => return Ok(()),
            }
            bound = Bound::Excluded(());
        }
    }

    fn write(&self, space: Space, batch: WriteBatch) -> io::Result<()> {
        self.check_open()?;
        check_limits(&batch)?;
        let mut spaces = self.spaces.write();
        let rows = spaces.entry(space).or_default();
        for (key, value) in batch {
            match value {
                Some(value) => rows.insert(key, Bytes::from(value)),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn clear(&self, space: Space) -> io::Result<()> {
        self.check_open()?;
        self.spaces.write().remove(&space);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.check_open()
    }

    fn size_on_disk(&self) -> u64 {
        0
    }

    fn volatile(&self) -> bool {
        true
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.spaces.write().clear();
    }
}
