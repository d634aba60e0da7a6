//! The log of one group: readable at once, durable when the flusher says so.
//!
//! New entries go to an in-memory tail and, through the flusher, into packed records. Readers take from the
//! tail what it has and the rest from the store. The tail is capped by bytes; only entries that the store
//! has already taken may leave it.
//!
//! [`LogIndex`] names the stored records. The flusher alone changes it, so purge and truncation need no
//! reads to find what to delete.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::flusher::{Done, Flusher, Job};
use super::record::{self, LogEntry, Position, RecordMeta, Stored};
use super::{Engine, Space, VALUE_LIMIT, keys};
use crate::metrics;

/// The stored records of one group's log.
pub(crate) struct LogIndex {
    group: u32,
    inner: Mutex<IndexInner>,
}

#[derive(Default)]
struct IndexInner {
    /// Grows with every truncation: reports about older appends no longer count.
    epoch: u64,
    /// One past the last entry that the store has taken.
    stored_next: u64,
    records: BTreeMap<u64, RecordMeta>,
}

impl LogIndex {
    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    /// The store has taken entries up to `last`.
    pub(crate) fn stored(&self, epoch: u64, last: u64, metas: Vec<(u64, RecordMeta)>) {
        let mut inner = self.inner.lock();
        inner.records.extend(metas);
        if inner.epoch == epoch {
            inner.stored_next = last + 1;
        }
    }

    /// Forgets the records that lie wholly at or below `upto`; returns their keys.
    pub(crate) fn purge_records(&self, upto: u64) -> Vec<Vec<u8>> {
        let mut inner = self.inner.lock();
        let mut doomed = Vec::new();
        while let Some(entry) = inner.records.first_entry() {
            if entry.get().last > upto {
                break;
            }
            let (first, meta) = entry.remove_entry();
            doomed.extend(record_keys(self.group, first, &meta));
        }
        doomed
    }

    /// Forgets the records from index `from` on. Returns them, and the one that holds entries on both sides of it: that
    /// one stays until it is replaced, as the entries before `from` are still read.
    #[allow(clippy::type_complexity)]
    pub(crate) fn cut_records(
        &self,
        from: u64,
    ) -> (Vec<(u64, RecordMeta)>, Option<(u64, RecordMeta)>) {
        let mut inner = self.inner.lock();
        let removed = inner.records.split_off(&from);
        let boundary = inner.records.last_key_value().filter(|(_, meta)| meta.last >= from);
        let boundary = boundary.map(|(first, meta)| (*first, meta.clone()));
        (removed.into_iter().collect(), boundary)
    }

    pub(crate) fn replace_record(&self, first: u64, meta: RecordMeta) {
        self.inner.lock().records.insert(first, meta);
    }

    fn records_of(&self, from: u64, to: u64) -> Vec<(u64, RecordMeta)> {
        let inner = self.inner.lock();
        let start = inner.records.range(..=from).next_back().map_or(from, |(first, _)| *first);
        inner.records.range(start..to).map(|(first, meta)| (*first, meta.clone())).collect()
    }
}

/// Keys of a record and its chunks; the record last, so that a crash between deletions loses no chunk.
pub(crate) fn record_keys(group: u32, first: u64, meta: &RecordMeta) -> Vec<Vec<u8>> {
    let mut doomed = Vec::with_capacity(1);
    for (index, chunks) in &meta.large {
        doomed.extend((0..*chunks).map(|n| keys::chunk(group, *index, n)));
    }
    doomed.push(keys::record(group, first));
    doomed
}

/// The log of one group.
pub(crate) struct GroupLog {
    index: Arc<LogIndex>,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    tail: Mutex<Tail>,
    tail_limit: usize,
    tail_gauge: ::metrics::Gauge,
}

#[derive(Default)]
struct Tail {
    entries: VecDeque<LogEntry>,
    bytes: usize,
    last: Option<Position>,
    purged: Option<Position>,
    epoch: u64,
}

impl Tail {
    fn push(&mut self, entry: LogEntry) {
        self.bytes += entry.weight();
        self.last = Some(entry.position());
        self.entries.push_back(entry);
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.weight();
        }
    }
}

