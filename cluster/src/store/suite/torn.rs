//! A crash in the middle of a round: whatever part of its writes is left, the log opens again and has no hole.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::*;
use crate::store::record::{LogEntry, Position};
use crate::store::{Visit, WriteBatch};

/// An engine that takes so many writes and then no more. A batch counts as one.
struct Torn {
    inner: Arc<MemoryEngine>,
    left: AtomicUsize,
}

impl Torn {
    fn take(&self) -> io::Result<()> {
        let one_less = |left: usize| left.checked_sub(1);
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        taken.map(drop).map_err(|_| io::Error::other("the process was killed"))
    }
}

impl Engine for Torn {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        self.inner.scan(space, from, to, visit)
    }
    fn write(&self, space: Space, batch: WriteBatch) -> io::Result<()> {
        self.take()?;
        self.inner.write(space, batch)
    }
    fn write_in_order(&self, space: Space, writes: WriteBatch) -> io::Result<()> {
        writes.into_iter().try_for_each(|write| self.write(space, vec![write]))
    }
    fn clear(&self, space: Space) -> io::Result<()> {
        self.inner.clear(space)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn size_on_disk(&self) -> u64 {
        0
    }
    fn volatile(&self) -> bool {
        true
    }
    fn close(&self) {}
}

fn entries(term: u64, from: u64, to: u64) -> Vec<LogEntry> {
    let size = |index: u64| [3, 2000, 4090, 20_000, 300][index as usize % 5];
    let body = |index| Bytes::from(vec![term as u8; size(index)]);
    (from..to).map(|index| LogEntry { term, index, kind: 1, body: body(index) }).collect()
}

/// What is done to the log, step by step.
enum Step {
    Append(Vec<LogEntry>),
    TruncateAfter(u64),
    Purge(u64),
}

fn steps() -> Vec<Step> {
    vec![
        Step::Append(entries(1, 0, 23)),
        Step::Append(entries(1, 23, 31)),
        Step::TruncateAfter(25),
        Step::Append(entries(2, 26, 40)),
        Step::Purge(12),
        // In the middle of a record, with records and large entries behind it.
        Step::TruncateAfter(15),
        Step::Append(entries(3, 16, 50)),
        Step::Purge(47),
    ]
}

fn take(step: &Step, log: &GroupLog) {
    match step {
        Step::Append(entries) => log.append(entries.clone(), Box::new(drop)).unwrap(),
        Step::TruncateAfter(index) => log.truncate_after(Some(Position { term: 1, index: *index })),
        Step::Purge(index) => log.purge(Position { term: 1, index: *index }),
    }
}

fn open(engine: Arc<dyn Engine>) -> GroupLog {
    let flusher = Flusher::start(Arc::clone(&engine), FaultHook::new(|_| {})).unwrap();
    GroupLog::open(1, engine, Arc::new(flusher), 1 << 20).expect("the log opens")
}

fn all(log: &GroupLog) -> Vec<LogEntry> {
    log.read(0, u64::MAX, usize::MAX).unwrap()
}

#[test]
fn crash_within_a_round_leaves_a_log_without_holes() {
    // What the log holds before and after each step.
    let whole = open(Arc::<MemoryEngine>::default());
    let mut states = vec![Vec::new()];
    for step in steps() {
        take(&step, &whole);
        states.push(all(&whole));
    }
    let mut cuts = 0;
    for writes in 0.. {
        let inner = Arc::<MemoryEngine>::default();
        let engine = Arc::new(Torn { inner: Arc::clone(&inner), left: writes.into() });
        let log = open(engine.clone());
        let mut at = 0;
        for step in steps() {
            take(&step, &log);
            at += 1;
            if engine.take().is_err() {
                break;
            }
            engine.left.fetch_add(1, Ordering::SeqCst);
        }
        let found = all(&open(inner));
        let (before, after) = (&states[at - 1], &states[at]);
        let fits = match &steps()[at - 1] {
            // A part of what was appended, from its beginning.
            Step::Append(_) => found.len() >= before.len() && after.starts_with(&found),
            _ => found == *before || found == *after,
        };
        let indexes: Vec<u64> = found.iter().map(|entry| entry.index).collect();
        assert!(fits, "step {at}, killed after {writes} writes: {indexes:?}");
        cuts += usize::from(found != *after);
        if at == states.len() - 1 && engine.left.load(Ordering::SeqCst) > 0 {
            break;
        }
    }
    assert!(cuts > 20, "only {cuts} of the crashes left something out");
}
