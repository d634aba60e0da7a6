//! Compaction points, snapshot files and their install.
//!
//! The state lives on disk already, so what openraft calls building a snapshot copies nothing: it makes
//! the rows durable and names the position that they have reached. Then the log below it may go.
//!
//! A file is written only when a follower asks for one. That happens on the state machine task, so no
//! command is applied meanwhile, while the log goes on accepting.
//!
//! An install is safe against crashes at every point: the received file is verified and named durably
//! under a marker before the rows are touched; the marker goes when the rows are durable; a start that
//! finds a marker repeats the load.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::codec::{self, Applied};
use super::types::{LogId, Snapshot, SnapshotMeta};
use crate::machine::GroupId;
use crate::store::flusher::{Flusher, Job};
use crate::store::rows::StateRows;
use crate::store::snapshot::{self, Body, Header};
use crate::store::{Engine, Space, keys};

/// Files kept per group: the newest, and the one that a transfer may still be about to open.
const FILES_KEPT: usize = 2;
/// A file is sent again while at most so many entries are newer: sending those from the log is cheaper.
const REUSE_WITHIN: u64 = 5_000;

/// Snapshots of one group.
pub(crate) struct Snapshots {
    cluster: [u8; 16],
    group: GroupId,
    /// Folder of the group's files; `None` keeps snapshots in memory.
    folder: Option<PathBuf>,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    /// False while openraft starts: it asks for the current snapshot then, and needs none.
    live: AtomicBool,
    current: Mutex<Option<(SnapshotMeta, Body)>>,
    /// Index of the newest compaction point: an older file may lack entries that were purged.
    compacted: AtomicU64,
    received: AtomicU64,
}

impl Snapshots {
    pub(crate) fn new(
        cluster: [u8; 16],
        group: GroupId,
        folder: Option<PathBuf>,
        engine: Arc<dyn Engine>,
        flusher: Arc<Flusher>,
    ) -> Self {
        Self {
            cluster,
            group,
            folder,
            engine,
            flusher,
            live: AtomicBool::new(false),
            current: Mutex::new(None),
            compacted: AtomicU64::new(0),
            received: AtomicU64::new(0),
        }
    }

    /// The group runs: from now on a request for the current snapshot means a follower.
    pub(crate) fn set_live(&self) {
        self.live.store(true, Ordering::Release);
    }

    pub(crate) fn builder(self: &Arc<Self>, rows: &Arc<StateRows>, applied: &Applied) -> Builder {
        Builder { snapshots: Arc::clone(self), rows: Arc::clone(rows), applied: applied.clone() }
    }

    /// The snapshot to send to a follower, written now if there is none that is recent enough.
    pub(crate) async fn current(
        &self,
        rows: &Arc<StateRows>,
        applied: &Applied,
    ) -> io::Result<Option<Snapshot>> {
        let Some(last) = applied.last else { return Ok(None) };
        if !self.live.load(Ordering::Acquire) {
            return Ok(None);
        }
        if let Some((meta, body)) = self.current.lock().clone()
            && let Some(known) = meta.last_log_id
            && known.index() >= self.compacted.load(Ordering::Acquire)
            && last.index() - known.index().min(last.index()) <= REUSE_WITHIN
        {
            return Ok(Some(Snapshot { meta, snapshot: body }));
        }
        let header = Header {
            cluster: self.cluster,
            group: self.group.0,
            applied: Bytes::from(codec::encode(applied)?),
        };
        let (path, source) = (self.path(&last), Arc::clone(rows));
        let write = tokio::task::spawn_blocking(move || match path {
            Some(path) => {
                fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
                snapshot::write_file(&path, &header, &source)?;
                Ok(Body::File(path))
            }
            None => {
                let mut out = Vec::new();
                snapshot::write_to(&header, &source, &mut out)?;
                Ok::<_, io::Error>(Body::Memory(Bytes::from(out)))
            }
        });
        let body = write.await.map_err(io::Error::other)??;
        let meta = meta_of(applied);
        *self.current.lock() = Some((meta.clone(), body.clone()));
        self.remove_old_files();
        Ok(Some(Snapshot { meta, snapshot: body }))
    }

    /// Replaces the rows by those of a received snapshot.
    pub(crate) async fn install(
        &self,
        rows: &Arc<StateRows>,
        meta: &SnapshotMeta,
        body: Body,
    ) -> io::Result<Applied> {
        let (applied, body) = self.accept(meta, body).await?;
        if let Body::File(path) = &body {
            self.mark(Some(file_name(path)?)).await?;
        }
        self.load(rows, &applied, &body).await?;
        *self.current.lock() = Some((meta_of(&applied), body));
        self.remove_old_files();
        Ok(applied)
    }

