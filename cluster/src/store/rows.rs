//! The state rows of one group, of any size, and the applied record beside them.
//!
//! A value above [`INLINE_LIMIT`] lies in chunks under keys of their own region, so that scans over rows
//! stay ordered and one batch of the group's space still writes everything. Old chunks go in the same
//! batch that replaces or deletes their row.
//!
//! Changes collect in memory first ([`Recent`]) and go to the engine together, in one atomic batch with
//! the applied record. Most rows live shorter than that (an inbox event, an open task) or are written
//! again at once (the head of an instance), so the engine sees a fraction of the changes. Nothing is lost
//! by it: the log holds every command, and after a crash it repeats whatever the stored rows have not
//! seen, from the stored applied record on, so nothing is applied twice. How much that may be is bounded
//! in rows, bytes and writes.
//!
//! The engine's batches are atomic on disk, not for readers beside it. Readers do not notice: what is
//! being written still lies in memory above it.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::{Mutex, RwLock, RwLockUpgradableReadGuard};

use super::dump::{Dump, Dumps, Piece};
use super::overlay::scan_under;
use super::record::broken;
use super::{Engine, FaultHook, Space, VALUE_LIMIT, Visit, WriteBatch, closed, keys};
use crate::machine::{Changes, Rows};

const INLINE: u8 = 0;
const CHUNKED: u8 = 1;

/// Longest row value that is stored in one piece, in bytes.
pub(crate) const INLINE_LIMIT: usize = VALUE_LIMIT - 1;

/// Changed rows after which the changes go to the engine.
const RECENT_ROWS: usize = 1024;
/// Bytes of changed rows after which they do.
const RECENT_BYTES: usize = 1 << 20;
/// Writes after which they do, so that little is applied again after a crash even if few rows change.
const RECENT_WRITES: usize = 1024;

/// Rows of one group.
pub(crate) struct StateRows {
    engine: Arc<dyn Engine>,
    space: Space,
    recent: RwLock<Recent>,
    /// Locked while the engine's rows change or a dump reads them; after `recent` when both are.
    dumps: Mutex<Dumps>,
    fault: FaultHook,
}

/// What the engine has not been given yet.
#[derive(Default)]
struct Recent {
    changes: Changes,
    /// The applied record that belongs to the changes.
    applied: Option<Vec<u8>>,
    /// Size of all that was written, rows that were written again included.
    bytes: usize,
    writes: usize,
    /// The rows are about to be deleted: nobody reads them any more.
    gone: bool,
}

impl Recent {
    fn is_full(&self) -> bool {
        self.changes.len() >= RECENT_ROWS
            || self.bytes >= RECENT_BYTES
            || self.writes >= RECENT_WRITES
    }
}

impl StateRows {
    pub(crate) fn new(engine: Arc<dyn Engine>, group: u32, fault: FaultHook) -> Self {
        let space = Space::State(group);
        Self { engine, space, recent: RwLock::default(), dumps: Mutex::default(), fault }
    }

    /// Looks at one moment of the rows. Writers wait meanwhile; `f` must not look again.
    pub(crate) fn look<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> T {
        let recent = self.recent.read();
        f(&View { rows: self, recent: &recent })
    }

    /// The same, unless the rows are gone.
    pub(crate) fn look_if_there<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Option<T> {
        let recent = self.recent.read();
        (!recent.gone).then(|| f(&View { rows: self, recent: &recent }))
    }

    /// From now on there are no rows to be seen or written: they are about to be deleted. Waits for those who look or
    /// write.
    pub(crate) fn forget(&self) {
        *self.recent.write() = Recent { gone: true, ..Recent::default() };
        self.dumps.lock().break_all();
    }

    /// The newest applied record.
    pub(crate) fn applied(&self) -> io::Result<Option<Bytes>> {
        match &self.recent.read().applied {
            Some(applied) => Ok(Some(Bytes::copy_from_slice(applied))),
            None => self.engine.get(self.space, keys::APPLIED),
        }
    }

    /// Writes rows and applied record, all or nothing.
    pub(crate) fn write(&self, changes: Changes, applied: Vec<u8>) -> io::Result<()> {
        let size = |(key, value): (&Vec<u8>, &Option<Bytes>)| {
            key.len() + value.as_ref().map_or(0, Bytes::len)
        };
        let mut recent = self.recent.write();
        // Tasks of a replica that was given up may come to their end only now.
        if recent.gone {
            return Ok(());
        }
        recent.bytes += changes.iter().map(size).sum::<usize>();
        recent.writes += 1;
        recent.changes.extend(changes);
        recent.applied = Some(applied);
        let full = recent.is_full();
        drop(recent);
        if full { self.store() } else { Ok(()) }
    }

