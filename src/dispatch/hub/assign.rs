//! Streams open and close; the oldest fitting item is leased to the one with most room.

use std::sync::Arc;

use super::item::Slot;
use super::lease::Lease;
use super::{
    Assignment, End, Hub, Key, Kind, LeaseId, Line, NO_STREAM, Offer, StreamId, Waiting, Work,
    lease_mut, nanos,
};

impl Hub {
    pub(crate) fn open_stream(&mut self, id: StreamId, offer: Offer) {
        self.streams.open(id, offer);
    }

    /// A stream has ended: what it holds comes back after the grace, since completions may still be on
    /// their way (R1.42).
    pub(crate) fn close_stream(&mut self, id: StreamId, now: i64) {
        let expires = now.saturating_add(nanos(self.times.grace));
        for key in self.streams.close(id) {
            let Some(Slot::Leased(lease)) = self.slots.get_mut(&key) else { continue };
            if lease.stream != id {
                continue;
            }
            lease.stream = NO_STREAM;
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
        let kinds = Kind::DISPATCHED.len();
        (0..kinds).find_map(|turn| {
            let index = (self.next_kind + turn) % kinds;
            let assignment = self.assign_kind(Kind::DISPATCHED[index], now, lease)?;
            self.next_kind = (index + 1) % kinds;
            Some(assignment)
        })
    }

    fn assign_kind(&mut self, kind: Kind, now: i64, id: LeaseId) -> Option<Assignment> {
        let queue = &mut self.queues[kind as usize];
        if queue.len() == 0 {
            return None;
        }
        // Streams that filter alike are asked once.
        let mut asked = Vec::new();
        let (first, key) = self.streams.with_room(kind).find_map(|(stream, it)| {
            let question = (Arc::as_ptr(&it.filter), it.streams_history);
            if asked.contains(&question) {
                return None;
            }
            asked.push(question);
            queue.pop(|line| it.accepts(kind, line)).map(|key| (stream, key))
        })?;
        let Some(Slot::Ready(mut item)) = self.slots.remove(&key) else { return None };
        let gave_back = item.past.as_ref().and_then(|past| past.abandoned_by);
        let mut others = self.streams.with_room(kind);
        let stream = match gave_back {
            // Somebody else may like it better (R3.63).
            Some(by) if by == first => others
                .find(|(id, it)| *id != by && it.accepts(kind, &item.line))
                .map_or(first, |(id, _)| id),
            _ => first,
        };
        drop(others);
        let streams_history = self.streams.get(stream).is_some_and(|it| it.streams_history);
        let turn = item.past.as_mut().and_then(|past| past.turn.take());
        let since = item.age.0;
        self.streams.give(stream, &key);
        self.lease(key.clone(), item, stream, id, now);
        Some(Assignment { key, stream, lease: id, streams_history, turn, since })
    }

    pub(super) fn lease(
        &mut self,
        key: Key,
        item: Waiting,
        stream: StreamId,
        id: LeaseId,
        now: i64,
    ) {
        let time = match key.kind() {
            Kind::Activity => self.times.activity,
            Kind::Turn => Some(self.times.turn),
            Kind::Entity => Some(self.times.entity),
        };
        let expires =
            time.filter(|_| stream != NO_STREAM).map(|time| now.saturating_add(nanos(time)));
        if let Some(expires) = expires {
            self.deadlines.insert((expires, key.clone()));
        }
        let lease = Lease {
            id,
            stream,
            item,
            place: 0,
            given: None,
            told: false,
            work: None,
            again: false,
            completing: false,
            expires,
            parts: None,
            span: None,
        };
        self.leased[key.kind() as usize] += 1;
        self.slots.insert(key, Slot::Leased(Box::new(lease)));
    }

    /// What was assembled for a lease, and how large it is. Whether it may be sent: a worker without tokens
    /// must be able to tell it from all else that is outstanding.
    pub(crate) fn assembled(
        &mut self,
        to: &Assignment,
        work: Work,
        bytes: usize,
        now: i64,
    ) -> bool {
        let Assignment { key, stream, lease: id, .. } = to;
        let (stream, id) = (*stream, *id);
        let Some(lease) = lease_mut(&mut self.slots, key, id) else {
            self.streams.unput(stream, 0);
            return false;
        };
        if let Work::Activity(activity) = &work {
            if self.tokenless && !self.held.named(key.instance(), activity.task_id).is_empty() {
                self.streams.unput(stream, 0);
                self.finish(key, id, End::Later, now);
                return false;
            }
            self.held.add(key, activity.task_id);
        }
        lease.work = Some(work);
        self.streams.weigh(stream, bytes);
        true
    }

    /// The history of a turn is too large for the worker it was leased to. Leaves the turn to a worker that
    /// can stream it, if one is connected.
    pub(crate) fn set_aside(&mut self, to: &Assignment, now: i64) -> bool {
        let Assignment { key, stream, lease: id, .. } = to;
        let Some(lease) = lease_mut(&mut self.slots, key, *id) else { return false };
        let line = Line { class: lease.item.line.class.clone(), large: true };
        if !self.streams.all().any(|stream| stream.accepts(key.kind(), &line)) {
            return false;
        }
        lease.item.line = Arc::new(line);
        self.streams.unput(*stream, 0);
        self.finish(key, *id, End::Again, now);
        true
    }

    /// An assembled item is put on its way now; items must be sent in that order. False if it must not be sent any
    /// more.
    pub(crate) fn put(&mut self, to: &Assignment, bytes: usize) -> bool {
        let Assignment { key, stream, lease: id, .. } = to;
        match lease_mut(&mut self.slots, key, *id).filter(|lease| lease.stream == *stream) {
            Some(lease) => {
                lease.place = self.streams.put(*stream);
                true
            }
            None => {
                self.streams.unput(*stream, bytes);
                false
            }
        }
    }

    /// An item was not sent after all.
    pub(crate) fn unput(&mut self, id: StreamId) {
        self.streams.unput(id, 0);
    }

    /// A connection has taken an item. Whether the stream was full before, so that more may follow now.
    pub(crate) fn sent(&mut self, id: StreamId, bytes: usize) -> bool {
        self.streams.sent(id, bytes)
    }
}
