//! One copy of a group on this node, from its begin to its end; and what copies are made from.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::batcher::{BatchLimits, Batcher, Waiting};
use crate::config::StampSource;
use crate::directory::Leadership;
use crate::machine::{GroupId, Machine};
use crate::peers::Transport;
use crate::raft::group::{Group, Setup};
use crate::raft::snapshots::Snapshots;
use crate::store::flusher::Flusher;
use crate::store::holding::{Holding, Stage};
use crate::store::rows::StateRows;
use crate::store::{Engine, FaultHook};

/// What the replicas of a node are made from.
pub(crate) struct Ground<M: Machine> {
    pub(crate) node: u64,
    pub(crate) cluster: [u8; 16],
    pub(crate) address: String,
    pub(crate) initial_members: BTreeMap<u64, String>,
    /// The node came to a running cluster.
    pub(crate) joined: bool,
    pub(crate) machine: Arc<M>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) flusher: Arc<Flusher>,
    /// Folder of the snapshots of all groups; `None` keeps them in memory.
    pub(crate) snapshots: Option<PathBuf>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) tail_limit: usize,
    pub(crate) snapshot_every: u64,
    pub(crate) keep_entries: u64,
    pub(crate) fault: FaultHook,
    pub(crate) limits: BatchLimits,
    pub(crate) stamp: StampSource,
}

/// A replica that runs.
pub(crate) struct Replica<M: Machine> {
    pub(crate) group: Arc<Group<M>>,
    pub(crate) rows: Arc<StateRows>,
    pub(crate) proposals: mpsc::Sender<Waiting>,
    batcher: JoinHandle<()>,
}

impl<M: Machine> Ground<M> {
    /// Folder of a group's snapshots.
    pub(crate) fn snapshots_of(&self, group: GroupId) -> Option<PathBuf> {
        self.snapshots.as_ref().map(|folder| folder.join(group.to_string()))
    }

    /// Runs the replica that is here, or begins one. It reports to `leadership` who leads.
    pub(crate) async fn start(
        &self,
        id: GroupId,
        holding: Holding,
        leadership: watch::Sender<Leadership>,
    ) -> io::Result<Replica<M>> {
        let rows = StateRows::new(Arc::clone(&self.engine), id.0, self.fault.clone());
        let rows = Arc::new(rows);
        let snapshots = Snapshots::new(
            self.cluster,
            id,
            self.snapshots_of(id),
            Arc::clone(&self.engine),
            Arc::clone(&self.flusher),
        );
        let setup = Setup {
            id,
            node: self.node,
            address: self.address.clone(),
            initial_members: self.initial_members.clone(),
            // A replica that was begun is told its membership by the others.
            joins: self.joined || holding.begun > 0,
            grown: holding.stage() == Stage::Held,
            machine: Arc::clone(&self.machine),
            rows: Arc::clone(&rows),
            engine: Arc::clone(&self.engine),
            flusher: Arc::clone(&self.flusher),
            snapshots: Arc::new(snapshots),
            transport: Arc::clone(&self.transport),
            tail_limit: self.tail_limit,
            snapshot_every: self.snapshot_every,
            keep_entries: self.keep_entries,
            fault: self.fault.clone(),
        };
        let group = Arc::new(Group::start(setup, leadership).await?);
        let (proposals, receiver) = mpsc::channel(self.limits.waiting);
        let batcher =
            Batcher::new(Arc::clone(&group), self.limits.clone(), Arc::clone(&self.stamp));
        let batcher = tokio::spawn(batcher.run(receiver));
        Ok(Replica { group, rows, proposals, batcher })
    }
}

impl<M: Machine> Replica<M> {
    /// Ends the replica's tasks. Nothing is written after this returns, but what is in the flusher's queue.
    pub(crate) async fn stop(&self) {
        self.group.stop().await;
        self.batcher.abort();
    }
}