    /// Repeats an install that was cut short.
    pub(crate) async fn resume_install(&self, rows: &Arc<StateRows>) -> io::Result<()> {
        let marker = self.engine.get(Space::Log, &keys::pointer(keys::INSTALL, self.group.0))?;
        let (Some(name), Some(folder)) = (marker, &self.folder) else { return Ok(()) };
        let path = folder.join(String::from_utf8_lossy(&name).as_ref());
        tracing::warn!(partition = self.group.0, path = %path.display(), "repeating a snapshot install");
        let body = Body::File(path.clone());
        let header = snapshot::verify(&body).map_err(|error| {
            io::Error::new(error.kind(), format!("reading {}: {error}", path.display()))
        })?;
        let applied = codec::decode("applied record", &header.applied)?;
        self.load(rows, &applied, &body).await
    }

    /// Where a snapshot that a peer is about to send shall be written; `None` keeps it in memory.
    pub(crate) fn incoming(&self) -> io::Result<Option<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        fs::create_dir_all(folder)?;
        Ok(Some(
            folder.join(format!("incoming-{}.part", self.received.fetch_add(1, Ordering::Relaxed))),
        ))
    }

    /// Verifies what was received and gives it its final name.
    async fn accept(&self, meta: &SnapshotMeta, body: Body) -> io::Result<(Applied, Body)> {
        let checked = body.clone();
        let verify = tokio::task::spawn_blocking(move || snapshot::verify(&checked));
        let header = verify.await.map_err(io::Error::other)??;
        let applied: Applied = codec::decode("applied record", &header.applied)?;
        if header.cluster != self.cluster || header.group != self.group.0 {
            return Err(invalid("the snapshot is of another cluster or partition"));
        }
        if applied.last != meta.last_log_id {
            return Err(invalid("the snapshot is of another position than announced"));
        }
        let last = applied.last.ok_or_else(|| invalid("the snapshot is empty"))?;
        let body = match (body, self.path(&last)) {
            (Body::File(from), Some(path)) if from != path => {
                fs::create_dir_all(path.parent().unwrap_or_else(|| Path::new(".")))?;
                if from.parent() == path.parent() {
                    fs::rename(&from, &path)?;
                } else {
                    fs::copy(&from, &path)?;
                }
                fs::File::open(&path)?.sync_all()?;
                crate::store::sled::sync_dir(path.parent().unwrap_or_else(|| Path::new(".")))?;
                Body::File(path)
            }
            (body, _) => body,
        };
        Ok((applied, body))
    }

    async fn load(&self, rows: &Arc<StateRows>, applied: &Applied, body: &Body) -> io::Result<()> {
        let record = codec::encode(applied)?;
        let (rows, body) = (Arc::clone(rows), body.clone());
        let load = tokio::task::spawn_blocking(move || {
            let mut reader = snapshot::Reader::open(&body)?;
            rows.replace(record, || reader.next_row())
        });
        load.await.map_err(io::Error::other)??;
        // The sync behind the marker's removal covers the rows as well.
        self.mark(None).await
    }

    async fn mark(&self, name: Option<Vec<u8>>) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.flusher.submit(Job::Put {
            key: keys::pointer(keys::INSTALL, self.group.0),
            value: name,
            done: Box::new(move |result| drop(sender.send(result))),
        });
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the flusher is gone")))
    }

    fn path(&self, last: &LogId) -> Option<PathBuf> {
        let name = format!("{:020}-{:020}.snap", last.committed_leader_id().term, last.index());
        self.folder.as_ref().map(|folder| folder.join(name))
    }

    fn remove_old_files(&self) {
        let Some(folder) = &self.folder else { return };
        let Ok(entries) = fs::read_dir(folder) else { return };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "snap"))
            .collect();
        files.sort();
        for path in files.iter().rev().skip(FILES_KEPT) {
            if let Err(error) = fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "an old snapshot cannot be removed");
            }
        }
    }
}

/// Names a compaction point.
pub(crate) struct Builder {
    snapshots: Arc<Snapshots>,
    rows: Arc<StateRows>,
    applied: Applied,
}

impl Builder {
    pub(crate) async fn build(&mut self) -> io::Result<Snapshot> {
        let rows = Arc::clone(&self.rows);
        tokio::task::spawn_blocking(move || rows.store()).await.map_err(io::Error::other)??;
        self.snapshots.flusher.sync().await?;
        if let Some(last) = &self.applied.last {
            self.snapshots.compacted.fetch_max(last.index(), Ordering::AcqRel);
        }
        Ok(Snapshot { meta: meta_of(&self.applied), snapshot: Body::Memory(Bytes::new()) })
    }
}

fn meta_of(applied: &Applied) -> SnapshotMeta {
    SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership.clone() }
}

fn file_name(path: &Path) -> io::Result<Vec<u8>> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| invalid("the snapshot has no name"))?;
    Ok(name.as_bytes().to_vec())
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests;
