//! The batch of one flush round: packs appends into records and cuts records on truncation.
//!
//! Entries of one group that arrive in one round share records, whatever jobs they came in. A truncation
//! first writes what was collected before it, so that it meets all records in the store.
//!
//! Nobody is told of a write before the round is synced, and a log may end anywhere: so a crash may leave the first of
//! a round's writes, and they are in an order in which that does no harm (chunks before their record, a purge position
//! before what it deletes). Only a truncation is one step, since half of one leaves a hole.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::log::{LogIndex, record_keys};
use super::record::{self, LogEntry};
use super::{Engine, Space, WriteBatch, keys};

/// Collects one round's batch.
pub(crate) struct Writer<'a> {
    engine: &'a dyn Engine,
    pub(crate) batch: WriteBatch,
    appends: BTreeMap<u32, (Arc<LogIndex>, u64, Vec<LogEntry>)>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(engine: &'a dyn Engine, batch: WriteBatch) -> Self {
        Self { engine, batch, appends: BTreeMap::new() }
    }

    pub(crate) fn append(&mut self, log: Arc<LogIndex>, epoch: u64, entries: Vec<LogEntry>) {
        let group = log.group();
        let (_, known, collected) =
            self.appends.entry(group).or_insert_with(|| (log, epoch, Vec::new()));
        *known = epoch;
        collected.extend(entries);
    }

    /// Applies what is collected; returns the records and bytes written.
    pub(crate) fn flush(&mut self) -> io::Result<(usize, usize)> {
        let appends = std::mem::take(&mut self.appends);
        let mut packed = Vec::with_capacity(appends.len());
        for (group, (log, epoch, entries)) in appends {
            let Some(last) = entries.last().map(|entry| entry.index) else { continue };
            packed.push((log, epoch, last, record::pack(group, &entries, &mut self.batch)));
        }
        let batch = std::mem::take(&mut self.batch);
        let size =
            (batch.len(), batch.iter().map(|(_, value)| value.as_ref().map_or(0, Vec::len)).sum());
        if !batch.is_empty() {
            self.engine.write_in_order(Space::Log, batch)?;
        }
        for (log, epoch, last, metas) in packed {
            log.stored(epoch, last, metas);
        }
        Ok(size)
    }

    pub(crate) fn truncate(&mut self, log: &Arc<LogIndex>, after: Option<u64>) -> io::Result<()> {
        self.flush()?;
        let from = after.map_or(0, |after| after + 1);
        let (removed, boundary) = log.cut_records(from);
        for (first, meta) in removed {
            self.delete(log.group(), first, &meta);
        }
        if let Some((first, mut meta)) = boundary {
            let key = keys::record(log.group(), first);
            let value =
                self.engine.get(Space::Log, &key)?.ok_or_else(|| record::broken("log record"))?;
            for (index, chunks) in meta.large.iter().filter(|(index, _)| *index >= from) {
                self.batch
                    .extend((0..*chunks).map(|n| (keys::chunk(log.group(), *index, n), None)));
            }
            meta.large.retain(|(index, _)| *index < from);
            meta.last = from - 1;
            self.batch.push((key, Some(record::cut(&value, (from - first) as u16)?)));
            log.replace_record(first, meta);
        }
        self.engine.write(Space::Log, std::mem::take(&mut self.batch))
    }

    fn delete(&mut self, group: u32, first: u64, meta: &record::RecordMeta) {
        self.batch.extend(record_keys(group, first, meta).into_iter().map(|key| (key, None)));
    }
}
