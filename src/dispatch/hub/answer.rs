//! What workers send back, checked against the leases.

use std::time::Duration;

use durahub_proto::wire;

use super::item::Slot;
use super::{
    Claim, Hub, Kept, Key, LeaseId, NO_STREAM, Series, Work, chunks, index_of, lease_mut, nanos,
};

/// How long a lease goes on after a completion that was not committed: longer than a leader is looked for.
const ASKED_AGAIN: Duration = Duration::from_secs(15);
/// Bytes of unfinished completions that a hub holds.
const PARTS_BYTES: usize = 256 << 20;

impl Hub {
    /// A completion arrived for an item.
    pub(crate) fn claim(&mut self, key: &Key, id: LeaseId) -> Claim {
        match self.slots.get_mut(key) {
            Some(Slot::Leased(lease)) if lease.id == id => {
                match std::mem::replace(&mut lease.completing, true) {
                    true => Claim::Underway,
                    false => Claim::Current,
                }
            }
            Some(Slot::Ready(item)) if item.past.as_ref().is_some_and(|it| it.late == Some(id)) => {
                self.queues[key.kind() as usize].remove(&item.line, item.age);
                if let Some(Slot::Ready(item)) = self.slots.remove(key) {
                    self.lease(key.clone(), item, NO_STREAM, id, 0);
                }
                self.claim(key, id)
            }
            Some(Slot::Leased(_)) => Claim::Stale,
            _ => Claim::Unleased,
        }
    }

    /// Nobody knows what became of the completion: the lease goes on, so that it may come again, but not for long, since
    /// whoever asks may have given up.
    pub(crate) fn unclaim(&mut self, key: &Key, id: LeaseId, now: i64) {
        let Some(lease) = lease_mut(&mut self.slots, key, id) else { return };
        lease.completing = false;
        let expires = now.saturating_add(nanos(ASKED_AGAIN));
        if lease.expires.is_none_or(|old| old > expires) {
            if let Some(old) = lease.expires.replace(expires) {
                self.deadlines.remove(&(old, key.clone()));
            }
            self.deadlines.insert((expires, key.clone()));
        }
    }

    /// A part of a completion arrived: it is kept until the rest is in, `limit` bytes at most (R3.66).
    pub(crate) fn keep_part(
        &mut self,
        key: &Key,
        id: LeaseId,
        part: wire::OrchestratorResponse,
        limit: usize,
    ) -> Kept {
        let Some(lease) = lease_mut(&mut self.slots, key, id).filter(|it| !it.completing) else {
            return Kept::Stale;
        };
        let size = chunks::size(&part);
        if self.parts_bytes + size > PARTS_BYTES {
            return Kept::NoRoom;
        }
        let series = lease.parts.get_or_insert_default();
        let before = series.bytes();
        let kept = series.keep(index_of(&part).unwrap_or(0), size, part);
        let bytes = series.bytes();
        self.parts_bytes = self.parts_bytes + bytes - before;
        match kept {
            false => Kept::Gap,
            true if bytes > limit => Kept::TooLarge(bytes),
            true => Kept::Yes,
        }
    }

    /// The parts that a lease has collected. They stay until it ends: the last part may have to come again.
    pub(crate) fn parts(&mut self, key: &Key, id: LeaseId) -> Series {
        let lease = lease_mut(&mut self.slots, key, id);
        lease.and_then(|lease| lease.parts.as_deref().cloned()).unwrap_or_default()
    }

    /// The lease that a completion without a token means: the single outstanding one (R3.44).
    pub(crate) fn outstanding(
        &mut self,
        instance: &str,
        task: Option<i32>,
    ) -> Option<(LeaseId, Work)> {
        let found = match task {
            None => self.handed_out(&Key::Turn { instance: instance.into() }),
            Some(task) => match self.held.named(instance, task) {
                [only] => self.handed_out(only),
                _ => None,
            },
        };
        self.tokenless |= found.is_some();
        found
    }

    /// What a worker has of an item.
    pub(crate) fn handed_out(&self, key: &Key) -> Option<(LeaseId, Work)> {
        match self.slots.get(key)? {
            Slot::Leased(lease) => lease.work.clone().map(|work| (lease.id, work)),
            Slot::Ready(_) | Slot::Delayed(_) => None,
        }
    }
}
