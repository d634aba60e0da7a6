//! Work of one task hub on its way to workers: pure.
//!
//! An item is *ready*, *leased* or *delayed*, never two of these, so it is outstanding at most once
//! (R3.16). A lease belongs to one stream; it ends by completion, by abandon, by its time, or some seconds
//! after its stream has ended (R3.49 to R3.51). What arrives for a leased item is remembered and makes it
//! ready again afterwards, so no wake-up is lost.
//!
//! Fairness: the oldest item first, whatever instance or partition it is of; kinds take turns, so no kind
//! waits behind a flood of another (R3.21); the stream with the most free room first.
//!
//! Workers without tokens (R3.44): a hub that has seen one hands out no two activities at once that such a
//! worker could not tell apart, and hands out a lost turn again exactly as it was.
//!
//! Nothing here reads a clock or a row: `now` comes in, assignments go out. Items are hints; whether an
//! item still wants work is looked up when it is assembled.
//!
//! [`item`] is what waits, [`lease`] and [`stream`] are who has it, [`chunks`] are completions in parts;
//! [`assign`] hands out, [`answer`] takes back; [`room`] is about streams that other nodes have work for, too;
//! [`moving`] is about leases that go to the next leader.

mod answer;
mod assign;
mod chunks;
mod item;
mod lease;
mod moving;
mod room;
mod stream;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::chunks::{Kept, Series, index_of, is_partial};
pub(crate) use self::item::{Key, Kind};
pub use self::lease::LeaseTimes;
pub(crate) use self::lease::{Claim, End, LeaseId};
pub(crate) use self::moving::Moving;
pub(crate) use self::room::{Note, RoomNote};
pub(crate) use self::stream::{Offer, StreamId};

use self::item::{Delayed, Slot, Waiting};
use self::lease::{Held, Lease};
use self::stream::Streams;
use super::queue::{Age, Line, Queue};
use super::token::Work;
use crate::engine::Class;
use crate::engine::command::TurnId;
use crate::spans::Open;

/// What to hand to which stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Assignment {
    pub(crate) key: Key,
    pub(crate) stream: StreamId,
    pub(crate) lease: LeaseId,
    /// The worker can ask for a history by itself.
    pub(crate) streams_history: bool,
    /// The turn to hand out, if it is one that must be repeated exactly.
    pub(crate) turn: Option<TurnId>,
    /// Since when the item was ready, in nanoseconds since the Unix epoch.
    pub(crate) since: i64,
}

const ABANDON_DELAY_FIRST: Duration = Duration::from_secs(1);
const ABANDON_DELAY_MAX: Duration = Duration::from_secs(60);
/// How long an item waits that cannot be with a worker beside another one.
const LATER: Duration = Duration::from_secs(1);
/// Stands for a stream that has gone; real ones are counted from 1.
const NO_STREAM: StreamId = 0;

/// All work of a hub that waits for a worker or is with one, as far as this node leads it.
pub(crate) struct Hub {
    times: LeaseTimes,
    queues: [Queue<Key>; Kind::COUNT],
    slots: HashMap<Key, Slot>,
    streams: Streams,
    held: Held,
    /// How many items of each kind are with a worker, and how many are delayed.
    leased: [usize; Kind::COUNT],
    delayed: [usize; Kind::COUNT],
    /// When leases end and delays are over.
    deadlines: BTreeSet<(i64, Key)>,
    /// Items that went to the next leader with their streams: they take room here until it has told the gateways.
    moved: BTreeMap<(i64, Key), StreamId>,
    /// Whether a completion without a token was seen.
    tokenless: bool,
    parts_bytes: usize,
    /// Spans of items whose lease ran out.
    late_spans: Vec<Open>,
    next_age: u64,
    next_kind: usize,
}

impl Hub {
    pub(crate) fn new(times: LeaseTimes) -> Hub {
        Hub {
            times,
            queues: Default::default(),
            slots: HashMap::new(),
            streams: Streams::default(),
            held: Held::default(),
            leased: Default::default(),
            delayed: Default::default(),
            deadlines: BTreeSet::new(),
            moved: BTreeMap::new(),
            tokenless: false,
            parts_bytes: 0,
            late_spans: Vec::new(),
            next_age: 0,
            next_kind: 0,
        }
    }

