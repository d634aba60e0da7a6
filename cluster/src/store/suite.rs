//! One suite for both engines and for what stands on them: log, rows, snapshots.

use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};

use bytes::Bytes;

use super::flusher::Flusher;
use super::log::GroupLog;
use super::memory::MemoryEngine;
use super::record::{LogEntry, Position};
use super::rows::StateRows;
use super::sled::SledEngine;
use super::snapshot::{self, Body, Header};
use super::{Engine, FaultHook, KEY_LIMIT, Space, VALUE_LIMIT, keys};
use crate::machine::{Changes, Rows};

/// An engine with the folder that it lies in, if any.
struct Bed {
    engine: Arc<dyn Engine>,
    dir: Option<tempfile::TempDir>,
}

impl Bed {
    fn memory() -> Self {
        Self { engine: Arc::<MemoryEngine>::default(), dir: None }
    }

    fn sled() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let engine = Arc::new(SledEngine::open(&dir.path().join("sled"), 3, 8 << 20).unwrap());
        Self { engine, dir: Some(dir) }
    }

    /// Closes and opens again what outlives the process; memory only goes on.
    fn reopen(self) -> Self {
        let Some(dir) = self.dir else { return self };
        self.engine.close();
        let engine = Arc::new(SledEngine::open(&dir.path().join("sled"), 3, 8 << 20).unwrap());
        Self { engine, dir: Some(dir) }
    }

    fn flusher(&self) -> Arc<Flusher> {
        Arc::new(Flusher::start(Arc::clone(&self.engine), fault()).unwrap())
    }

    fn log(&self, flusher: &Arc<Flusher>, tail: usize) -> GroupLog {
        GroupLog::open(1, Arc::clone(&self.engine), Arc::clone(flusher), tail).unwrap()
    }

    fn rows(&self, group: u32) -> StateRows {
        StateRows::new(Arc::clone(&self.engine), group, fault())
    }

    fn stored_keys(&self, space: Space) -> usize {
        let mut count = 0;
        let visit = &mut |_: &[u8], _: &[u8]| {
            count += 1;
            ControlFlow::Continue(())
        };
        self.engine.scan(space, &[], &[0xff], visit).unwrap();
        count
    }
}

fn fault() -> FaultHook {
    FaultHook::new(|message| panic!("{message}"))
}

