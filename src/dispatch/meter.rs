//! Counting what dispatch does, per task hub and kind of work.
//!
//! The handles of a hub are made once, when its first item or stream shows up; counting is an atomic
//! addition then. Depths, ages, leases and streams are not counted at all but looked up when somebody asks
//! ([`Dispatcher::measure`]). Hubs have names only in the metadata group: the server says how to find them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durahub_proto::wire::OrchestrationStatus;
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use parking_lot::RwLock;

use super::hub::Kind;
use super::{Dispatcher, HubLoad};
use crate::telemetry::metrics as names;

/// So many hubs have series of their own (whoever may create hubs could fill the memory of a Prometheus
/// otherwise); the others share one.
const NAMED_HUBS: usize = 200;
/// The series that they share.
const OTHER_HUBS: &str = "(other)";
/// Words for kinds of work, in the order of [`Kind`].
const KINDS: [&str; Kind::COUNT] = ["turn", "activity", "entity"];

/// How an item came back undone.
#[derive(Clone, Copy)]
pub(crate) enum Returned {
    /// Its worker gave it back.
    Abandoned,
    /// Its lease ended before an answer came.
    Expired,
}

/// The handles of a hub.
pub(crate) struct Meter {
    name: Arc<str>,
    started: Counter,
    removed: Counter,
    completed: Ended,
    failed: Ended,
    terminated: Ended,
    streams: Gauge,
    kinds: [OfKind; Kind::COUNT],
}

struct Ended {
    count: Counter,
    seconds: Histogram,
}

struct OfKind {
    ready: Gauge,
    oldest: Gauge,
    leases: Gauge,
    sent: Counter,
    wait: Histogram,
    abandoned: Counter,
    expired: Counter,
    actions: Counter,
    ignored: Counter,
}

impl Meter {
    fn new(hub: &str) -> Meter {
        let hub: Arc<str> = hub.into();
        let ended = |status: &'static str| Ended {
            count: counter!(names::INSTANCES_FINISHED, "hub" => hub.clone(), "status" => status),
            seconds: histogram!(names::INSTANCE_SECONDS, "hub" => hub.clone(), "status" => status),
        };
        let returned = |kind, reason: &'static str| counter!(names::WORK_ITEMS_RETURNED, "hub" => hub.clone(), "kind" => kind, "reason" => reason);
        let of_kind = |kind: &'static str| OfKind {
            ready: gauge!(names::READY_ITEMS, "hub" => hub.clone(), "kind" => kind),
            oldest: gauge!(names::OLDEST_READY, "hub" => hub.clone(), "kind" => kind),
            leases: gauge!(names::LEASES, "hub" => hub.clone(), "kind" => kind),
            sent: counter!(names::WORK_ITEMS_SENT, "hub" => hub.clone(), "kind" => kind),
            wait: histogram!(names::WORK_ITEM_WAIT, "hub" => hub.clone(), "kind" => kind),
            abandoned: returned(kind, "abandoned"),
            expired: returned(kind, "lease_ended"),
            actions: counter!(names::ACTIONS, "hub" => hub.clone(), "kind" => kind),
            ignored: counter!(names::ANSWERS_IGNORED, "hub" => hub.clone(), "kind" => kind),
        };
        Meter {
            name: hub.clone(),
            started: counter!(names::INSTANCES_STARTED, "hub" => hub.clone()),
            removed: counter!(names::INSTANCES_REMOVED, "hub" => hub.clone()),
            completed: ended("completed"),
            failed: ended("failed"),
            terminated: ended("terminated"),
            streams: gauge!(names::WORKER_STREAMS, "hub" => hub.clone()),
            kinds: KINDS.map(of_kind),
        }
    }

    /// An instance was created.
    pub(crate) fn started(&self) {
        self.started.increment(1);
    }

    /// Instances went because they had stayed long enough.
    pub(crate) fn removed(&self, count: u64) {
        self.removed.increment(count);
    }

    /// An instance ended, so many nanoseconds after its creation.
    pub(crate) fn ended(&self, status: OrchestrationStatus, nanos: i64) {
        let ended = match status {
            OrchestrationStatus::Completed => &self.completed,
            OrchestrationStatus::Failed => &self.failed,
            _ => &self.terminated,
        };
        ended.count.increment(1);
        ended.seconds.record(seconds(nanos));
    }

    /// An item was handed to a worker, so many nanoseconds after it became ready.
    pub(crate) fn sent(&self, kind: Kind, waited: i64) {
        let kind = &self.kinds[kind as usize];
        kind.sent.increment(1);
        kind.wait.record(seconds(waited));
    }

    /// An item came back undone.
    pub(crate) fn returned(&self, kind: Kind, how: Returned) {
        let kind = &self.kinds[kind as usize];
        match how {
            Returned::Abandoned => kind.abandoned.increment(1),
            Returned::Expired => kind.expired.increment(1),
        }
    }

    /// A worker's answer was committed, or changed nothing.
    pub(crate) fn answered(&self, kind: Kind, is_committed: bool) {
        let kind = &self.kinds[kind as usize];
        if is_committed { kind.actions.increment(1) } else { kind.ignored.increment(1) }
    }

    fn set(&self, load: &Load) {
        self.streams.set(load.streams as f64);
        for (handles, load) in self.kinds.iter().zip(&load.kinds) {
            handles.ready.set(load.ready as f64);
            handles.leases.set(load.leased as f64);
            handles.oldest.set(seconds(load.oldest));
        }
    }
}

/// What the hubs of one series have in hand together.
#[derive(Default)]
struct Load {
    streams: usize,
    kinds: [LoadOfKind; Kind::COUNT],
}

#[derive(Default)]
struct LoadOfKind {
    ready: usize,
    leased: usize,
    oldest: i64,
}

