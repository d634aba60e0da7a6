//! All groups of this node: one folder, one store, one flusher, one transport; start and stop.
//!
//! Starting opens the folder, then the store, then all groups side by side, so that their first writes
//! share flushes. A node that is alone leads every group and has applied everything when `start` returns.
//! Stopping goes the other way: groups first, then the queue runs dry, then the files close, then the
//! folder's lock goes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use durahub_proto::peer::{Hello, Lead};
use futures::future::{join_all, try_join_all};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::AdminService;
use crate::admission::Admit;
use crate::config::{Expelled, NodeConfig, Storage, check, limits};
use crate::directory::{Directory, Leadership};
use crate::error::StartError;
use crate::folder::{FORMAT, Folder, Identity};
use crate::machine::{GroupId, Machine};
use crate::membership::{self, Place};
use crate::meta::{Folders, Metadata};
use crate::metrics;
use crate::operate;
use crate::partition::Partition;
use crate::peers::{PeerService, Transport};
use crate::program::{Peers, Program};
use crate::replica::Ground;
use crate::routing::Route;
use crate::store::FaultHook;
use crate::store::flusher::Flusher;
use crate::store::memory::MemoryEngine;
use crate::store::sled::SledEngine;
use crate::store::{Engine, is_full};
use crate::transport;

/// A running node. Dropping it without [`Node::stop`] leaves its tasks running.
pub struct Node<M: Machine> {
    inner: Arc<Inner<M>>,
    service: Arc<dyn PeerService>,
}

pub(crate) struct Inner<M: Machine> {
    pub(crate) node_id: u64,
    pub(crate) identity: Identity,
    pub(crate) hello: Hello,
    pub(crate) groups: Vec<Partition<M>>,
    pub(crate) transport: Arc<dyn Transport>,
    /// The metadata as last seen here.
    pub(crate) metadata: Arc<RwLock<Arc<Metadata>>>,
    pub(crate) folders: Arc<Folders>,
    pub(crate) address: String,
    pub(crate) zone: String,
    pub(crate) replication_factor: u32,
    pub(crate) initial_members: BTreeMap<u64, String>,
    pub(crate) expelled: Expelled,
    pub(crate) admit: Admit,
    /// Ids of the other members.
    pub(crate) others: watch::Sender<BTreeSet<u64>>,
    /// Who led and held the partitions when this node last asked all others.
    pub(crate) leads: Mutex<Vec<Lead>>,
    program: RwLock<Option<Arc<dyn Program>>>,
    draining: AtomicBool,
    directory: Directory,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    folder: Mutex<Option<Folder>>,
    store_bytes: Arc<AtomicU64>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stopped: AtomicBool,
}

impl<M: Machine> Inner<M> {
    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn program(&self) -> Option<Arc<dyn Program>> {
        self.program.read().clone()
    }

    /// Bytes on disk, as last measured.
    pub(crate) fn store_bytes(&self) -> u64 {
        self.store_bytes.load(Ordering::Relaxed)
    }
}

