//! How much one task hub and one connection may ask: calls per second, and calls at the same time; how much one
//! connection and all together may send before it is answered; and how much one connection may leave unread.
//!
//! A call above that is answered with `RESOURCE_EXHAUSTED` and the time after which it is worth asking again,
//! in words and in the header `grpc-retry-pushback-ms`. Counted are the calls of clients. Those of workers are
//! not: a completion that is refused would make the work be done twice, and what a worker may hold is bounded
//! by what it is handed. A history is read by both: it is counted unless the connection has asked for work. The
//! settings may change while the node runs.
//!
//! - [`bucket`]: one share: its rate and what is under way;
//! - [`room`]: room for requests that are under way, of each connection and of the node;
//! - [`arriving`]: a request that is read as there is room for it;
//! - [`rest`]: what is still to come of a request that is answered;
//! - [`unread`]: room for answers that a connection has not read;
//! - [`layer`]: the gRPC port's part.
//!
//! What is absent on purpose: a share of the whole cluster. Each node counts what reaches it.

mod arriving;
mod bucket;
mod layer;
mod rest;
mod room;
mod unread;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

pub use arriving::Kept;
pub use layer::{ThrottleLayer, Throttled};
pub use rest::{RestLayer, Rested};
pub use room::{HEADER_BYTES, windows};
pub use unread::{Held, Unread, Unsent};

use crate::clock::Clock;
use crate::tls::ConnectionInfo;
use bucket::{Bucket, Running};
use room::{Room, Rooms};

/// Task hubs that are remembered; beyond that, those that are idle are forgotten now and then.
const HUBS: usize = 1024;
/// Calls of one connection at the same time whose requests are more than one message.
const TALKS: usize = 8;

/// What one task hub or one connection may ask. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Calls per second; as many may come at once after a pause of a second.
    pub per_second: u32,
    /// Calls at the same time.
    pub in_flight: u32,
}

impl Share {
    fn is_unlimited(&self) -> bool {
        *self == Share::default()
    }
}

/// What everybody may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Each task hub.
    pub hub: Share,
    /// Each connection.
    pub connection: Share,
    /// Bytes of answers that one connection may leave unread; others are not made before it has read some. Counts
    /// for connections that make their first call from now on.
    pub unread_bytes: usize,
    /// What may be sent.
    pub requests: Requests,
}

/// How much may be sent before it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    /// Bytes of requests under way, in all.
    pub bytes: usize,
    /// Bytes of requests under way on one connection. Counts for connections that make their first call from now on.
    pub connection_bytes: usize,
    /// HTTP/2 streams of one connection at the same time.
    pub streams: u32,
    /// Longest message, in bytes.
    pub longest: usize,
    /// Time in which something has to come of a message that is under way.
    pub time: Duration,
}

impl Default for Requests {
    fn default() -> Self {
        let (bytes, streams, time) = (64 << 20, 1000, Duration::from_secs(30));
        Requests { bytes, connection_bytes: bytes / 8, streams, longest: bytes, time }
    }
}

/// Requests that are under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnderWay {
    /// Bytes for which room is taken.
    pub bytes: usize,
    /// Requests that wait for room.
    pub waiting: usize,
}

/// Counts calls; a cheap handle.
#[derive(Clone)]
pub struct Throttle(Arc<Shared>);

struct Shared {
    shares: RwLock<Shares>,
    hubs: Mutex<Hubs>,
    /// Room for requests on all connections.
    room: RwLock<NodeRooms>,
    clock: Clock,
}

/// Room of a node.
struct NodeRooms {
    clients: Arc<Room>,
    /// For what workers answer: half as much.
    workers: Arc<Room>,
}

impl NodeRooms {
    fn new(bytes: usize) -> NodeRooms {
        let room = |bytes| Arc::new(Room::of_node(bytes));
        NodeRooms { clients: room(bytes), workers: room(bytes / 2) }
    }
}

/// The hubs that were asked for, whether they exist or not.
#[derive(Default)]
struct Hubs {
    by_name: BTreeMap<String, Arc<Bucket>>,
    /// How many there were when idle ones were looked for last, and stayed.
    stayed: usize,
}

