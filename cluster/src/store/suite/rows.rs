//! Rows of any size, recent and stored, and the snapshots that carry them.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::*;
use crate::machine::{Changes, Rows};
use crate::store::rows::StateRows;
use crate::store::snapshot::{self, Body, Header};

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

pub(super) fn rows_of_any_size(bed: Bed) {
    let rows = bed.rows(1);
    let expected: Vec<(Vec<u8>, usize)> = [0, 1, 4094, 4095, 4096, 8192, 8193, 1_000_000]
        .iter()
        .enumerate()
        .map(|(n, size)| (vec![n as u8], *size))
        .collect();
    let all: Vec<(&[u8], Option<usize>)> =
        expected.iter().map(|(key, size)| (key.as_slice(), Some(*size))).collect();
    rows.write(changes(&all), b"applied".to_vec()).unwrap();
    assert_eq!(sizes(&rows), expected);
    assert_eq!(rows.applied().unwrap().as_deref(), Some(&b"applied"[..]));
    rows.store().unwrap();
    bed.engine.sync().unwrap();
    assert_eq!(sizes(&bed.reopen().rows(1)), expected);
}

pub(super) fn recent_rows_lie_over_stored_ones(bed: Bed) {
    let rows = bed.rows(1);
    let (a, b, c) = (b"a".to_vec(), b"b".to_vec(), b"c".to_vec());
    rows.write(changes(&[(b"a", Some(1)), (b"b", Some(2))]), b"1".to_vec()).unwrap();
    rows.store().unwrap();
    let later = [(&b"a"[..], Some(9000)), (b"b", None), (b"c", Some(3)), (b"d", None)];
    rows.write(changes(&later), b"2".to_vec()).unwrap();
    rows.write(changes(&[(b"c", Some(4))]), b"3".to_vec()).unwrap();
    let newest = [(a.clone(), 9000), (c, 4)];
    assert_eq!(sizes(&rows), newest);
    assert_eq!(rows.applied().unwrap().as_deref(), Some(&b"3"[..]));

    // Another handle sees what a start after a crash would: one moment, rows and applied record.
    let stored = bed.rows(1);
    assert_eq!(sizes(&stored), [(a, 1), (b, 2)]);
    assert_eq!(stored.applied().unwrap().as_deref(), Some(&b"1"[..]));
    rows.store().unwrap();
    assert_eq!(sizes(&stored), newest);
    assert_eq!(stored.applied().unwrap().as_deref(), Some(&b"3"[..]));
    // Two rows, three chunks, the applied record; nothing of "b" and "d".
    assert_eq!(bed.stored_keys(Space::State(1)), 2 + 3 + 1);
}

/// What is applied again after a crash is bounded in each of three ways.
pub(super) fn recent_rows_are_bounded(bed: Bed) {
    let rows = bed.rows(1);
    let stored = |applied: &[u8]| bed.rows(1).applied().unwrap().as_deref() == Some(applied);
    // One row that grows nowhere, many times.
    for _ in 0..1023 {
        rows.write(changes(&[(b"a", Some(1))]), b"writes".to_vec()).unwrap();
    }
    assert!(!stored(b"writes"));
    rows.write(changes(&[(b"a", Some(1))]), b"writes".to_vec()).unwrap();
    assert!(stored(b"writes"));
    // Many rows at once.
    let keys: Vec<[u8; 2]> = (0..1024_u16).map(u16::to_be_bytes).collect();
    let many: Vec<(&[u8], Option<usize>)> = keys.iter().map(|key| (&key[..], Some(1))).collect();
    rows.write(changes(&many), b"rows".to_vec()).unwrap();
    assert!(stored(b"rows"));
    // Few large ones.
    rows.write(changes(&[(b"a", Some((1 << 20) - 1))]), b"bytes".to_vec()).unwrap();
    assert!(stored(b"bytes"));
    rows.write(changes(&[(b"a", Some((1 << 20) - 2))]), b"fewer".to_vec()).unwrap();
    assert!(!stored(b"fewer"));
}

pub(super) fn shrunken_row_leaves_no_chunks(bed: Bed) {
    let rows = bed.rows(1);
    let large: &[(&[u8], Option<usize>)] =
        &[(b"a", Some(50_000)), (b"a\0\0\0\0", Some(9000)), (b"b", Some(5000))];
    rows.write(changes(large), Vec::new()).unwrap();
    rows.store().unwrap();
    assert_eq!(bed.stored_keys(Space::State(1)), 4 + 13 + 3 + 2);
    rows.write(changes(&[(b"a", Some(9000)), (b"b", None)]), Vec::new()).unwrap();
    rows.store().unwrap();
    assert_eq!(sizes(&rows), [(b"a".to_vec(), 9000), (b"a\0\0\0\0".to_vec(), 9000)]);
    assert_eq!(bed.stored_keys(Space::State(1)), 3 + 3 + 3);
    rows.write(changes(&[(b"a", Some(10)), (b"a\0\0\0\0", None)]), Vec::new()).unwrap();
    rows.store().unwrap();
    assert_eq!(bed.stored_keys(Space::State(1)), 2);
}

fn sample(bed: &Bed) -> (StateRows, Header) {
    let rows = bed.rows(1);
    let keys: Vec<[u8; 2]> = (0..500_u16).map(u16::to_be_bytes).collect();
    let all: Vec<(&[u8], Option<usize>)> =
        keys.iter().enumerate().map(|(n, key)| (&key[..], Some([10, 300, 6000][n % 3]))).collect();
    rows.write(changes(&all), b"position".to_vec()).unwrap();
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

pub(super) fn snapshot_carries_all_rows(bed: Bed) {
    let (rows, header) = sample(&bed);
    let body = write_body(&bed, &rows, &header);
    assert_eq!(snapshot::verify(&body).unwrap(), header);
    let target = bed.rows(2);
    target.write(changes(&[(b"old", Some(9000))]), b"old".to_vec()).unwrap();
    let mut reader = snapshot::Reader::open(&body).unwrap();
    target.replace(header.applied.to_vec(), || reader.next_row()).unwrap();
    assert_eq!(sizes(&target), sizes(&rows));
    assert_eq!(target.applied().unwrap(), Some(header.applied));
    assert_eq!(bed.stored_keys(Space::State(2)), bed.stored_keys(Space::State(1)));
}

pub(super) fn changed_snapshot_is_refused(bed: Bed) {
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
