//! One group as its users see it, on every node: propose, read, peek, and who leads.
//!
//! The handle is there on every node; the rows are where a [replica](crate::replica) is, and that changes while the node
//! runs ([`holding`](crate::holding)). What cannot be done here is done at the leader ([`routing`](crate::routing)).

use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, oneshot, watch};

use crate::admission::{Admit, Demand};
use crate::batch::Origin;
use crate::batcher::Waiting;
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine, Rows};
use crate::raft::group::{Group, Progress};
use crate::replica::{Ground, Replica};
use crate::replicas::whole;
use crate::routing::Route;
use crate::store::holding::Holding;

/// How long a stop waits for a replica that comes or goes.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// A group, from this node. Cheap to clone.
pub struct Partition<M: Machine> {
    pub(crate) inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for Partition<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

pub(crate) struct Inner<M: Machine> {
    id: GroupId,
    pub(crate) ground: Arc<Ground<M>>,
    pub(crate) replica: RwLock<Option<Arc<Replica<M>>>>,
    /// What is written of it; locked while that changes.
    pub(crate) holding: tokio::sync::Mutex<Holding>,
    /// Locked while this node, as the leader, changes who holds the group.
    pub(crate) changing: tokio::sync::Mutex<()>,
    pub(crate) leadership: watch::Sender<Leadership>,
    /// Told when a replica has gone.
    pub(crate) moved: Notify,
    heard: Mutex<Heard>,
    pub(crate) stopping: AtomicBool,
    /// The way to the other replicas; `None` when there can be none.
    route: Option<Route>,
    admit: Admit,
}

/// What others say of a group.
#[derive(Clone, Default)]
struct Heard {
    term: u64,
    leader: Option<u64>,
    members: BTreeSet<u64>,
}

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The machine's; it is refused if the leader does not admit that.
    Of(Demand),
    /// The cluster's own.
    System,
}

impl<M: Machine> Partition<M> {
    /// The handle, and the replica if there is one here.
    pub(crate) async fn open(
        id: GroupId,
        ground: Arc<Ground<M>>,
        route: Option<Route>,
        admit: Admit,
    ) -> io::Result<Self> {
        let holding = Holding::load(ground.engine.as_ref(), id.0, !ground.joined)?;
        let inner = Inner {
            id,
            ground,
            replica: RwLock::default(),
            holding: tokio::sync::Mutex::new(holding),
            changing: tokio::sync::Mutex::default(),
            leadership: watch::Sender::new(Leadership::Follower { leader: None }),
            moved: Notify::new(),
            heard: Mutex::default(),
            stopping: AtomicBool::new(false),
            route,
            admit,
        };
        let partition = Self { inner: Arc::new(inner) };
        partition.resume(holding).await?;
        Ok(partition)
    }

