//! What a node does when it runs short of room: it refuses what it can do without, before it has to stop.
//!
//! There are two steps. *Low*: nothing new is begun; what has begun goes on and may end. *Critical*: nothing grows;
//! no work is handed out and no timer fires, but what workers already have is still taken in, messages between
//! instances still arrive, and everything stays that reads, ends or removes. A node goes back by itself, a little
//! later than it came ([`level`]), so that it does not swing.
//!
//! Short of what is a matter of *sources*; the worst of them counts. [`disk`] is the file system of the data folder;
//! [`memory`] is what this process may have in memory, which is low when little is left and never critical: work that
//! goes on gives memory back. [`look`] looks once a second,
//! and sooner where the disk would be past a mark by then ([`pace`]).
//!
//! Who leads a partition decides, by its own room ([`Pressure::admit`] is asked there); a node that is critical hands
//! its leaders to nodes that are not, and follows on as long as it can. Replicas never decide by their room what a
//! command does: a command that is in the log is applied by all.
//!
//! What is absent on purpose: a view of the whole cluster. A leader with room goes on though a follower has none,
//! as it does when one is down.

mod disk;
mod level;
mod look;
mod memory;
mod pace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durahub_cluster::{Demand, Refusal};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use level::{Level, Mark, Marks, Room};
pub use look::Watch;
pub use memory::{cache_share, limit as memory_limit, request_share};

use crate::telemetry::metrics as names;

/// When a refused caller may try again: room is looked for once a second, and seldom comes at once.
const RETRY: Duration = Duration::from_secs(5);

/// Memory is low when less than this is left of the budget.
const MEMORY_LOW: Mark = Mark::Percent(10);

/// What a node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file system of the data folder.
    Disk,
    /// The memory of this process.
    Memory,
}

impl Source {
    const COUNT: usize = 2;
    const ALL: [Source; Source::COUNT] = [Source::Disk, Source::Memory];

    /// Where its levels begin unless somebody says so.
    fn marks(self) -> Marks {
        match self {
            Source::Disk => Marks::default(),
            Source::Memory => Marks { low: MEMORY_LOW, critical: Mark::Bytes(0) },
        }
    }

    /// Its name in metrics.
    fn label(self) -> &'static str {
        match self {
            Source::Disk => "disk",
            Source::Memory => "memory",
        }
    }
}

/// How short of room this node is; a cheap handle.
#[derive(Clone)]
pub struct Pressure(Arc<Shared>);

struct Shared {
    /// Number of this node, for messages; unset until it is known.
    node: OnceLock<u64>,
    /// Per source.
    seen: Mutex<[Seen; Source::COUNT]>,
    /// The worst of all sources.
    level: watch::Sender<Level>,
    /// Bytes that this process may have in memory; 0 is not known.
    memory_budget: AtomicU64,
}

/// What was seen of a source last.
#[derive(Clone, Copy, Default)]
struct Seen {
    marks: Marks,
    level: Level,
    room: Room,
}

impl Pressure {
    /// Nothing was seen so far: everything is admitted.
    #[must_use]
    pub fn new() -> Pressure {
        Pressure(Arc::new(Shared {
            node: OnceLock::new(),
            seen: Mutex::new(
                Source::ALL.map(|source| Seen { marks: source.marks(), ..Seen::default() }),
            ),
            level: watch::Sender::default(),
            memory_budget: AtomicU64::new(0),
        }))
    }

    /// What messages call this node, from now on.
    pub fn name_node(&self, node: u64) {
        let _ = self.0.node.set(node);
    }

    /// Sets where the levels of a source begin, from the next look on.
    pub fn set(&self, source: Source, marks: Marks) {
        self.0.seen.lock()[source as usize].marks = marks;
    }

    fn marks(&self, source: Source) -> Marks {
        self.0.seen.lock()[source as usize].marks
    }

    /// Whether the disk is short of room; memory does not count.
    #[must_use]
    pub fn is_disk_short(&self) -> bool {
        self.0.seen.lock()[Source::Disk as usize].level > Level::Calm
    }

    /// Sets how many bytes this process may have in memory, from the next look on; `None` does not watch them.
    pub fn set_memory_budget(&self, bytes: Option<u64>) {
        self.0.memory_budget.store(bytes.unwrap_or(0), Ordering::Relaxed);
    }