macro_rules! on_both_engines {
    ($($name:ident)*) => {
        mod memory { $(#[test] fn $name() { super::$name(super::Bed::memory()); })* }
        mod sled { $(#[test] fn $name() { super::$name(super::Bed::sled()); })* }
    };
}

on_both_engines! {
    batches_and_scans
    limits_are_enforced
    clear_empties_one_space
    closed_engine_refuses
    log_reads_back_what_was_appended
    log_survives_reopen
    truncation_leaves_the_prefix
    truncation_in_the_round_of_the_append
    purge_deletes_records_and_chunks
    rows_of_any_size
    shrunken_row_leaves_no_chunks
    snapshot_carries_all_rows
    changed_snapshot_is_refused
}

fn put(key: &[u8], value: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
    (key.to_vec(), Some(value.to_vec()))
}

fn batches_and_scans(bed: Bed) {
    let space = Space::State(1);
    bed.engine
        .write(space, vec![put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"3"), put(b"d", b"4")])
        .unwrap();
    bed.engine.write(space, vec![(b"b".to_vec(), None), put(b"c", b"5")]).unwrap();
    bed.engine.write(Space::State(2), vec![put(b"b", b"other")]).unwrap();
    let bed = {
        bed.engine.sync().unwrap();
        bed.reopen()
    };
    let scan = |from: &[u8], to: &[u8], limit: usize| {
        let mut seen = Vec::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            seen.push((key.to_vec(), value.to_vec()));
            if seen.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        bed.engine.scan(space, from, to, visit).unwrap();
        seen.into_iter().flat_map(|(key, value)| [key, value].concat()).collect::<Vec<u8>>()
    };
    assert_eq!(scan(b"", b"z", 9), b"a1c5d4");
    assert_eq!(scan(b"a", b"d", 9), b"a1c5");
    assert_eq!(scan(b"b", b"z", 1), b"c5");
    assert_eq!(scan(b"d", b"a", 9), b"");
    assert_eq!(bed.engine.get(space, b"b").unwrap(), None);
    assert_eq!(bed.engine.get(space, b"c").unwrap().as_deref(), Some(&b"5"[..]));
}

fn limits_are_enforced(bed: Bed) {
    let write = |key: usize, value: usize| {
        bed.engine.write(Space::Log, vec![put(&vec![1; key], &vec![1; value])])
    };
    write(KEY_LIMIT, VALUE_LIMIT).unwrap();
    assert!(write(KEY_LIMIT + 1, 1).is_err());
    assert!(write(1, VALUE_LIMIT + 1).is_err());
}

fn clear_empties_one_space(bed: Bed) {
    for space in [Space::State(1), Space::State(2), Space::Log] {
        bed.engine.write(space, vec![put(b"a", b"1")]).unwrap();
    }
    bed.engine.clear(Space::State(1)).unwrap();
    assert_eq!(bed.engine.get(Space::State(1), b"a").unwrap(), None);
    bed.engine.write(Space::State(1), vec![put(b"b", b"2")]).unwrap();
    bed.engine.sync().unwrap();
    let bed = bed.reopen();
    assert_eq!(bed.stored_keys(Space::State(1)), 1);
    assert_eq!(bed.stored_keys(Space::State(2)), 1);
    assert_eq!(bed.stored_keys(Space::Log), 1);
}

fn closed_engine_refuses(bed: Bed) {
    bed.engine.close();
    assert_eq!(bed.engine.get(Space::Log, b"a").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(bed.engine.write(Space::Log, vec![put(b"a", b"1")]).is_err());
    assert!(bed.engine.sync().is_err());
}

/// Sizes on both sides of every border: tiny, half a record, just above one record, many chunks.
fn entry(index: u64) -> LogEntry {
    let size = [3, 2000, 4090, 20_000, 300][index as usize % 5];
    LogEntry { term: 1, index, kind: 1, body: Bytes::from(vec![index as u8; size]) }
}

fn append(log: &GroupLog, from: u64, to: u64) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    log.append((from..to).map(entry).collect(), Box::new(move |result| drop(sender.send(result))))
        .unwrap();
    receiver
}

fn assert_log(log: &GroupLog, from: u64, to: u64) {
    let read = log.read(0, u64::MAX, usize::MAX).unwrap();
    assert_eq!(read, (from..to).map(entry).collect::<Vec<_>>());
    // Partial reads begin and end inside records.
    for (a, b) in [(from + 1, to), (from, to.saturating_sub(1)), (from + 3, from + 4)] {
        let expected: Vec<_> = (a.max(from)..b.min(to)).map(entry).collect();
        assert_eq!(log.read(a, b, usize::MAX).unwrap(), expected, "{a}..{b}");
    }
}

fn log_reads_back_what_was_appended(bed: Bed) {
    let flusher = bed.flusher();
    for tail in [1, 10_000, 10_000_000] {
        let bed = if bed.dir.is_some() { Bed::sled() } else { Bed::memory() };
        let flusher = bed.flusher();
        let log = bed.log(&flusher, tail);
        for start in (0..60).step_by(7) {
            let durable = append(&log, start, start + 7);
            // Readable before it is durable.
            assert_log(&log, 0, start + 7);
            durable.recv().unwrap().unwrap();
            assert_log(&log, 0, start + 7);
        }
        let limited = log.read(0, 60, 5000).unwrap();
        assert!(!limited.is_empty() && limited.len() < 10, "{} entries", limited.len());
        assert_eq!(log.read(3, 60, 0).unwrap(), [entry(3)]);
        flusher.close();
    }
    flusher.close();
}

fn log_survives_reopen(bed: Bed) {
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1 << 20);
    append(&log, 0, 40).recv().unwrap().unwrap();
    flusher.close();
    let bed = bed.reopen();
    for tail in [1, 1 << 20] {
        let flusher = bed.flusher();
        let log = bed.log(&flusher, tail);
        assert_log(&log, 0, 40);
        assert_eq!(log.bounds(), (None, Some(Position { term: 1, index: 39 })));
        flusher.close();
    }
}

fn truncation_leaves_the_prefix(bed: Bed) {
    for cut in [0, 1, 2, 3, 4, 5, 17, 18, 19, 38] {
        let bed = if bed.dir.is_some() { Bed::sled() } else { Bed::memory() };
        let flusher = bed.flusher();
        let log = bed.log(&flusher, 3000);
        append(&log, 0, 40).recv().unwrap().unwrap();
        log.truncate_after(Some(Position { term: 1, index: cut }));
        assert_log(&log, 0, cut + 1);
        append(&log, cut + 1, cut + 4).recv().unwrap().unwrap();
        assert_log(&log, 0, cut + 4);
        flusher.close();
        let bed = bed.reopen();
        let flusher = bed.flusher();
        let log = bed.log(&flusher, 3000);
        assert_log(&log, 0, cut + 4);
        log.truncate_after(None);
        assert_log(&log, 0, 0);
        append(&log, 0, 1).recv().unwrap().unwrap();
        assert_eq!(bed.stored_keys(Space::Log), 1);
        flusher.close();
    }
}

fn truncation_in_the_round_of_the_append(bed: Bed) {
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1);
    // Nothing waits in between, so the flusher meets these together, and a late report must not count.
    append(&log, 0, 10);
    log.truncate_after(Some(Position { term: 1, index: 4 }));
    append(&log, 5, 8);
    log.truncate_after(Some(Position { term: 1, index: 5 }));
    let durable = append(&log, 6, 9);
    assert_log(&log, 0, 9);
    durable.recv().unwrap().unwrap();
    assert_log(&log, 0, 9);
    flusher.close();
    let bed = bed.reopen();
    let flusher = bed.flusher();
    assert_log(&bed.log(&flusher, 1), 0, 9);
    flusher.close();
}

fn purge_deletes_records_and_chunks(bed: Bed) {
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1);
    append(&log, 0, 500).recv().unwrap().unwrap();
    let before = bed.stored_keys(Space::Log);
    log.purge(Position { term: 1, index: 480 });
    assert_log(&log, 481, 500);
    // Deletion goes on by itself, round by round; memory needs rounds to ride on.
    for index in 500..600 {
        append(&log, index, index + 1).recv().unwrap().unwrap();
    }
    for _ in 0..200 {
        if bed.stored_keys(Space::Log) < before / 2 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(
        bed.stored_keys(Space::Log) < before / 2,
        "{} of {before}",
        bed.stored_keys(Space::Log)
    );
    flusher.close();
    let bed = bed.reopen();
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1);
    assert_log(&log, 481, 600);
    // A purge beyond the end leaves an empty log that continues behind it.
    log.purge(Position { term: 2, index: 700 });
    assert_log(&log, 701, 701);
    assert_eq!(log.bounds().1, Some(Position { term: 2, index: 700 }));
    append(&log, 701, 705).recv().unwrap().unwrap();
    assert_log(&log, 701, 705);
    flusher.close();
}

