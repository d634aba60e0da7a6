//! openraft's log storage over the log of one group.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};
use parking_lot::Mutex;

use super::codec;
use super::types::{CommittedLeaderId, Entry, LogId, Membership, Proposal, Types, Vote};
use crate::store::flusher::{Flusher, Job};
use crate::store::log::GroupLog;
use crate::store::record::{LogEntry, Position};
use crate::store::{Engine, Space, keys};

/// Bytes of entries that one replication message carries at most, unless a single entry is longer.
const MESSAGE_BYTES: usize = 4 << 20;

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Entries after which the committed position is noted again.
const COMMITTED_EVERY: u64 = 64;

/// Log, vote and pointers of one group. Clones share everything; a clone serves as reader.
#[derive(Clone)]
pub(crate) struct LogStore {
    group: u32,
    log: Arc<GroupLog>,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    vote: Arc<Mutex<Option<Vote>>>,
    /// The committed position as it was noted last.
    noted: Option<u64>,
}

impl LogStore {
    pub(crate) fn open(
        group: u32,
        engine: Arc<dyn Engine>,
        flusher: Arc<Flusher>,
        tail_limit: usize,
    ) -> io::Result<Self> {
        let log = GroupLog::open(group, Arc::clone(&engine), Arc::clone(&flusher), tail_limit)?;
        let vote = engine.get(Space::Log, &keys::pointer(keys::VOTE, group))?;
        let vote = vote.map(|bytes| codec::decode("vote", &bytes)).transpose()?;
        let (log, vote) = (Arc::new(log), Arc::new(Mutex::new(vote)));
        Ok(Self { group, log, engine, flusher, vote, noted: None })
    }

    async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let entries = if self.engine.volatile() || from >= to || self.log.in_memory(from) {
            self.log.read(from, to, max_bytes)?
        } else {
            let log = Arc::clone(&self.log);
            let read = tokio::task::spawn_blocking(move || log.read(from, to, max_bytes));
            read.await.map_err(io::Error::other)??
        };
        entries.into_iter().map(from_stored).collect()
    }
}

fn to_stored(entry: Entry) -> io::Result<LogEntry> {
    let (kind, body) = match entry.payload {
        EntryPayload::Blank => (BLANK, bytes::Bytes::new()),
        EntryPayload::Normal(proposal) => (NORMAL, proposal.0),
        EntryPayload::Membership(membership) => (MEMBERSHIP, codec::encode(&membership)?.into()),
    };
    let position = position(&entry.log_id);
    Ok(LogEntry { term: position.term, index: position.index, kind, body })
}

fn from_stored(entry: LogEntry) -> io::Result<Entry> {
    let payload = match entry.kind {
        BLANK => EntryPayload::Blank,
        NORMAL => EntryPayload::Normal(Proposal(entry.body)),
        MEMBERSHIP => {
            EntryPayload::Membership(codec::decode::<Membership>("membership", &entry.body)?)
        }
        kind => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("log entry of unknown kind {kind}"),
            ));
        }
    };
    Ok(Entry { log_id: log_id(Position { term: entry.term, index: entry.index }), payload })
}

pub(crate) fn position(id: &LogId) -> Position {
    Position { term: id.committed_leader_id().term, index: id.index() }
}

fn log_id(position: Position) -> LogId {
    LogId::new(CommittedLeaderId::new(position.term), position.index)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(from) => from + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(to) => to + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to, usize::MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(*self.vote.lock())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, MESSAGE_BYTES).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let (purged, last) = self.log.bounds();
        Ok(LogState { last_purged_log_id: purged.map(log_id), last_log_id: last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.flusher.submit(Job::Put {
            key: keys::pointer(keys::VOTE, self.group),
            value: Some(codec::encode(vote)?),
            done: Box::new(move |result| drop(sender.send(result))),
        });
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the flusher is gone")))?;
        *self.vote.lock() = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // A hint, so that a start need not wait for a leader to apply what was committed. It rides on the next flush,
        // is never synced for its own sake, and need not be the newest.
        let due = |committed: &LogId| {
            self.noted.is_none_or(|noted| committed.index() >= noted + COMMITTED_EVERY)
        };
        if let Some(committed) = committed.filter(due) {
            self.noted = Some(committed.index());
            self.flusher.put_lazily(
                keys::pointer(keys::COMMITTED, self.group),
                position(&committed).encode(),
            );
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = self.engine.get(Space::Log, &keys::pointer(keys::COMMITTED, self.group))?;
        let Some(committed) = committed.map(|bytes| Position::decode(&bytes)).transpose()? else {
            return Ok(None);
        };
        // It may have become durable before the entries it speaks of were lost with a truncation.
        let last = self.log.bounds().1;
        Ok(last.filter(|last| last.index >= committed.index).map(|_| log_id(committed)))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(to_stored).collect::<io::Result<Vec<_>>>()?;
        self.log.append(entries, Box::new(move |result| callback.io_completed(result)))
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last.as_ref().map(position));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(position(&upto));
        Ok(())
    }
}
