//! Work of one task hub on its way to workers: pure.
//!
//! An item is *ready*, *leased* or *delayed*, never two of these, so it is outstanding at most once
//! (R3.16). A lease belongs to one stream; it ends by completion, by abandon, by its time, or some seconds
//! after its stream has ended (R3.49 to R3.51). What arrives for a leased item is remembered and makes it
//! ready again afterwards, so no wake-up is lost.
//!
//! Nothing here reads a clock or a row: `now` comes in, assignments go out. Items are hints; whether an
//! item still wants work is looked up when it is assembled.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::filter::Filter;
use super::queue::{Age, Queue};
use super::token::Work;
use crate::engine::Class;

/// Kinds of work, each with its own queue and its own limit per stream (R3.1, R3.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Turn,
    Activity,
    #[expect(dead_code, reason = "entities come next; filters and limits already name them")]
    Entity,
}

impl Kind {
    pub(crate) const COUNT: usize = 3;
    /// The kinds that are dispatched.
    const DISPATCHED: [Kind; 2] = [Kind::Turn, Kind::Activity];
}

/// An item of a hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The next turn of an instance.
    Turn { instance: String },
    /// An activity.
    Activity { instance: String, generation: u64, number: u64 },
}

impl Key {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Key::Turn { .. } => Kind::Turn,
            Key::Activity { .. } => Kind::Activity,
        }
    }

    pub(crate) fn instance(&self) -> &str {
        match self {
            Key::Turn { instance } | Key::Activity { instance, .. } => instance,
        }
    }
}

/// A worker stream, unique in this run of the node.
pub(crate) type StreamId = u64;
/// A lease, unique in this run of the node.
pub(crate) type LeaseId = u64;

/// How long leases last.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A turn on a live stream (R3.51).
    pub turn: Duration,
    /// An activity on a live stream; `None` while the stream lives.
    pub activity: Option<Duration>,
    /// Anything once its stream has ended (R3.50).
    pub grace: Duration,
}

/// What to hand to which stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) key: Key,
    pub(crate) stream: StreamId,
    pub(crate) lease: LeaseId,
    /// Since when the item was ready, in nanoseconds since the Unix epoch.
    pub(crate) since: i64,
}

/// What a completion may do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The lease is current; `Hub::finish` ends it.
    Current,
    /// Nobody holds the item: the token may be of an earlier run.
    Unleased,
    /// Somebody else holds the item, or this completion is being committed already.
    Stale,
}

/// How a lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its work is committed, or there was none.
    Done,
    /// It was not committed: somebody should look again at once.
    Again,
    /// The worker gave it back: later, and later each time (R3.62).
    Abandoned,
}

struct Ready {
    class: Class,
    age: Age,
    /// When it became ready.
    since: i64,
    abandoned: u32,
}

struct Lease {
    id: LeaseId,
    stream: StreamId,
    item: Ready,
    /// What was handed out, for workers that send no token (R3.44).
    work: Option<Work>,
    /// Something arrived for the item meanwhile.
    again: bool,
    /// A completion is being committed; the lease cannot be taken away now.
    completing: bool,
    expires: Option<i64>,
}

enum Slot {
    Ready(Ready),
    Leased(Lease),
    Delayed { item: Ready, until: i64 },
}

struct Stream {
    filter: Filter,
    capacity: [usize; Kind::COUNT],
    leases: [BTreeSet<Key>; Kind::COUNT],
    /// Items on their way to the connection, and their bytes.
    unsent: usize,
    unsent_bytes: usize,
}

/// What may be on its way to one connection before it has taken something (the receiver chooses the
/// window, so "written" is not "received").
const UNSENT_ITEMS: usize = 64;
const UNSENT_BYTES: usize = 1 << 20;

const ABANDON_DELAY_FIRST: Duration = Duration::from_secs(1);
const ABANDON_DELAY_MAX: Duration = Duration::from_secs(60);

/// All work of a hub that waits for a worker or is with one, as far as this node leads it.
pub(crate) struct Hub {
    times: LeaseTimes,
    queues: [Queue<Key>; Kind::COUNT],
    slots: HashMap<Key, Slot>,
    streams: BTreeMap<StreamId, Stream>,
    /// When leases end and delays are over.
    deadlines: BTreeSet<(i64, Key)>,
    next_age: Age,
}

impl Hub {
    pub(crate) fn new(times: LeaseTimes) -> Hub {
        Hub {
            times,
            queues: Default::default(),
            slots: HashMap::new(),
            streams: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            next_age: 0,
        }
    }

    /// An item may want work, since that time. Repeating it does no harm.
    pub(crate) fn ready(&mut self, key: Key, mut class: Class, since: i64) {
        match self.slots.get_mut(&key) {
            Some(Slot::Leased(lease)) => lease.again = true,
            Some(Slot::Ready(_) | Slot::Delayed { .. }) => {}
            None => {
                if class.name.chars().any(char::is_uppercase) {
                    class.name = class.name.to_lowercase();
                }
                let age = self.next_age;
                self.next_age += 1;
                self.enqueue(key, Ready { class, age, since, abandoned: 0 });
            }
        }
    }