/// What is remembered of a connection, for as long as it lives.
#[derive(Debug)]
struct Known {
    bucket: Arc<Bucket>,
    /// It has asked for work.
    is_worker: AtomicBool,
    unread: Unread,
    /// Room for its requests, and for what it answers as a worker.
    room: Arc<Room>,
    work: Arc<Room>,
    /// Places for calls whose requests are more than one message.
    talks: Arc<Semaphore>,
}

impl Known {
    fn new(shares: &Shares) -> Known {
        let Requests { connection_bytes, streams, .. } = shares.requests;
        let room = || Arc::new(Room::of_connection(connection_bytes, streams));
        Known {
            bucket: Arc::default(),
            is_worker: AtomicBool::new(false),
            unread: Unread::new(shares.unread_bytes),
            room: room(),
            work: room(),
            talks: Arc::new(Semaphore::new(TALKS)),
        }
    }
}

/// Why a call has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What is used up, and the setting that says how much there is.
    text: String,
    /// Milliseconds after which it is worth asking again.
    retry_ms: u64,
}

impl Throttle {
    /// Counts from now on.
    #[must_use]
    pub fn new(shares: Shares, clock: Clock) -> Throttle {
        let room = RwLock::new(NodeRooms::new(shares.requests.bytes));
        let (shares, hubs) = (RwLock::new(shares), Mutex::default());
        Throttle(Arc::new(Shared { shares, hubs, room, clock }))
    }

    /// Changes what may be asked, for calls from now on.
    pub fn set(&self, shares: Shares) {
        let before = std::mem::replace(&mut *self.0.shares.write(), shares);
        if before.requests.bytes != shares.requests.bytes {
            // Requests that have room, or wait for some, keep to the one of before.
            *self.0.room.write() = NodeRooms::new(shares.requests.bytes);
        }
    }

    /// What is under way now.
    #[must_use]
    pub fn under_way(&self) -> UnderWay {
        let NodeRooms { clients, workers } = &*self.0.room.read();
        UnderWay {
            bytes: clients.taken() + workers.taken(),
            waiting: clients.waiting() + workers.waiting(),
        }
    }

    /// The room for a request of a connection, its longest message, and the time that it has.
    fn terms(&self, known: &Known, is_work: bool) -> (Rooms, usize, Duration) {
        let Requests { longest, time, .. } = self.0.shares.read().requests;
        let NodeRooms { clients, workers } = &*self.0.room.read();
        let (connection, node) =
            if is_work { (&known.work, workers) } else { (&known.room, clients) };
        (Rooms { connection: Arc::clone(connection), node: Arc::clone(node) }, longest, time)
    }

    /// A connection asks for work: what it reads from now on, it reads as a worker.
    fn note_worker(&self, connection: &ConnectionInfo) {
        self.known(connection).is_worker.store(true, Ordering::Relaxed);
    }

    fn is_worker(&self, connection: &ConnectionInfo) -> bool {
        self.known(connection).is_worker.load(Ordering::Relaxed)
    }

    fn known(&self, connection: &ConnectionInfo) -> Arc<Known> {
        let new = || Arc::new(Known::new(&self.0.shares.read()));
        let kept = connection.memory.get_or_init(|| new() as Arc<dyn Any + Send + Sync>).clone();
        // Nobody else keeps anything there.
        kept.downcast().unwrap_or_else(|_| new())
    }

    fn is_unlimited(&self) -> bool {
        let shares = self.0.shares.read();
        shares.hub.is_unlimited() && shares.connection.is_unlimited()
    }