impl GroupLog {
    /// Loads the log of `group`: its records, its newest entries up to `tail_limit` bytes, its pointers.
    pub(crate) fn open(
        group: u32,
        engine: Arc<dyn Engine>,
        flusher: Arc<Flusher>,
        tail_limit: usize,
    ) -> io::Result<Self> {
        let purged = engine
            .get(Space::Log, &keys::pointer(keys::PURGED, group))?
            .map(|bytes| Position::decode(&bytes))
            .transpose()?;
        let mut tail = Tail { purged, last: purged, ..Tail::default() };
        let mut inner = IndexInner::default();
        let mut doomed = Vec::new();
        let mut result = Ok(());
        let log = Self {
            index: Arc::new(LogIndex { group, inner: Mutex::default() }),
            engine: Arc::clone(&engine),
            flusher: Arc::clone(&flusher),
            tail: Mutex::default(),
            tail_limit,
            tail_gauge: metrics::log_tail_bytes(group),
        };
        engine.scan(
            Space::Log,
            &keys::record(group, 0),
            &keys::record(group, u64::MAX),
            &mut |key, value| {
                result = log.load_record(
                    key,
                    &Bytes::copy_from_slice(value),
                    &mut tail,
                    &mut inner,
                    &mut doomed,
                );
                if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            },
        )?;
        result?;
        inner.stored_next = tail.last.map_or(0, |last| last.index + 1);
        *log.index.inner.lock() = inner;
        *log.tail.lock() = tail;
        flusher.delete_lazily(doomed);
        Ok(log)
    }

