//! All groups of this node: one folder, one store, one flusher, one transport; start and stop.
//!
//! Starting opens the folder, then the store, then all groups side by side, so that their first writes
//! share flushes. A node that is alone leads every group and has applied everything when `start` returns.
//! Stopping goes the other way: groups first, then the queue runs dry, then the files close, then the
//! folder's lock goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::config::{NodeConfig, Storage, check, limits};
use crate::directory::{Directory, Leadership};
use crate::error::StartError;
use crate::folder::{Expected, FORMAT, Folder, Identity};
use crate::machine::{GroupId, Machine};
use crate::membership;
use crate::metrics;
use crate::partition::Partition;
use crate::peers::PeerService;
use crate::raft::group::{Group, Setup};
use crate::raft::snapshots::Snapshots;
use crate::store::flusher::Flusher;
use crate::store::memory::MemoryEngine;
use crate::store::rows::StateRows;
use crate::store::sled::SledEngine;
use crate::store::{Engine, is_full};

/// A running node. Dropping it without [`Node::stop`] leaves its tasks running.
pub struct Node<M: Machine> {
    inner: Arc<Inner<M>>,
    service: Arc<dyn PeerService>,
}

pub(crate) struct Inner<M: Machine> {
    pub(crate) node_id: u64,
    pub(crate) identity: Identity,
    pub(crate) groups: Vec<Partition<M>>,
    directory: Directory,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    folder: Mutex<Option<Folder>>,
    meter: JoinHandle<()>,
    stopped: AtomicBool,
}

impl<M: Machine> Node<M> {
    /// Starts all groups. A node alone leads all of them, recovered, when this returns; a member of a larger
    /// cluster returns as soon as its groups run, and leaders show up in [`Partition::leadership`].
    pub async fn start(config: NodeConfig, machine: Arc<M>) -> Result<Self, StartError> {
        check(&config)?;
        let (folder, identity) = open_folder(&config).await?;
        let data = folder.as_ref().map(|folder| folder.path().to_owned()).unwrap_or_default();
        let broken = |source: io::Error| match is_full(&source) {
            true => StartError::Full { path: data.clone() },
            false => StartError::Broken { path: data.clone(), source },
        };
        let engine = open_engine(&config, folder.as_ref()).await.map_err(broken)?;
        let flusher = Arc::new(
            Flusher::start(Arc::clone(&engine), config.options.fault.clone()).map_err(broken)?,
        );
        let cluster = identity.cluster_bytes().unwrap_or_default();
        let count = config.partitions + 1;
        let tail_limit = (config.cache_bytes as usize / 8 / count as usize).clamp(1 << 20, 8 << 20);
        let limits = limits(&config.options);

        let starts = (0..count).map(|id| {
            let rows =
                Arc::new(StateRows::new(Arc::clone(&engine), id, config.options.fault.clone()));
            let files = folder.as_ref().map(|folder| folder.snapshots(id));
            let id = GroupId(id);
            let setup = Setup {
                id,
                node: config.node_id,
                cluster: identity.cluster.clone(),
                address: config.options.peer_address.clone(),
                initial_members: config.options.initial_members.clone(),
                machine: Arc::clone(&machine),
                rows: Arc::clone(&rows),
                engine: Arc::clone(&engine),
                flusher: Arc::clone(&flusher),
                snapshots: Arc::new(Snapshots::new(
                    cluster,
                    id,
                    files,
                    Arc::clone(&engine),
                    Arc::clone(&flusher),
                )),
                transport: Arc::clone(&config.options.transport),
                tail_limit,
                snapshot_every: config.options.snapshot_every,
                keep_entries: config.options.keep_entries,
                fault: config.options.fault.clone(),
            };
            let (limits, stamp) = (limits.clone(), Arc::clone(&config.stamp));
            // Each group on a task of its own: recovery of many groups then uses all cores.
            tokio::spawn(async move { Ok((id, Group::start(setup).await?, rows, limits, stamp)) })
        });
        let started = join_all(starts.collect::<Vec<_>>()).await.into_iter().map(|joined| {
            joined.map_err(io::Error::other).and_then(|started: io::Result<_>| started)
        });
        let mut groups = Vec::with_capacity(count as usize);
        for (id, started) in started.enumerate() {
            match started {
                Ok((id, group, rows, limits, stamp)) => {
                    groups.push(Partition::start(id, group, rows, limits, stamp))
                }
                Err(error) => {
                    join_all(groups.iter().map(Partition::stop)).await;
                    return Err(StartError::Group { group: id as u32, reason: error.to_string() });
                }
            }
        }
        let directory =
            Directory::new(config.node_id, groups.iter().map(Partition::leadership).collect());
        let meter = tokio::spawn(measure(Arc::clone(&engine), groups.clone()));
        let inner = Arc::new(Inner {
            node_id: config.node_id,
            identity,
            groups,
            directory,
            engine,
            flusher,
            folder: Mutex::new(folder),
            meter,
            stopped: AtomicBool::new(false),
        });
        let node = Self { service: Arc::clone(&inner) as Arc<dyn PeerService>, inner };
        if config.options.initial_members.len() <= 1 {
            node.wait_until_leading().await?;
        }
        Ok(node)
    }

