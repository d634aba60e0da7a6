//! The engine on disk: one sled database per node.
//!
//! sled's own `flush` writes its buffer and asks the kernel to start writing; it does not sync the disk.
//! So [`SledEngine::sync`] calls `fdatasync` on the database file through a second descriptor afterwards
//! (a sync covers the file, not the descriptor). sled's timed flusher is off; nothing else syncs.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::RwLock;
use sled::{Db, Tree};

use super::{Engine, Space, Visit, WriteBatch, check_limits, closed};

const LOG_TREE: &str = "raft";

fn state_tree(group: u32) -> String {
    format!("sm/{group}")
}

/// An engine over a sled database.
pub(crate) struct SledEngine {
    open: RwLock<Option<Open>>,
}

struct Open {
    db: Db,
    log: Tree,
    states: Vec<Tree>,
    file: File,
}

impl SledEngine {
    /// Opens or creates the database in folder `path` for groups `0..groups`.
    ///
    /// A half-written snapshot of sled's page table, left by a hard stop, blocks opening although the
    /// data is whole: it is removed and opening is tried once more.
    pub(crate) fn open(path: &Path, groups: u32, cache_bytes: u64) -> io::Result<Self> {
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
        file.sync_all()?;
        sync_dir(path)?;
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
        Ok(Self { open: RwLock::new(Some(Open { db, log, states, file })) })
    }

    fn with<T>(&self, f: impl FnOnce(&Open) -> io::Result<T>) -> io::Result<T> {
        let open = self.open.read();
        f(open.as_ref().ok_or_else(closed)?)
    }
}

impl Open {
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
        check_limits(&batch)?;
        self.with(|open| {
            let mut writes = sled::Batch::default();
            for (key, value) in batch {
                match value {
                    Some(value) => writes.insert(key, value),
                    None => writes.remove(key),
                }
            }
            open.tree(space)?.apply_batch(writes).map_err(to_io)
        })
    }

    fn clear(&self, space: Space) -> io::Result<()> {
        let mut open = self.open.write();
        let open = open.as_mut().ok_or_else(closed)?;
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
        self.with(|open| {
            open.db.flush().map_err(to_io)?;
            open.file.sync_data()
        })
    }

    fn size_on_disk(&self) -> u64 {
        self.with(|open| open.db.size_on_disk().map_err(to_io)).unwrap_or(0)
    }

    fn volatile(&self) -> bool {
        false
    }

    fn close(&self) {
        let Some(Open { db, log, states, file }) = self.open.write().take() else { return };
        drop((db, log, states));
        // Jobs that sled still runs in the background, and scans, keep the database and its lock alive
        // for a moment. Whoever opens the folder next would be refused, so wait for the lock here.
        if let Err(error) = file.lock() {
            tracing::warn!(%error, "cannot tell whether the database is free again");
        }
    }
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
        let path = dir.path().join("sled");
        let engine = SledEngine::open(&path, 1, 16 << 20).unwrap();
        engine.write(Space::State(0), vec![(b"k".to_vec(), Some(b"v".to_vec()))]).unwrap();
        engine.sync().unwrap();
        engine.close();
        drop(engine);

        fs::write(path.join("snap.0000000000000FFF.generating"), b"half").unwrap();
        assert!(remove_leftovers(&path).unwrap());
        assert!(!remove_leftovers(&path).unwrap());
        let engine = SledEngine::open(&path, 1, 16 << 20).unwrap();
        assert_eq!(engine.get(Space::State(0), b"k").unwrap().as_deref(), Some(&b"v"[..]));
    }
}