fn changes(rows: &[(&[u8], Option<usize>)]) -> Changes {
    let value = |size: usize| Bytes::from((0..size).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    rows.iter().map(|(key, size)| (key.to_vec(), size.map(value))).collect()
}

fn sizes(rows: &StateRows) -> Vec<(Vec<u8>, usize)> {
    let mut seen = Vec::new();
    rows.look(|rows: &dyn Rows| {
        rows.scan(b"", b"\xff\xff", &mut |key, value| {
            assert!(value.iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
            assert_eq!(rows.get(key).as_deref(), Some(value));
            seen.push((key.to_vec(), value.len()));
            ControlFlow::Continue(())
        });
    });
    seen
}

fn rows_of_any_size(bed: Bed) {
    let rows = bed.rows(1);
    let expected: Vec<(Vec<u8>, usize)> = [0, 1, 4094, 4095, 4096, 8192, 8193, 1_000_000]
        .iter()
        .enumerate()
        .map(|(n, size)| (vec![n as u8], *size))
        .collect();
    let all: Vec<(&[u8], Option<usize>)> =
        expected.iter().map(|(key, size)| (key.as_slice(), Some(*size))).collect();
    rows.write(&changes(&all), b"applied".to_vec()).unwrap();
    assert_eq!(sizes(&rows), expected);
    assert_eq!(rows.applied().unwrap().as_deref(), Some(&b"applied"[..]));
    bed.engine.sync().unwrap();
    assert_eq!(sizes(&bed.reopen().rows(1)), expected);
}

fn shrunken_row_leaves_no_chunks(bed: Bed) {
    let rows = bed.rows(1);
    let large: &[(&[u8], Option<usize>)] =
        &[(b"a", Some(50_000)), (b"a\0\0\0\0", Some(9000)), (b"b", Some(5000))];
    rows.write(&changes(large), Vec::new()).unwrap();
    assert_eq!(bed.stored_keys(Space::State(1)), 4 + 13 + 3 + 2);
    rows.write(&changes(&[(b"a", Some(9000)), (b"b", None)]), Vec::new()).unwrap();
    assert_eq!(sizes(&rows), [(b"a".to_vec(), 9000), (b"a\0\0\0\0".to_vec(), 9000)]);
    assert_eq!(bed.stored_keys(Space::State(1)), 3 + 3 + 3);
    rows.write(&changes(&[(b"a", Some(10)), (b"a\0\0\0\0", None)]), Vec::new()).unwrap();
    assert_eq!(bed.stored_keys(Space::State(1)), 2);
}

fn sample(bed: &Bed) -> (StateRows, Header) {
    let rows = bed.rows(1);
    let keys: Vec<[u8; 2]> = (0..500_u16).map(u16::to_be_bytes).collect();
    let all: Vec<(&[u8], Option<usize>)> =
        keys.iter().enumerate().map(|(n, key)| (&key[..], Some([10, 300, 6000][n % 3]))).collect();
    rows.write(&changes(&all), b"position".to_vec()).unwrap();
    (rows, Header { cluster: [9; 16], group: 1, applied: Bytes::from_static(b"position") })
}

fn write_body(bed: &Bed, rows: &StateRows, header: &Header) -> Body {
    match &bed.dir {
        Some(dir) => {
            let path = dir.path().join("1.snap");
            snapshot::write_file(&path, header, rows).unwrap();
            Body::File(path)
        }
        None => {
            let mut out = Vec::new();
            snapshot::write_to(header, rows, &mut out).unwrap();
            Body::Memory(Bytes::from(out))
        }
    }
}

fn snapshot_carries_all_rows(bed: Bed) {
    let (rows, header) = sample(&bed);
    let body = write_body(&bed, &rows, &header);
    assert_eq!(snapshot::verify(&body).unwrap(), header);
    let target = bed.rows(2);
    target.write(&changes(&[(b"old", Some(9000))]), b"old".to_vec()).unwrap();
    let mut reader = snapshot::Reader::open(&body).unwrap();
    target.replace(header.applied.to_vec(), || reader.next_row()).unwrap();
    assert_eq!(sizes(&target), sizes(&rows));
    assert_eq!(target.applied().unwrap(), Some(header.applied));
    assert_eq!(bed.stored_keys(Space::State(2)), bed.stored_keys(Space::State(1)));
}

fn changed_snapshot_is_refused(bed: Bed) {
    let (rows, header) = sample(&bed);
    let body = write_body(&bed, &rows, &header);
    let mut whole = Vec::new();
    body.open().unwrap().read_to_end(&mut whole).unwrap();
    let verify = |bytes: &[u8]| snapshot::verify(&Body::Memory(Bytes::copy_from_slice(bytes)));
    verify(&whole).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 97).chain([whole.len() - 1]) {
        assert!(verify(&whole[..length]).is_err(), "cut to {length} bytes");
    }
    for at in (0..whole.len()).step_by(whole.len() / 97).chain([whole.len() - 1]) {
        let mut broken = whole.clone();
        broken[at] ^= 0x10;
        // Byte 7 is reserved, but the header's crc covers it too.
        assert!(verify(&broken).is_err(), "bit flipped at {at}");
    }
}

#[test]
fn chunks_of_an_unfinished_purge_are_found_again() {
    let bed = Bed::sled();
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1);
    append(&log, 0, 20).recv().unwrap().unwrap();
    flusher.close();
    // The position became durable, the process ended before the deletions.
    let position = Position { term: 1, index: 19 }.encode();
    bed.engine.write(Space::Log, vec![(keys::pointer(keys::PURGED, 1), Some(position))]).unwrap();
    bed.engine.sync().unwrap();
    let bed = bed.reopen();
    let flusher = bed.flusher();
    let log = bed.log(&flusher, 1);
    assert_log(&log, 20, 20);
    append(&log, 20, 21).recv().unwrap().unwrap();
    flusher.close();
    // What remains: the position and the record of 20.
    assert_eq!(bed.stored_keys(Space::Log), 2);
}
