//! How log entries lie in stored records.
//!
//! Consecutive entries share a record of at most [`VALUE_LIMIT`] bytes, because the store's cost is per
//! record. An entry that does not fit leaves a stub in the record and its body in numbered chunks.
//!
//! ```text
//! record: version:u8 count:u16, then per entry: length:u32 term:u64 kind:u8 body
//! stub:   kind | 0x80, body = whole length:u32
//! ```
//!
//! Numbers are little-endian. The index of an entry is the record's first index plus its position.

use std::io;

use bytes::Bytes;

use super::{VALUE_LIMIT, WriteBatch, keys};

const VERSION: u8 = 1;
const HEADER: usize = 3;
const ENTRY_HEADER: usize = 13;
const STUB: u8 = 0x80;

/// Place of an entry in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

impl Position {
    /// Stored form: version, term, index.
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(17);
        out.push(VERSION);
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out
    }

    /// Reads the stored form.
    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Self> {
        if bytes.len() != 17 || bytes[0] != VERSION {
            return Err(broken("position"));
        }
        Ok(Self { term: le64(&bytes[1..9]), index: le64(&bytes[9..17]) })
    }
}

/// One entry as the log stores it; what kind and body mean is for the layer above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogEntry {
    pub(crate) term: u64,
    pub(crate) index: u64,
    /// Below 0x80.
    pub(crate) kind: u8,
    pub(crate) body: Bytes,
}

impl LogEntry {
    pub(crate) fn position(&self) -> Position {
        Position { term: self.term, index: self.index }
    }

    /// Bytes that the entry occupies in memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.body.len() + 64
    }
}

/// What must be known of a stored record to find and delete it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RecordMeta {
    /// Index of its last entry.
    pub(crate) last: u64,
    /// Entries kept in chunks: index and number of chunks.
    pub(crate) large: Vec<(u64, u16)>,
}

/// Adds the records for `entries` (consecutive, not empty) to `batch` and names them.
pub(crate) fn pack(
    group: u32,
    entries: &[LogEntry],
    batch: &mut WriteBatch,
) -> Vec<(u64, RecordMeta)> {
    let mut metas = Vec::new();
    let mut open: Option<(u64, Vec<u8>, RecordMeta)> = None;
    for entry in entries {
        let large = HEADER + ENTRY_HEADER + entry.body.len() > VALUE_LIMIT;
        let length = ENTRY_HEADER + if large { 4 } else { entry.body.len() };
        if let Some((_, value, _)) = &open
            && value.len() + length > VALUE_LIMIT
        {
            close(group, &mut open, batch, &mut metas);
        }
        let (_, value, meta) = open.get_or_insert_with(|| {
            let mut value = Vec::with_capacity(VALUE_LIMIT.min(length * 4));
            value.extend_from_slice(&[VERSION, 0, 0]);
            (entry.index, value, RecordMeta::default())
        });
        meta.last = entry.index;
        let body: &[u8] =
            if large { &(entry.body.len() as u32).to_le_bytes() } else { &entry.body };
        value.extend_from_slice(&(body.len() as u32).to_le_bytes());
        value.extend_from_slice(&entry.term.to_le_bytes());
        value.push(if large { entry.kind | STUB } else { entry.kind });
        value.extend_from_slice(body);
        if large {
            let mut count = 0;
            for chunk in entry.body.chunks(VALUE_LIMIT) {
                batch.push((keys::chunk(group, entry.index, count), Some(chunk.to_vec())));
                count += 1;
            }
            meta.large.push((entry.index, count));
        }
    }
    close(group, &mut open, batch, &mut metas);
    metas
}

fn close(
    group: u32,
    open: &mut Option<(u64, Vec<u8>, RecordMeta)>,
    batch: &mut WriteBatch,
    metas: &mut Vec<(u64, RecordMeta)>,
) {
    if let Some((first, mut value, meta)) = open.take() {
        let count = (meta.last - first + 1) as u16;
        value[1..3].copy_from_slice(&count.to_le_bytes());
        batch.push((keys::record(group, first), Some(value)));
        metas.push((first, meta));
    }
}

/// One entry of a record: its body, or the length of a body that lies in chunks.
#[derive(Debug)]
pub(crate) enum Stored {
    Inline(LogEntry),
    Large { term: u64, index: u64, kind: u8, length: u32 },
}

impl Stored {
    pub(crate) fn position(&self) -> Position {
        match self {
            Stored::Inline(entry) => entry.position(),
            Stored::Large { term, index, .. } => Position { term: *term, index: *index },
        }
    }
}

/// Number of chunks of a body of `length` bytes.
pub(crate) fn chunk_count(length: u32) -> u16 {
    (length as usize).div_ceil(VALUE_LIMIT) as u16
}

