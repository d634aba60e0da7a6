//! A consistent copy of a group's rows, read piece by piece while the group goes on applying.
//!
//! A dump begins at one moment and shows the rows as they were then. It walks over the stored rows in key order;
//! a row that changes ahead of it has its old value saved first, and the dump uses that. Nobody waits for a
//! dump longer than for one of its pieces. What is saved is bounded: a dump that would need more ends with an
//! error, and whoever wanted it begins another.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;

use super::rows::StateRows;

/// Bytes of saved old values after which a dump is given up.
const SAVED_LIMIT: usize = 256 << 20;

/// Where one dump has come.
pub(super) struct Active {
    id: u64,
    /// Last key that was dumped.
    cursor: Option<Vec<u8>>,
    /// Rows ahead of the cursor that have changed since, as they were.
    saved: BTreeMap<Vec<u8>, Option<Bytes>>,
    saved_bytes: usize,
    /// Why it cannot go on.
    broken: Option<&'static str>,
}

/// All dumps of a group that are under way.
#[derive(Default)]
pub(super) struct Dumps {
    last_id: u64,
    active: Vec<Active>,
}

impl Dumps {
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty()
    }

    pub(super) fn begin(&mut self) -> u64 {
        self.last_id += 1;
        self.active.push(Active {
            id: self.last_id,
            cursor: None,
            saved: BTreeMap::new(),
            saved_bytes: 0,
            broken: None,
        });
        self.last_id
    }

    /// The row `key` is about to change; `old` reads it as it is.
    pub(super) fn save(
        &mut self,
        key: &[u8],
        old: impl Fn() -> io::Result<Option<Bytes>>,
    ) -> io::Result<()> {
        for dump in &mut self.active {
            let ahead = dump.cursor.as_deref().is_none_or(|cursor| cursor < key);
            if !ahead || dump.broken.is_some() || dump.saved.contains_key(key) {
                continue;
            }
            let old = old()?;
            dump.saved_bytes += key.len() + old.as_ref().map_or(0, Bytes::len);
            dump.saved.insert(key.to_vec(), old);
            if dump.saved_bytes > SAVED_LIMIT {
                dump.saved.clear();
                dump.broken = Some("too many rows have changed since the snapshot began");
            }
        }
        Ok(())
    }

    /// All rows are about to be replaced.
    pub(super) fn break_all(&mut self) {
        for dump in &mut self.active {
            dump.saved.clear();
            dump.broken = Some("the rows were replaced");
        }
    }

    pub(super) fn find(&mut self, id: u64) -> io::Result<&mut Active> {
        let dump = self.active.iter_mut().find(|dump| dump.id == id);
        let dump = dump.ok_or_else(|| io::Error::other("the dump has ended"))?;
        dump.broken.map_or(Ok(()), |reason| Err(io::Error::other(reason)))?;
        Ok(dump)
    }

    fn end(&mut self, id: u64) {
        self.active.retain(|dump| dump.id != id);
    }
}

impl Active {
    pub(super) fn cursor(&self) -> Option<&[u8]> {
        self.cursor.as_deref()
    }

    /// Turns a piece of the stored rows into what they were, and moves on. `last` is the last key of the piece,
    /// `None` the end of all rows.
    pub(super) fn advance(
        &mut self,
        mut piece: BTreeMap<Vec<u8>, Bytes>,
        last: Option<Vec<u8>>,
    ) -> VecDeque<(Vec<u8>, Bytes)> {
        let ahead = match &last {
            Some(last) => {
                let mut above = last.clone();
                above.push(0);
                self.saved.split_off(&above)
            }
            None => BTreeMap::new(),
        };
        for (key, old) in std::mem::replace(&mut self.saved, ahead) {
            match old {
                Some(old) => piece.insert(key, old),
                None => piece.remove(&key),
            };
        }
        self.cursor = last.or_else(|| Some(vec![0xff; super::KEY_LIMIT + 1]));
        piece.into_iter().collect()
    }
}

/// A dump under way; dropping it ends it.
pub(crate) struct Dump {
    rows: Arc<StateRows>,
    id: u64,
    applied: Bytes,
    ended: bool,
}

impl Dump {
    pub(super) fn new(rows: Arc<StateRows>, id: u64, applied: Bytes) -> Self {
        Self { rows, id, applied, ended: false }
    }

    /// The applied record of the moment that is dumped.
    pub(crate) fn applied(&self) -> &Bytes {
        &self.applied
    }

    /// The next rows, about `bytes` of them, in key order; empty only at the end.
    pub(crate) fn next(&mut self, bytes: usize) -> io::Result<VecDeque<(Vec<u8>, Bytes)>> {
        while !self.ended {
            let (rows, ended) = self.rows.next_piece(self.id, bytes)?;
            self.ended = ended;
            if !rows.is_empty() {
                return Ok(rows);
            }
        }
        Ok(VecDeque::new())
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        self.rows.end_dump(|dumps| dumps.end(self.id));
    }
}

/// Collects stored rows until there are enough bytes.
pub(super) struct Piece {
    pub(super) rows: BTreeMap<Vec<u8>, Bytes>,
    pub(super) last: Option<Vec<u8>>,
    room: usize,
}

impl Piece {
    pub(super) fn new(bytes: usize) -> Self {
        Self { rows: BTreeMap::new(), last: None, room: bytes }
    }

    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> ControlFlow<()> {
        self.rows.insert(key.to_vec(), Bytes::copy_from_slice(value));
        self.room = self.room.saturating_sub(key.len() + value.len());
        if self.room > 0 {
            return ControlFlow::Continue(());
        }
        self.last = Some(key.to_vec());
        ControlFlow::Break(())
    }
}
