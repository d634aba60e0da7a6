//! The log of a group: what was appended is read back, across reopening, truncation and purge.

use std::io;
use std::sync::mpsc;

use bytes::Bytes;

use super::*;
use crate::store::log::GroupLog;
use crate::store::record::{LogEntry, Position};

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

pub(super) fn log_reads_back_what_was_appended(bed: Bed) {
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

pub(super) fn log_survives_reopen(bed: Bed) {
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

pub(super) fn truncation_leaves_the_prefix(bed: Bed) {
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

pub(super) fn truncation_in_the_round_of_the_append(bed: Bed) {
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

pub(super) fn purge_deletes_records_and_chunks(bed: Bed) {
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
