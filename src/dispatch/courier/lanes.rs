//! What waits for which partition: pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use durahub_cluster::GroupId;

use super::pause;
use crate::engine::state::Place;

/// The lanes of one outbox, and what has been delivered from it.
#[derive(Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<GroupId, Lane>,
    last_read: Option<Place>,
    delivered: Vec<Place>,
    truncating: bool,
    failures: u32,
}

/// Messages for one partition, in the order of the outbox.
#[derive(Default)]
struct Lane {
    waiting: VecDeque<Place>,
    /// How many of them are under way: none or the first ones.
    under_way: usize,
    /// Failures in a row.
    failures: u32,
}

impl Lanes {
    /// The last place that was read from the outbox.
    pub(super) fn last_read(&self) -> Option<Place> {
        self.last_read
    }

    /// The next message of the outbox.
    pub(super) fn push(&mut self, to: GroupId, place: Place) {
        self.last_read = Some(place);
        self.lanes.entry(to).or_default().waiting.push_back(place);
    }

    /// Lanes with something to send and nothing under way.
    pub(super) fn idle(&self) -> Vec<GroupId> {
        let idle = |lane: &Lane| lane.under_way == 0 && !lane.waiting.is_empty();
        self.lanes.iter().filter(|(_, lane)| idle(lane)).map(|(to, _)| *to).collect()
    }

    /// The first places of a lane.
    pub(super) fn first(&self, to: GroupId, limit: usize) -> Vec<Place> {
        self.lanes
            .get(&to)
            .map_or_else(Vec::new, |lane| lane.waiting.iter().take(limit).copied().collect())
    }

    /// The first messages of a lane are on their way. Returns how long to wait before.
    pub(super) fn begin(&mut self, to: GroupId, count: usize) -> Duration {
        let Some(lane) = self.lanes.get_mut(&to) else { return Duration::ZERO };
        lane.under_way = count;
        pause(lane.failures)
    }

    /// What was under way has arrived.
    pub(super) fn delivered(&mut self, to: GroupId) {
        let Some(lane) = self.lanes.get_mut(&to) else { return };
        self.delivered.extend(lane.waiting.drain(..lane.under_way));
        (lane.under_way, lane.failures) = (0, 0);
    }

    /// What was under way may not have arrived: it stays at the head of its lane.
    pub(super) fn failed(&mut self, to: GroupId) {
        let Some(lane) = self.lanes.get_mut(&to) else { return };
        lane.under_way = 0;
        lane.failures = lane.failures.saturating_add(1);
    }

    /// The first places of a lane are no longer in the outbox.
    pub(super) fn skip(&mut self, to: GroupId, count: usize) {
        if let Some(lane) = self.lanes.get_mut(&to) {
            lane.waiting.drain(..count);
        }
    }

    /// What to forget now, if nothing is being forgotten, and how long to wait before.
    pub(super) fn take_delivered(&mut self, limit: usize) -> (Vec<Place>, Duration) {
        if self.truncating || self.delivered.is_empty() {
            return (Vec::new(), Duration::ZERO);
        }
        self.truncating = true;
        let places = self.delivered.drain(..self.delivered.len().min(limit)).collect();
        (places, pause(self.failures))
    }

    /// It is forgotten.
    pub(super) fn truncated(&mut self) {
        (self.truncating, self.failures) = (false, 0);
    }

    /// It may not be: it is tried again.
    pub(super) fn not_truncated(&mut self, places: Vec<Place>) {
        self.truncating = false;
        self.failures = self.failures.saturating_add(1);
        self.delivered.extend(places);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(sequence: u64) -> Place {
        Place { sequence, sub: 0 }
    }

    #[test]
    fn a_lane_sends_in_order_and_repeats_what_failed_while_others_go_on() {
        let (a, b) = (GroupId(1), GroupId(2));
        let mut lanes = Lanes::default();
        for (to, sequence) in [(a, 1), (b, 2), (a, 3), (a, 4)] {
            lanes.push(to, place(sequence));
        }
        assert_eq!(lanes.last_read(), Some(place(4)));
        assert_eq!(lanes.idle(), [a, b]);
        assert_eq!(lanes.first(a, 2), [place(1), place(3)]);
        assert_eq!(lanes.begin(a, 2), Duration::ZERO);
        assert_eq!(lanes.begin(b, 1), Duration::ZERO);
        assert!(lanes.idle().is_empty(), "one delivery at a time");

        lanes.failed(a);
        lanes.delivered(b);
        assert_eq!(lanes.idle(), [a]);
        assert_eq!(lanes.first(a, 9), [place(1), place(3), place(4)], "nothing is skipped");
        assert!(lanes.begin(a, 3) > Duration::ZERO);
        lanes.delivered(a);
        assert!(lanes.idle().is_empty());

        let (places, _) = lanes.take_delivered(2);
        assert_eq!(places, [place(2), place(1)]);
        assert!(lanes.take_delivered(9).0.is_empty(), "one at a time");
        lanes.not_truncated(places);
        let (places, wait) = lanes.take_delivered(9);
        assert_eq!(places.len(), 4);
        assert!(wait > Duration::ZERO);
        lanes.truncated();
        assert!(lanes.take_delivered(9).0.is_empty());
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(0), Duration::ZERO);
        assert!((1..100).map(pause).is_sorted());
        assert_eq!(pause(u32::MAX), super::super::PAUSE_LAST);
    }
}
