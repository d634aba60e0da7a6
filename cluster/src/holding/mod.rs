//! How replicas come to a node and go from it, while it runs.
//!
//! Only the leader of a group asks for that, after a quorum has confirmed that it leads: the controller asks the leader
//! ([`replicas`](crate::replicas)). Each request is written down before anything is done, so a start goes on with it;
//! each may come twice, and one that comes late finds another replica than the one that it names. DESIGN.md says why a
//! replica that grows does not vote, and why the vote of one that went stays.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use durahub_proto::peer::{BeginReplica, DropReplica};
use prost::Message;

use crate::error::Error;
use crate::machine::Machine;
use crate::metrics;
use crate::partition::Partition;
use crate::replica::Replica;
use crate::store::erase::erase;
use crate::store::flusher::Job;
use crate::store::holding::{Holding, Stage};
use crate::store::keys;

/// How long one look at a replica that grows lasts at most.
const LOOK: Duration = Duration::from_secs(10);
/// Pause after a look that found nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

fn unavailable(error: io::Error) -> Error {
    Error::Unavailable(error.to_string())
}

impl<M: Machine> Partition<M> {
    /// Goes on at a start with what is written.
    pub(crate) async fn resume(&self, holding: Holding) -> io::Result<()> {
        if holding.is_here() {
            self.run(holding).await?;
        }
        if holding.stage() == Stage::Going {
            tokio::spawn(self.clone().clear(holding));
        }
        Ok(())
    }

    async fn run(&self, holding: Holding) -> io::Result<()> {
        let inner = &self.inner;
        let leadership = inner.leadership.clone();
        let replica = Arc::new(inner.ground.start(self.id(), holding, leadership).await?);
        *inner.replica.write() = Some(Arc::clone(&replica));
        if holding.stage() == Stage::Growing {
            tokio::spawn(self.clone().grow(replica));
        }
        Ok(())
    }

    /// What is written of the group; what is being changed is not waited for.
    pub(crate) fn holding(&self) -> Option<Holding> {
        Some(*self.inner.holding.try_lock().ok()?)
    }

    /// Begins a replica, for the leader. It grows until it has applied all that was committed by then. One that is here
    /// already gets a new number, so that no request of before concerns it.
    pub(crate) async fn begin(&self, request: BeginReplica) -> Result<(), Error> {
        let mut holding = self.inner.holding.lock().await;
        self.check()?;
        let begun = holding.begun + 1;
        let next = match holding.stage() {
            Stage::Going | Stage::Unspecified => {
                let text = "what this node had of the partition is still being deleted";
                return Err(Error::Unavailable(text.into()));
            }
            Stage::Held => Holding::new(Stage::Held, begun, 0),
            Stage::Growing => {
                Holding::new(Stage::Growing, begun, holding.until.max(request.committed_index))
            }
            Stage::Gone => Holding::new(Stage::Growing, begun, request.committed_index),
        };
        let is_new = holding.stage() == Stage::Gone;
        if is_new {
            // Nothing is there; but tasks of the replica before may have ended after its rows were deleted.
            if !self.erase_all().await.map_err(unavailable)? {
                return Err(Error::Stopping);
            }
        }
        self.write(next).await.map_err(unavailable)?;
        *holding = next;
        if is_new {
            tracing::info!(partition = %self.id(), until = next.until, "a replica begins");
        }
        if self.held().is_err() {
            self.run(next).await.map_err(unavailable)?;
        }
        Ok(())
    }

