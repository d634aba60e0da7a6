//! Worker streams, as a hub knows them: what they accept, and how much more they can hold.
//!
//! A stream may be at another node's gateway, and others may lead work for it as well. Its *room* here is what the
//! gateway has lent to this leader ([`super::room`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::item::{Key, Kind};
use crate::dispatch::filter::Filter;
use crate::dispatch::queue::Line;

/// A worker stream, unique in this run of the node.
pub(crate) type StreamId = u64;

/// What may be on its way to one connection before it has taken something (the receiver chooses the
/// window, so "written" is not "received").
const UNSENT_ITEMS: usize = 64;
const UNSENT_BYTES: usize = 1 << 20;

/// What a worker said when it opened its stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Offer {
    /// What it accepts.
    pub(crate) filter: Filter,
    /// How many items of each kind may be with it at once, of those that this node leads.
    pub(crate) room: [usize; Kind::COUNT],
    /// Whether it is at the gateway of another node.
    pub(crate) is_remote: bool,
    /// Whether it can ask for a history by itself (R3.30).
    pub(crate) streams_history: bool,
}

pub(super) struct Stream {
    /// Shared by all streams that filter alike.
    pub(super) filter: Arc<Filter>,
    pub(super) streams_history: bool,
    is_remote: bool,
    pub(super) room: [Room; Kind::COUNT],
    leases: [HashSet<Key>; Kind::COUNT],
    /// Items on their way to the connection, and their bytes.
    unsent: usize,
    unsent_bytes: usize,
    /// How many items were put on their way, and how many of them the connection has taken, in that order.
    put: u64,
    taken: u64,
    /// The room under which it is listed.
    listed: [Option<usize>; Kind::COUNT],
}

impl Stream {
    pub(super) fn accepts(&self, kind: Kind, line: &Line) -> bool {
        (self.streams_history || !line.large) && self.filter.accepts(kind, &line.class)
    }

    fn is_full(&self) -> bool {
        self.unsent >= UNSENT_ITEMS || self.unsent_bytes >= UNSENT_BYTES
    }

    /// Free room for a kind, if there is any.
    fn free(&self, kind: usize) -> Option<usize> {
        let (lent, held) = (self.room[kind].lent, self.leases[kind].len());
        (!self.is_full() && lent > held).then(|| lent - held)
    }

    /// Gives up room that no item takes: what is owed to others, and of what they would like so much.
    fn give_up(&mut self, kind: usize, idle: usize) -> usize {
        let held = self.leases[kind].len();
        let room = &mut self.room[kind];
        let spare = room.lent.saturating_sub(held);
        let owed = room.owed.min(spare);
        let idle = room.idle.min(spare - owed).min(idle);
        room.lent -= owed + idle;
        (room.owed, room.idle) = (room.owed - owed, room.idle - idle);
        owed + idle
    }
}

/// Room for one kind of work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// How many items may be with the stream at once.
    lent: usize,
    /// For how many more the gateway was asked.
    pub(super) wanted: usize,
    /// How much the gateway wants back: what is not needed here, and what must go in any case.
    idle: usize,
    owed: usize,
}

/// The streams of a hub, and for each kind those with room, in order of it.
#[derive(Default)]
pub(super) struct Streams {
    all: BTreeMap<StreamId, Stream>,
    room: [BTreeSet<(usize, StreamId)>; Kind::COUNT],
    /// Streams that hold all they may, and whose gateway was not asked for more.
    exhausted: [BTreeSet<StreamId>; Kind::COUNT],
    /// Streams whose gateway was asked for more.
    pub(super) asked: [BTreeSet<StreamId>; Kind::COUNT],
    /// Streams with free room that the gateway would like to have back.
    recalled: [BTreeSet<StreamId>; Kind::COUNT],
    /// Room on its way back to the gateway.
    back: Vec<(StreamId, usize, usize)>,
    /// Room that was taken without being lent, of which the gateway does not know yet.
    took: Vec<(StreamId, usize)>,
}

impl Streams {
    pub(super) fn open(&mut self, id: StreamId, offer: Offer) {
        let known = self.all.values().find(|stream| *stream.filter == offer.filter);
        let filter = known.map_or_else(|| Arc::new(offer.filter), |stream| stream.filter.clone());
        let stream = Stream {
            filter,
            streams_history: offer.streams_history,
            is_remote: offer.is_remote,
            room: offer.room.map(|lent| Room { lent, ..Room::default() }),
            leases: Default::default(),
            unsent: 0,
            unsent_bytes: 0,
            put: 0,
            taken: 0,
            listed: Default::default(),
        };
        self.all.insert(id, stream);
        self.change(id, |_| ());
    }

    /// Removes a stream; returns what it holds.
    pub(super) fn close(&mut self, id: StreamId) -> impl Iterator<Item = Key> + use<> {
        let stream = self.all.remove(&id);
        for set in [&mut self.exhausted, &mut self.asked, &mut self.recalled].into_iter().flatten()
        {
            set.remove(&id);
        }
        self.back.retain(|(stream, ..)| *stream != id);
        self.took.retain(|(stream, _)| *stream != id);
        for (room, listed) in self.room.iter_mut().zip(stream.iter().flat_map(|s| s.listed)) {
            listed.map(|free| room.remove(&(free, id)));
        }
        stream.into_iter().flat_map(|stream| stream.leases.into_iter().flatten())
    }

    pub(super) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.all.get(&id)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Stream> {
        self.all.values()
    }

    /// How many are at this node's gateway.
    pub(super) fn local(&self) -> usize {
        self.all.values().filter(|stream| !stream.is_remote).count()
    }

