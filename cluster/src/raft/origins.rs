//! Commands that were applied already, by their origin, so that one which is proposed again is answered and
//! not applied again.
//!
//! A node that does not know what became of a command may propose it once more, through another leader. What
//! makes that safe is part of the replicated state: rows beside those of the machine, one per log entry and
//! session, with the replies of that entry. They go when their sender says that they are settled, or when the
//! session has been silent for long.
//!
//! The index in memory is read back from the rows at start, so it never knows more than they do: replicas that
//! were restarted decide like those that were not.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;
use prost::Message;

use crate::batch::Origin;
use crate::machine::Changes;
use crate::meta::RESERVED;
use crate::store::rows::StateRows;

const ORIGIN: u8 = b'o';
/// Silence after which a session is forgotten, in nanoseconds: much longer than anybody asks again.
const FORGET_AFTER: i64 = 600 * 1_000_000_000;

/// Row of one entry and session.
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(sfixed64, tag = "1")]
    time: i64,
    #[prost(uint64, tag = "2")]
    settled_below: u64,
    #[prost(message, repeated, tag = "3")]
    replies: Vec<Reply>,
}

#[derive(Clone, PartialEq, Message)]
struct Reply {
    #[prost(uint64, tag = "1")]
    sequence: u64,
    #[prost(bytes = "bytes", tag = "2")]
    reply: Bytes,
}

#[derive(Default)]
struct Session {
    time: i64,
    settled_below: u64,
    replies: BTreeMap<u64, Bytes>,
    /// Log index of each row, with the highest sequence in it.
    rows: BTreeMap<u64, u64>,
}

/// Origins of one group.
#[derive(Default)]
pub(crate) struct Origins {
    sessions: BTreeMap<u64, Session>,
    /// Of the entry that is being applied.
    open: BTreeMap<u64, Record>,
}

