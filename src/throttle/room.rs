//! Room for requests that are under way: how many bytes of them one connection and the whole node take in.
//!
//! A message takes room for all of it, and for large headers that came before it, before more of it is read: at its
//! connection first, then at the node, first come, first served; what workers answer has room of its own, so no upload
//! holds up a completion. So nobody who has some waits for more, whoever has it can finish, and nothing locks itself
//! up, however many begin at the same time. A message that is larger than all the room takes all of it and is alone.
//! Messages up to [`SMALL`] have a part to themselves: large ones never hold them up.
//!
//! What waits is not read on, so its sender stops at the window of its stream ([`STREAM_WINDOW`]). A connection's own
//! window is as large as those of all its streams together: those that wait leave those that have room theirs. What
//! has come of those that wait is counted as well. When that is too much, the next one is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longest headers of a call, in bytes: a token and much besides.
pub const HEADER_BYTES: u32 = 64 << 10;
/// Longest message that takes room of the part for small ones, in bytes.
pub(super) const SMALL: usize = 64 << 10;
/// Bytes that a client may send on one stream before somebody reads: HTTP/2's own choice.
const STREAM_WINDOW: u32 = (64 << 10) - 1;
/// Bytes that a connection may have sent besides what waits on its streams.
const SPARE: u32 = 1 << 20;
/// Streams of one connection whose windows fit into its own; of those beyond, none may wait.
const STREAMS: u32 = 1 << 14;
/// What has come of a message that waits: its stream's window, and the piece that showed its length.
const WAITING: usize = (STREAM_WINDOW as usize) + (16 << 10);

/// The windows of each stream and of each connection, in bytes, where it may have so many streams.
#[must_use]
pub fn windows(streams: u32) -> (u32, u32) {
    (STREAM_WINDOW, STREAM_WINDOW * streams.min(STREAMS) + SPARE)
}

/// Bytes that can be taken, and given back.
#[derive(Debug)]
struct Part {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Part {
    fn new(bytes: usize) -> Part {
        let bytes = bytes.min(u32::MAX as usize);
        Part { free: Arc::new(Semaphore::new(bytes)), bytes }
    }

    /// All of it, where more is asked for.
    fn fitting(&self, bytes: usize) -> u32 {
        bytes.min(self.bytes) as u32
    }

    fn take_now(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_many_owned(self.fitting(bytes)).ok()
    }

    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).acquire_many_owned(self.fitting(bytes)).await.ok()
    }

    fn taken(&self) -> usize {
        self.bytes - self.free.available_permits().min(self.bytes)
    }
}

/// Room for small messages and for large ones, for what has come of those that wait, and for large headers whose
/// messages have not begun.
#[derive(Debug)]
pub(super) struct Room {
    small: Part,
    large: Part,
    waiting: Part,
    heads: Part,
    /// Messages that wait for it and for nothing else.
    in_need: AtomicUsize,
    /// Messages that wait, for whatever room.
    waits: AtomicUsize,
}

impl Room {
    /// That of a node: a quarter for small messages, a quarter for large ones, half for what waits; an eighth as much
    /// for large headers without a message.
    pub(super) fn of_node(bytes: usize) -> Room {
        Room::new(bytes / 4, bytes / 4, bytes / 2, bytes / 8)
    }

    /// That of a connection which may have so many streams: what waits is bounded by their number.
    pub(super) fn of_connection(bytes: usize, streams: u32) -> Room {
        let waiting = WAITING * streams.min(STREAMS) as usize;
        Room::new(bytes / 4, bytes - bytes / 4, waiting, bytes / 2)
    }

    fn new(small: usize, large: usize, waiting: usize, heads: usize) -> Room {
        let part = |bytes: usize| Part::new(bytes.max(SMALL));
        let waiting = Part::new(waiting.max(WAITING));
        let (in_need, waits) = Default::default();
        Room { small: part(small), large: part(large), waiting, heads: part(heads), in_need, waits }
    }

    fn part(&self, bytes: usize) -> &Part {
        if bytes <= SMALL { &self.small } else { &self.large }
    }

    /// Bytes that messages have taken.
    pub(super) fn taken(&self) -> usize {
        self.small.taken() + self.large.taken()
    }

    /// How many messages wait.
    pub(super) fn waiting(&self) -> usize {
        self.waits.load(Ordering::Relaxed)
    }
}

/// Room that is taken, for as long as it is held.
#[derive(Debug)]
pub(super) struct Taken {
    _connection: Option<OwnedSemaphorePermit>,
    _node: Option<OwnedSemaphorePermit>,
}

/// A place for what has come of a request that has no room yet.
#[derive(Debug)]
pub(super) struct Place {
    _connection: OwnedSemaphorePermit,
    _node: OwnedSemaphorePermit,
}

impl Place {
    fn take(connection: &Part, node: &Part, bytes: usize) -> Option<Place> {
        let (here, there) = (connection.take_now(bytes)?, node.take_now(bytes)?);
        Some(Place { _connection: here, _node: there })
    }
}

/// What comes of asking for room.
pub(super) enum Asked {
    /// There was some.
    Taken(Taken),
    /// There will be.
    Waits(BoxFuture<'static, Taken>),
    /// Too many wait already.
    Refused,
}

/// The room of a connection and of its node; a cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Rooms {
    pub(super) connection: Arc<Room>,
    pub(super) node: Arc<Room>,
}

impl Rooms {
    /// A place for headers of so many bytes, unless there are too many already.
    pub(super) fn place_of_head(&self, bytes: usize) -> Option<Place> {
        Place::take(&self.connection.heads, &self.node.heads, bytes)
    }

