//! Gathers the commands of one replica into log entries.
//!
//! While an entry is on its way to disk, the commands that arrive collect; they become the next entry together. So a busy
//! group pays for one append and one flush per batch, and an idle one adds no delay.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::batch::{self, Batch, Origin};
use crate::config::StampSource;
use crate::error::Error;
use crate::machine::Machine;
use crate::metrics;
use crate::raft::group::{Group, Outcome};

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

/// A command whose caller waits.
pub(crate) struct Waiting {
    pub(crate) command: Bytes,
    pub(crate) origin: Option<Origin>,
    pub(crate) system: bool,
    pub(crate) reply: oneshot::Sender<Result<Bytes, Error>>,
}

/// Turns waiting commands into log entries.
pub(crate) struct Batcher<M: Machine> {
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
    pub(crate) fn new(group: Arc<Group<M>>, limits: BatchLimits, stamp: StampSource) -> Self {
        let permits = Arc::new(Semaphore::new(limits.in_flight));
        Self { group, limits, stamp, waiting: VecDeque::new(), permits }
    }

    /// Runs until the group has ended, or nobody can propose any more.
    pub(crate) async fn run(mut self, mut proposals: mpsc::Receiver<Waiting>) {
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