impl<M: Machine> Node<M> {
    /// Starts all groups. A node alone leads all of them, recovered, when this returns; a member of a larger
    /// cluster returns as soon as its groups run, and leaders show up in [`Partition::leadership`].
    pub async fn start(config: NodeConfig, machine: Arc<M>) -> Result<Self, StartError> {
        check(&config)?;
        let (folder, identity, members) = open_folder(&config).await?;
        let data = folder.as_ref().map(|folder| folder.path().to_owned()).unwrap_or_default();
        let broken = |source: io::Error| match is_full(&source) {
            true => StartError::Full { path: data.clone() },
            false => StartError::Broken { path: data.clone(), source },
        };
        let engine =
            open_engine(&config, folder.as_ref(), identity.partitions).await.map_err(broken)?;
        let flusher = Arc::new(
            Flusher::start(Arc::clone(&engine), config.options.fault.clone()).map_err(broken)?,
        );
        let hello = Hello {
            version: transport::PROTOCOL,
            cluster: identity.cluster.clone(),
            node: identity.node,
            to: 0,
            incarnation: identity.incarnation,
            partitions: identity.partitions,
        };
        let metadata = Arc::<RwLock<Arc<Metadata>>>::default();
        let folders = Arc::new(Folders::new(Arc::clone(&metadata)));
        let judge = Arc::clone(&folders);
        let judge = Arc::new(move |hello: &Hello| judge.judge(hello));
        config.options.transport.introduce(hello.clone(), judge);
        if let Some(book) = config.options.transport.addresses() {
            book.extend(members);
        }
        let node_id = identity.node;
        // Two nodes never share a session, even if their entropy were the same.
        let session = crate::batch::mix((config.stamp)().1 ^ node_id.rotate_left(48)) | 1;
        let cluster = identity.cluster_bytes().unwrap_or_default();
        let count = identity.partitions + 1;
        let tail_limit = (config.cache_bytes as usize / 8 / count as usize).clamp(1 << 20, 8 << 20);
        let limits = limits(&config.options);

        let ground = Arc::new(Ground {
            node: node_id,
            cluster,
            address: config.options.peer_address.clone(),
            initial_members: config.options.initial_members.clone(),
            joined: identity.joined,
            machine,
            engine: Arc::clone(&engine),
            flusher: Arc::clone(&flusher),
            snapshots: folder.as_ref().map(Folder::snapshots),
            transport: Arc::clone(&config.options.transport),
            tail_limit,
            snapshot_every: config.options.snapshot_every,
            keep_entries: config.options.keep_entries,
            fault: config.options.fault.clone(),
            limits,
            stamp: Arc::clone(&config.stamp),
        });
        let starts = (0..count).map(|id| {
            let (id, ground) = (GroupId(id), Arc::clone(&ground));
            let transport = Arc::clone(&config.options.transport);
            let route =
                transport.reaches_peers().then(|| Route::new(node_id, id, transport, session));
            let admit = Arc::clone(&config.options.admit);
            // Each group on a task of its own: recovery of many groups then uses all cores.
            tokio::spawn(Partition::open(id, ground, route, admit))
        });
        let started = join_all(starts.collect::<Vec<_>>()).await.into_iter().map(|joined| {
            joined.map_err(io::Error::other).and_then(|started: io::Result<_>| started)
        });
        let mut groups = Vec::with_capacity(count as usize);
        for (id, started) in started.enumerate() {
            match started {
                Ok(partition) => groups.push(partition),
                Err(error) => {
                    join_all(groups.iter().map(Partition::stop)).await;
                    return Err(StartError::Group { group: id as u32, reason: error.to_string() });
                }
            }
        }
        let directory = Directory::new(node_id, groups.iter().map(Partition::leadership).collect());
        let store_bytes = Arc::<AtomicU64>::default();
        let meter = tokio::spawn(measure_store(Arc::clone(&engine), Arc::clone(&store_bytes)));
        let tidier = tokio::spawn(tidy(
            Arc::clone(&engine),
            Arc::clone(&config.options.disk_is_short),
            config.options.fault.clone(),
        ));
        let (joined, options) = (identity.joined, config.options);
        let compare_every = options.compare_every;
        let alone = options.initial_members.len() <= 1 && !joined;
        let inner = Arc::new(Inner {
            node_id,
            identity,
            hello,
            groups,
            transport: options.transport,
            metadata,
            folders,
            address: options.peer_address,
            zone: options.zone,
            replication_factor: options.replication_factor,
            initial_members: options.initial_members,
            expelled: options.expelled,
            admit: options.admit,
            others: watch::Sender::default(),
            leads: Mutex::default(),
            program: RwLock::default(),
            draining: AtomicBool::new(false),
            directory,
            engine,
            flusher,
            folder: Mutex::new(folder),
            store_bytes,
            tasks: Mutex::new(vec![meter, tidier]),
            stopped: AtomicBool::new(false),
        });
        let node = Self { service: Arc::clone(&inner) as Arc<dyn PeerService>, inner };
        if alone {
            node.wait_until_leading().await?;
        }
        if node.inner.transport.reaches_peers() {
            let inner = &node.inner;
            inner.tasks.lock().extend([
                tokio::spawn(Arc::clone(inner).watch_metadata()),
                tokio::spawn(Arc::clone(inner).announce()),
                tokio::spawn(Arc::clone(inner).control()),
                tokio::spawn(Arc::clone(inner).compare_states(compare_every)),
            ]);
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

    /// The other nodes, for what the program has to say to them.
    pub fn peers(&self) -> Peers {
        let inner = &self.inner;
        Peers::new(inner.node_id, Arc::clone(&inner.transport), inner.others.subscribe())
    }

    /// What sets the gauges that nobody keeps fresh: for whoever is about to show them.
    pub fn meter(&self) -> impl Fn() + Send + Sync + 'static {
        let groups = self.inner.groups.clone();
        move || {
            for group in &groups {
                let progress = group.progress();
                let (last, applied) = (progress.last_index, progress.applied_index);
                let lag = last.unwrap_or(0).saturating_sub(applied.unwrap_or(0));
                metrics::apply_lag(group.id().0).set(lag as f64);
            }
        }
    }

    /// From now on `program` answers what the programs of other nodes say, until the node stops.
    pub fn serve(&self, program: Arc<dyn Program>) {
        *self.inner.program.write() = Some(program);
    }

    /// What answers the calls of peers; a transport's server side forwards to it.
    pub fn service(&self) -> Arc<dyn PeerService> {
        Arc::clone(&self.service)
    }

    /// What answers operators; a transport's server side forwards to it.
    pub fn admin(&self) -> Arc<dyn AdminService> {
        operate::service(&self.inner)
    }

    /// Hands every group that this node leads to another node, as far as that is possible `within` the time.
    /// The node leads nothing any more afterwards, unless nobody else can.
    pub async fn hand_over_all(&self, within: Duration) {
        self.inner.hand_over_all(within).await;
    }

    /// Stops all groups, flushes and closes the files. Later calls do nothing.
    pub async fn stop(&self) {
        let inner = &self.inner;
        if inner.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        for task in inner.tasks.lock().drain(..) {
            task.abort();
        }
        inner.program.write().take();
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
        // Others may have joined since, and lead, or hold what this node held.
        let is_alone = |group: &&Partition<M>| {
            let voters = group.progress().voters;
            group.is_here() && (voters.is_empty() || voters == [self.inner.node_id])
        };
        let waits = self.inner.groups.iter().filter(is_alone).map(|group| async move {
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

/// Opens the folder, after finding out what it should be; also returns members that were told.
async fn open_folder(
    config: &NodeConfig,
) -> Result<(Option<Folder>, Identity, Vec<(u64, String)>), StartError> {
    let invent = {
        let stamp = Arc::clone(&config.stamp);
        move || {
            let ((now, low), (_, high)) = (stamp(), stamp());
            format!("{:016x}{:016x}", crate::batch::mix(high ^ now as u64), crate::batch::mix(low))
        }
    };
    let incarnation = crate::batch::mix((config.stamp)().1) | 1;
    let known = match &config.storage {
        Storage::Memory => None,
        Storage::Folder(path) => Folder::peek(path)?,
    };
    let Place { expected, members } =
        membership::find_place(config, known.as_ref(), incarnation).await?;
    match config.storage.clone() {
        Storage::Memory => {
            let identity = Identity {
                format: FORMAT,
                cluster: expected.cluster.unwrap_or_else(invent),
                node: expected.node,
                partitions: expected.partitions,
                incarnation,
                joined: expected.joined,
            };
            Ok((None, identity, members))
        }
        Storage::Folder(path) => {
            let failed = StartError::Folder {
                path: path.clone(),
                source: io::Error::other("the opener panicked"),
            };
            let open = tokio::task::spawn_blocking(move || Folder::open(&path, &expected, invent));
            let folder = open.await.unwrap_or(Err(failed))?;
            let identity = folder.identity().clone();
            Ok((Some(folder), identity, members))
        }
    }
}

async fn open_engine(
    config: &NodeConfig,
    folder: Option<&Folder>,
    partitions: u32,
) -> io::Result<Arc<dyn Engine>> {
    let Some(folder) = folder else { return Ok(Arc::new(MemoryEngine::default())) };
    let (path, groups, cache) = (folder.database(), partitions + 1, config.cache_bytes);
    let open = tokio::task::spawn_blocking(move || SledEngine::open(&path, groups, cache));
    Ok(Arc::new(open.await.map_err(io::Error::other)??))
}

/// How often somebody looks whether the database can give space back.
const TIDY_EVERY: Duration = Duration::from_secs(60);

/// Lets the store give space back from time to time.
async fn tidy(
    engine: Arc<dyn Engine>,
    disk_is_short: Arc<dyn Fn() -> bool + Send + Sync>,
    fault: FaultHook,
) {
    loop {
        tokio::time::sleep(TIDY_EVERY).await;
        let engine = Arc::clone(&engine);
        let short = disk_is_short();
        match tokio::task::spawn_blocking(move || engine.tidy(short)).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(done))) => tracing::info!(
                before_bytes = done.before,
                after_bytes = done.after,
                row_bytes = done.alive,
                took = ?done.took,
                "the database was copied and gave space back"
            ),
            Ok(Err(error)) => fault.report(&format!("copying the database: {error}")),
            Err(error) => fault.report(&format!("copying the database: {error}")),
        }
    }
}

/// Keeps the size of the store fresh: to find it out takes a look at the files.
async fn measure_store(engine: Arc<dyn Engine>, store_bytes: Arc<AtomicU64>) {
    loop {
        let engine = Arc::clone(&engine);
        if let Ok(bytes) = tokio::task::spawn_blocking(move || engine.size_on_disk()).await {
            metrics::SIZE_ON_DISK.set(bytes as f64);
            store_bytes.store(bytes, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}
