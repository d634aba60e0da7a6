//! Keeps bytes on disk: the only room that names sled.
//!
//! One [`Engine`] per node is a narrow, ordered key-value store with two kinds of space: one for the logs
//! of all groups, and one per group for its state rows. Everything above it is written once and runs on
//! either engine:
//!
//! - [`flusher`]: one thread and one queue per node; many log writes share one sync (group commit);
//! - [`writer`]: the batch of one round of it;
//! - [`log`]: the log of one group, packed into small records, its newest part in memory;
//! - [`rows`]: the state rows of one group, of any size, written atomically;
//! - [`overlay`]: the rows as the next command must see them while a batch is being applied;
//! - [`dump`]: a consistent copy of those rows, read while they change;
//! - [`snapshot`]: a group's state as one checked stream of bytes;
//! - [`holding`], [`erase`]: what a node has of a group, and how that goes.
//!
//! What is absent on purpose: no flush timer, no asynchronous flush, no transaction, no value above
//! [`VALUE_LIMIT`]. sled 0.34 writes larger leaves into separate files that it never syncs.

pub(crate) mod dump;
pub(crate) mod erase;
pub(crate) mod flusher;
pub(crate) mod holding;
pub(crate) mod keys;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod overlay;
pub(crate) mod record;
pub(crate) mod rows;
pub(crate) mod sled;
pub(crate) mod snapshot;
#[cfg(test)]
mod suite;
pub(crate) mod writer;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

/// Longest value that an engine accepts, in bytes. Whoever stores more must split it.
pub(crate) const VALUE_LIMIT: usize = 4096;

/// Longest key that an engine accepts, in bytes: a sled leaf holds up to 16 items and must stay small.
pub(crate) const KEY_LIMIT: usize = 2048;

/// A key space of an engine. A batch never spans two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Space {
    /// Log records, votes and pointers of all groups.
    Log,
    /// State rows of one group.
    State(u32),
}

/// Puts (`Some`) and deletions (`None`) that become visible and durable together.
pub(crate) type WriteBatch = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What [`Engine::tidy`] has done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tidied {
    /// Bytes on disk before.
    pub(crate) before: u64,
    /// Bytes on disk after.
    pub(crate) after: u64,
    /// Bytes of keys and values.
    pub(crate) alive: u64,
    /// How long it took.
    pub(crate) took: Duration,
}

/// Visitor of a scan; breaks to stop early.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// An ordered key-value store. All methods block; none syncs but [`Engine::sync`].
pub(crate) trait Engine: Send + Sync + 'static {
    /// The value of one key.
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>>;

    /// Visits `from <= key < to` in ascending order.
    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()>;

    /// Applies a batch: after a crash all of it is there or none of it. Readers that run beside it may
    /// see a part; callers that mind hold a lock.
    fn write(&self, space: Space, batch: WriteBatch) -> io::Result<()>;

    /// Applies the writes one after the other: after a crash the first of them are there, however many. For whoever
    /// can do with that, as it may cost less.
    fn write_in_order(&self, space: Space, writes: WriteBatch) -> io::Result<()> {
        self.write(space, writes)
    }

    /// Empties a space. Not atomic.
    fn clear(&self, space: Space) -> io::Result<()>;

    /// Makes everything written so far survive a power cut.
    fn sync(&self) -> io::Result<()>;

    /// Bytes that the engine occupies on disk; 0 when it keeps nothing.
    fn size_on_disk(&self) -> u64;

    /// Gives disk space back where that is worth the work; takes long, and others go on meanwhile. `None` when
    /// nothing was done. With `short` the disk is short of room: then it looks more often, since removing rows
    /// writes little.
    ///
    /// # Errors
    /// After an error the engine must not be used any more.
    fn tidy(&self, short: bool) -> io::Result<Option<Tidied>> {
        let _ = short;
        Ok(None)
    }

    /// True when nothing outlives the process, so that group commit has no point.
    fn volatile(&self) -> bool;

    /// Closes the files: once it returns, they can be opened again. Every later call fails.
    fn close(&self);
}

/// Refuses keys and values that would make sled write files which it never syncs.
pub(crate) fn check_limits(batch: &WriteBatch) -> io::Result<()> {
    for (key, value) in batch {
        if key.len() > KEY_LIMIT {
            return Err(io::Error::other(format!(
                "key of {} bytes, the limit is {KEY_LIMIT}",
                key.len()
            )));
        }
        if let Some(value) = value
            && value.len() > VALUE_LIMIT
        {
            return Err(io::Error::other(format!(
                "value of {} bytes, the limit is {VALUE_LIMIT}",
                value.len()
            )));
        }
    }
    Ok(())
}

/// The error of an engine that was closed.
pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed")
}

/// Whether a write failed for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

/// What to do when the disk fails or the data is broken: there is no way on from there.
///
/// The default leaves the process, so that whoever watches it starts it again and it recovers from
/// what is known to be durable. Tests put a recorder in its place.
#[derive(Clone)]
pub struct FaultHook(Arc<dyn Fn(&str) + Send + Sync>);

/// Exit code of a process that left because of a storage fault (`EX_IOERR`).
pub const FAULT_EXIT_CODE: i32 = 74;

impl FaultHook {
    /// A hook that calls `hook` with one sentence about the fault.
    pub fn new(hook: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn report(&self, message: &str) {
        (self.0)(message);
    }
}

impl Default for FaultHook {
    fn default() -> Self {
        static LEAVING: AtomicBool = AtomicBool::new(false);
        Self::new(|message| {
            // One fault shows in many places at once: the first tells it, the others wait for the end.
            while LEAVING.swap(true, Ordering::AcqRel) {
                std::thread::park();
            }
            tracing::error!("storage fault, leaving the process: {message}");
            std::process::exit(FAULT_EXIT_CODE);
        })
    }
}

impl std::fmt::Debug for FaultHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FaultHook")
    }
}
