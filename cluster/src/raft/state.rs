//! openraft's state machine over the rows of one group and the [`Machine`] that changes them.
//!
//! Committed entries come as a stream and are taken in chunks. Within a chunk every command sees the
//! changes of the ones before it through an [`Overlay`]. At its end rows and applied record go down in one
//! atomic batch; then the callers get their replies, then the machine hears of its effects.
//!
//! Apply runs on openraft's state machine task of the group, so it is the only writer of the rows.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::chain::Chain;
use super::codec::{self, Applied};
use super::origins::Origins;
use super::snapshots::{Builder, Snapshots};
use super::types::{Entry, LogId, Replies, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::batch::Batch;
use crate::machine::{Changes, GroupId, Machine};
use crate::meta;
use crate::store::FaultHook;
use crate::store::overlay::Overlay;
use crate::store::rows::StateRows;
use crate::store::snapshot::Body;

/// Bytes of entries, and of changes, after which a chunk is written.
const CHUNK_BYTES: usize = 4 << 20;

/// State machine of one group.
pub(crate) struct State<M: Machine> {
    group: GroupId,
    machine: Arc<M>,
    rows: Arc<StateRows>,
    snapshots: Arc<Snapshots>,
    fault: FaultHook,
    applied: Applied,
    origins: Origins,
    chain: Chain,
    facts: Arc<Facts>,
    /// A command of the cluster was applied in this chunk.
    changed: bool,
    /// Goes with openraft's last use of the state.
    in_use: Option<mpsc::Sender<()>>,
}

/// What the rest of the node wants to know of a group's state at once.
#[derive(Default)]
pub(crate) struct Facts {
    /// Nobody but this node is in the membership.
    pub(crate) alone: AtomicBool,
    /// Told when a command of the cluster was applied.
    pub(crate) changed: Notify,
    /// State hashes by log index, oldest first.
    pub(crate) points: Mutex<Vec<(u64, u64)>>,
}

type Item = (Entry, Option<ApplyResponder<Types>>);

impl<M: Machine> State<M> {
    /// Opens the state, repeating a snapshot install that the end of the process cut short.
    pub(crate) async fn open(
        group: GroupId,
        machine: Arc<M>,
        rows: Arc<StateRows>,
        snapshots: Arc<Snapshots>,
        fault: FaultHook,
        facts: Arc<Facts>,
    ) -> io::Result<Self> {
        snapshots.resume_install(&rows).await?;
        let applied = match rows.applied()? {
            Some(bytes) => codec::decode("applied record", &bytes)?,
            None => Applied::default(),
        };
        let (origins, chain) = (Origins::load(&rows)?, Chain::load(&rows)?);
        let state = Self {
            chain,
            group,
            machine,
            rows,
            snapshots,
            fault,
            applied,
            origins,
            facts,
            changed: false,
            in_use: None,
        };
        state.look_around();
        Ok(state)
    }

    /// Keeps a sender for as long as openraft keeps the state.
    pub(crate) fn until_dropped(mut self, in_use: mpsc::Sender<()>) -> Self {
        self.in_use = Some(in_use);
        self
    }

    fn look_around(&self) {
        let alone = self.applied.membership.nodes().count() <= 1;
        self.facts.alone.store(alone, Ordering::Release);
    }

    fn apply_chunk(&mut self, chunk: Vec<Item>) -> io::Result<()> {
        let mut answers = Vec::with_capacity(chunk.len());
        let mut effects = Vec::new();
        let rows = Arc::clone(&self.rows);
        let changes = rows.look(|base| {
            let mut overlay = Overlay::new(base);
            for (entry, responder) in chunk {
                let replies = self.apply_entry(entry, &mut overlay, &mut effects)?;
                answers.extend(responder.map(|responder| (responder, replies)));
            }
            let mut changes = overlay.into_changes();
            self.chain.store(&mut changes);
            Ok::<_, io::Error>(changes)
        })?;
        rows.write(changes, codec::encode(&self.applied)?)?;
        for (responder, replies) in answers {
            responder.send(replies);
        }
        if std::mem::take(&mut self.changed) {
            *self.facts.points.lock() = self.chain.points().iter().copied().collect();
            self.facts.changed.notify_waiters();
        }
        if !effects.is_empty() {
            self.machine.committed(self.group, effects);
        }
        Ok(())
    }

    fn apply_entry(
        &mut self,
        entry: Entry,
        overlay: &mut Overlay<'_>,
        effects: &mut Vec<M::Effect>,
    ) -> io::Result<Replies> {
        let mut replies = Replies::default();
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Membership(membership) => {
                self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                self.look_around();
            }
            EntryPayload::Normal(proposal) => {
                let batch = Batch::read(proposal.0)?;
                replies.0.reserve(batch.commands.len());
                for (position, command) in batch.commands.iter().enumerate() {
                    let stamp = batch.stamp(entry.log_id.index(), position, self.applied.time);
                    self.applied.time = stamp.now;
                    let origin = batch.origin(position);
                    if let Some(reply) = origin.and_then(|origin| self.origins.seen(&origin)) {
                        replies.0.push(reply);
                        continue;
                    }
                    let reply = if batch.system {
                        let (changes, reply) = meta::change::apply(&*overlay, command);
                        self.chain.add(&changes);
                        overlay.extend(changes);
                        if meta::change::is_hash_point(command) {
                            self.chain.point(entry.log_id.index());
                        }
                        self.changed = true;
                        reply
                    } else {
                        let applied = self.machine.apply(&*overlay, stamp, command);
                        self.chain.add(&applied.changes);
                        overlay.extend(applied.changes);
                        effects.extend(applied.effects);
                        applied.reply
                    };
                    if let Some(origin) = origin {
                        self.origins.note(&origin, reply.clone());
                    }
                    replies.0.push(reply);
                }
                if !batch.origins.is_empty() {
                    let mut changes = Changes::new();
                    self.origins.finish(entry.log_id.index(), self.applied.time, &mut changes);
                    self.chain.add(&changes);
                    overlay.extend(changes);
                }
            }
        }
        self.applied.last = Some(entry.log_id);
        Ok(replies)
    }

    /// A panic in apply would repeat on every restart of every replica: it is a fault, not an error.
    fn apply_or_fault(&mut self, chunk: Vec<Item>) -> io::Result<()> {
        let first = chunk.first().map_or(0, |(entry, _)| entry.log_id.index());
        let result = catch_unwind(AssertUnwindSafe(|| self.apply_chunk(chunk)))
            .unwrap_or_else(|_| Err(io::Error::other("the machine panicked")));
        if let Err(error) = &result {
            self.fault.report(&format!(
                "applying entries from {first} on in partition {}: {error}",
                self.group
            ));
        }
        result
    }
}

impl<M: Machine> RaftStateMachine<Types> for State<M> {
    type SnapshotData = Body;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let item = item?;
            if let EntryPayload::Normal(proposal) = &item.0.payload {
                bytes += proposal.0.len();
            }
            chunk.push(item);
            if bytes > CHUNK_BYTES {
                self.apply_or_fault(std::mem::take(&mut chunk))?;
                bytes = 0;
            }
        }
        if chunk.is_empty() { Ok(()) } else { self.apply_or_fault(chunk) }
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.snapshots.builder(&self.rows, &self.applied))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.snapshots.builder(&self.rows, &self.applied)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Body) -> io::Result<()> {
        self.applied = self.snapshots.install(&self.rows, meta, snapshot).await?;
        self.origins = Origins::load(&self.rows)?;
        self.chain = Chain::load(&self.rows)?;
        self.facts.points.lock().clear();
        self.look_around();
        self.facts.changed.notify_waiters();
        let index = self.applied.last.as_ref().map_or(0, LogId::index);
        tracing::info!(partition = self.group.0, index, "caught up by a snapshot");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current(&self.rows, &self.applied))
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Body;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.build().await
    }
}