    /// Takes a call into account for as long as what is returned lives.
    fn begin(
        &self,
        hub: &str,
        connection: Option<&ConnectionInfo>,
    ) -> Result<[Option<Running>; 2], Refused> {
        let (shares, now) = (*self.0.shares.read(), self.0.clock.now());
        let told = |what: String, setting: &'static str| {
            move |(limit, retry_ms): (bucket::Limit, u64)| Refused {
                text: format!(
                    "{what} has used up its {} (limits.{setting}_{}); ask again in {retry_ms} ms",
                    limit.words(),
                    limit.setting()
                ),
                retry_ms,
            }
        };
        let own = match connection.filter(|_| !shares.connection.is_unlimited()) {
            None => None,
            Some(connection) => {
                let run = self.known(connection).bucket.begin(shares.connection, now);
                Some(run.map_err(told("this connection".to_owned(), "connection_calls"))?)
            }
        };
        let shared = match shares.hub.is_unlimited() {
            true => None,
            false => {
                let run = self.of_hub(hub, now, shares.hub).begin(shares.hub, now);
                Some(run.map_err(told(format!("the task hub {hub}"), "hub_calls"))?)
            }
        };
        Ok([own, shared])
    }

    fn of_hub(&self, hub: &str, now: i64, share: Share) -> Arc<Bucket> {
        let hubs = &mut *self.0.hubs.lock();
        if let Some(bucket) = hubs.by_name.get(hub) {
            return bucket.clone();
        }
        // Twice as many as stayed: so a look at all of them is paid for by as many that came.
        if hubs.by_name.len() >= HUBS.max(2 * hubs.stayed) {
            hubs.by_name.retain(|_, bucket| !bucket.is_idle(share, now));
            hubs.stayed = hubs.by_name.len();
        }
        let bucket = Arc::<Bucket>::default();
        hubs.by_name.insert(hub.to_owned(), bucket.clone());
        bucket
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connection() -> ConnectionInfo {
        ConnectionInfo {
            remote: "127.0.0.1:1".parse().unwrap(),
            certificate: None,
            memory: Arc::default(),
        }
    }

    #[test]
    fn rates_refill_and_say_when() {
        let clock = Clock::manual(0);
        let hub = Share { per_second: 10, in_flight: 0 };
        let throttle = Throttle::new(Shares { hub, ..Shares::default() }, clock.clone());
        for _ in 0..10 {
            throttle.begin("a", None).unwrap();
        }
        let refused = throttle.begin("a", None).err().unwrap();
        assert_eq!(refused.retry_ms, 100);
        assert!(
            refused.text.contains("task hub a") && refused.text.contains("hub_calls_per_second")
        );
        // Another hub has its own share.
        throttle.begin("b", None).unwrap();
        clock.advance(Duration::from_millis(100));
        throttle.begin("a", None).unwrap();
        assert!(throttle.begin("a", None).is_err());
        throttle.set(Shares::default());
        throttle.begin("a", None).unwrap();
    }

    #[test]
    fn calls_at_the_same_time_are_counted_per_connection_until_they_end() {
        let connection_share = Share { per_second: 0, in_flight: 2 };
        let shares = Shares { connection: connection_share, ..Shares::default() };
        let throttle = Throttle::new(shares, Clock::manual(0));
        let (one, other) = (connection(), connection());
        let held: Vec<_> = (0..2).map(|_| throttle.begin("a", Some(&one)).unwrap()).collect();
        let refused = throttle.begin("b", Some(&one)).err().unwrap();
        assert!(refused.text.contains("connection_calls_in_flight"), "{}", refused.text);
        throttle.begin("a", Some(&other)).unwrap();
        drop(held);
        throttle.begin("a", Some(&one)).unwrap();
    }

    #[test]
    fn idle_hubs_are_forgotten() {
        let clock = Clock::manual(0);
        let hub = Share { per_second: 5, in_flight: 5 };
        let throttle = Throttle::new(Shares { hub, ..Shares::default() }, clock.clone());
        for n in 0..10 * HUBS {
            clock.advance(Duration::from_secs(2));
            throttle.begin(&format!("hub-{n}"), None).unwrap();
        }
        assert!(throttle.0.hubs.lock().by_name.len() <= HUBS);
    }

    /// Names that do not become idle are not looked at again and again: eight times as many take as long each.
    #[test]
    fn many_busy_hubs_cost_no_more_each() {
        let hub = Share { per_second: 0, in_flight: 5 };
        let throttle = Throttle::new(Shares { hub, ..Shares::default() }, Clock::manual(0));
        let mut looks = 0;
        let mut stayed = 0;
        let running: Vec<_> = (0..8 * HUBS)
            .map(|n| {
                let call = throttle.begin(&format!("hub-{n}"), None).unwrap();
                let now = throttle.0.hubs.lock().stayed;
                looks += usize::from(now != stayed) * now;
                stayed = now;
                call
            })
            .collect();
        assert!(looks <= 2 * running.len(), "{looks} looks for {} names", running.len());
    }

    #[test]
    fn a_connection_that_asks_for_work_is_a_workers() {
        let (worker, client) = (connection(), connection());
        let throttle = Throttle::new(Shares::default(), Clock::manual(0));
        throttle.note_worker(&worker);
        assert!(throttle.is_worker(&worker) && !throttle.is_worker(&client));
    }
}
