//! Room of worker streams that several leaders share: this leader's side of it.
//!
//! A stream's gateway lends room to every leader. What is lent comes back to this leader with the end of each
//! lease, so a leader that is busy says nothing. [`Hub::settle`] finds what the gateways must be told: that items
//! wait for a stream whose room here is used up, and that room goes back which others have asked for.

use std::collections::BTreeMap;

use super::item::Kind;
use super::stream::StreamId;
use super::{End, Hub, Key, Work, lease_mut};

/// What the gateway of a stream must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) stream: StreamId,
    pub(crate) kind: Kind,
    pub(crate) about: RoomNote,
}

/// About the room of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoomNote {
    /// So many items wait for more of it, from now on.
    Want(usize),
    /// So much goes back.
    Back(usize),
    /// So much is taken by items that came with the lead of a partition: it was not lent.
    Took(usize),
}

impl Hub {
    /// A gateway lends room to this leader.
    pub(crate) fn lend(&mut self, stream: StreamId, kind: Kind, count: usize) {
        self.streams.lend(stream, kind, count);
    }

    /// How much of the room a gateway wants back from now on: what is idle, and what is owed to others.
    pub(crate) fn recall(&mut self, stream: StreamId, kind: Kind, idle: usize, owed: usize) {
        self.streams.recall(stream, kind, idle, owed);
    }

    /// What the gateways must be told, once nothing more can be handed out. `hungry` says whether this node
    /// hands out anything at all.
    pub(crate) fn settle(&mut self, hungry: bool) -> Vec<Note> {
        // First: what goes back later may be of it.
        let mut took: BTreeMap<(StreamId, usize), usize> = BTreeMap::new();
        for taken in self.streams.take_took() {
            *took.entry(taken).or_default() += 1;
        }
        let mut notes: Vec<Note> = took
            .into_iter()
            .map(|((stream, kind), count)| Note {
                stream,
                kind: Kind::DISPATCHED[kind],
                about: RoomNote::Took(count),
            })
            .collect();
        for kind in Kind::DISPATCHED {
            let number = kind as usize;
            let queue = &self.queues[number];
            let mut wants = Vec::new();
            if queue.len() == 0 || !hungry {
                wants.extend(self.streams.asked[number].iter().map(|id| (*id, 0)));
            } else {
                wants.extend(self.streams.exhausted(number).filter_map(|(id, stream)| {
                    let count = queue.accepted(|line| stream.accepts(kind, line));
                    (count > 0).then_some((id, count))
                }));
            }
            for (stream, count) in wants {
                self.streams.want(stream, number, count);
                notes.push(Note { stream, kind, about: RoomNote::Want(count) });
            }
        }
        notes.extend(self.streams.take_back().into_iter().map(|(stream, kind, count)| Note {
            stream,
            kind: Kind::DISPATCHED[kind],
            about: RoomNote::Back(count),
        }));
        notes
    }

    /// The work of a lease was done by somebody who had it under an earlier leader: the lease ends as well.
    pub(crate) fn overtaken(&mut self, key: &Key, work: &Work, now: i64) {
        if let Some((id, held)) = self.handed_out(key)
            && held == *work
            && lease_mut(&mut self.slots, key, id).is_some_and(|lease| !lease.completing)
        {
            self.finish(key, id, End::Done, now);
        }
    }
}