    fn enqueue(&mut self, key: Key, item: Ready) {
        self.queues[key.kind() as usize].push(item.class.clone(), item.age, key.clone());
        self.slots.insert(key, Slot::Ready(item));
    }

    pub(crate) fn open_stream(
        &mut self,
        id: StreamId,
        filter: Filter,
        capacity: [usize; Kind::COUNT],
    ) {
        let leases = Default::default();
        let stream = Stream { filter, capacity, leases, unsent: 0, unsent_bytes: 0 };
        self.streams.insert(id, stream);
    }

    /// A stream has ended: what it holds comes back after the grace, since completions may still be on
    /// their way (R1.42).
    pub(crate) fn close_stream(&mut self, id: StreamId, now: i64) {
        let Some(stream) = self.streams.remove(&id) else { return };
        let expires = now.saturating_add(nanos(self.times.grace));
        for key in stream.leases.into_iter().flatten() {
            let Some(Slot::Leased(lease)) = self.slots.get_mut(&key) else { continue };
            if lease.expires.is_none_or(|old| old > expires) {
                if let Some(old) = lease.expires.replace(expires) {
                    self.deadlines.remove(&(old, key.clone()));
                }
                self.deadlines.insert((expires, key));
            }
        }
    }

    /// Leases the oldest fitting item to the stream with the most free room for it.
    pub(crate) fn assign(&mut self, now: i64, lease: LeaseId) -> Option<Assignment> {
        for kind in Kind::DISPATCHED {
            if self.queues[kind as usize].len() == 0 {
                continue;
            }
            let mut open: Vec<(usize, StreamId)> = self
                .streams
                .iter()
                .filter_map(|(id, stream)| Some((stream.free(kind)?, *id)))
                .collect();
            open.sort_unstable_by(|a, b| b.cmp(a));
            for (_, id) in open {
                let Some(stream) = self.streams.get_mut(&id) else { continue };
                let filter = &stream.filter;
                let queue = &mut self.queues[kind as usize];
                let Some((_, _, key)) = queue.pop(|class| filter.accepts(kind, class)) else {
                    continue;
                };
                stream.leases[kind as usize].insert(key.clone());
                stream.unsent += 1;
                let since = self.lease(key.clone(), id, lease, now)?;
                return Some(Assignment { key, stream: id, lease, since });
            }
        }
        None
    }

    fn lease(&mut self, key: Key, stream: StreamId, id: LeaseId, now: i64) -> Option<i64> {
        let Some(Slot::Ready(item)) = self.slots.remove(&key) else { return None };
        let since = item.since;
        let time = match key.kind() {
            Kind::Activity => self.times.activity,
            Kind::Turn | Kind::Entity => Some(self.times.turn),
        };
        let expires = time.map(|time| now.saturating_add(nanos(time)));
        if let Some(expires) = expires {
            self.deadlines.insert((expires, key.clone()));
        }
        let lease =
            Lease { id, stream, item, work: None, again: false, completing: false, expires };
        self.slots.insert(key, Slot::Leased(lease));
        Some(since)
    }

