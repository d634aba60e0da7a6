//! One group as its users see it: propose, read, peek, and who leads.
//!
//! Proposals pass through a batcher task. While an entry is on its way to disk, the commands that arrive
//! collect; they become the next entry together. So a busy group pays for one append and one flush per
//! batch, and an idle one adds no delay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::admission::{Admit, Demand};
use crate::batch::{self, Batch, Origin};
use crate::config::StampSource;
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine, Rows};
use crate::metrics;
use crate::raft::group::{Group, Outcome, Progress};
use crate::routing::Route;
use crate::store::rows::StateRows;

/// Pause before proposing again to a fresh leader that has no quorum lease yet.
const NOT_YET_PAUSE: Duration = Duration::from_millis(2);
/// How long a fresh leader may lack a quorum before its callers hear of it.
const NOT_YET_LIMIT: Duration = Duration::from_secs(2);
/// How long an entry may be on its way before those who wait behind it are told if there is no quorum.
const STUCK_AFTER: Duration = Duration::from_millis(500);

/// Limits of the batcher.
#[derive(Clone, Debug)]
pub(crate) struct BatchLimits {
    /// Longest command, in bytes.
    pub(crate) command_bytes: usize,
    /// Bytes after which an entry is closed; a longer single command still makes one.
    pub(crate) entry_bytes: usize,
    /// Commands after which an entry is closed.
    pub(crate) entry_commands: usize,
    /// Entries on their way at the same time.
    pub(crate) in_flight: usize,
    /// Commands that may wait before callers do.
    pub(crate) waiting: usize,
    /// Time after which a caller hears that the outcome is unknown.
    pub(crate) timeout: Duration,
}

/// A group on this node. Cheap to clone.
pub struct Partition<M: Machine> {
    inner: Arc<Inner<M>>,
}

impl<M: Machine> Clone for Partition<M> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

struct Inner<M: Machine> {
    id: GroupId,
    group: Arc<Group<M>>,
    rows: Arc<StateRows>,
    machine: Arc<M>,
    proposals: mpsc::Sender<Waiting>,
    limits: BatchLimits,
    stopping: AtomicBool,
    batcher: JoinHandle<()>,
    /// The way to the other replicas; `None` when there can be none.
    route: Option<Route>,
    admit: Admit,
}

/// Whose command it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The machine's; it is refused if the leader does not admit that.
    Of(Demand),
    /// The cluster's own.
    System,
}

struct Waiting {
    command: Bytes,
    origin: Option<Origin>,
    system: bool,
    reply: oneshot::Sender<Result<Bytes, Error>>,
}

impl<M: Machine> Partition<M> {
    pub(crate) fn start(
        id: GroupId,
        group: Group<M>,
        (rows, machine): (Arc<StateRows>, Arc<M>),
        limits: BatchLimits,
        stamp: StampSource,
        route: Option<Route>,
        admit: Admit,
    ) -> Self {
        let group = Arc::new(group);
        let (proposals, receiver) = mpsc::channel(limits.waiting);
        let batcher = Batcher {
            group: Arc::clone(&group),
            limits: limits.clone(),
            stamp,
            waiting: VecDeque::new(),
            permits: Arc::new(Semaphore::new(limits.in_flight)),
        };
        let batcher = tokio::spawn(batcher.run(receiver));
        let stopping = AtomicBool::new(false);
        let inner =
            Inner { id, group, rows, machine, proposals, limits, stopping, batcher, route, admit };
        Self { inner: Arc::new(inner) }
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
        match self.inner.route.as_ref().filter(|_| !self.alone()) {
            Some(route) => self.propose_routed(route, command, Kind::Of(demand)).await,
            None => self.propose_here(command, None, Kind::Of(demand)).await,
        }
    }

