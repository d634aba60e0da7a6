//! The flusher over an engine whose sync does what the test says.

use std::sync::mpsc;

use super::*;
use crate::store::memory::MemoryEngine;
use crate::store::{Space, Visit, WriteBatch};
use bytes::Bytes;

/// Pretends to be durable; its sync does what the test says.
struct Scripted {
    inner: MemoryEngine,
    sync: Box<dyn Fn() -> io::Result<()> + Send + Sync>,
}

impl Engine for Scripted {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.inner.get(space, key)
    }
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        self.inner.scan(space, from, to, visit)
    }
    fn write(&self, space: Space, batch: WriteBatch) -> io::Result<()> {
        self.inner.write(space, batch)
    }
    fn clear(&self, space: Space) -> io::Result<()> {
        self.inner.clear(space)
    }
    fn sync(&self) -> io::Result<()> {
        (self.sync)()
    }
    fn size_on_disk(&self) -> u64 {
        0
    }
    fn volatile(&self) -> bool {
        false
    }
    fn close(&self) {}
}

fn start(
    sync: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    stuck_after: Duration,
) -> (Flusher, mpsc::Receiver<String>) {
    let (faults, seen) = mpsc::channel();
    let engine = Arc::new(Scripted { inner: MemoryEngine::default(), sync: Box::new(sync) });
    let hook = FaultHook::new(move |message| drop(faults.send(message.to_owned())));
    (Flusher::start_with(engine, hook, stuck_after).unwrap(), seen)
}

fn put(flusher: &Flusher, key: &[u8]) -> mpsc::Receiver<io::Result<()>> {
    let (sender, receiver) = mpsc::channel();
    let done = Box::new(move |result| drop(sender.send(result)));
    flusher.submit(Job::Put { key: key.to_vec(), value: Some(b"v".to_vec()), done });
    receiver
}

#[test]
fn failed_sync_poisons_and_calls_the_hook() {
    let (flusher, faults) = start(|| Err(io::Error::other("disk on fire")), STUCK_AFTER);
    let error = put(&flusher, b"a").recv().unwrap().unwrap_err();
    assert!(error.to_string().contains("disk on fire"), "{error}");
    assert!(faults.recv().unwrap().contains("disk on fire"));
    // Nothing is acknowledged after that, though the next sync might succeed.
    assert!(put(&flusher, b"b").recv().unwrap().is_err());
    flusher.close();
}

#[test]
fn stuck_sync_is_a_fault() {
    let (release, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let (flusher, faults) = start(
        move || {
            let _ = gate.lock().recv();
            Ok(())
        },
        Duration::from_millis(100),
    );
    let waiting = put(&flusher, b"a");
    assert!(faults.recv_timeout(Duration::from_secs(5)).unwrap().contains("stuck"));
    drop(release);
    waiting.recv().unwrap().unwrap();
    flusher.close();
}

#[test]
fn jobs_that_wait_share_one_sync() {
    let syncs = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&syncs);
    let (flusher, _faults) = start(
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        },
        STUCK_AFTER,
    );
    let waiting: Vec<_> = (0..50u8).map(|n| put(&flusher, &[n])).collect();
    for receiver in waiting {
        receiver.recv().unwrap().unwrap();
    }
    let rounds = syncs.load(Ordering::Relaxed);
    assert!((1..=5).contains(&rounds), "{rounds} syncs for 50 jobs");
    flusher.close();
}

#[test]
fn queued_jobs_are_durable_after_close() {
    let (flusher, _faults) = start(|| Ok(()), STUCK_AFTER);
    let waiting: Vec<_> = (0..100u8).map(|n| put(&flusher, &[n])).collect();
    flusher.close();
    for receiver in waiting {
        receiver.recv().unwrap().unwrap();
    }
    assert!(put(&flusher, b"late").recv().unwrap().is_err());
}