    /// Takes room for so many bytes, if nobody has to be waited for.
    fn take_now(&self, bytes: usize) -> Option<Taken> {
        let connection = self.connection.part(bytes).take_now(bytes)?;
        let node = self.node.part(bytes).take_now(bytes)?;
        Some(Taken { _connection: Some(connection), _node: Some(node) })
    }

    /// Takes room for a message.
    pub(super) fn take(&self, bytes: usize) -> Asked {
        if let Some(taken) = self.take_now(bytes) {
            return Asked::Taken(taken);
        }
        let place = Place::take(&self.connection.waiting, &self.node.waiting, WAITING);
        let Some(place) = place else { return Asked::Refused };
        let Rooms { connection, node } = self.clone();
        Asked::Waits(Box::pin(async move {
            let waits = (Counted::at(&connection.waits), Counted::at(&node.waits));
            let in_need = Counted::at(&connection.in_need);
            let own = connection.part(bytes).take(bytes).await;
            drop(in_need);
            let in_need = Counted::at(&node.in_need);
            let room = node.part(bytes).take(bytes).await;
            drop((in_need, waits, place));
            Taken { _connection: own, _node: room }
        }))
    }

    /// Whether somebody waits for room that others have: on this connection, or of the node.
    pub(super) fn others_wait(&self) -> bool {
        let in_need = |room: &Room| room.in_need.load(Ordering::Relaxed) > 0;
        in_need(&self.connection) || in_need(&self.node)
    }
}

/// One that is counted, for as long as this lives.
struct Counted<'c>(&'c AtomicUsize);

impl Counted<'_> {
    fn at(count: &AtomicUsize) -> Counted<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const MIB: usize = 1 << 20;

    fn node(bytes: usize) -> Arc<Room> {
        Arc::new(Room::of_node(bytes))
    }

    fn rooms(node: &Arc<Room>, bytes: usize) -> Rooms {
        let connection = Arc::new(Room::of_connection(bytes, 100));
        Rooms { connection, node: Arc::clone(node) }
    }

    fn taken(asked: Asked) -> Taken {
        match asked {
            Asked::Taken(taken) => taken,
            Asked::Waits(_) => panic!("waits"),
            Asked::Refused => panic!("refused"),
        }
    }

    fn waits(asked: Asked) -> BoxFuture<'static, Taken> {
        match asked {
            Asked::Waits(waits) => waits,
            Asked::Taken(_) => panic!("taken"),
            Asked::Refused => panic!("refused"),
        }
    }

    #[test]
    fn who_waits_has_nothing_and_goes_on_in_turn() {
        let node = node(64 * MIB);
        let rooms = rooms(&node, 4 * MIB);
        let first = taken(rooms.take(2 * MIB));
        let mut second = waits(rooms.take(2 * MIB));
        assert!(second.as_mut().now_or_never().is_none(), "a quarter of 4 MiB is for small ones");
        let mut third = waits(rooms.take(MIB / 2));
        assert!(third.as_mut().now_or_never().is_none(), "the second is before it");
        assert_eq!((node.taken(), node.waiting()), (2 * MIB, 2));
        // Another connection has room of its own, and small messages have theirs.
        drop(taken(
            Rooms { connection: Arc::new(Room::of_connection(MIB, 1)), ..rooms.clone() }.take(MIB),
        ));
        drop(taken(rooms.take(SMALL)));
        drop(first);
        let (second, third) = (second.now_or_never().unwrap(), third.now_or_never().unwrap());
        assert_eq!((node.taken(), node.waiting()), (2 * MIB + MIB / 2, 0));
        drop((second, third));
        assert_eq!(node.taken(), 0);
    }

    #[test]
    fn a_message_larger_than_all_the_room_is_alone() {
        let node = node(4 * MIB);
        let (one, other) = (rooms(&node, 2 * MIB), rooms(&node, 2 * MIB));
        let all = taken(one.take(64 * MIB));
        let mut waiting = waits(other.take(64 * MIB));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(other.others_wait());
        drop(all);
        assert!(waiting.now_or_never().is_some());
        assert!(!other.others_wait());
    }

    #[test]
    fn too_many_that_wait_are_refused_and_leave_their_places() {
        let node = node(4 * MIB);
        let held = taken(rooms(&node, 8 * MIB).take(MIB));
        let places = 2 * MIB / WAITING;
        let mut waiting: Vec<_> =
            (0..places).map(|_| waits(rooms(&node, 8 * MIB).take(MIB))).collect();
        assert!(matches!(rooms(&node, 8 * MIB).take(MIB), Asked::Refused));
        waiting.pop();
        drop(waits(rooms(&node, 8 * MIB).take(MIB)));
        drop(held);
        assert!(waiting.remove(0).now_or_never().is_some());
    }

    #[test]
    fn headers_of_one_connection_and_messages_that_wait_leave_places_for_headers() {
        let node = node(4 * MIB);
        let (one, other) = (rooms(&node, MIB / 2), rooms(&node, 8 * MIB));
        let heads: Vec<_> = std::iter::from_fn(|| one.place_of_head(SMALL)).collect();
        assert_eq!(heads.len(), MIB / 4 / SMALL);
        let held = taken(other.take(MIB));
        let waiting: Vec<_> =
            (0..2 * MIB / WAITING).map(|_| waits(rooms(&node, 8 * MIB).take(MIB))).collect();
        assert!(matches!(other.take(MIB), Asked::Refused));
        assert!(other.place_of_head(SMALL).is_some());
        drop((waiting, held));
    }

    #[test]
    fn windows_of_streams_fit_into_that_of_their_connection() {
        for streams in [10, 1000, 100_000] {
            let (stream, connection) = windows(streams);
            assert!(u64::from(connection) < 1 << 31, "HTTP/2 takes no more");
            let fitting = u64::from(streams.min(STREAMS));
            assert!(u64::from(connection) > u64::from(stream) * fitting);
        }
    }
}