impl Load {
    fn add(&mut self, hub: &HubLoad, now: i64) {
        self.streams += hub.streams;
        for (kind, (ready, leased), since) in [
            (Kind::Turn, hub.turns, hub.oldest_turn),
            (Kind::Activity, hub.activities, hub.oldest_activity),
            (Kind::Entity, hub.entities, hub.oldest_entity),
        ] {
            let kind = &mut self.kinds[kind as usize];
            kind.ready += ready;
            kind.leased += leased;
            kind.oldest = kind.oldest.max(since.map_or(0, |since| now - since));
        }
    }
}

/// The handles of all hubs.
#[derive(Default)]
pub(crate) struct Meters {
    name_of: OnceLock<NameOf>,
    series: RwLock<Series>,
}

type NameOf = Box<dyn Fn(u32) -> Option<String> + Send + Sync>;

#[derive(Default)]
struct Series {
    by_hub: HashMap<u32, Arc<Meter>>,
    other: Option<Arc<Meter>>,
}

impl Meters {
    /// The handles of a hub.
    pub(crate) fn of(&self, hub: u32) -> Arc<Meter> {
        {
            let series = self.series.read();
            if let Some(meter) = series.by_hub.get(&hub) {
                return meter.clone();
            }
            // Nobody is asked for a name that would not be used: this is on the way of every item.
            if let (Some(other), true) = (&series.other, series.by_hub.len() >= NAMED_HUBS) {
                return other.clone();
            }
        }
        // Asked before the lock is taken: it reads rows.
        let name = self.name_of.get().and_then(|name_of| name_of(hub));
        let series = &mut *self.series.write();
        let room = series.by_hub.len() < NAMED_HUBS;
        match (series.by_hub.get(&hub), name) {
            (Some(meter), _) => meter.clone(),
            (None, Some(name)) if room => {
                let meter = Arc::new(Meter::new(&name));
                series.by_hub.insert(hub, meter.clone());
                meter
            }
            // A hub whose name has not arrived here yet may get its own series later.
            _ => series.other.get_or_insert_with(|| Arc::new(Meter::new(OTHER_HUBS))).clone(),
        }
    }

    /// The name of a hub, unless it is not known here.
    fn name(&self, hub: u32) -> Option<Arc<str>> {
        if let Some(meter) = self.series.read().by_hub.get(&hub) {
            return Some(meter.name.clone());
        }
        self.name_of.get().and_then(|name_of| name_of(hub)).map(Arc::from)
    }

    /// A hub was deleted: its place is free, and another hub of its name has the series to itself.
    pub(crate) fn forget(&self, hub: u32) {
        if let Some(meter) = self.series.write().by_hub.remove(&hub) {
            meter.set(&Load::default());
        }
    }
}

impl Dispatcher {
    /// Says how the name of a hub is found; `None` for one that is not known on this node.
    pub fn name_hubs(&self, name_of: impl Fn(u32) -> Option<String> + Send + Sync + 'static) {
        let _ = self.0.meters.name_of.set(Box::new(name_of));
    }

    /// The name of a hub as people read it, or its number where the name is not known. For lines of the log, and not on
    /// the way of every item: it may read rows.
    pub fn hub_name(&self, hub: u32) -> Arc<str> {
        self.0.meters.name(hub).unwrap_or_else(|| format!("#{hub}").into())
    }

    /// Sets the gauges to what waits and what runs at this moment.
    pub fn measure(&self) {
        let (loads, now) = (self.load(), self.0.clock.now());
        // A hub whose first work waits has had nothing counted yet: entities that nobody has served.
        loads.iter().filter(|hub| hub.has_any()).for_each(|hub| drop(self.0.meters.of(hub.hub)));
        let series = self.0.meters.series.read();
        let mut other = Load::default();
        let mut named: HashMap<u32, Load> =
            series.by_hub.keys().map(|hub| (*hub, Load::default())).collect();
        for hub in &loads {
            named.get_mut(&hub.hub).unwrap_or(&mut other).add(hub, now);
        }
        for (hub, meter) in &series.by_hub {
            meter.set(&named[hub]);
        }
        if let Some(meter) = &series.other {
            meter.set(&other);
        }
    }
}

/// Nanoseconds as seconds; a clock that was set back counts as no time.
fn seconds(nanos: i64) -> f64 {
    Duration::from_nanos(nanos.max(0).unsigned_abs()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Finding a name reads rows, so it is done once per hub that gets series, and not per item.
    #[test]
    fn names_are_asked_for_once() {
        let meters = Meters::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let asks = asked.clone();
        let name_of = move |hub: u32| {
            asks.fetch_add(1, Ordering::Relaxed);
            Some(format!("hub{hub}"))
        };
        assert!(meters.name_of.set(Box::new(name_of)).is_ok());
        let hubs = NAMED_HUBS as u32;
        for _ in 0..3 {
            (0..hubs + 5).for_each(|hub| drop(meters.of(hub)));
        }
        // The first hub without room makes the series that the others share.
        assert_eq!(asked.load(Ordering::Relaxed), NAMED_HUBS + 1);
        assert!(Arc::ptr_eq(&meters.of(hubs), &meters.of(hubs + 1)));
        assert_eq!(meters.name(3).as_deref(), Some("hub3"));
        assert_eq!(asked.load(Ordering::Relaxed), NAMED_HUBS + 1, "it is known already");
        assert_eq!(meters.name(hubs + 1), Some(format!("hub{}", hubs + 1).into()));

        meters.forget(7);
        assert!(!Arc::ptr_eq(&meters.of(hubs), &meters.of(hubs + 1)), "a place became free");
        assert_eq!(asked.load(Ordering::Relaxed), NAMED_HUBS + 3);
    }
}