    /// Streams with room for a kind, the one with most first.
    pub(super) fn with_room(&self, kind: Kind) -> impl Iterator<Item = (StreamId, &Stream)> {
        let ids = self.room[kind as usize].iter().rev();
        ids.filter_map(|(_, id)| Some((*id, self.all.get(id)?)))
    }

    /// An item is on its way to a stream.
    pub(super) fn give(&mut self, id: StreamId, key: &Key) {
        self.change(id, |stream| {
            stream.leases[key.kind() as usize].insert(key.clone());
            stream.unsent += 1;
        });
    }

    /// A stream has an item already that this node leads from now on. The room that it takes was not lent. False if
    /// there is no such stream.
    pub(super) fn take_over(&mut self, id: StreamId, key: &Key) -> bool {
        let kind = key.kind() as usize;
        let is_there = self.change(id, |stream| {
            stream.leases[kind].insert(key.clone());
            stream.room[kind].lent += 1;
        });
        self.took.extend(is_there.map(|()| (id, kind)));
        is_there.is_some()
    }

    /// Stream and kind of each piece of room that was taken without being lent, once.
    pub(super) fn take_took(&mut self) -> Vec<(StreamId, usize)> {
        std::mem::take(&mut self.took)
    }

    /// How large the item on its way is.
    pub(super) fn weigh(&mut self, id: StreamId, bytes: usize) {
        self.change(id, |stream| stream.unsent_bytes += bytes);
    }

    /// An item is put on its way to the connection; items arrive there in that order. Returns its number.
    pub(super) fn put(&mut self, id: StreamId) -> u64 {
        self.all.get_mut(&id).map_or(0, |stream| {
            stream.put += 1;
            stream.put
        })
    }

    /// Whether the connection has taken the item of that number.
    pub(super) fn has_taken(&self, id: StreamId, number: u64) -> bool {
        self.all.get(&id).is_some_and(|stream| number <= stream.taken)
    }

    /// A connection has taken an item. Whether the stream was full before, so that more may follow now.
    pub(super) fn sent(&mut self, id: StreamId, bytes: usize) -> bool {
        if let Some(stream) = self.all.get_mut(&id) {
            stream.taken += 1;
        }
        self.unput(id, bytes)
    }

    /// An item is no longer on its way. Whether the stream was full before.
    pub(super) fn unput(&mut self, id: StreamId, bytes: usize) -> bool {
        self.change(id, |stream| {
            let was_full = stream.is_full();
            stream.unsent = stream.unsent.saturating_sub(1);
            let rest = stream.unsent_bytes.saturating_sub(bytes);
            stream.unsent_bytes = if stream.unsent == 0 { 0 } else { rest };
            was_full && !stream.is_full()
        })
        .unwrap_or_default()
    }

    /// A stream no longer holds an item. The room that it took goes back at once, if it is owed.
    pub(super) fn release(&mut self, id: StreamId, key: &Key) {
        let kind = key.kind() as usize;
        let given_up = self.change(id, |stream| {
            stream.leases[kind].remove(key);
            stream.give_up(kind, 0)
        });
        self.note_back(id, kind, given_up);
    }

    fn change<T>(&mut self, id: StreamId, change: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let stream = self.all.get_mut(&id)?;
        let result = change(stream);
        for (kind, listing) in self.room.iter_mut().enumerate() {
            let (room, held) = (stream.room[kind], stream.leases[kind].len());
            put(&mut self.exhausted[kind], id, room.lent <= held && room.wanted == 0);
            put(&mut self.asked[kind], id, room.wanted > 0);
            let is_recalled = room.lent > held && room.idle + room.owed > 0;
            put(&mut self.recalled[kind], id, is_recalled);
            let free = stream.free(kind);
            let listed = std::mem::replace(&mut stream.listed[kind], free);
            if listed != free {
                listed.map(|free| listing.remove(&(free, id)));
                free.map(|free| listing.insert((free, id)));
            }
        }
        Some(result)
    }

    /// The gateway lends more room.
    pub(super) fn lend(&mut self, id: StreamId, kind: Kind, count: usize) {
        self.change(id, |stream| {
            let room = &mut stream.room[kind as usize];
            room.lent += count;
            room.wanted = room.wanted.saturating_sub(count);
        });
    }

    /// How much the gateway wants back from now on.
    pub(super) fn recall(&mut self, id: StreamId, kind: Kind, idle: usize, owed: usize) {
        self.change(id, |stream| {
            let room = &mut stream.room[kind as usize];
            (room.idle, room.owed) = (idle, owed);
        });
    }

    /// The gateway is asked for so much more.
    pub(super) fn want(&mut self, id: StreamId, kind: usize, count: usize) {
        self.change(id, |stream| stream.room[kind].wanted = count);
    }

    pub(super) fn exhausted(&self, kind: usize) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.exhausted[kind].iter().filter_map(|id| Some((*id, self.all.get(id)?)))
    }

    /// Takes what goes back to gateways, once nothing more can be handed out: what others have a right to, and
    /// what nothing here needs.
    pub(super) fn take_back(&mut self) -> Vec<(StreamId, usize, usize)> {
        for kind in 0..Kind::COUNT {
            // Each change takes its stream out of the set.
            while let Some(id) = self.recalled[kind].first().copied() {
                let given_up = self.change(id, |stream| stream.give_up(kind, usize::MAX));
                self.note_back(id, kind, given_up);
            }
        }
        std::mem::take(&mut self.back)
    }

    fn note_back(&mut self, id: StreamId, kind: usize, given_up: Option<usize>) {
        self.back.extend(given_up.filter(|count| *count > 0).map(|count| (id, kind, count)));
    }
}

fn put(set: &mut BTreeSet<StreamId>, id: StreamId, is_in: bool) {
    if is_in {
        set.insert(id);
    } else {
        set.remove(&id);
    }
}