    /// The group with this number. Panics if there is none: the number of groups never changes.
    pub fn group(&self, id: GroupId) -> &Partition<M> {
        &self.inner.groups[id.0 as usize]
    }

    /// Number of partitions, without the metadata group.
    pub fn partitions(&self) -> u32 {
        self.inner.identity.partitions
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// Who leads what, as last seen.
    pub fn directory(&self) -> &Directory {
        &self.inner.directory
    }

    /// What answers the calls of peers; a transport's server side forwards to it.
    pub fn service(&self) -> Arc<dyn PeerService> {
        Arc::clone(&self.service)
    }

    /// Stops all groups, flushes and closes the files. Later calls do nothing.
    pub async fn stop(&self) {
        let inner = &self.inner;
        if inner.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        inner.meter.abort();
        join_all(inner.groups.iter().map(Partition::stop)).await;
        let (engine, flusher) = (Arc::clone(&inner.engine), Arc::clone(&inner.flusher));
        let close = tokio::task::spawn_blocking(move || {
            flusher.close();
            engine.close();
        });
        if let Err(error) = close.await {
            tracing::error!(%error, "closing the store");
        }
        drop(inner.folder.lock().take());
        tracing::info!(node = inner.node_id, "stopped");
    }

    async fn wait_until_leading(&self) -> Result<(), StartError> {
        let waits = self.inner.groups.iter().map(|group| async move {
            let mut leadership = group.leadership();
            let leading = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
            let reason = match tokio::time::timeout(Duration::from_secs(120), leading).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) => "it has ended".to_owned(),
                Err(_) => "it has no leader".to_owned(),
            };
            Err(StartError::Group { group: group.id().0, reason })
        });
        try_join_all(waits).await.map(drop)
    }
}

async fn open_folder(config: &NodeConfig) -> Result<(Option<Folder>, Identity), StartError> {
    let invent = {
        let stamp = Arc::clone(&config.stamp);
        move || {
            let ((now, low), (_, high)) = (stamp(), stamp());
            format!("{:016x}{:016x}", crate::batch::mix(high ^ now as u64), crate::batch::mix(low))
        }
    };
    let members = &config.options.initial_members;
    let cluster = (members.len() > 1).then(|| membership::cluster_of_members(members));
    match config.storage.clone() {
        Storage::Memory => {
            let identity = Identity {
                format: FORMAT,
                cluster: cluster.unwrap_or_else(invent),
                node: config.node_id,
                partitions: config.partitions,
            };
            Ok((None, identity))
        }
        Storage::Folder(path) => {
            let expected =
                Expected { node: config.node_id, partitions: config.partitions, cluster };
            let failed = StartError::Folder {
                path: path.clone(),
                source: io::Error::other("the opener panicked"),
            };
            let open = tokio::task::spawn_blocking(move || Folder::open(&path, &expected, invent));
            let folder = open.await.unwrap_or(Err(failed))?;
            let identity = folder.identity().clone();
            Ok((Some(folder), identity))
        }
    }
}

async fn open_engine(config: &NodeConfig, folder: Option<&Folder>) -> io::Result<Arc<dyn Engine>> {
    let Some(folder) = folder else { return Ok(Arc::new(MemoryEngine::default())) };
    let (path, groups, cache) = (folder.database(), config.partitions + 1, config.cache_bytes);
    let open = tokio::task::spawn_blocking(move || SledEngine::open(&path, groups, cache));
    Ok(Arc::new(open.await.map_err(io::Error::other)??))
}

/// Keeps the slow gauges fresh.
async fn measure<M: Machine>(engine: Arc<dyn Engine>, groups: Vec<Partition<M>>) {
    let lags: Vec<_> = groups.iter().map(|group| metrics::apply_lag(group.id().0)).collect();
    loop {
        for (group, lag) in groups.iter().zip(&lags) {
            let progress = group.progress();
            lag.set(
                progress.last_index.unwrap_or(0).saturating_sub(progress.applied_index.unwrap_or(0))
                    as f64,
            );
        }
        let engine = Arc::clone(&engine);
        if let Ok(bytes) = tokio::task::spawn_blocking(move || engine.size_on_disk()).await {
            metrics::SIZE_ON_DISK.set(bytes as f64);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}
