//! Worker streams, as a hub knows them: what they accept, and how much more they can hold.

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
    /// How many items of each kind it takes at once.
    pub(crate) capacity: [usize; Kind::COUNT],
    /// Whether it can ask for a history by itself (R3.30).
    pub(crate) streams_history: bool,
}

pub(super) struct Stream {
    /// Shared by all streams that filter alike.
    pub(super) filter: Arc<Filter>,
    pub(super) streams_history: bool,
    capacity: [usize; Kind::COUNT],
    leases: [HashSet<Key>; Kind::COUNT],
    /// Items on their way to the connection, and their bytes.
    unsent: usize,
    unsent_bytes: usize,
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
        let (capacity, held) = (self.capacity[kind], self.leases[kind].len());
        (!self.is_full() && capacity > held).then(|| capacity - held)
    }
}

/// The streams of a hub, and for each kind those with room, in order of it.
#[derive(Default)]
pub(super) struct Streams {
    all: BTreeMap<StreamId, Stream>,
    room: [BTreeSet<(usize, StreamId)>; Kind::COUNT],
}

impl Streams {
    pub(super) fn open(&mut self, id: StreamId, offer: Offer) {
        let known = self.all.values().find(|stream| *stream.filter == offer.filter);
        let filter = known.map_or_else(|| Arc::new(offer.filter), |stream| stream.filter.clone());
        let stream = Stream {
            filter,
            streams_history: offer.streams_history,
            capacity: offer.capacity,
            leases: Default::default(),
            unsent: 0,
            unsent_bytes: 0,
            listed: Default::default(),
        };
        self.all.insert(id, stream);
        self.change(id, |_| ());
    }

    /// Removes a stream; returns what it holds.
    pub(super) fn close(&mut self, id: StreamId) -> impl Iterator<Item = Key> + use<> {
        let stream = self.all.remove(&id);
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

    pub(super) fn len(&self) -> usize {
        self.all.len()
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

    /// How large the item on its way is.
    pub(super) fn weigh(&mut self, id: StreamId, bytes: usize) {
        self.change(id, |stream| stream.unsent_bytes += bytes);
    }

    /// A connection has taken an item. Whether the stream was full before, so that more may follow now.
    pub(super) fn sent(&mut self, id: StreamId, bytes: usize) -> bool {
        self.change(id, |stream| {
            let was_full = stream.is_full();
            stream.unsent = stream.unsent.saturating_sub(1);
            stream.unsent_bytes = stream.unsent_bytes.saturating_sub(bytes);
            was_full && !stream.is_full()
        })
        .unwrap_or_default()
    }

    /// A stream no longer holds an item.
    pub(super) fn release(&mut self, id: StreamId, key: &Key) {
        self.change(id, |stream| stream.leases[key.kind() as usize].remove(key));
    }

    fn change<T>(&mut self, id: StreamId, change: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        let stream = self.all.get_mut(&id)?;
        let result = change(stream);
        for (kind, room) in self.room.iter_mut().enumerate() {
            let free = stream.free(kind);
            let listed = std::mem::replace(&mut stream.listed[kind], free);
            if listed != free {
                listed.map(|free| room.remove(&(free, id)));
                free.map(|free| room.insert((free, id)));
            }
        }
        Some(result)
    }
}