    /// An item may want work, since that time. Repeating it does no harm.
    pub(crate) fn ready(&mut self, key: Key, class: Class, since: i64) {
        let class = compared(class);
        let line = || Arc::new(Line { class: class.clone(), large: false });
        match self.slots.get_mut(&key) {
            Some(Slot::Leased(lease)) => {
                lease.again = true;
                if lease.item.line.class != class {
                    lease.item.line = line();
                }
            }
            // A new generation may have another version, another instance of that id another name.
            Some(Slot::Delayed(delayed)) if delayed.item.line.class != class => {
                delayed.item.line = line();
            }
            Some(Slot::Ready(item)) if item.line.class != class => {
                let queue = &mut self.queues[key.kind() as usize];
                queue.remove(&item.line, item.age);
                item.line = queue.push(line(), item.age, key);
            }
            Some(Slot::Ready(_) | Slot::Delayed(_)) => {}
            None => {
                let age = self.age(since);
                let line = Arc::new(Line { class, large: false });
                self.enqueue(key, Waiting { line, age, past: None });
            }
        }
    }

    fn age(&mut self, since: i64) -> Age {
        self.next_age += 1;
        (since, self.next_age)
    }

    fn enqueue(&mut self, key: Key, mut item: Waiting) {
        item.line = self.queues[key.kind() as usize].push(item.line, item.age, key.clone());
        self.slots.insert(key, Slot::Ready(item));
    }

    fn delay(&mut self, key: &Key, item: Waiting, until: i64) {
        self.delayed[key.kind() as usize] += 1;
        self.deadlines.insert((until, key.clone()));
        self.slots.insert(key.clone(), Slot::Delayed(Box::new(Delayed { item, until })));
    }

    /// Takes a lease out of all tables.
    fn end_lease(&mut self, key: &Key) -> Option<Box<Lease>> {
        let lease = self.take_lease(key)?;
        self.streams.release(lease.stream, key);
        Some(lease)
    }

    /// Takes a lease out of all tables but that of its stream.
    fn take_lease(&mut self, key: &Key) -> Option<Box<Lease>> {
        let Some(Slot::Leased(lease)) = self.slots.remove(key) else { return None };
        self.leased[key.kind() as usize] -= 1;
        if let Some(expires) = lease.expires {
            self.deadlines.remove(&(expires, key.clone()));
        }
        if let Some(Work::Activity(activity)) = &lease.work {
            self.held.remove(key, activity.task_id);
        }
        self.parts_bytes -= lease.parts.as_ref().map_or(0, |parts| parts.bytes());
        Some(lease)
    }

    /// Ends a lease, if it is current. False if another leader may know of it.
    pub(crate) fn finish(&mut self, key: &Key, id: LeaseId, end: End, now: i64) -> bool {
        if lease_mut(&mut self.slots, key, id).is_none() {
            return false;
        }
        let Some(lease) = self.end_lease(key) else { return false };
        let is_told = lease.told;
        let mut item = lease.item;
        match end {
            End::Done if !lease.again => {}
            End::Done => {
                // New work, not the old one again: it queues up behind what has waited longer.
                item.renew(self.age(now));
                self.enqueue(key.clone(), item);
            }
            End::Again => self.enqueue(key.clone(), item),
            End::Expired => {
                let past = item.past_mut();
                past.late = Some(id);
                if let (true, Some(Work::Turn(turn))) = (self.tokenless, lease.work) {
                    past.turn = Some(turn);
                }
                self.enqueue(key.clone(), item);
            }
            End::Abandoned => {
                let past = item.past_mut();
                let doubled = ABANDON_DELAY_FIRST.saturating_mul(1 << past.abandoned.min(16));
                past.abandoned += 1;
                (past.abandoned_by, past.late) = (Some(lease.stream), None);
                let until = now.saturating_add(nanos(doubled.min(ABANDON_DELAY_MAX)));
                self.delay(key, item, until);
            }
            End::Later => self.delay(key, item, now.saturating_add(nanos(LATER))),
        }
        !is_told
    }

    /// An item was never written to its connection: it is ready again at once.
    pub(crate) fn unsent(&mut self, key: &Key, id: LeaseId, now: i64) {
        self.finish(key, id, End::Again, now);
    }

