//! Gives disk space back: copies the rows into a new database while the old one is in use.
//!
//! All rows are copied in order. What is written meanwhile is noted by key and copied again, round after round,
//! until little is left; that little is copied while nobody else writes, and the new database takes over. Until
//! then the old one counts, so a crash at any moment loses nothing but the copy.
//!
//! A copy costs what is alive, so one is made only when the file is several times as large, and it is known
//! how large it is only when all rows were weighed. Both are done at half speed, so that others get on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::folder::Databases;
use super::{Open, SledEngine, Tidied, row_bytes, to_io};
use crate::store::{Engine, Space, closed};

/// Files below this size in bytes stay as they are.
pub(super) const SMALLEST: u64 = 128 << 20;
/// A file may be so many times as large as what is alive in it. After a copy it is one and a half to two times
/// as large.
const LARGEST_RATIO: u64 = 3;
/// The rows are weighed again once a quarter of the file has been written.
const WEIGH_AFTER: u64 = 4;
/// While the disk is short of room they are weighed again after this time, too: a purge writes little.
pub(super) const REST_WHILE_SHORT: Duration = Duration::from_secs(300);
/// Rows that are read at a time.
const CHUNK: usize = 1000;
/// Keys that may be left for the moment when nobody else writes.
const FEW: usize = 5_000;
/// Keys that are noted before they are copied again, if only to forget them.
const MANY: usize = 50_000;
/// Rounds after which the copy is given up: rows change faster than they can be copied.
const ROUNDS: usize = 20;

/// Keys that were written while a copy was being made.
#[derive(Default)]
pub(super) struct Changed {
    keys: HashMap<Space, BTreeSet<Vec<u8>>>,
    is_in_vain: bool,
}

impl Changed {
    pub(super) fn note(&mut self, space: Space, keys: Vec<Vec<u8>>) {
        self.keys.entry(space).or_default().extend(keys);
    }

    /// A whole space was cleared: what was copied of it is wrong.
    pub(super) fn give_up(&mut self) {
        self.is_in_vain = true;
    }

    /// Takes the keys; whether the copy is in vain stays known.
    fn take(&mut self) -> Self {
        Self { keys: std::mem::take(&mut self.keys), is_in_vain: self.is_in_vain }
    }

    fn len(&self) -> usize {
        self.keys.values().map(BTreeSet::len).sum()
    }
}

/// Why a copy came to nothing.
enum Stopped {
    /// The old database goes on as if nothing had been.
    InVain(String),
    /// Which database counts after a crash is not known: there is no way on.
    Unknown(io::Error),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::InVain(error.to_string())
    }
}