    /// What was assembled for a lease, and how large it is.
    pub(crate) fn assembled(&mut self, key: &Key, id: LeaseId, work: Work, bytes: usize) {
        if let Some(lease) = self.lease_mut(key, id) {
            lease.work = Some(work);
            let stream = lease.stream;
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.unsent_bytes += bytes;
            }
        }
    }

    /// A connection has taken an item. Whether the stream was full before, so that more may follow now.
    pub(crate) fn sent(&mut self, id: StreamId, bytes: usize) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let was_full = stream.is_full();
        stream.unsent = stream.unsent.saturating_sub(1);
        stream.unsent_bytes = stream.unsent_bytes.saturating_sub(bytes);
        was_full && !stream.is_full()
    }

    /// A completion arrived for an item.
    pub(crate) fn claim(&mut self, key: &Key, id: LeaseId) -> Claim {
        match self.slots.get_mut(key) {
            Some(Slot::Leased(lease)) if lease.id == id && !lease.completing => {
                lease.completing = true;
                Claim::Current
            }
            Some(Slot::Leased(_)) => Claim::Stale,
            _ => Claim::Unleased,
        }
    }

    /// The lease that a completion without a token means: the single outstanding one (R3.44).
    pub(crate) fn outstanding(&self, instance: &str, task: Option<i32>) -> Option<(LeaseId, Work)> {
        let leased = |slot: &Slot| match slot {
            Slot::Leased(Lease { id, work: Some(work), .. }) => Some((*id, work.clone())),
            _ => None,
        };
        let Some(task) = task else {
            return leased(self.slots.get(&Key::Turn { instance: instance.to_owned() })?);
        };
        let mut found = self
            .slots
            .iter()
            .filter(|(key, _)| key.kind() == Kind::Activity && key.instance() == instance)
            .filter_map(|(_, slot)| leased(slot))
            .filter(
                |(_, work)| matches!(work, Work::Activity(activity) if activity.task_id == task),
            );
        let only = found.next()?;
        found.next().is_none().then_some(only)
    }

    /// Ends a lease. Whether something became free or ready.
    pub(crate) fn finish(&mut self, key: &Key, id: LeaseId, end: End, now: i64) {
        if self.lease_mut(key, id).is_none() {
            return;
        }
        let Some(Slot::Leased(lease)) = self.slots.remove(key) else { return };
        if let Some(expires) = lease.expires {
            self.deadlines.remove(&(expires, key.clone()));
        }
        if let Some(stream) = self.streams.get_mut(&lease.stream) {
            stream.leases[key.kind() as usize].remove(key);
        }
        let mut item = lease.item;
        match end {
            End::Done if !lease.again => {}
            End::Done => {
                // New work, not the old one again: it queues up behind what has waited longer.
                (item.age, item.since, item.abandoned) = (self.next_age, now, 0);
                self.next_age += 1;
                self.enqueue(key.clone(), item);
            }
            End::Again => {
                item.since = now;
                self.enqueue(key.clone(), item);
            }
            End::Abandoned => {
                let doubled = ABANDON_DELAY_FIRST.saturating_mul(1 << item.abandoned.min(16));
                let until = now.saturating_add(nanos(doubled.min(ABANDON_DELAY_MAX)));
                item.abandoned += 1;
                self.deadlines.insert((until, key.clone()));
                self.slots.insert(key.clone(), Slot::Delayed { item, until });
            }
        }
    }

    /// An item was never written to its connection: it is ready again at once.
    pub(crate) fn unsent(&mut self, key: &Key, id: LeaseId, now: i64) {
        self.finish(key, id, End::Again, now);
    }

    /// Makes ready what has waited or was held long enough. Returns the items whose lease ran out.
    pub(crate) fn expire(&mut self, now: i64) -> Vec<Key> {
        let mut expired = Vec::new();
        while let Some((time, key)) =
            self.deadlines.first().cloned().filter(|(time, _)| *time <= now)
        {
            self.deadlines.remove(&(time, key.clone()));
            match self.slots.get_mut(&key) {
                Some(Slot::Leased(lease)) if lease.completing => lease.expires = None,
                Some(Slot::Leased(lease)) => {
                    let id = lease.id;
                    self.finish(&key, id, End::Again, now);
                    expired.push(key);
                }
                Some(Slot::Delayed { .. }) => {
                    if let Some(Slot::Delayed { mut item, .. }) = self.slots.remove(&key) {
                        item.since = now;
                        self.enqueue(key, item);
                    }
                }
                Some(Slot::Ready(_)) | None => {}
            }
        }
        expired
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        self.deadlines.first().map(|(time, _)| *time)
    }

    /// Forgets the items that `mine` names: another node leads them now.
    pub(crate) fn resign(&mut self, mine: impl Fn(&str) -> bool) {
        let gone: Vec<Key> =
            self.slots.keys().filter(|key| mine(key.instance())).cloned().collect();
        for key in gone {
            match self.slots.remove(&key) {
                Some(Slot::Ready(item)) => {
                    self.queues[key.kind() as usize].remove(&item.class, item.age)
                }
                Some(Slot::Leased(lease)) => {
                    if let Some(expires) = lease.expires {
                        self.deadlines.remove(&(expires, key.clone()));
                    }
                    if let Some(stream) = self.streams.get_mut(&lease.stream) {
                        stream.leases[key.kind() as usize].remove(&key);
                    }
                }
                Some(Slot::Delayed { until, .. }) => {
                    self.deadlines.remove(&(until, key));
                }
                None => {}
            }
        }
    }

    /// How many items of a kind wait for a worker, and how many are with one.
    pub(crate) fn counts(&self, kind: Kind) -> (usize, usize) {
        let of_kind = || self.slots.iter().filter(|(key, _)| key.kind() == kind);
        let leased = of_kind().filter(|(_, slot)| matches!(slot, Slot::Leased(_))).count();
        (of_kind().count() - leased, leased)
    }

    /// Since when the oldest item that waits for a worker has done so.
    pub(crate) fn oldest(&self, kind: Kind) -> Option<i64> {
        match self.slots.get(self.queues[kind as usize].oldest()?)? {
            Slot::Ready(item) => Some(item.since),
            _ => None,
        }
    }

    /// How many worker streams are open.
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.len()
    }

    /// Whether any item is with a worker.
    pub(crate) fn is_busy(&self) -> bool {
        self.slots.values().any(|slot| matches!(slot, Slot::Leased(_)))
    }

    fn lease_mut(&mut self, key: &Key, id: LeaseId) -> Option<&mut Lease> {
        match self.slots.get_mut(key) {
            Some(Slot::Leased(lease)) if lease.id == id => Some(lease),
            _ => None,
        }
    }
}

impl Stream {
    fn is_full(&self) -> bool {
        self.unsent >= UNSENT_ITEMS || self.unsent_bytes >= UNSENT_BYTES
    }

    /// Free room for a kind, if there is any.
    fn free(&self, kind: Kind) -> Option<usize> {
        let (capacity, held) = (self.capacity[kind as usize], self.leases[kind as usize].len());
        (!self.is_full() && capacity > held).then(|| capacity - held)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