    fn memory_budget(&self) -> Option<u64> {
        Some(self.0.memory_budget.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// How short of room the node is, from now on.
    #[must_use]
    pub fn level(&self) -> watch::Receiver<Level> {
        self.0.level.subscribe()
    }

    /// Whether a command may be taken in now.
    ///
    /// # Errors
    /// One sentence that names the node, the free bytes, the setting, and what to do.
    pub fn admit(&self, demand: Demand) -> Result<(), Refusal> {
        if !self.0.level.borrow().refuses(demand) {
            return Ok(());
        }
        let seen = *self.0.seen.lock();
        // Somebody may have seen more room meanwhile.
        let short = Source::ALL.into_iter().map(|source| (source, seen[source as usize]));
        let Some((source, seen)) = short.into_iter().find(|(_, it)| it.level.refuses(demand))
        else {
            return Ok(());
        };
        let node = self.0.node.get().copied().unwrap_or_default();
        let (short, seconds) = (seen.explain(source), RETRY.as_secs());
        let reason = format!("node {node} is short of {short}; ask again in {seconds} s");
        Err(Refusal { reason, retry: RETRY })
    }

    /// Takes in what was seen of a source.
    fn see(&self, source: Source, room: Room) {
        let (before, now, worst) = {
            let mut all = self.0.seen.lock();
            let seen = &mut all[source as usize];
            let before = *seen;
            seen.level = seen.marks.judge(room, before.level);
            seen.room = room;
            let now = *seen;
            (before, now, all.iter().map(|seen| seen.level).max().unwrap_or_default())
        };
        match source {
            Source::Disk => metrics::gauge!(names::DISK_FREE).set(room.free as f64),
            Source::Memory => {
                metrics::gauge!(names::MEMORY_USED).set((room.total - room.free) as f64);
                metrics::gauge!(names::MEMORY_BUDGET).set(room.total as f64);
            }
        }
        metrics::gauge!(names::PRESSURE, "source" => source.label())
            .set(f64::from(now.level as u8));
        self.0.level.send_if_modified(|level| std::mem::replace(level, worst) != worst);
        if before.level != now.level {
            now.tell(source);
        }
    }
}

impl Default for Pressure {
    fn default() -> Self {
        Pressure::new()
    }
}

impl Seen {
    /// What is short, by which setting, and what to do.
    fn explain(&self, source: Source) -> String {
        let Seen { marks, level, room } = *self;
        let Room { free, total } = room;
        let (mark, setting, what) = match level {
            Level::Critical => (marks.critical_of(room), "critical_free", "nothing that grows"),
            _ => (marks.low_of(room), "low_free", "nothing new"),
        };
        match source {
            Source::Disk => format!(
                "disk space: {free} bytes are free, and below {mark} (storage.{setting}) it takes {what}; \
                 make room on the disk of its data folder or purge ended instances"
            ),
            Source::Memory => format!(
                "memory: {free} of {total} bytes (memory_budget) are free, and below {mark} it takes {what}; \
                 give it more memory, or start less at a time"
            ),
        }
    }

    /// One line per change.
    fn tell(&self, source: Source) {
        let (Room { free, total }, marks) = (self.room, self.marks);
        let (low, critical) = (marks.low_of(self.room), marks.critical_of(self.room));
        let what = match source {
            Source::Disk => "DISK SPACE",
            Source::Memory => "MEMORY",
        };
        match self.level {
            Level::Calm => {
                tracing::info!(
                    free,
                    total,
                    low,
                    critical,
                    "{what} IS BACK: everything is taken again"
                );
            }
            Level::Low => {
                tracing::warn!(
                    free,
                    total,
                    low,
                    critical,
                    "{what} IS LOW: nothing new is begun until there is more"
                );
            }
            Level::Critical => tracing::error!(
                free,
                total,
                low,
                critical,
                "{what} IS CRITICAL: nothing that grows is taken, no work is handed out"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn refusals_say_what_is_short_and_end_when_there_is_room() {
        let pressure = Pressure::new();
        let disk = |low, critical| Marks { low: Mark::Bytes(low), critical: Mark::Bytes(critical) };
        pressure.set(Source::Disk, disk(100 * MIB, 10 * MIB));
        pressure.name_node(7);
        let level = pressure.level();
        let all = [Demand::Must, Demand::Grows, Demand::Begins];
        let refused = || all.map(|demand| pressure.admit(demand).is_err());
        let total = 1000 * MIB;
        assert_eq!(refused(), [false, false, false]);

        pressure.see(Source::Disk, Room { free: 50 * MIB, total });
        assert_eq!((*level.borrow(), refused()), (Level::Low, [false, false, true]));
        let Refusal { reason, retry } = pressure.admit(Demand::Begins).unwrap_err();
        assert_eq!(retry, RETRY);
        for part in ["node 7", "52428800 bytes are free", "below 104857600 (storage.low_free)"] {
            assert!(reason.contains(part), "{part:?} is missing in {reason}");
        }

        pressure.see(Source::Disk, Room { free: 5 * MIB, total });
        assert_eq!((*level.borrow(), refused()), (Level::Critical, [false, true, true]));
        let reason = pressure.admit(Demand::Grows).unwrap_err().reason;
        assert!(reason.contains("below 10485760 (storage.critical_free)"), "{reason}");

        // Memory has a mark of its own, and no second one.
        pressure.see(Source::Memory, Room { free: 0, total });
        assert!(pressure.is_disk_short());
        assert!(pressure.admit(Demand::Grows).unwrap_err().reason.contains("disk space"));
        pressure.see(Source::Disk, Room { free: total, total });
        assert_eq!((*level.borrow(), refused()), (Level::Low, [false, false, true]));
        let reason = pressure.admit(Demand::Begins).unwrap_err().reason;
        assert!(!pressure.is_disk_short(), "only memory is");
        assert!(reason.contains("memory: 0 of 1048576000 bytes (memory_budget)"), "{reason}");
        pressure.see(Source::Memory, Room { free: 200 * MIB, total });
        assert_eq!((*level.borrow(), refused()), (Level::Calm, [false, false, false]));

        // Lower marks count at the next look.
        pressure.see(Source::Disk, Room { free: 5 * MIB, total });
        pressure.set(Source::Disk, disk(MIB, 0));
        pressure.see(Source::Disk, Room { free: 5 * MIB, total });
        assert_eq!((*level.borrow(), refused()), (Level::Calm, [false, false, false]));
    }
}