    /// Gives the engine everything written so far, in one atomic batch. Readers go on meanwhile.
    pub(crate) fn store(&self) -> io::Result<()> {
        let recent = self.recent.upgradable_read();
        if recent.applied.is_some() {
            self.store_changes(&recent)?;
            *RwLockUpgradableReadGuard::upgrade(recent) = Recent::default();
        }
        Ok(())
    }

    fn store_changes(&self, recent: &Recent) -> io::Result<()> {
        let Some(applied) = recent.applied.clone() else { return Ok(()) };
        let mut dumps = self.dumps.lock();
        if !dumps.is_empty() {
            for key in recent.changes.keys() {
                dumps.save(key, || self.get_stored(key))?;
            }
        }
        let mut batch = WriteBatch::with_capacity(recent.changes.len() + 1);
        let chunks_exist = self.chunks_exist()?;
        for (key, value) in &recent.changes {
            let chunks = push_row(&mut batch, key, value.as_ref());
            if chunks_exist {
                self.push_old_chunks(&mut batch, key, chunks)?;
            }
        }
        batch.push((keys::APPLIED.to_vec(), Some(applied)));
        self.engine.write(self.space, batch)
    }

    /// Begins a dump of the rows as they are now.
    pub(crate) fn dump(self: &Arc<Self>) -> io::Result<Dump> {
        let mut recent = self.recent.write();
        if recent.gone {
            return Err(closed());
        }
        self.store_changes(&recent)?;
        *recent = Recent::default();
        let applied = self.engine.get(self.space, keys::APPLIED)?;
        let applied = applied.ok_or_else(|| io::Error::other("nothing is applied yet"))?;
        let id = self.dumps.lock().begin();
        Ok(Dump::new(Arc::clone(self), id, applied))
    }

    /// The next rows of a dump, and whether it is at its end.
    pub(super) fn next_piece(
        &self,
        id: u64,
        bytes: usize,
    ) -> io::Result<(VecDeque<(Vec<u8>, Bytes)>, bool)> {
        let mut dumps = self.dumps.lock();
        let dump = dumps.find(id)?;
        let mut from = vec![keys::ROW];
        if let Some(cursor) = dump.cursor() {
            from.extend_from_slice(cursor);
            from.push(0);
        }
        let mut piece = Piece::new(bytes);
        self.scan_stored(&from, &[keys::ROW_CHUNK], &mut |key, value| piece.take(key, value))?;
        let ended = piece.last.is_none();
        Ok((dump.advance(piece.rows, piece.last), ended))
    }

    pub(super) fn end_dump(&self, end: impl FnOnce(&mut Dumps)) {
        end(&mut self.dumps.lock());
    }

    /// Replaces all rows by those that `next` yields, until it yields none. Not atomic: a marker in the log
    /// space makes the next start repeat it. The applied record comes with the last rows.
    pub(crate) fn replace(
        &self,
        applied: Vec<u8>,
        mut next: impl FnMut() -> io::Result<Option<(Vec<u8>, Bytes)>>,
    ) -> io::Result<()> {
        const LOAD_BYTES: usize = 1 << 20;
        let mut recent = self.recent.write();
        if recent.gone {
            return Err(closed());
        }
        *recent = Recent::default();
        self.dumps.lock().break_all();
        self.engine.clear(self.space)?;
        let mut batch = WriteBatch::new();
        let mut bytes = 0;
        while let Some((key, value)) = next()? {
            bytes += key.len() + value.len();
            push_row(&mut batch, &key, Some(&value));
            if bytes > LOAD_BYTES {
                self.engine.write(self.space, std::mem::take(&mut batch))?;
                bytes = 0;
            }
        }
        batch.push((keys::APPLIED.to_vec(), Some(applied)));
        self.engine.write(self.space, batch)
    }

    /// Visits all rows, whole.
    #[cfg(test)]
    pub(crate) fn scan_all(&self, visit: Visit<'_>) -> io::Result<()> {
        self.store()?;
        self.scan_stored(&[keys::ROW], &[keys::ROW_CHUNK], visit)
    }

