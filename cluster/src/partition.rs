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
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::batch::{self, Batch};
use crate::config::StampSource;
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine, Rows};
use crate::metrics;
use crate::raft::group::{Group, Outcome, Progress};
use crate::store::rows::StateRows;

/// Pause before proposing again to a fresh leader that has no quorum lease yet.
const NOT_YET_PAUSE: Duration = Duration::from_millis(2);
/// How long a fresh leader may lack a quorum before its callers hear of it.
const NOT_YET_LIMIT: Duration = Duration::from_secs(2);

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
    proposals: mpsc::Sender<Waiting>,
    limits: BatchLimits,
    stopping: AtomicBool,
    batcher: JoinHandle<()>,
}

struct Waiting {
    command: Bytes,
    reply: oneshot::Sender<Result<Bytes, Error>>,
}

impl<M: Machine> Partition<M> {
    pub(crate) fn start(
        id: GroupId,
        group: Group<M>,
        rows: Arc<StateRows>,
        limits: BatchLimits,
        stamp: StampSource,
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
        Self { inner: Arc::new(Inner { id, group, rows, proposals, limits, stopping, batcher }) }
    }

    /// Number of the group.
    pub fn id(&self) -> GroupId {
        self.inner.id
    }

    /// Proposes a command; returns the machine's reply once a quorum has flushed it and it is applied here.
    ///
    /// After [`Error::NotLeader`] and [`Error::TooLarge`] nothing was committed; after any other error it may
    /// have been. Dropping the future does not take the command back.
    pub async fn propose(&self, command: Bytes) -> Result<Bytes, Error> {
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
        let (reply, answer) = oneshot::channel();
        let propose = async {
            inner.proposals.send(Waiting { command, reply }).await.map_err(|_| Error::Stopping)?;
            answer.await.unwrap_or_else(|_| Err(self.lost()))
        };
        tokio::time::timeout(inner.limits.timeout, propose).await.unwrap_or_else(|_| {
            Err(Error::Unavailable(format!("no answer within {:?}", inner.limits.timeout)))
        })
    }

    /// Reads after everything that was committed before the call. `f` must be quick and must not read again:
    /// the group applies nothing while it runs.
    pub async fn read<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> Result<T, Error> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        self.inner.group.ensure_readable().await?;
        Ok(self.peek(f))
    }

    /// Reads what is applied here, however old it is. Same rules for `f` as in [`Partition::read`].
    /// After [`Node::stop`](crate::Node::stop) there are no rows.
    pub fn peek<T>(&self, f: impl FnOnce(&dyn Rows) -> T) -> T {
        self.inner.rows.look(f)
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

    fn lost(&self) -> Error {
        if self.inner.stopping.load(Ordering::Acquire) {
            Error::Stopping
        } else {
            Error::Unavailable("the command was dropped, its outcome is unknown".into())
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
            let Ok(permit) = Arc::clone(&self.permits).acquire_owned().await else { return };
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
            let batch = Batch {
                version: batch::VERSION,
                now,
                seed,
                commands: commands.iter().map(|waiting| waiting.command.clone()).collect(),
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

    fn take_entry(&mut self) -> Vec<Waiting> {
        let mut commands = Vec::with_capacity(self.waiting.len().min(self.limits.entry_commands));
        let mut bytes = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            bytes += waiting.command.len();
            if !commands.is_empty()
                && (bytes > self.limits.entry_bytes || commands.len() >= self.limits.entry_commands)
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
        Outcome::NotYet => Error::Unavailable("the leader has no quorum".into()),
        Outcome::NotLeader { leader } => Error::NotLeader { leader },
        Outcome::Unknown(reason) => Error::Unavailable(reason),
    };
    for waiting in commands {
        let _ = waiting.reply.send(Err(error.clone()));
    }
}