    /// Waits until a replica has applied all that was committed when it was begun; from then on it may vote.
    async fn grow(self, replica: Arc<Replica<M>>) {
        loop {
            let until = self.inner.holding.lock().await.until;
            let grown = replica.group.wait_applied(until, LOOK).await;
            let mut holding = self.inner.holding.lock().await;
            let is_here = self.held().is_ok_and(|held| Arc::ptr_eq(&held, &replica));
            if !is_here || self.inner.stopping.load(Ordering::Acquire) {
                return;
            }
            if grown && holding.until <= until {
                let next = Holding::new(Stage::Held, holding.begun, 0);
                // Behind the entries in the flusher's queue: they are on disk before this is.
                if self.write(next).await.is_ok() {
                    *holding = next;
                    replica.group.set_grown();
                    tracing::info!(partition = %self.id(), until, "a replica has grown");
                    return;
                }
            }
            drop(holding);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Gives up the replica that the request names. The leader has confirmed that it leads in that term, and that the
    /// committed membership of that index is without this node; a replica that knows of a later one refuses.
    pub(crate) async fn give_up(&self, request: DropReplica) -> Result<(), Error> {
        let mut holding = self.inner.holding.lock().await;
        if !holding.is_here() {
            return Ok(());
        }
        let refuse = |text: String| Err(Error::Unavailable(text));
        if holding.begun != request.begun {
            return refuse(format!("the replica here is number {}", holding.begun));
        }
        let replica = self.held().ok();
        if let Some(replica) = &replica {
            let (own, node) = (replica.group.progress(), self.inner.ground.node);
            let is_member = own.voters.contains(&node) || own.learners.contains(&node);
            let known = (own.membership_term, own.membership_index);
            let term = match request.leader_term {
                // An older version: indexes alone are compared.
                0 => own.membership_term,
                term => term,
            };
            let asked = (term, request.membership_index);
            if known > asked || (known == asked && is_member) {
                return refuse("this node knows of a later membership".into());
            }
        }
        let next = Holding::new(Stage::Going, holding.begun, 0);
        self.write(next).await.map_err(unavailable)?;
        *holding = next;
        *self.inner.replica.write() = None;
        self.inner.moved.notify_waiters();
        self.tell_heard();
        if let Some(replica) = replica {
            replica.stop().await;
            // The replica's own last word was another.
            self.tell_heard();
            // Nobody reads or writes what is about to go. A snapshot that is being installed may take a while.
            let rows = Arc::clone(&replica.rows);
            let forgetting = tokio::task::spawn_blocking(move || rows.forget()).await;
            forgetting.map_err(|error| Error::Unavailable(error.to_string()))?;
        }
        metrics::forget(self.id().0);
        tracing::info!(partition = %self.id(), "a replica is given up");
        tokio::spawn(self.clone().clear(next));
        Ok(())
    }

    /// Deletes what was given up.
    async fn clear(self, holding: Holding) {
        let ground = Arc::clone(&self.inner.ground);
        match self.erase_all().await {
            Ok(true) => {}
            // A start goes on with it.
            Ok(false) => return,
            Err(error) => {
                if !self.inner.stopping.load(Ordering::Acquire) {
                    let text = format!("deleting what was given up of partition {}", self.id());
                    ground.fault.report(&format!("{text}: {error}"));
                }
                return;
            }
        }
        if let Some(folder) = ground.snapshots_of(self.id())
            && let Err(error) = std::fs::remove_dir_all(&folder)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %folder.display(), %error, "snapshots cannot be removed");
        }
        let mut known = self.inner.holding.lock().await;
        let gone = Holding::new(Stage::Gone, holding.begun, 0);
        if *known == holding && self.write(gone).await.is_ok() {
            *known = gone;
            tracing::info!(partition = %self.id(), "nothing is left of a replica that was given up");
        }
    }

    /// Deletes all but the vote; false if the node stops meanwhile.
    async fn erase_all(&self) -> io::Result<bool> {
        let (ground, own) = (Arc::clone(&self.inner.ground), self.clone());
        // What was on its way to the disk is there now, and nothing of it is left to be deleted later.
        ground.flusher.sync().await?;
        ground.flusher.forget_deletions(self.id().0);
        let erasing = tokio::task::spawn_blocking(move || {
            let stop = || own.inner.stopping.load(Ordering::Acquire);
            erase(ground.engine.as_ref(), own.id().0, &stop)
        });
        erasing.await.map_err(io::Error::other)?
    }

    /// Writes down what this node has of the group, durably.
    async fn write(&self, holding: Holding) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.inner.ground.flusher.submit(Job::Put {
            key: keys::pointer(keys::HOLDING, self.id().0),
            value: Some(holding.encode_to_vec()),
            done: Box::new(move |result| drop(sender.send(result))),
        });
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the flusher is gone")))
    }
}

#[cfg(test)]
mod tests;
