//! Naps for the threads of sled.
//!
//! sled writes its file on seven threads, which all databases of a process share, and wakes every one of them for every
//! write; one finds something to do. On a busy node that was half of all context switches. There is no setting for it.
//! But a job of sled ends by waking whoever waits for it, on its own thread: so a waker that sleeps keeps that thread
//! for as long.
//!
//! Nothing depends on who naps. Two threads stay awake, and should sled ever need more of them at once (some of its
//! jobs wait for locks, which may be held by somebody who waits for another job), the others are back after a nap.

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use sled::Db;

/// Threads that may nap, of the seven that there are.
const NAPPERS: usize = 5;
/// How long a nap lasts, and so how long anything can stand still for want of a thread.
const NAP: Duration = Duration::from_secs(1);

/// Threads that nap.
static NAPPING: AtomicUsize = AtomicUsize::new(0);

/// Keeps the thread that wakes it.
struct Nap;

impl Wake for Nap {
    fn wake(self: Arc<Self>) {
        if NAPPING.fetch_add(1, Ordering::AcqRel) < NAPPERS {
            std::thread::sleep(NAP);
        }
        NAPPING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Sends one more thread to its nap, unless enough of them nap. For when there is nothing to flush: the job that takes a
/// thread there is a flush.
pub(super) fn calm(db: &Db) {
    if NAPPING.load(Ordering::Acquire) >= NAPPERS {
        return;
    }
    let waker = Waker::from(Arc::new(Nap));
    // If it is done already, nobody naps; the next one will.
    let _ = pin!(db.flush_async()).poll(&mut Context::from_waker(&waker));
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::super::{Engine as _, Space};
    use super::super::SledEngine;
    use super::*;

    #[test]
    fn most_threads_nap_while_there_is_much_to_write_and_all_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(dir.path(), 2, 16 << 20).unwrap();
        let (mut most, begun) = (0, Instant::now());
        std::thread::scope(|scope| {
            for group in 0..2 {
                let engine = &engine;
                // Large batches fill several buffers of sled at once.
                scope.spawn(move || {
                    for round in 0..40_u32 {
                        let row = |row: u32| {
                            ((round * 1000 + row).to_be_bytes().to_vec(), Some(vec![7; 4000]))
                        };
                        engine.write(Space::State(group), (0..300).map(row).collect()).unwrap();
                    }
                });
            }
            while begun.elapsed() < NAP * 2 {
                engine.sync().unwrap();
                most = most.max(NAPPING.load(Ordering::Acquire));
            }
        });
        // Other tests of this process send some as well.
        assert!(most >= NAPPERS, "{most}");
        for group in 0..2 {
            let mut rows = 0;
            let (from, to) = ([], [u8::MAX; 5]);
            engine
                .scan(Space::State(group), &from, &to, &mut |_, _| {
                    rows += 1;
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(rows, 40 * 300);
        }
        engine.close();
    }
}
