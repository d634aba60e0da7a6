//! The engine on disk: one sled database per node.
//!
//! sled's own `flush` writes its buffer and asks the kernel to start writing; it does not sync the disk.
//! So [`SledEngine::sync`] calls `fdatasync` on the database file through a second descriptor afterwards
//! (a sync covers the file, not the descriptor). sled's timed flusher is off; nothing else syncs.
//!
//! sled gives little of its file back: after a restart it reuses no part of what it found, however little of
//! that is alive. So once in a while the rows are copied into a new database, which then takes the place
//! of the old one: [`copy`]. Where the databases lie and which one counts: [`folder`]. What its threads do
//! when there are too many of them: [`pool`].

mod copy;
mod folder;
mod pool;

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use sled::{Db, Tree};

use self::copy::Changed;
use self::folder::Databases;
use super::{Engine, Space, Tidied, Visit, WriteBatch, check_limits, closed};

const LOG_TREE: &str = "raft";

fn state_tree(group: u32) -> String {
    format!("sm/{group}")
}

/// An engine over a sled database.
pub(crate) struct SledEngine {
    open: RwLock<Option<Open>>,
    groups: u32,
    cache_bytes: u64,
    databases: Mutex<Databases>,
    /// What is written while a copy is made; `None` while none is.
    changed: Mutex<Option<Changed>>,
    /// Bytes written since the rows were last weighed.
    written: AtomicU64,
    /// When they were.
    weighed: Mutex<Instant>,
    /// Tells a copy that is being made to give up.
    closing: AtomicBool,
}

struct Open {
    db: Db,
    log: Tree,
    states: Vec<Tree>,
    file: File,
}

impl SledEngine {
    /// Opens or creates the database in folder `path` for groups `0..groups`.
    pub(crate) fn open(path: &Path, groups: u32, cache_bytes: u64) -> io::Result<Self> {
        let databases = Databases::open(path)?;
        let open = Open::new(&databases.current(), groups, cache_bytes)?;
        open.sync_all(&databases.current())?;
        Ok(Self {
            open: RwLock::new(Some(open)),
            groups,
            cache_bytes,
            databases: Mutex::new(databases),
            changed: Mutex::new(None),
            // Weighs at the first occasion: what was found cannot be reused otherwise.
            written: AtomicU64::new(u64::MAX >> 1),
            weighed: Mutex::new(Instant::now()),
            closing: AtomicBool::new(false),
        })
    }

    fn with<T>(&self, f: impl FnOnce(&Open) -> io::Result<T>) -> io::Result<T> {
        let open = self.open.read();
        f(open.as_ref().ok_or_else(closed)?)
    }

    fn change(
        &self,
        space: Space,
        writes: WriteBatch,
        apply: impl FnOnce(&Tree, WriteBatch) -> sled::Result<()>,
    ) -> io::Result<()> {
        check_limits(&writes)?;
        self.with(|open| {
            let bytes = writes.iter().map(|(key, value)| row_bytes(key, value.as_deref())).sum();
            self.written.fetch_add(bytes, Ordering::Relaxed);
            // Noted after it is done: what a copy reads of a noted key is at least that new.
            let is_copied = self.changed.lock().is_some();
            let keys: Option<Vec<_>> =
                is_copied.then(|| writes.iter().map(|(key, _)| key.clone()).collect());
            apply(open.tree(space)?, writes).map_err(to_io)?;
            if let (Some(keys), Some(changed)) = (keys, self.changed.lock().as_mut()) {
                changed.note(space, keys);
            }
            Ok(())
        })
    }
}

impl Open {
    /// Opens or creates one database.
    ///
    /// A half-written snapshot of sled's page table, left by a hard stop, blocks opening although the
    /// data is whole: it is removed and opening is tried once more.
    fn new(path: &Path, groups: u32, cache_bytes: u64) -> io::Result<Self> {
        let db = match open_db(path, cache_bytes) {
            Ok(db) => db,
            Err(first) => {
                if !remove_leftovers(path)? {
                    return Err(first);
                }
                tracing::warn!(path = %path.display(), error = %first, "opening the database again without leftovers");
                open_db(path, cache_bytes)?
            }
        };
        let log = db.open_tree(LOG_TREE).map_err(to_io)?;
        let states = (0..groups)
            .map(|group| db.open_tree(state_tree(group)).map_err(to_io))
            .collect::<io::Result<Vec<_>>>()?;
        let file = File::open(path.join("db"))?;
        Ok(Self { db, log, states, file })
    }

    /// Makes the file and its name durable.
    fn sync_all(&self, path: &Path) -> io::Result<()> {
        self.db.flush().map_err(to_io)?;
        self.file.sync_all()?;
        sync_dir(path)?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    /// Makes what was written so far durable.
    fn sync(&self) -> io::Result<()> {
        self.db.flush().map_err(to_io)?;
        self.file.sync_data()?;
        pool::calm(&self.db);
        Ok(())
    }

    /// Closes the files: once it returns, nobody has them open.
    fn close(self) {
        let Self { db, log, states, file } = self;
        drop((db, log, states));
        // Jobs that sled still runs in the background, and scans, keep the database and its lock alive
        // for a moment. Whoever opens the folder next would be refused, so wait for the lock here.
        if let Err(error) = file.lock() {
            tracing::warn!(%error, "cannot tell whether the database is free again");
        }
    }

    fn tree(&self, space: Space) -> io::Result<&Tree> {
        match space {
            Space::Log => Ok(&self.log),
            Space::State(group) => self
                .states
                .get(group as usize)
                .ok_or_else(|| io::Error::other(format!("no group {group} in this store"))),
        }
    }
}

impl Engine for SledEngine {
    fn get(&self, space: Space, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.with(|open| {
            let value = open.tree(space)?.get(key).map_err(to_io)?;
            Ok(value.map(|value| Bytes::copy_from_slice(&value)))
        })
    }