impl SledEngine {
    /// Copies the database if that gives much space back. `None` when it was not worth it, or had to be given up.
    /// Rows are weighed after many writes, and after the time `rest`.
    ///
    /// # Errors
    /// After an error the engine must not be used any more.
    pub(super) fn tidy_above(
        &self,
        smallest: u64,
        rest: Option<Duration>,
    ) -> io::Result<Option<Tidied>> {
        let mut databases = self.databases.lock();
        let before = self.size_on_disk();
        let is_due = self.written.load(Ordering::Relaxed) > before / WEIGH_AFTER
            || rest.is_some_and(|rest| self.weighed.lock().elapsed() >= rest);
        if before < smallest || !is_due {
            return Ok(None);
        }
        self.written.store(0, Ordering::Relaxed);
        let alive = self.weigh();
        *self.weighed.lock() = Instant::now();
        let Ok(alive) = alive else { return Ok(None) };
        if before < alive.saturating_mul(LARGEST_RATIO) + smallest / 2 {
            return Ok(None);
        }
        let prepared =
            databases.next().and_then(|(number, path)| Ok((number, free_bytes(&path)?, path)));
        let (number, free, path) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                tracing::warn!(%error, "no copy of the database can be made");
                return Ok(None);
            }
        };
        if free < alive.saturating_mul(2) {
            tracing::warn!(
                file_bytes = before,
                row_bytes = alive,
                free_bytes = free,
                "the database could give space back, but there is no room for a copy of its rows"
            );
            clean(&databases);
            return Ok(None);
        }
        let started = Instant::now();
        *self.changed.lock() = Some(Changed::default());
        // Waits for writes that began when nothing was noted yet.
        drop(self.open.write());
        let copied = self.copy(&path, || databases.switch(number));
        *self.changed.lock() = None;
        match copied {
            Ok(old) => old.close(),
            Err(Stopped::Unknown(error)) => return Err(error),
            Err(Stopped::InVain(reason)) => tracing::info!(reason, "the database was not copied"),
        }
        clean(&databases);
        let after = self.size_on_disk();
        let tidied = Tidied { before, after, alive, took: started.elapsed() };
        Ok((databases.current() == path).then_some(tidied))
    }

    /// Bytes of all rows.
    fn weigh(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for space in self.spaces() {
            self.chunks(space, |rows| {
                bytes += rows.iter().map(|(key, value)| row_bytes(key, Some(value))).sum::<u64>();
                Ok(())
            })?;
        }
        Ok(bytes)
    }

    /// Copies all rows, lets the new database take over, and returns the old one.
    fn copy(&self, path: &Path, switch: impl FnOnce() -> io::Result<()>) -> Result<Open, Stopped> {
        let new = Open::new(path, self.groups, self.cache_bytes)?;
        for space in self.spaces() {
            let tree = new.tree(space)?;
            self.chunks(space, |rows| {
                let mut batch = sled::Batch::default();
                rows.into_iter().for_each(|(key, value)| batch.insert(key, value));
                tree.apply_batch(batch).map_err(to_io)?;
                if self.changed.lock().as_ref().is_some_and(|changed| changed.len() > MANY) {
                    let changed = self.changed.lock().as_mut().map(Changed::take);
                    again(|space| self.tree(space), &new, changed.unwrap_or_default())?;
                }
                Ok(())
            })?;
        }
        // Each round is synced, so that what nobody else may write during is short at last.
        new.sync_all(path)?;
        let mut rounds = 0..ROUNDS;
        loop {
            let changed = self.take_changed()?;
            let is_little = changed.len() <= FEW;
            again(|space| self.tree(space), &new, changed)?;
            new.sync()?;
            if is_little {
                break;
            }
            if rounds.next().is_none() {
                return Err(Stopped::InVain("rows change faster than they can be copied".into()));
            }
        }

        let mut open = self.open.write();
        let Some(old) = open.take() else { return Err(closed().into()) };
        let last = self.take_changed().and_then(|changed| {
            again(|space| old.tree(space).cloned(), &new, changed)?;
            Ok(new.sync()?)
        });
        if let Err(stopped) = last {
            *open = Some(old);
            return Err(stopped);
        }
        // After an error nobody writes to either of them: it is not known which one counts.
        switch().map_err(Stopped::Unknown)?;
        *open = Some(new);
        Ok(old)
    }

    /// A tree, to be read while others write and without keeping them from anything.
    fn tree(&self, space: Space) -> io::Result<sled::Tree> {
        self.with(|open| open.tree(space).cloned())
    }

    fn take_changed(&self) -> Result<Changed, Stopped> {
        let changed = self.changed.lock().as_mut().map(Changed::take).unwrap_or_default();
        if changed.is_in_vain {
            return Err(Stopped::InVain("rows of a whole partition were replaced".into()));
        }
        Ok(changed)
    }

    fn spaces(&self) -> impl Iterator<Item = Space> + use<> {
        std::iter::once(Space::Log).chain((0..self.groups).map(Space::State))
    }

    /// Visits all rows of a space, with a rest after each chunk that is as long as the chunk took.
    fn chunks(
        &self,
        space: Space,
        mut visit: impl FnMut(Vec<(sled::IVec, sled::IVec)>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut from = Bound::Unbounded;
        loop {
            let began = Instant::now();
            if self.closing.load(Ordering::Acquire) {
                return Err(closed());
            }
            let tree = self.tree(space)?;
            let rows = tree.range::<sled::IVec, _>((from, Bound::Unbounded)).take(CHUNK);
            let rows: Vec<_> = rows.collect::<Result<_, _>>().map_err(to_io)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from = Bound::Excluded(last.clone());
            visit(rows)?;
            std::thread::sleep(began.elapsed().min(Duration::from_secs(1)));
        }
    }
}