fn key(session: u64, index: u64) -> Vec<u8> {
    let mut key = vec![RESERVED, ORIGIN];
    key.extend_from_slice(&session.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key
}

impl Origins {
    /// Reads the index back from the rows.
    pub(crate) fn load(rows: &StateRows) -> io::Result<Self> {
        let mut origins = Self::default();
        let mut broken = None;
        let mut visit = |key: &[u8], value: &[u8]| {
            let number = |at: usize| {
                let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
                bytes.map(u64::from_be_bytes)
            };
            match (number(2), number(10), Record::decode(value)) {
                (Some(session), Some(index), Ok(record)) => origins.add(session, index, record),
                _ => broken = Some(io::Error::other("a row of origins is broken")),
            }
            std::ops::ControlFlow::Continue(())
        };
        rows.look(|rows| rows.scan(&[RESERVED, ORIGIN], &[RESERVED, ORIGIN + 1], &mut visit));
        broken.map_or(Ok(origins), Err)
    }

    fn add(&mut self, session: u64, index: u64, record: Record) {
        let session = self.sessions.entry(session).or_default();
        session.time = session.time.max(record.time);
        session.settled_below = session.settled_below.max(record.settled_below);
        let last = record.replies.iter().map(|reply| reply.sequence).max().unwrap_or(0);
        session.rows.insert(index, last);
        session
            .replies
            .extend(record.replies.into_iter().map(|reply| (reply.sequence, reply.reply)));
    }

    /// The reply to a command that was applied before. Empty when nobody can be waiting for it any more.
    pub(crate) fn seen(&self, origin: &Origin) -> Option<Bytes> {
        let in_entry = self.open.get(&origin.session).and_then(|record| {
            record.replies.iter().find(|reply| reply.sequence == origin.sequence)
        });
        if let Some(reply) = in_entry {
            return Some(reply.reply.clone());
        }
        let session = self.sessions.get(&origin.session)?;
        if origin.sequence < session.settled_below {
            return Some(Bytes::new());
        }
        session.replies.get(&origin.sequence).cloned()
    }

    /// Notes a command that was applied just now.
    pub(crate) fn note(&mut self, origin: &Origin, reply: Bytes) {
        let record = self.open.entry(origin.session).or_default();
        record.settled_below = record.settled_below.max(origin.settled_below);
        record.replies.push(Reply { sequence: origin.sequence, reply });
    }

    /// Ends the entry at `index`: adds the rows that are new and takes those that have served.
    pub(crate) fn finish(&mut self, index: u64, time: i64, changes: &mut Changes) {
        for (id, mut record) in std::mem::take(&mut self.open) {
            record.time = time;
            // The newest row is the last to go, so it must know the most.
            let known = self.sessions.get(&id).map_or(0, |session| session.settled_below);
            record.settled_below = record.settled_below.max(known);
            changes.insert(key(id, index), Some(record.encode_to_vec().into()));
            self.add(id, index, record);
            if let Some(session) = self.sessions.get_mut(&id) {
                session.replies = session.replies.split_off(&session.settled_below);
                let settled = session.settled_below;
                // The newest row stays: it remembers how far the session is settled.
                session.rows.retain(|row, last| {
                    let keep = *row == index || *last >= settled;
                    if !keep {
                        changes.insert(key(id, *row), None);
                    }
                    keep
                });
            }
        }
        self.sessions.retain(|id, session| {
            let keep = time - session.time < FORGET_AFTER;
            if !keep {
                changes.extend(session.rows.keys().map(|row| (key(*id, *row), None)));
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(session: u64, sequence: u64, settled_below: u64) -> Origin {
        Origin { session, sequence, settled_below }
    }

    fn apply(origins: &mut Origins, index: u64, time: i64, all: &[Origin]) -> Changes {
        for origin in all {
            if origins.seen(origin).is_none() {
                origins.note(origin, Bytes::from(format!("{}@{index}", origin.sequence)));
            }
        }
        let mut changes = Changes::new();
        origins.finish(index, time, &mut changes);
        changes
    }

    #[test]
    fn command_is_answered_again_until_it_is_settled() {
        let mut origins = Origins::default();
        let put = apply(&mut origins, 5, 0, &[origin(1, 1, 0), origin(1, 2, 0), origin(1, 2, 0)]);
        assert_eq!(put.keys().cloned().collect::<Vec<_>>(), [key(1, 5)]);
        assert_eq!(origins.seen(&origin(1, 2, 0)).unwrap(), "2@5");
        assert_eq!(origins.seen(&origin(1, 3, 0)), None);
        assert_eq!(origins.seen(&origin(2, 1, 0)), None);
        // Proposed again, nothing is written.
        assert!(apply(&mut origins, 6, 0, &[origin(1, 2, 0)]).is_empty());
        // Settled, the row goes, and a straggler is still not applied.
        let changes = apply(&mut origins, 7, 0, &[origin(1, 3, 3)]);
        assert_eq!(changes[&key(1, 5)], None);
        assert!(changes[&key(1, 7)].is_some());
        assert_eq!(origins.seen(&origin(1, 2, 0)).unwrap(), "");
    }

    #[test]
    fn silent_session_is_forgotten() {
        let mut origins = Origins::default();
        apply(&mut origins, 1, 0, &[origin(1, 1, 0)]);
        let changes = apply(&mut origins, 2, FORGET_AFTER, &[origin(2, 1, 0)]);
        assert_eq!(changes[&key(1, 1)], None);
        assert_eq!(origins.sessions.keys().copied().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn restarted_replica_decides_like_the_others() {
        use std::sync::Arc;

        use crate::store::memory::MemoryEngine;
        use crate::store::{FaultHook, rows::StateRows};

        let rows = StateRows::new(Arc::new(MemoryEngine::default()), 1, FaultHook::default());
        let mut running = Origins::default();
        for index in 1..60_u64 {
            let first = index * 2;
            let all: Vec<_> = (first..first + 2)
                .map(|sequence| origin(index % 3 + 1, sequence, first.saturating_sub(8)))
                .collect();
            let changes = apply(&mut running, index, index as i64 * 20_000_000_000, &all);
            rows.write(changes, Vec::new()).unwrap();
            let restarted = Origins::load(&rows).unwrap();
            for session in 1..=3 {
                for sequence in 0..130 {
                    let asked = origin(session, sequence, 0);
                    assert_eq!(running.seen(&asked), restarted.seen(&asked), "{index} {asked:?}");
                }
            }
        }
    }
}