    /// True if any row lies in chunks, which is rare: then writes need not look for old chunks.
    fn chunks_exist(&self) -> io::Result<bool> {
        let mut found = false;
        self.engine.scan(self.space, &[keys::ROW_CHUNK], keys::STATE_END, &mut |_, _| {
            found = true;
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Deletes the stored chunks of `key` from number `from` on.
    fn push_old_chunks(&self, batch: &mut WriteBatch, key: &[u8], from: u32) -> io::Result<()> {
        for n in from.. {
            let chunk = keys::row_chunk(key, n);
            if self.engine.get(self.space, &chunk)?.is_none() {
                break;
            }
            batch.push((chunk, None));
        }
        Ok(())
    }

    fn get_stored(&self, key: &[u8]) -> io::Result<Option<Bytes>> {
        match self.engine.get(self.space, &keys::row(key))? {
            Some(stored) => self.assemble(key, &stored).map(Some),
            None => Ok(None),
        }
    }

    fn assemble(&self, key: &[u8], stored: &Bytes) -> io::Result<Bytes> {
        match stored.first() {
            Some(&INLINE) => Ok(stored.slice(1..)),
            Some(&CHUNKED) => self.read_chunks(key, &stored[1..]),
            _ => Err(broken("row")),
        }
    }

    fn read_chunks(&self, key: &[u8], stub: &[u8]) -> io::Result<Bytes> {
        let length: [u8; 4] = stub.try_into().map_err(|_| broken("row"))?;
        let length = u32::from_le_bytes(length) as usize;
        let mut value = BytesMut::with_capacity(length);
        for n in 0..length.div_ceil(VALUE_LIMIT) as u32 {
            let chunk = self.engine.get(self.space, &keys::row_chunk(key, n))?;
            value.extend_from_slice(&chunk.ok_or_else(|| broken("row"))?);
        }
        if value.len() == length { Ok(value.freeze()) } else { Err(broken("row")) }
    }

    fn scan_stored(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        let mut result = Ok(());
        self.engine.scan(self.space, from, to, &mut |key, stored| {
            let key = &key[1..];
            match stored.first() {
                Some(&INLINE) => visit(key, &stored[1..]),
                Some(&CHUNKED) => match self.read_chunks(key, &stored[1..]) {
                    Ok(value) => visit(key, &value),
                    Err(error) => {
                        result = Err(error);
                        ControlFlow::Break(())
                    }
                },
                _ => {
                    result = Err(broken("row"));
                    ControlFlow::Break(())
                }
            }
        })?;
        result
    }

    /// A machine cannot handle a broken disk, so a fault ends here. After a stop there is nothing to see.
    fn settle<T: Default>(&self, result: io::Result<T>) -> T {
        result.unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::BrokenPipe {
                self.fault.report(&format!("reading state rows: {error}"));
            }
            T::default()
        })
    }
}

/// Adds a row and its chunks; returns the number of chunks.
fn push_row(batch: &mut WriteBatch, key: &[u8], value: Option<&Bytes>) -> u32 {
    let Some(value) = value else {
        batch.push((keys::row(key), None));
        return 0;
    };
    if value.len() <= INLINE_LIMIT {
        let mut stored = Vec::with_capacity(1 + value.len());
        stored.push(INLINE);
        stored.extend_from_slice(value);
        batch.push((keys::row(key), Some(stored)));
        return 0;
    }
    let mut stub = vec![CHUNKED];
    stub.extend_from_slice(&(value.len() as u32).to_le_bytes());
    batch.push((keys::row(key), Some(stub)));
    let mut count = 0;
    for chunk in value.chunks(VALUE_LIMIT) {
        batch.push((keys::row_chunk(key, count), Some(chunk.to_vec())));
        count += 1;
    }
    count
}

/// [`Rows`]: what is stored, under the recent changes.
struct View<'a> {
    rows: &'a StateRows,
    recent: &'a Recent,
}

impl Rows for View<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        match self.recent.changes.get(key) {
            Some(value) => value.clone(),
            None if self.recent.gone => None,
            None => self.rows.settle(self.rows.get_stored(key)),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        if self.recent.gone {
            return;
        }
        scan_under(&self.recent.changes, from, to, visit, |visit| {
            self.rows.settle(self.rows.scan_stored(&keys::row(from), &keys::row(to), visit));
        });
    }
}
