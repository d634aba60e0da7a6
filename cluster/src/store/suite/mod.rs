//! One suite for both engines and for what stands on them: log, rows, snapshots.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::flusher::Flusher;
use super::log::GroupLog;
use super::memory::MemoryEngine;
use super::rows::StateRows;
use super::sled::SledEngine;
use super::{Engine, FaultHook, KEY_LIMIT, Space, VALUE_LIMIT, keys};

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

mod log;
mod rows;
mod torn;

macro_rules! on_both_engines {
    ($($name:ident)*) => {
        mod memory { $(#[test] fn $name() { super::$name(super::Bed::memory()); })* }
        mod sled { $(#[test] fn $name() { super::$name(super::Bed::sled()); })* }
    };
}

use self::log::*;
use self::rows::*;

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
    recent_rows_lie_over_stored_ones
    recent_rows_are_bounded
    shrunken_row_leaves_no_chunks
    dump_shows_one_moment
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