    fn load_record(
        &self,
        key: &[u8],
        value: &Bytes,
        tail: &mut Tail,
        inner: &mut IndexInner,
        doomed: &mut Vec<Vec<u8>>,
    ) -> io::Result<()> {
        let group = self.index.group;
        let first = keys::record_first(key).ok_or_else(|| record::broken("log key"))?;
        let stored = record::unpack(first, value)?;
        let mut meta = RecordMeta { last: first + stored.len() as u64 - 1, large: Vec::new() };
        for entry in &stored {
            if let Stored::Large { index, length, .. } = entry {
                meta.large.push((*index, record::chunk_count(*length)));
            }
        }
        let purged = tail.purged.map_or(0, |purged| purged.index + 1);
        if meta.last < purged {
            // A purge was decided, its deletions were cut short by the end of the process.
            doomed.extend(record_keys(group, first, &meta));
            return Ok(());
        }
        inner.records.insert(first, meta);
        for entry in stored {
            let position = entry.position();
            if position.index < purged {
                continue;
            }
            if let Some(last) = tail.last
                && position.index != last.index + 1
            {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "the log of group {group} has a hole between {} and {}",
                        last.index, position.index
                    ),
                ));
            }
            let entry = match entry {
                Stored::Inline(entry) => entry,
                Stored::Large { .. } => self.read_large(&entry)?,
            };
            tail.push(entry);
            while tail.bytes > self.tail_limit && tail.entries.len() > 1 {
                tail.pop_front();
            }
        }
        Ok(())
    }

    fn read_large(&self, stored: &Stored) -> io::Result<LogEntry> {
        let Stored::Large { term, index, kind, length } = stored else {
            return Err(record::broken("log record"));
        };
        let mut body = BytesMut::with_capacity(*length as usize);
        for n in 0..record::chunk_count(*length) {
            let chunk = self.engine.get(Space::Log, &keys::chunk(self.index.group, *index, n))?;
            body.extend_from_slice(&chunk.ok_or_else(|| record::broken("log chunk"))?);
        }
        if body.len() != *length as usize {
            return Err(record::broken("log chunk"));
        }
        Ok(LogEntry { term: *term, index: *index, kind: *kind, body: body.freeze() })
    }

    /// Last purged and last present position; the latter equals the former in an empty log.
    pub(crate) fn bounds(&self) -> (Option<Position>, Option<Position>) {
        let tail = self.tail.lock();
        (tail.purged, tail.last)
    }

    /// Appends consecutive entries: readable on return, `done` is called when they are durable.
    pub(crate) fn append(&self, entries: Vec<LogEntry>, done: Done) -> io::Result<()> {
        let mut tail = self.tail.lock();
        for entry in &entries {
            if let Some(last) = tail.last
                && entry.index != last.index + 1
            {
                return Err(io::Error::other(format!(
                    "append of {} after {} leaves a hole",
                    entry.index, last.index
                )));
            }
            tail.push(entry.clone());
        }
        if tail.bytes > self.tail_limit {
            let stored_next = self.index.inner.lock().stored_next;
            while tail.bytes > self.tail_limit
                && tail.entries.front().is_some_and(|first| first.index < stored_next)
            {
                tail.pop_front();
            }
        }
        // Submitted under the lock, so that a truncation cannot overtake it.
        let epoch = tail.epoch;
        self.tail_gauge.set(tail.bytes as f64);
        self.flusher.submit(Job::Append { log: Arc::clone(&self.index), epoch, entries, done });
        Ok(())
    }

    /// Removes the entries after index `after`, all of them for `None`.
    pub(crate) fn truncate_after(&self, after: Option<Position>) {
        let mut tail = self.tail.lock();
        let from = after.map_or(0, |after| after.index + 1);
        if tail.last.is_none_or(|last| last.index < from) {
            return;
        }
        while tail.entries.back().is_some_and(|entry| entry.index >= from) {
            if let Some(entry) = tail.entries.pop_back() {
                tail.bytes -= entry.weight();
            }
        }
        tail.last = after.or(tail.purged);
        tail.epoch += 1;
        {
            let mut index = self.index.inner.lock();
            index.epoch = tail.epoch;
            index.stored_next = index.stored_next.min(from);
        }
        let log = Arc::clone(&self.index);
        self.flusher.submit(Job::Truncate { log, after: after.map(|after| after.index) });
    }

    /// Forgets the entries up to `upto`; the store deletes them little by little.
    pub(crate) fn purge(&self, upto: Position) {
        let mut tail = self.tail.lock();
        while tail.entries.front().is_some_and(|entry| entry.index <= upto.index) {
            tail.pop_front();
        }
        tail.purged = Some(upto);
        if tail.last.is_none_or(|last| last.index < upto.index) {
            tail.last = Some(upto);
        }
        self.flusher.submit(Job::Purge { log: Arc::clone(&self.index), upto });
    }

    /// Entries in `from..to`. At least one is returned if there is one; more than `max_bytes` end the read.
    /// Blocks when it must read the store: see [`GroupLog::in_memory`].
    pub(crate) fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let (from, to, mut newest) = {
            let tail = self.tail.lock();
            let from = from.max(tail.purged.map_or(0, |purged| purged.index + 1));
            let to = to.min(tail.last.map_or(0, |last| last.index + 1));
            let first = tail.entries.front().map_or(to, |entry| entry.index);
            let skip = from.saturating_sub(first) as usize;
            let take = to.saturating_sub(from.max(first)) as usize;
            (from, to, tail.entries.iter().skip(skip).take(take).cloned().collect::<Vec<_>>())
        };
        let stored_to = newest.first().map_or(to, |entry| entry.index);
        let mut entries = Vec::with_capacity(newest.len());
        let mut bytes = 0;
        if from < stored_to {
            self.read_stored(from, stored_to, max_bytes, &mut bytes, &mut entries)?;
            if entries.last().is_some_and(|entry| entry.index + 1 < stored_to) {
                return Ok(entries);
            }
        }
        let mut fitting = 0;
        for entry in &newest {
            if bytes > max_bytes {
                break;
            }
            bytes += entry.weight();
            fitting += 1;
        }
        newest.truncate(fitting);
        entries.append(&mut newest);
        Ok(entries)
    }

    /// True when a read from `from` on needs no store.
    pub(crate) fn in_memory(&self, from: u64) -> bool {
        let tail = self.tail.lock();
        tail.entries.front().is_some_and(|entry| entry.index <= from)
    }

    fn read_stored(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
        bytes: &mut usize,
        entries: &mut Vec<LogEntry>,
    ) -> io::Result<()> {
        for (first, _) in self.index.records_of(from, to) {
            let Some(value) =
                self.engine.get(Space::Log, &keys::record(self.index.group, first))?
            else {
                // Purged meanwhile: tolerated at the beginning only.
                entries.clear();
                continue;
            };
            for stored in record::unpack(first, &value)? {
                let index = stored.position().index;
                if index < from || index >= to {
                    continue;
                }
                if *bytes > max_bytes {
                    return Ok(());
                }
                let entry = match stored {
                    Stored::Inline(entry) => entry,
                    Stored::Large { .. } => self.read_large(&stored)?,
                };
                *bytes += entry.weight();
                entries.push(entry);
            }
        }
        Ok(())
    }
}

const _: () = assert!(VALUE_LIMIT <= u16::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries before a truncation are read while it is under way.
    #[test]
    fn record_that_is_cut_stays_until_it_is_replaced() {
        let index = LogIndex { group: 1, inner: Mutex::default() };
        let record = |last| RecordMeta { last, large: Vec::new() };
        index.stored(0, 19, vec![(0, record(9)), (10, record(19))]);
        let (removed, boundary) = index.cut_records(5);
        assert_eq!((removed.len(), boundary.map(|(first, _)| first)), (1, Some(0)));
        assert_eq!(index.records_of(0, 5).len(), 1);
        index.replace_record(0, record(4));
        assert_eq!(index.cut_records(5).1.map(|(first, _)| first), None);
    }
}