    /// Proposes a command of the cluster itself.
    pub(crate) async fn propose_system(&self, command: Bytes) -> Result<Bytes, Error> {
        match self.inner.route.as_ref().filter(|_| !self.alone()) {
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
        if command.len() > inner.limits.command_bytes {
            return Err(Error::TooLarge {
                bytes: command.len(),
                limit: inner.limits.command_bytes,
            });
        }
        if inner.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        if let Kind::Of(demand) = kind
            && let Err(refusal) = (inner.admit)(demand)
            // Whoever does not lead has nothing to say about it.
            && matches!(*inner.group.leadership().borrow(), Leadership::Leader { .. })
        {
            return Err(Error::Refused(refusal));
        }
        let (reply, answer) = oneshot::channel();
        let system = kind == Kind::System;
        let propose = async {
            let waiting = Waiting { command, origin, system, reply };
            inner.proposals.send(waiting).await.map_err(|_| Error::Stopping)?;
            // Also while the node stops: the command may be in the log already.
            answer.await.unwrap_or_else(|_| {
                let reason = "the command was dropped, its outcome is unknown";
                Err(Error::Unavailable(reason.into()))
            })
        };
        tokio::time::timeout(inner.limits.timeout, propose).await.unwrap_or_else(|_| {
            Err(Error::Unavailable(format!("no answer within {:?}", inner.limits.timeout)))
        })
    }

    /// Reads after everything that was committed before the call, on any node. `f` must be quick and must not
    /// read again: the group applies nothing while it runs. Without a quorum: [`Error::NotLeader`].
    pub async fn read<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Result<T, Error> {
        self.catch_up().await?;
        Ok(self.peek(f))
    }

    /// Waits until the rows here hold everything that was committed before the call; false if this node does not
    /// hold the partition, so that only [`Partition::query`] reads it. Without a quorum: [`Error::NotLeader`].
    pub async fn catch_up(&self) -> Result<bool, Error> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        let current = match self.inner.route.as_ref().filter(|_| !self.alone()) {
            Some(route) => self.catch_up_routed(route).await,
            None => self.inner.group.ensure_readable().await.map(drop),
        };
        self.settle_read(current).map(|()| true)
    }

    /// Reads at the leader, wherever it is: [`Machine::read`] answers from rows that hold everything that was
    /// committed before the call. Without a quorum: [`Error::NotLeader`].
    pub async fn query(&self, query: Bytes) -> Result<Bytes, Error> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        let answer = match self.inner.route.as_ref().filter(|_| !self.alone()) {
            Some(route) => self.query_routed(route, query).await,
            None => match self.inner.group.ensure_readable().await {
                Ok(_) => self.answer_from_rows(&query).ok_or_else(|| {
                    Error::Unavailable("the machine does not know this read".into())
                }),
                Err(error) => Err(error),
            },
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

    /// What the machine reads in the rows here.
    pub(crate) fn answer_from_rows(&self, query: &Bytes) -> Option<Bytes> {
        self.peek(|rows| self.inner.machine.read(rows, query))
    }

    /// True when nobody else holds the group: then the way over the other nodes costs nothing.
    fn alone(&self) -> bool {
        self.inner.group.facts().alone.load(Ordering::Acquire)
            && matches!(*self.leadership().borrow(), Leadership::Leader { .. })
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.inner.limits.timeout
    }

    /// Reads what is applied here, however old it is. Same rules for `f` as in [`Partition::read`].
    /// After [`Node::stop`](crate::Node::stop) there are no rows.
    pub fn peek<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> T {
        self.inner.rows.look(f)
    }

    /// Whether this node holds the partition, so that reads need not travel.
    pub fn is_here(&self) -> bool {
        true
    }

    /// Reads what is applied here, however old it is; `None` if this node does not hold the partition. Same rules for
    /// `f` as in [`Partition::read`].
    pub fn look<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Option<T> {
        Some(self.peek(f))
    }

    /// Who leads, from now on.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.group.leadership()
    }

    /// How far the group has come on this node.
    pub fn progress(&self) -> Progress {
        self.inner.group.progress()
    }

    /// Asks to hand the leadership to another voter; returns before it has happened.
    pub async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.inner.group.transfer_leader(to).await
    }

    /// Names a compaction point now instead of when the policy says so.
    pub async fn compact(&self) -> Result<(), Error> {
        self.inner.group.compact().await
    }

    pub(crate) fn group(&self) -> &Group<M> {
        &self.inner.group
    }

    /// Ends the group on this node for good.
    pub(crate) async fn quarantine(&self, text: &str) -> Result<(), Error> {
        self.inner.stopping.store(true, Ordering::Release);
        let marked = self.inner.group.quarantine(text).await;
        marked.map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// Refuses new proposals and ends the group's tasks.
    pub(crate) async fn stop(&self) {
        self.inner.stopping.store(true, Ordering::Release);
        self.inner.group.stop().await;
        self.inner.batcher.abort();
        // Not needed, but the next start has less to apply again.
        if let Err(error) = self.inner.rows.store() {
            tracing::warn!(partition = %self.inner.id, %error, "the newest rows are not stored");
        }
    }
}

/// Turns waiting commands into log entries.
struct Batcher<M: Machine> {
    group: Arc<Group<M>>,
    limits: BatchLimits,
    stamp: StampSource,
    waiting: VecDeque<Waiting>,
    permits: Arc<Semaphore>,
}

/// An entry that a fresh leader refused, to be proposed again.
struct Returned {
    commands: Vec<Waiting>,
    since: Instant,
}