/// Removes what does not count. What cannot be removed now, the next start removes.
fn clean(databases: &Databases) {
    if let Err(error) = databases.remove_others() {
        tracing::warn!(%error, "an old database is still there");
    }
}

/// Copies again what has changed.
fn again(
    old: impl Fn(Space) -> io::Result<sled::Tree>,
    new: &Open,
    changed: Changed,
) -> io::Result<()> {
    for (space, keys) in changed.keys {
        let (from, to) = (old(space)?, new.tree(space)?);
        for key in keys {
            match from.get(&key).map_err(to_io)? {
                Some(value) => to.insert(key, value).map_err(to_io)?,
                None => to.remove(key).map_err(to_io)?,
            };
        }
    }
    Ok(())
}

/// Bytes that may still be written where `path` lies.
fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;
    use std::sync::atomic::AtomicBool;

    use super::*;

    const STATE: Space = Space::State(0);
    /// Small enough for a test's database to be worth a copy.
    const SMALL: u64 = 4 << 20;

    type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

    fn rows(engine: &SledEngine, space: Space) -> Rows {
        let mut rows = Rows::new();
        let visit = &mut |key: &[u8], value: &[u8]| {
            rows.insert(key.to_vec(), value.to_vec());
            ControlFlow::Continue(())
        };
        engine.scan(space, &[], &[0xff; 9], visit).unwrap();
        rows
    }

    /// An engine of which most rows were removed, opened again so that sled cannot reuse their space.
    fn hollow(path: &Path) -> SledEngine {
        let engine = SledEngine::open(path, 2, 8 << 20).unwrap();
        let key = |number: u32| number.to_be_bytes().to_vec();
        for from in (0..40_000).step_by(1000) {
            let value = Some(vec![7; 1000]);
            let batch = (from..from + 1000).map(|row| (key(row), value.clone())).collect();
            engine.write(STATE, batch).unwrap();
        }
        engine.write(Space::Log, vec![(b"vote".to_vec(), Some(b"1".to_vec()))]).unwrap();
        for from in (0..40_000).step_by(1000) {
            let batch = (from..from + 1000).filter(|row| row % 100 > 0).map(|row| (key(row), None));
            engine.write(STATE, batch.collect()).unwrap();
        }
        engine.sync().unwrap();
        engine.close();
        SledEngine::open(path, 2, 8 << 20).unwrap()
    }

    #[test]
    fn space_comes_back_while_rows_change() {
        let dir = tempfile::tempdir().unwrap();
        let engine = hollow(dir.path());
        let mut expected = rows(&engine, STATE);
        assert_eq!(expected.len(), 400);
        let done = AtomicBool::new(false);
        let (written, tidied) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut written = Rows::new();
                let mut round = 0_u32;
                while !done.load(Ordering::Acquire) || round < 100 {
                    // Old rows change, new ones come and go.
                    let key = (round % 500 * 100).to_be_bytes().to_vec();
                    let value = round.to_be_bytes().to_vec();
                    let passing = [b"x".to_vec(), key.clone()].concat();
                    engine
                        .write(
                            STATE,
                            vec![
                                (key.clone(), Some(value.clone())),
                                (passing.clone(), Some(vec![1])),
                            ],
                        )
                        .unwrap();
                    assert_eq!(engine.get(STATE, &key).unwrap().as_deref(), Some(&value[..]));
                    engine.write(STATE, vec![(passing, None)]).unwrap();
                    written.insert(key, value);
                    round += 1;
                }
                engine.sync().unwrap();
                written
            });
            let tidied = engine.tidy_above(SMALL, None).unwrap();
            done.store(true, Ordering::Release);
            (writer.join().unwrap(), tidied)
        });
        let tidied = tidied.expect("was worth it");
        assert!(tidied.before > 8 * tidied.after, "{tidied:?}");
        expected.extend(written);
        assert_eq!(rows(&engine, STATE), expected);
        assert_eq!(rows(&engine, Space::Log).len(), 1);
        assert!(engine.tidy_above(SMALL, None).unwrap().is_none(), "nothing is left to be gained");

        engine.close();
        let engine = SledEngine::open(dir.path(), 2, 8 << 20).unwrap();
        assert_eq!(rows(&engine, STATE), expected);
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }

    #[test]
    fn a_copy_is_given_up_when_a_space_is_cleared_or_the_engine_closed() {
        let dir = tempfile::tempdir().unwrap();
        let engine = hollow(dir.path());
        let path = engine.databases.lock().next().unwrap().1;
        *engine.changed.lock() = Some(Changed::default());
        engine.clear(STATE).unwrap();
        let copied = engine.copy(&path, || unreachable!("not worth switching to"));
        assert!(matches!(copied, Err(Stopped::InVain(_))));
        assert!(rows(&engine, STATE).is_empty());

        engine.close();
        assert!(engine.tidy_above(0, None).unwrap().is_none());
        let engine = SledEngine::open(dir.path(), 2, 8 << 20).unwrap();
        assert!(rows(&engine, STATE).is_empty());
        assert_eq!(rows(&engine, Space::Log).len(), 1);
    }

    /// Removing rows writes little, so nobody would look for what it freed.
    #[test]
    fn what_a_purge_frees_comes_back_while_the_disk_is_short() {
        let dir = tempfile::tempdir().unwrap();
        let engine = SledEngine::open(dir.path(), 2, 8 << 20).unwrap();
        let key = |number: u32| number.to_be_bytes().to_vec();
        for from in (0..40_000).step_by(1000) {
            let value = Some(vec![7; 1000]);
            let batch = (from..from + 1000).map(|row| (key(row), value.clone())).collect();
            engine.write(STATE, batch).unwrap();
        }
        assert!(engine.tidy_above(SMALL, None).unwrap().is_none(), "all of it is alive");
        for from in (0..40_000).step_by(1000) {
            let batch = (from..from + 1000).filter(|row| row % 100 > 0).map(|row| (key(row), None));
            engine.write(STATE, batch.collect()).unwrap();
        }
        assert!(engine.tidy_above(SMALL, None).unwrap().is_none(), "too little was written");
        let long = Some(Duration::from_secs(3600));
        assert!(engine.tidy_above(SMALL, long).unwrap().is_none(), "it was weighed just now");
        let tidied = engine.tidy_above(SMALL, Some(Duration::ZERO)).unwrap().expect("was worth it");
        assert!(tidied.before > 8 * tidied.after, "{tidied:?}");
        assert_eq!(rows(&engine, STATE).len(), 400);
    }

    #[test]
    fn a_copy_that_cannot_begin_harms_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let engine = hollow(dir.path());
        std::fs::write(dir.path().join("2"), b"in the way").unwrap();
        assert!(engine.tidy_above(SMALL, None).unwrap().is_none());
        assert_eq!(rows(&engine, STATE).len(), 400);
    }

    #[test]
    fn the_old_database_counts_until_the_copy_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let engine = hollow(dir.path());
        let path = engine.databases.lock().next().unwrap().1;
        *engine.changed.lock() = Some(Changed::default());
        let failed = engine.copy(&path, || Err(io::Error::other("the process dies here")));
        assert!(matches!(failed, Err(Stopped::Unknown(_))));
        engine.close();
        let engine = SledEngine::open(dir.path(), 2, 8 << 20).unwrap();
        assert_eq!(rows(&engine, STATE).len(), 400);
        assert!(!path.exists());
    }
}
