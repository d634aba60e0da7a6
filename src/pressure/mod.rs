//! What a node does when it runs short of room: it refuses what it can do without, before it has to stop.
//!
//! There are two steps. *Low*: nothing new is begun; what has begun goes on and may end. *Critical*: nothing grows;
//! no work is handed out and no timer fires, but what workers already have is still taken in, messages between
//! instances still arrive, and everything stays that reads, ends or removes. A node goes back by itself, a little
//! later than it came ([`level`]), so that it does not swing.
//!
//! Short of what is a matter of *sources*; the worst of them counts. [`disk`] looks at the file system of the data
//! folder once a second.
//!
//! Who leads a partition decides, by its own room ([`Pressure::admit`] is asked there); a node that is critical hands
//! its leaders to nodes that are not, and follows on as long as it can. Replicas never decide by their room what a
//! command does: a command that is in the log is applied by all.
//!
//! What is absent on purpose: a view of the whole cluster. A leader with room goes on though a follower has none,
//! as it does when one is down.

mod disk;
mod level;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use durahub_cluster::{Demand, Refusal};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use disk::DiskWatch;
pub use level::{Level, Mark, Marks, Room};

use crate::telemetry::metrics as names;

/// When a refused caller may try again: room is looked for once a second, and seldom comes at once.
const RETRY: Duration = Duration::from_secs(5);

/// What a node can be short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The file system of the data folder.
    Disk,
}

impl Source {
    const COUNT: usize = 1;

    /// Its name in metrics.
    fn label(self) -> &'static str {
        match self {
            Source::Disk => "disk",
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
            seen: Mutex::default(),
            level: watch::Sender::default(),
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
        let Some(short) = seen.iter().find(|seen| seen.level.refuses(demand)) else {
            return Ok(());
        };
        let Seen { marks, level, room } = *short;
        let (mark, setting, what) = match level {
            Level::Critical => (marks.critical_of(room), "critical_free", "nothing that grows"),
            _ => (marks.low_of(room), "low_free", "nothing new"),
        };
        let node = self.0.node.get().copied().unwrap_or_default();
        let (free, seconds) = (room.free, RETRY.as_secs());
        let reason = format!(
            "node {node} is short of disk space: {free} bytes are free, and below {mark} \
             (storage.{setting}) it takes {what}; make room on the disk of its data folder or purge ended \
             instances, and ask again in {seconds} s"
        );
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
        metrics::gauge!(names::DISK_FREE).set(room.free as f64);
        metrics::gauge!(names::PRESSURE, "source" => source.label())
            .set(f64::from(now.level as u8));
        self.0.level.send_if_modified(|level| std::mem::replace(level, worst) != worst);
        if before.level != now.level {
            tell(now);
        }
    }
}

impl Default for Pressure {
    fn default() -> Self {
        Pressure::new()
    }
}

/// One line per change.
fn tell(Seen { marks, level, room }: Seen) {
    let (free_bytes, total_bytes) = (room.free, room.total);
    let (low_free, critical_free) = (marks.low_of(room), marks.critical_of(room));
    // The macro wants its level at compile time.
    macro_rules! line {
        ($level:ident, $text:literal) => {
            tracing::$level!(free_bytes, total_bytes, low_free, critical_free, $text)
        };
    }
    match level {
        Level::Calm => line!(info, "disk space is back: everything is taken again"),
        Level::Low => line!(warn, "DISK SPACE IS LOW: nothing new is begun until there is more"),
        Level::Critical => {
            line!(
                error,
                "DISK SPACE IS CRITICAL: nothing that grows is taken, no work is handed out"
            )
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

        // Lower marks count at the next look.
        pressure.set(Source::Disk, disk(MIB, 0));
        pressure.see(Source::Disk, Room { free: 5 * MIB, total });
        assert_eq!((*level.borrow(), refused()), (Level::Calm, [false, false, false]));
    }
}
