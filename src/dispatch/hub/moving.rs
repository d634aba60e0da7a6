//! Leases that go to the next leader with the lead of a partition (the story is in `dispatch/moving.rs`).
//!
//! Here: the old leader holds back what waits, and says what workers have; what they have keeps its room for a moment
//! after the lead has gone, until the gateways know from the new leader that it takes room there. The new leader puts
//! such leases into its tables as if it had given them out.

use super::item::{Slot, Waiting};
use super::lease::Lease;
use super::{
    Arc, Duration, Hub, Key, LeaseId, Line, NO_STREAM, StreamId, Work, compared, lease_mut, nanos,
};
use crate::engine::Class;

/// How long an item keeps its room here after the lead has gone: longer than it takes until the new leader has read
/// its rows and told the gateways.
const KEEPS_ROOM: Duration = Duration::from_secs(2);

/// An item that a worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Moving {
    pub(crate) work: Work,
    /// Run and lease of the leader that handed it out: what its token says.
    pub(crate) given: (u64, LeaseId),
    /// Its stream, while that is there.
    pub(crate) stream: Option<StreamId>,
    /// Nanoseconds until its lease ends, if it does while its stream lives.
    pub(crate) left: Option<i64>,
}

impl Hub {
    /// Forgets what waits of the items that `mine` names, and what is not sent yet: they shall go to the next leader.
    /// Returns the items that are with workers, or on their way.
    pub(crate) fn hold_back(&mut self, mine: impl Fn(&str) -> bool) -> Vec<Key> {
        let all: Vec<Key> = self.slots.keys().filter(|key| mine(key.instance())).cloned().collect();
        let mut held = Vec::new();
        for key in all {
            match self.slots.get(&key) {
                Some(Slot::Leased(lease)) if lease.work.is_some() => held.push(key),
                // Whoever assembles it finds that its lease has gone.
                Some(Slot::Leased(_)) => drop(self.end_lease(&key)),
                Some(Slot::Ready(item)) => {
                    self.queues[key.kind() as usize].remove(&item.line, item.age);
                    self.slots.remove(&key);
                }
                // It becomes ready when its delay is over, and is held back then.
                Some(Slot::Delayed(_)) | None => {}
            }
        }
        held
    }

    /// Whether any of these items has not been taken by its connection yet.
    pub(crate) fn any_on_way(&self, keys: &[Key]) -> bool {
        keys.iter().any(|key| match self.slots.get(key) {
            Some(Slot::Leased(lease)) => lease.stream != NO_STREAM && !self.has_arrived(lease),
            _ => false,
        })
    }

    /// A lease that was taken over has arrived long ago.
    fn has_arrived(&self, lease: &Lease) -> bool {
        lease.given.is_some()
            || lease.place > 0 && self.streams.has_taken(lease.stream, lease.place)
    }

    /// What the next leader is told of these items: those that surely are with a worker. A completion that came in part
    /// is lost with this leader, so its item is not among them (R3.68).
    pub(crate) fn tell(&mut self, keys: &[Key], run: u64, now: i64) -> Vec<Moving> {
        let mut told = Vec::new();
        for key in keys {
            let Some(Slot::Leased(lease)) = self.slots.get(key) else { continue };
            let is_there = lease.stream == NO_STREAM || self.has_arrived(lease);
            let (Some(work), true, None) = (&lease.work, is_there, &lease.parts) else { continue };
            told.push(Moving {
                work: work.clone(),
                given: lease.given.unwrap_or((run, lease.id)),
                stream: (lease.stream != NO_STREAM).then_some(lease.stream),
                left: lease.expires.map(|expires| expires.saturating_sub(now).max(0)),
            });
            if let Some(Slot::Leased(lease)) = self.slots.get_mut(key) {
                lease.told = true;
            }
        }
        told
    }

    /// Ends the lease of an item that went to the next leader; its stream keeps it for a moment.
    pub(super) fn move_lease(&mut self, key: &Key, now: i64) -> bool {
        match self.slots.get(key) {
            Some(Slot::Leased(lease)) if lease.told && lease.stream != NO_STREAM => {}
            _ => return false,
        }
        let Some(lease) = self.take_lease(key) else { return false };
        let until = now.saturating_add(nanos(KEEPS_ROOM));
        self.moved.insert((until, key.clone()), lease.stream);
        true
    }

    /// Frees the room of items that went to the next leader long enough ago.
    pub(super) fn end_moved(&mut self, now: i64) {
        while let Some(first) = self.moved.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, key), stream) = first.remove_entry();
            self.streams.release(stream, &key);
        }
    }

    /// This node leads the items that `mine` names again: what went to another leader is there anew.
    pub(crate) fn forget_moved(&mut self, mine: impl Fn(&str) -> bool) {
        let gone = self.moved.extract_if(.., |(_, key), _| mine(key.instance()));
        let gone: Vec<_> = gone.collect();
        for ((_, key), stream) in gone {
            self.streams.release(stream, &key);
        }
    }

    /// A worker has an item already, by the last leader. If its stream is not here, the item is handed out again after
    /// the grace. Nothing must be known of the item.
    pub(crate) fn take_over(
        &mut self,
        id: LeaseId,
        (key, class, since): (Key, Class, i64),
        moving: Moving,
        now: i64,
    ) {
        let (age, line) = (self.age(since), Line { class: compared(class), large: false });
        let item = Waiting { line: Arc::new(line), age, past: None };
        let stream = moving.stream.filter(|stream| self.streams.take_over(*stream, &key));
        self.lease(key.clone(), item, stream.unwrap_or(NO_STREAM), id, now);
        let grace = nanos(self.times.grace);
        let left = match stream {
            Some(_) => moving.left,
            None => Some(moving.left.unwrap_or(grace).min(grace)),
        };
        if let Work::Activity(activity) = &moving.work {
            self.held.add(&key, activity.task_id);
        }
        let Some(lease) = lease_mut(&mut self.slots, &key, id) else { return };
        (lease.work, lease.given) = (Some(moving.work), Some(moving.given));
        // What arrived for it meanwhile, nobody has told.
        lease.again = true;
        if let Some(expires) = left.map(|left| now.saturating_add(left))
            && lease.expires.is_none_or(|usual| expires < usual)
        {
            if let Some(usual) = lease.expires.replace(expires) {
                self.deadlines.remove(&(usual, key.clone()));
            }
            self.deadlines.insert((expires, key));
        }
    }

    /// The lease of an item that was handed out by an earlier leader under these numbers.
    pub(crate) fn taken_over(&self, key: &Key, given: (u64, LeaseId)) -> Option<LeaseId> {
        match self.slots.get(key)? {
            Slot::Leased(lease) => (lease.given == Some(given)).then_some(lease.id),
            Slot::Ready(_) | Slot::Delayed(_) => None,
        }
    }
}
