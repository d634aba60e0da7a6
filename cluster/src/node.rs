//! All groups of this node: one folder, one store, one flusher, one transport; start and stop.
//!
//! Starting opens the folder, then the store, then all groups side by side, so that their first writes
//! share flushes. A node that is alone leads every group and has applied everything when `start` returns.
//! Stopping goes the other way: groups first, then the queue runs dry, then the files close, then the
//! folder's lock goes.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all, try_join_all};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::batch::COMMANDS_LIMIT;
use crate::directory::{Directory, Leadership};
use crate::error::{Error, StartError};
use crate::folder::{Expected, FORMAT, Folder, Identity};
use crate::machine::{GroupId, Machine};
use crate::membership;
use crate::metrics;
use crate::partition::{BatchLimits, Partition};
use crate::peers::{Call, NoPeers, PeerError, PeerService, SnapshotCall, Transport};
use crate::raft::group::{Group, Setup};
use crate::raft::snapshots::Snapshots;
use crate::store::flusher::Flusher;
use crate::store::memory::MemoryEngine;
use crate::store::rows::StateRows;
use crate::store::sled::SledEngine;
use crate::store::{Engine, FaultHook};

/// Most partitions of a cluster.
pub const PARTITIONS_LIMIT: u32 = 1024;
/// Longest log entry, in bytes: half of what a message between nodes may hold.
const ENTRY_LIMIT: usize = 128 << 20;

/// Clock and entropy: nanoseconds since the Unix epoch and 64 random bits, fresh at every call.
pub type StampSource = Arc<dyn Fn() -> (i64, u64) + Send + Sync>;

/// Where a node keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: all is gone with the process.
    Memory,
    /// In a folder, which is made if it does not exist.
    Folder(PathBuf),
}

/// What a node is started with.
#[derive(Clone)]
pub struct NodeConfig {
    /// Id of this node, unique in the cluster and never reused.
    pub node_id: u64,
    /// Where the data lies.
    pub storage: Storage,
    /// Number of partitions beside the metadata group; fixed at the first start.
    pub partitions: u32,
    /// Memory for the store's page cache, in bytes.
    pub cache_bytes: u64,
    /// Clock and entropy of the leader.
    pub stamp: StampSource,
    /// Everything with a sensible default.
    pub options: Options,
}

impl NodeConfig {
    /// A node alone, with defaults for everything else.
    pub fn new(node_id: u64, storage: Storage, partitions: u32, stamp: StampSource) -> Self {
        Self {
            node_id,
            storage,
            partitions,
            cache_bytes: 128 << 20,
            stamp,
            options: Options::default(),
        }
    }
}

/// Settings that rarely change.
#[derive(Clone)]
pub struct Options {
    /// `host:port` under which peers reach this node; empty while it has none.
    pub peer_address: String,
    /// All members of a cluster that starts for the first time, with their peer addresses; empty for a
    /// cluster of one.
    pub initial_members: BTreeMap<u64, String>,
    /// Carries calls to peers.
    pub transport: Arc<dyn Transport>,
    /// Longest command, in bytes.
    pub command_bytes: usize,
    /// Bytes after which a log entry is closed.
    pub entry_bytes: usize,
    /// Commands after which a log entry is closed; at most 65 536.
    pub entry_commands: usize,
    /// Log entries of one group that may be on their way at the same time.
    pub entries_in_flight: usize,
    /// Commands of one group that may wait before callers do.
    pub waiting_commands: usize,
    /// Time after which a proposal is given up as "outcome unknown".
    pub propose_timeout: Duration,
    /// Entries after which the log may be compacted.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a compaction point, for followers that are a little behind.
    pub keep_entries: u64,
    /// What to do when the disk fails.
    pub fault: FaultHook,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peer_address: String::new(),
            initial_members: BTreeMap::new(),
            transport: Arc::new(NoPeers),
            command_bytes: 8 << 20,
            entry_bytes: 1 << 20,
            entry_commands: 1024,
            entries_in_flight: 1,
            waiting_commands: 4096,
            propose_timeout: Duration::from_secs(15),
            snapshot_every: 50_000,
            keep_entries: 10_000,
            fault: FaultHook::default(),
        }
    }
}

/// A running node. Dropping it without [`Node::stop`] leaves its tasks running.
pub struct Node<M: Machine> {
    inner: Arc<Inner<M>>,
    service: Arc<dyn PeerService>,
}

struct Inner<M: Machine> {
    node_id: u64,
    identity: Identity,
    groups: Vec<Partition<M>>,
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
        let broken = |source: io::Error| StartError::Broken { path: data.clone(), source };
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

fn check(config: &NodeConfig) -> Result<(), StartError> {
    let refuse = |name, value: String, rule| Err(StartError::Setting { name, value, rule });
    if config.partitions == 0 || config.partitions > PARTITIONS_LIMIT {
        return refuse("partitions", config.partitions.to_string(), "between 1 and 1024");
    }
    let commands = config.options.entry_commands;
    if commands == 0 || commands > COMMANDS_LIMIT {
        return refuse("entry_commands", commands.to_string(), "between 1 and 65536");
    }
    if config.options.entries_in_flight == 0 || config.options.waiting_commands == 0 {
        return refuse("entries_in_flight", "0".into(), "at least 1");
    }
    // An entry must fit into one message between nodes, with room to spare.
    if config.options.command_bytes > ENTRY_LIMIT || config.options.entry_bytes > ENTRY_LIMIT {
        return refuse(
            "command_bytes",
            config.options.command_bytes.to_string(),
            "at most 134217728",
        );
    }
    membership::check_members(config.node_id, &config.options.initial_members)
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

fn limits(options: &Options) -> BatchLimits {
    BatchLimits {
        command_bytes: options.command_bytes,
        entry_bytes: options.entry_bytes,
        entry_commands: options.entry_commands,
        in_flight: options.entries_in_flight,
        waiting: options.waiting_commands,
        timeout: options.propose_timeout,
    }
}

/// Keeps the slow gauges fresh.
async fn measure<M: Machine>(engine: Arc<dyn Engine>, groups: Vec<Partition<M>>) {
    let lags: Vec<_> = groups.iter().map(|group| metrics::apply_lag(group.id().0)).collect();
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
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
    }
}

impl<M: Machine> Inner<M> {
    fn find(&self, cluster: &str, group: GroupId) -> Result<&Partition<M>, PeerError> {
        let failed = |reason: String| PeerError::Failed { peer: self.node_id, reason };
        if cluster != self.identity.cluster {
            return Err(failed(format!(
                "this node is of cluster {}, not {cluster}",
                self.identity.cluster
            )));
        }
        self.groups
            .get(group.0 as usize)
            .ok_or_else(|| failed(format!("there is no partition {group}")))
    }

    fn failed(&self, error: io::Error) -> PeerError {
        PeerError::Failed { peer: self.node_id, reason: error.to_string() }
    }
}

impl<M: Machine> PeerService for Inner<M> {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(&call.cluster, call.group)?;
            partition.group().answer(&call).await.map_err(|error| self.failed(error))
        })
    }

    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError> {
        let partition = self.find(&self.identity.cluster, group)?;
        partition.group().incoming().map_err(|error| self.failed(error))
    }

    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(&call.cluster, call.group)?;
            partition
                .group()
                .receive(&call.payload, call.body)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    fn propose<'a>(
        &'a self,
        cluster: &'a str,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let partition =
                self.find(cluster, group).map_err(|error| Error::Unavailable(error.to_string()))?;
            partition.propose(command).await
        })
    }
}