impl<M: Machine> Batcher<M> {
    async fn run(mut self, mut proposals: mpsc::Receiver<Waiting>) {
        let (give_back, mut returned) = mpsc::unbounded_channel::<Returned>();
        let entry_commands = self.limits.entry_commands;
        let mut arrived = Vec::with_capacity(entry_commands);
        loop {
            let Some(permit) = self.permit(&mut proposals).await else { return };
            let (commands, since) = if let Ok(again) = returned.try_recv() {
                tokio::time::sleep(NOT_YET_PAUSE).await;
                (again.commands, again.since)
            } else {
                while let Some(room) =
                    entry_commands.checked_sub(self.waiting.len()).filter(|room| *room > 0)
                {
                    match proposals.try_recv() {
                        Ok(waiting) => self.waiting.push_back(waiting),
                        Err(mpsc::error::TryRecvError::Disconnected) => return,
                        Err(mpsc::error::TryRecvError::Empty) if self.waiting.is_empty() => {
                            tokio::select! {
                                biased;
                                Some(again) = returned.recv() => {
                                    tokio::time::sleep(NOT_YET_PAUSE).await;
                                    // Not lost: it is sent on below as soon as this round comes to it.
                                    if give_back.send(again).is_err() { return }
                                    break;
                                }
                                count = proposals.recv_many(&mut arrived, room) => {
                                    if count == 0 { return }
                                    self.waiting.extend(arrived.drain(..));
                                }
                            }
                        }
                        Err(mpsc::error::TryRecvError::Empty) => break,
                    }
                }
                (self.take_entry(), Instant::now())
            };
            if commands.is_empty() {
                continue;
            }
            metrics::BATCH_COMMANDS.record(commands.len() as f64);
            let (now, seed) = (self.stamp)();
            let system = commands.iter().any(|waiting| waiting.system);
            let origins = match commands.iter().any(|waiting| waiting.origin.is_some()) {
                true => commands.iter().map(|waiting| waiting.origin.unwrap_or_default()).collect(),
                false => Vec::new(),
            };
            let plain = origins.is_empty() && !system;
            let batch = Batch {
                version: if plain { batch::VERSION } else { batch::CLUSTER_VERSION },
                now,
                seed,
                commands: commands.iter().map(|waiting| waiting.command.clone()).collect(),
                system,
                origins,
            };
            let entry = Bytes::from(batch.encode_to_vec());
            let give_back = give_back.clone();
            let done = move |outcome| {
                settle(outcome, commands, since, &give_back);
                drop(permit);
            };
            if self.group.submit(entry, done).await.is_err() {
                // The group has ended. The callback was dropped, and with it the callers' channels.
                return;
            }
        }
    }

    /// The right to send an entry. A leader that has lost its quorum may never get it: the entry that went before
    /// is neither committed nor refused. Whoever waits behind that entry is told that nothing was committed.
    async fn permit(
        &mut self,
        proposals: &mut mpsc::Receiver<Waiting>,
    ) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.permits).acquire_owned();
        tokio::pin!(permit);
        loop {
            tokio::select! {
                biased;
                permit = &mut permit => return permit.ok(),
                () = tokio::time::sleep(STUCK_AFTER) => {}
            }
            if self.group.has_quorum().await {
                continue;
            }
            while let Ok(waiting) = proposals.try_recv() {
                self.waiting.push_back(waiting);
            }
            for waiting in self.waiting.drain(..) {
                let _ = waiting.reply.send(Err(Error::NotLeader { leader: None }));
            }
        }
    }

    fn take_entry(&mut self) -> Vec<Waiting> {
        let mut commands = Vec::with_capacity(self.waiting.len().min(self.limits.entry_commands));
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            bytes += waiting.command.len();
            let other_kind =
                commands.first().is_some_and(|first: &Waiting| first.system != waiting.system);
            if !commands.is_empty()
                && (other_kind
                    || bytes > self.limits.entry_bytes
                    || commands.len() >= self.limits.entry_commands)
            {
                self.waiting.push_front(waiting);
                break;
            }
            commands.push(waiting);
        }
        commands
    }
}

fn settle(
    outcome: Outcome,
    commands: Vec<Waiting>,
    since: Instant,
    give_back: &mpsc::UnboundedSender<Returned>,
) {
    let error = match outcome {
        Outcome::Applied(replies) => {
            for (waiting, reply) in commands.into_iter().zip(replies) {
                // A caller that went away does not want its reply.
                let _ = waiting.reply.send(Ok(reply));
            }
            return;
        }
        Outcome::NotYet if since.elapsed() < NOT_YET_LIMIT => {
            let _ = give_back.send(Returned { commands, since });
            return;
        }
        // Without a quorum it leads in name only. Nothing was committed.
        Outcome::NotYet => Error::NotLeader { leader: None },
        Outcome::NotLeader { leader } => Error::NotLeader { leader },
        Outcome::Unknown(reason) => Error::Unavailable(reason),
    };
    for waiting in commands {
        let _ = waiting.reply.send(Err(error.clone()));
    }
}