    /// Makes ready what has waited or was held long enough. Returns the items whose lease ran out.
    pub(crate) fn expire(&mut self, now: i64) -> Vec<Key> {
        self.end_moved(now);
        let mut expired = Vec::new();
        while let Some((time, key)) =
            self.deadlines.first().cloned().filter(|(time, _)| *time <= now)
        {
            self.deadlines.remove(&(time, key.clone()));
            match self.slots.get_mut(&key) {
                Some(Slot::Leased(lease)) if lease.completing => lease.expires = None,
                Some(Slot::Leased(lease)) => {
                    let id = lease.id;
                    self.late_spans.extend(lease.span.take().map(|span| *span));
                    self.finish(&key, id, End::Expired, now);
                    expired.push(key);
                }
                Some(Slot::Delayed(_)) => {
                    if let Some(Slot::Delayed(delayed)) = self.slots.remove(&key) {
                        self.delayed[key.kind() as usize] -= 1;
                        self.enqueue(key, delayed.item);
                    }
                }
                Some(Slot::Ready(_)) | None => {}
            }
        }
        expired
    }

    /// The spans of the items that `expire` has returned.
    pub(crate) fn take_late_spans(&mut self) -> Vec<Open> {
        std::mem::take(&mut self.late_spans)
    }

    /// Keeps the span of an item for as long as its lease lasts.
    pub(crate) fn keep_span(&mut self, key: &Key, id: LeaseId, span: Box<Open>) {
        if let Some(lease) = lease_mut(&mut self.slots, key, id) {
            lease.span = Some(span);
        }
    }

    /// Takes the span of an item, if its lease is current.
    pub(crate) fn take_span(&mut self, key: &Key, id: LeaseId) -> Option<Box<Open>> {
        lease_mut(&mut self.slots, key, id)?.span.take()
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<i64> {
        let moved = self.moved.keys().next().map(|(time, _)| *time);
        self.deadlines.first().map(|(time, _)| *time).into_iter().chain(moved).min()
    }

    /// Forgets the items that `mine` names: another node leads them now.
    pub(crate) fn resign(&mut self, mine: impl Fn(&str) -> bool, now: i64) {
        let gone: Vec<Key> =
            self.slots.keys().filter(|key| mine(key.instance())).cloned().collect();
        for key in gone {
            if self.move_lease(&key, now) || self.end_lease_of(&key) {
                continue;
            }
            match self.slots.remove(&key) {
                Some(Slot::Ready(item)) => {
                    self.queues[key.kind() as usize].remove(&item.line, item.age);
                }
                Some(Slot::Delayed(delayed)) => {
                    self.delayed[key.kind() as usize] -= 1;
                    self.deadlines.remove(&(delayed.until, key));
                }
                Some(Slot::Leased(_)) | None => {}
            }
        }
    }

    fn end_lease_of(&mut self, key: &Key) -> bool {
        matches!(self.slots.get(key), Some(Slot::Leased(_))) && self.end_lease(key).is_some()
    }

    /// How many items of a kind wait for a worker, and how many are with one.
    pub(crate) fn counts(&self, kind: Kind) -> (usize, usize) {
        let kind = kind as usize;
        (self.queues[kind].len() + self.delayed[kind], self.leased[kind])
    }

    /// Since when the oldest item that waits for a worker has done so.
    pub(crate) fn oldest(&self, kind: Kind) -> Option<i64> {
        self.queues[kind as usize].oldest().map(|(since, _)| since)
    }

    /// How many worker streams are open at this node's gateway.
    pub(crate) fn stream_count(&self) -> usize {
        self.streams.local()
    }

    /// Whether it knows of no item and of no stream.
    pub(crate) fn is_unused(&self) -> bool {
        self.slots.is_empty() && self.moved.is_empty() && self.streams.all().next().is_none()
    }

    /// Whether any item is with a worker.
    pub(crate) fn is_busy(&self) -> bool {
        self.leased.iter().any(|leased| *leased > 0) || !self.moved.is_empty()
    }
}

/// A class as filters compare it.
fn compared(mut class: Class) -> Class {
    if class.name.chars().any(char::is_uppercase) {
        class.name = class.name.to_lowercase();
    }
    class
}

fn lease_mut<'a>(
    slots: &'a mut HashMap<Key, Slot>,
    key: &Key,
    id: LeaseId,
) -> Option<&'a mut Lease> {
    match slots.get_mut(key) {
        Some(Slot::Leased(lease)) if lease.id == id => Some(lease),
        _ => None,
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