/// Reads a record whose first entry has index `first`.
pub(crate) fn unpack(first: u64, record: &Bytes) -> io::Result<Vec<Stored>> {
    if record.len() < HEADER || record[0] != VERSION {
        return Err(broken("log record"));
    }
    let count = u16::from_le_bytes([record[1], record[2]]);
    let mut stored = Vec::with_capacity(usize::from(count));
    let mut at = HEADER;
    for n in 0..u64::from(count) {
        let header = record.get(at..at + ENTRY_HEADER).ok_or_else(|| broken("log record"))?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let (term, kind, index) = (le64(&header[4..12]), header[12], first + n);
        at += ENTRY_HEADER;
        if at + length > record.len() {
            return Err(broken("log record"));
        }
        let body = record.slice(at..at + length);
        at += length;
        stored.push(if kind & STUB == 0 {
            Stored::Inline(LogEntry { term, index, kind, body })
        } else {
            let length: [u8; 4] = body.as_ref().try_into().map_err(|_| broken("log record"))?;
            Stored::Large { term, index, kind: kind & !STUB, length: u32::from_le_bytes(length) }
        });
    }
    if at != record.len() {
        return Err(broken("log record"));
    }
    Ok(stored)
}

/// Cuts a record down to its first `keep` entries, without decoding the bodies.
pub(crate) fn cut(record: &Bytes, keep: u16) -> io::Result<Vec<u8>> {
    let mut at = HEADER;
    for _ in 0..keep {
        let length = record.get(at..at + 4).ok_or_else(|| broken("log record"))?;
        at += ENTRY_HEADER
            + u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    }
    let mut out = record.get(..at).ok_or_else(|| broken("log record"))?.to_vec();
    out[1..3].copy_from_slice(&keep.to_le_bytes());
    Ok(out)
}

pub(crate) fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a stored {what} is broken"))
}

fn le64(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(bytes);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, size: usize) -> LogEntry {
        LogEntry { term: 3, index, kind: 1, body: Bytes::from(vec![index as u8; size]) }
    }

    #[test]
    fn record_layout_never_changes() {
        let mut batch = WriteBatch::new();
        pack(
            1,
            &[LogEntry { term: 2, index: 9, kind: 1, body: Bytes::from_static(b"ab") }],
            &mut batch,
        );
        let value = batch[0].1.clone().unwrap();
        assert_eq!(value, b"\x01\x01\0\x02\0\0\0\x02\0\0\0\0\0\0\0\x01ab");
        assert_eq!(
            Position { term: 1, index: 2 }.encode(),
            b"\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"
        );
    }

    #[test]
    fn entries_share_records_up_to_the_limit() {
        let entries: Vec<_> = (1..=30).map(|index| entry(index, 300)).collect();
        let mut batch = WriteBatch::new();
        let metas = pack(1, &entries, &mut batch);
        assert_eq!(
            metas.iter().map(|(first, meta)| meta.last - first + 1).collect::<Vec<_>>(),
            [13, 13, 4]
        );
        let mut read = Vec::new();
        for ((first, _), (_, value)) in metas.iter().zip(&batch) {
            let value = value.clone().unwrap();
            assert!(value.len() <= VALUE_LIMIT);
            for stored in unpack(*first, &Bytes::from(value)).unwrap() {
                match stored {
                    Stored::Inline(entry) => read.push(entry),
                    Stored::Large { .. } => panic!("small entry stored as large"),
                }
            }
        }
        assert_eq!(read, entries);
    }

    #[test]
    fn large_entry_lies_in_chunks() {
        let mut batch = WriteBatch::new();
        let metas = pack(1, &[entry(1, 10), entry(2, 10_000), entry(3, 10)], &mut batch);
        assert_eq!(metas, [(1, RecordMeta { last: 3, large: vec![(2, 3)] })]);
        assert_eq!(chunk_count(10_000), 3);
        assert_eq!(batch.len(), 4);
    }

    #[test]
    fn boundary_sizes_fit() {
        for size in VALUE_LIMIT - 40..VALUE_LIMIT + 40 {
            let mut batch = WriteBatch::new();
            pack(1, &[entry(1, size), entry(2, size)], &mut batch);
            super::super::check_limits(&batch).unwrap();
        }
    }

    #[test]
    fn torn_record_is_refused() {
        let mut batch = WriteBatch::new();
        pack(1, &[entry(1, 10), entry(2, 10)], &mut batch);
        let value = Bytes::from(batch[0].1.clone().unwrap());
        for length in 0..value.len() {
            assert!(unpack(1, &value.slice(..length)).is_err(), "{length} bytes were accepted");
        }
        assert_eq!(unpack(1, &Bytes::from(cut(&value, 1).unwrap())).unwrap().len(), 1);
    }
}