    /// Number of the group.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Proposes a command, here or wherever the leader is; returns the machine's reply once a quorum has
    /// flushed it and it is applied.
    ///
    /// After [`Error::Unavailable`] it may have been committed, and may still be; after any other error it
    /// never is. Dropping the future does not take the command back.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, Error> {
        self.propose_if_admitted(command, Demand::Must).await
    }

    /// Proposes a command that a leader which is short of room does not take in: see [`Error::Refused`]. Otherwise
    /// like [`Partition::propose`].
    pub async fn propose_if_admitted(
        &self,
        command: Bytes,
        demand: Demand,
    ) -> Result<Bytes, Error> {
        match self.route() {
            Some(route) => self.propose_routed(route, command, Kind::Of(demand)).await,
            None => self.propose_here(command, None, Kind::Of(demand)).await,
        }
    }

    /// Proposes a command if this node leads, and nowhere else: for what the tables that the leader keeps beside the rows
    /// must hear of. It has no origin: a machine to which a second time does harm must tell it by itself.
    ///
    /// After [`Error::Unavailable`] it may have been committed, and may still be; after any other error it never is.
    pub async fn propose_as_leader(&self, command: Bytes) -> Result<Bytes, Error> {
        self.propose_here(command, None, Kind::Of(Demand::Must)).await
    }

    /// Returns once it is sure that this node led at some moment of the call: what [`Partition::leadership`] says may be
    /// of before. Else [`Error::NotLeader`].
    pub async fn confirm_leads(&self) -> Result<(), Error> {
        let confirmed = async { self.replica()?.group.ensure_readable().await.map(drop) };
        match confirmed.await {
            Err(Error::Stopping) => Err(self.ended()),
            confirmed => self.settle_read(confirmed),
        }
    }

    /// Proposes a command of the cluster itself.
    pub(crate) async fn propose_system(&self, command: Bytes) -> Result<Bytes, Error> {
        match self.route() {
            Some(route) => self.propose_routed(route, command, Kind::System).await,
            None => self.propose_here(command, None, Kind::System).await,
        }
    }

    /// Proposes a command if this node leads.
    pub(crate) async fn propose_here(
        &self,
        command: Bytes,
        origin: Option<Origin>,
        kind: Kind,
    ) -> Result<Bytes, Error> {
        let inner = &*self.inner;
        let limits = &inner.ground.limits;
        if command.len() > limits.command_bytes {
            return Err(Error::TooLarge { bytes: command.len(), limit: limits.command_bytes });
        }
        let replica = self.replica()?;
        if let Kind::Of(demand) = kind
            && let Err(refusal) = (inner.admit)(demand)
            // Whoever does not lead has nothing to say about it.
            && matches!(*inner.leadership.borrow(), Leadership::Leader { .. })
        {
            return Err(Error::Refused(refusal));
        }
        let (reply, answer) = oneshot::channel();
        let system = kind == Kind::System;
        let propose = async {
            let waiting = Waiting { command, origin, system, reply };
            replica.proposals.send(waiting).await.map_err(|_| self.ended())?;
            // Also while the replica ends: the command may be in the log already.
            answer.await.unwrap_or_else(|_| {
                let reason = "the command was dropped, its outcome is unknown";
                Err(Error::Unavailable(reason.into()))
            })
        };
        tokio::time::timeout(limits.timeout, propose).await.unwrap_or_else(|_| {
            Err(Error::Unavailable(format!("no answer within {:?}", limits.timeout)))
        })
    }

    /// Reads after everything that was committed before the call, on a node that holds the partition. `f` must be
    /// quick and must not read again: the group applies nothing while it runs. Without a quorum, or on any other node:
    /// [`Error::NotLeader`].
    pub async fn read<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Result<T, Error> {
        let found = if self.catch_up().await? { self.look(f) } else { None };
        found.ok_or_else(|| self.elsewhere())
    }

    /// Waits until the rows here hold everything that was committed before the call; false if this node does not
    /// hold them, or is far behind, so that only [`Partition::query`] reads them. Without a quorum:
    /// [`Error::NotLeader`].
    pub async fn catch_up(&self) -> Result<bool, Error> {
        self.check()?;
        let Some(replica) = self.reader() else { return Ok(false) };
        let current = match self.route() {
            Some(route) => self.catch_up_routed(route, &replica).await,
            None => replica.group.ensure_readable().await.map(|_| true),
        };
        match current {
            Err(Error::Stopping) if self.check().is_ok() => Ok(false),
            current => self.settle_read(current),
        }
    }

    /// Reads at the leader, wherever it is: [`Machine::read`] answers from rows that hold everything that was
    /// committed before the call. Without a quorum: [`Error::NotLeader`].
    pub async fn query(&self, query: Bytes) -> Result<Bytes, Error> {
        self.check()?;
        let answer = match self.route() {
            Some(route) => self.query_routed(route, query).await,
            None => self.query_here(query).await,
        };
        self.settle_read(answer)
    }

    /// Unlike a proposal, a read that failed has done nothing: callers may repeat it.
    fn settle_read<T>(&self, read: Result<T, Error>) -> Result<T, Error> {
        read.map_err(|error| match error {
            Error::Unavailable(reason) => {
                tracing::debug!(partition = self.inner.id.0, %reason, "not read");
                Error::NotLeader { leader: None }
            }
            error => error,
        })
    }

    /// What the machine reads in the rows here; the inner option is its own.
    pub(crate) fn answer_from_rows(&self, query: &Bytes) -> Option<Option<Bytes>> {
        self.look(|rows| self.inner.ground.machine.read(rows, query))
    }

    /// The way over the other nodes, unless nobody else holds the group: then it costs nothing.
    fn route(&self) -> Option<&Route> {
        self.inner.route.as_ref().filter(|_| !self.is_alone())
    }

    /// Whether this node leads, and nobody else holds the partition or may come to lead it.
    pub fn is_alone(&self) -> bool {
        let leads = matches!(*self.inner.leadership.borrow(), Leadership::Leader { .. });
        let replica = self.inner.replica.read();
        leads && replica.as_ref().is_some_and(|it| it.group.facts().alone.load(Ordering::Acquire))
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.ground.limits.timeout
    }

    /// Whether this node holds the partition, so that reads need not travel.
    pub fn is_here(&self) -> bool {
        self.reader().is_some()
    }

    /// Ends once this node does not hold the partition.
    pub async fn gone(&self) {
        loop {
            let moved = self.inner.moved.notified();
            tokio::pin!(moved);
            // Registered before the look: what happens in between is not missed.
            moved.as_mut().enable();
            if !self.is_here() {
                return;
            }
            moved.await;
        }
    }

    /// Reads what is applied here, however old it is. Same rules for `f` as in [`Partition::read`]. There are no rows
    /// where the partition is not, and after [`Node::stop`](crate::Node::stop).
    pub fn peek<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> T {
        let replica = self.inner.replica.read().clone();
        match replica {
            Some(replica) => replica.rows.look(f),
            None => f(&NoRows),
        }
    }

    /// Reads what is applied here, however old it is; `None` if this node does not hold the partition. Same rules for
    /// `f` as in [`Partition::read`].
    pub fn look<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Option<T> {
        self.reader()?.rows.look_if_there(f)
    }

    /// Who leads, from now on: as this node sees it where it holds the partition, else as last heard.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// How far the group has come on this node.
    pub fn progress(&self) -> Progress {
        self.held().map_or_else(|_| Progress::default(), |replica| replica.group.progress())
    }

    /// Asks to hand the leadership to another voter; returns before it has happened.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.replica()?.group.transfer_leader(to).await
    }

    /// Names a compaction point now instead of when the policy says so.
    pub async fn compact(&self) -> Result<(), Error> {
        self.replica()?.group.compact().await
    }

    /// The replica that is here, also if it is in quarantine.
    pub(crate) fn held(&self) -> Result<Arc<Replica<M>>, Error> {
        self.inner.replica.read().clone().ok_or_else(|| self.elsewhere())
    }

    /// The group that runs here, also if it is in quarantine.
    pub(crate) fn group(&self) -> Result<Arc<Group<M>>, Error> {
        Ok(Arc::clone(&self.held()?.group))
    }

    /// The replica that takes part.
    pub(crate) fn replica(&self) -> Result<Arc<Replica<M>>, Error> {
        self.check()?;
        let replica = self.held()?;
        if replica.group.is_quarantined() { Err(self.elsewhere()) } else { Ok(replica) }
    }

    /// The replica whose rows may be read: one that grows does not have them all.
    pub(crate) fn reader(&self) -> Option<Arc<Replica<M>>> {
        let replica = self.inner.replica.read().clone()?;
        (!replica.group.is_quarantined() && replica.group.is_grown()).then_some(replica)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.inner.stopping.load(Ordering::Acquire) { Err(Error::Stopping) } else { Ok(()) }
    }

    /// What a caller hears whose replica has ended.
    pub(crate) fn ended(&self) -> Error {
        self.check().err().unwrap_or_else(|| self.elsewhere())
    }

    fn elsewhere(&self) -> Error {
        Error::NotLeader { leader: self.inner.heard.lock().leader }
    }

    /// Others say who leads, in which term, and who holds the group.
    pub(crate) fn hear(&self, term: u64, leader: u64, members: BTreeSet<u64>) {
        {
            let mut heard = self.inner.heard.lock();
            if term < heard.term {
                return;
            }
            *heard = Heard { term, leader: Some(leader), members };
        }
        self.tell_heard();
    }

    /// A node has answered as the leader, here or to the program.
    pub fn hear_leader(&self, leader: u64) {
        self.inner.heard.lock().leader = Some(leader);
        self.tell_heard();
    }

    /// Where no replica is, leadership is what was heard.
    pub(crate) fn tell_heard(&self) {
        let replica = self.inner.replica.read();
        if replica.as_ref().is_some_and(|replica| !replica.group.is_quarantined()) {
            return;
        }
        let heard = Leadership::Follower { leader: self.inner.heard.lock().leader };
        self.inner.leadership.send_if_modified(|known| {
            let changed = *known != heard;
            *known = heard;
            changed
        });
    }

    /// Somebody to ask who leads a partition that is not here, in turn; `None` where a replica knows better.
    pub fn somebody(&self, turn: usize) -> Option<u64> {
        if self.replica().is_ok() {
            return None;
        }
        let members = self.members();
        members.get(turn % members.len().max(1)).copied()
    }

    /// Other nodes that may know who leads: those that hold the group first.
    pub(crate) fn members(&self) -> Vec<u64> {
        let mut members = self.progress().voters;
        members.extend(self.inner.heard.lock().members.iter());
        let book = self.inner.ground.transport.addresses();
        members.extend(book.iter().flat_map(|book| book.nodes()));
        members.retain(|member| *member != self.inner.ground.node);
        let mut seen = BTreeSet::new();
        members.retain(|member| seen.insert(*member));
        members
    }

    /// Ends the group on this node for good.
    pub(crate) async fn quarantine(&self, text: String) -> Result<(), Error> {
        let (own, group) = (self.clone(), self.group()?);
        whole(async move {
            let marked = group.quarantine(&text).await;
            own.inner.moved.notify_waiters();
            own.tell_heard();
            marked.map_err(|error| Error::Unavailable(error.to_string()))
        })
        .await
    }

    /// Refuses new proposals and ends the group's tasks.
    pub(crate) async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        // A replica that is being begun or given up is, or is not, when this node stops.
        let settled = tokio::time::timeout(SETTLE_TIME, self.inner.holding.lock()).await;
        let Ok(replica) = self.held() else { return };
        replica.stop().await;
        // Not needed, but the next start has less to apply again.
        if let Err(error) = replica.rows.store() {
            tracing::warn!(partition = %self.inner.id, %error, "the newest rows are not stored");
        }
        drop(settled);
    }
}

/// The rows of a group that is not here.
struct NoRows;

impl Rows for NoRows {
    fn get(&self, _: &[u8]) -> Option<Bytes> {
        None
    }

    fn scan(&self, _: &[u8], _: &[u8], _: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {}
}