    fn scan(&self, space: Space, from: &[u8], to: &[u8], visit: Visit<'_>) -> io::Result<()> {
        if from >= to {
            return Ok(());
        }
        // The visitor may read again, so the lock is not held while it runs.
        let tree = self.with(|open| Ok(open.tree(space)?.clone()))?;
        for item in tree.range(from..to) {
            let (key, value) = item.map_err(to_io)?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, space: Space, batch: WriteBatch) -> io::Result<()> {
        self.change(space, batch, |tree, batch| {
            let mut writes = sled::Batch::default();
            for (key, value) in batch {
                match value {
                    Some(value) => writes.insert(key, value),
                    None => writes.remove(key),
                }
            }
            tree.apply_batch(writes)
        })
    }

    /// sled writes a batch to its file in two pieces at least, and wakes seven threads for each. What comes later in
    /// its log never survives what came before, and no batch of another thread lies in between.
    fn write_in_order(&self, space: Space, writes: WriteBatch) -> io::Result<()> {
        self.change(space, writes, |tree, writes| {
            writes.into_iter().try_for_each(|(key, value)| {
                match value {
                    Some(value) => tree.insert(key, value),
                    None => tree.remove(key),
                }
                .map(drop)
            })
        })
    }

    fn clear(&self, space: Space) -> io::Result<()> {
        let mut open = self.open.write();
        let open = open.as_mut().ok_or_else(closed)?;
        if let Some(changed) = self.changed.lock().as_mut() {
            changed.give_up();
        }
        match space {
            Space::Log => open.log.clear().map_err(to_io),
            Space::State(group) => {
                // Frees whole pages, which is far cheaper than removing rows one by one.
                let name = state_tree(group);
                open.tree(space)?;
                open.db.drop_tree(&name).map_err(to_io)?;
                open.states[group as usize] = open.db.open_tree(&name).map_err(to_io)?;
                Ok(())
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.with(Open::sync)
    }

    fn size_on_disk(&self) -> u64 {
        self.with(|open| open.db.size_on_disk().map_err(to_io)).unwrap_or(0)
    }

    fn volatile(&self) -> bool {
        false
    }

    fn tidy(&self, short: bool) -> io::Result<Option<Tidied>> {
        self.tidy_above(copy::SMALLEST, short.then_some(copy::REST_WHILE_SHORT))
    }

    fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // A copy that is being made has this lock, and gives up.
        let _databases = self.databases.lock();
        if let Some(open) = self.open.write().take() {
            open.close();
        }
    }
}

/// What a row takes.
fn row_bytes(key: &[u8], value: Option<&[u8]>) -> u64 {
    (key.len() + value.map_or(0, <[u8]>::len)) as u64
}

fn open_db(path: &Path, cache_bytes: u64) -> io::Result<Db> {
    let config = sled::Config::new().path(path).cache_capacity(cache_bytes).flush_every_ms(None);
    // sled panics on some kinds of broken data instead of returning an error.
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(result) => result.map_err(to_io),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "sled panicked while it opened the database",
        )),
    }
}

/// Removes page table snapshots that were never finished. True when there was one.
fn remove_leftovers(path: &Path) -> io::Result<bool> {
    let mut removed = false;
    for entry in fs::read_dir(path)? {
        let file: PathBuf = entry?.path();
        if file.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(&file)?;
            removed = true;
        }
    }
    Ok(removed)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn to_io(error: sled::Error) -> io::Error {
    match error {
        // sled repeats its first error as a text for programmers; an operator should read what to do.
        sled::Error::Io(error) if super::is_full(&error) => {
            let advice =
                "make room for the data folder and start again; all that was acknowledged is in it";
            io::Error::new(error.kind(), format!("{}: {advice}", error.kind()))
        }
        sled::Error::Io(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sled's background jobs share one small pool of threads per process, so many databases at once
    /// keep each other's jobs, and with them their files, alive for longer.
    #[test]
    fn closed_database_opens_again_at_once() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let dir = tempfile::tempdir().unwrap();
                    for round in 0..50_u32 {
                        let engine = SledEngine::open(dir.path(), 1, 16 << 20).unwrap();
                        let row = |row: u32| (row.to_be_bytes().to_vec(), Some(vec![7; 4096]));
                        engine.write(Space::State(0), (0..200).map(row).collect()).unwrap();
                        if round % 2 == 0 {
                            engine.sync().unwrap();
                        }
                        engine.close();
                    }
                });
            }
        });
    }

    #[test]
    fn unfinished_page_table_snapshot_does_not_block_opening() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(dir.path(), 1, 16 << 20).unwrap();
        let path = engine.databases.lock().current();
        engine.write(Space::State(0), vec![(b"k".to_vec(), Some(b"v".to_vec()))]).unwrap();
        engine.sync().unwrap();
        engine.close();
        drop(engine);

        fs::write(path.join("snap.0000000000000FFF.generating"), b"half").unwrap();
        assert!(remove_leftovers(&path).unwrap());
        assert!(!remove_leftovers(&path).unwrap());
        let engine = SledEngine::open(dir.path(), 1, 16 << 20).unwrap();
        assert_eq!(engine.get(Space::State(0), b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }
}
