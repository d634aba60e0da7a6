//! How short of room a node is: pure.

use durahub_cluster::Demand;

/// Low below so many bytes, or below that share of the whole if it is less.
const AUTO_LOW: (u64, u64) = (512 << 20, 10);
/// Critical below so many bytes, or below that share of the whole if it is less.
const AUTO_CRITICAL: (u64, u64) = (128 << 20, 4);
/// A level ends when there is a fifth more room than its mark asks for.
const BACK: (u64, u64) = (6, 5);

/// How short of room a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Not at all.
    #[default]
    Calm,
    /// Nothing new is begun.
    Low,
    /// Nothing grows.
    Critical,
}

impl Level {
    /// Whether a node at this level does without what is asked.
    #[must_use]
    pub fn refuses(self, demand: Demand) -> bool {
        match demand {
            Demand::Must => false,
            Demand::Grows => self >= Level::Critical,
            Demand::Begins => self >= Level::Low,
        }
    }
}

/// Bytes that are free, of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes that this process may still take.
    pub free: u64,
    /// Bytes that there are.
    pub total: u64,
}

/// Free room below which a level begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Some hundred MiB, or less where there is little in all.
    #[default]
    Auto,
    /// So many bytes; 0 is never.
    Bytes(u64),
    /// A share of what there is, in percent.
    Percent(u8),
}

impl Mark {
    fn bytes(self, room: Room, auto: (u64, u64)) -> u64 {
        let percent = |share: u64| (u128::from(room.total) * u128::from(share) / 100) as u64;
        match self {
            Mark::Auto => auto.0.min(percent(auto.1)),
            Mark::Bytes(bytes) => bytes,
            Mark::Percent(share) => percent(share.into()),
        }
    }
}

/// Where the levels begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// [`Level::Low`].
    pub low: Mark,
    /// [`Level::Critical`]; never above `low`.
    pub critical: Mark,
}

impl Marks {
    /// Bytes below which nothing new is begun.
    #[must_use]
    pub fn low_of(&self, room: Room) -> u64 {
        self.low.bytes(room, AUTO_LOW).max(self.critical_of(room))
    }

    /// Bytes below which nothing grows.
    #[must_use]
    pub fn critical_of(&self, room: Room) -> u64 {
        self.critical.bytes(room, AUTO_CRITICAL)
    }

    /// The level with that much room, for a node that was at `before`.
    #[must_use]
    pub fn judge(&self, room: Room, before: Level) -> Level {
        let below = |mark: u64, level: Level| {
            let back = (u128::from(mark) * u128::from(BACK.0) / u128::from(BACK.1)) as u64;
            // A mark near the whole is left half-way to it: there is not a fifth more.
            let back = back.min(mark.saturating_add(room.total.saturating_sub(mark) / 2));
            room.free < if before >= level { back } else { mark }
        };
        if below(self.critical_of(room), Level::Critical) {
            Level::Critical
        } else if below(self.low_of(room), Level::Low) {
            Level::Low
        } else {
            Level::Calm
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[test]
    fn a_level_is_left_a_little_later_than_it_was_entered() {
        let marks = Marks { low: Mark::Bytes(1000), critical: Mark::Percent(1) };
        let mut level = Level::Calm;
        let mut seen = Vec::new();
        for free in [1000, 999, 1000, 1199, 1200, 99, 100, 119, 120, 1199, 1200, 50, 5000] {
            level = marks.judge(Room { free, total: 10_000 }, level);
            seen.push(level as u8);
        }
        assert_eq!(seen, [0, 1, 1, 1, 0, 2, 2, 2, 1, 1, 0, 2, 0]);
    }

    #[test]
    fn a_mark_near_the_whole_is_left_again() {
        let marks = Marks { low: Mark::Percent(90), critical: Mark::Bytes(0) };
        let low = marks.judge(Room { free: 899, total: 1000 }, Level::Calm);
        assert_eq!(low, Level::Low);
        assert_eq!(marks.judge(Room { free: 949, total: 1000 }, low), Level::Low);
        assert_eq!(marks.judge(Room { free: 950, total: 1000 }, low), Level::Calm);
    }

    #[test]
    fn marks_that_nobody_chose_fit_large_disks_and_small_ones() {
        let marks = Marks::default();
        let at = |free, total| marks.judge(Room { free, total }, Level::Calm);
        // A laptop whose disk is nearly full, but has a GiB left.
        assert_eq!(at(GIB, 500 * GIB), Level::Calm);
        assert_eq!(at(511 * MIB, 500 * GIB), Level::Low);
        assert_eq!(at(127 * MIB, 500 * GIB), Level::Critical);
        // A small volume.
        assert_eq!(at(110 * MIB, GIB), Level::Calm);
        assert_eq!(at(102 * MIB, GIB), Level::Low);
        assert_eq!(at(40 * MIB, GIB), Level::Critical);
        // No disk at all is not a full one.
        assert_eq!(at(0, 0), Level::Calm);
    }

    #[test]
    fn nothing_is_the_mark_that_is_never_reached() {
        let marks = Marks { low: Mark::Bytes(0), critical: Mark::Bytes(0) };
        assert_eq!(marks.judge(Room { free: 0, total: GIB }, Level::Critical), Level::Calm);
    }

    #[test]
    fn low_is_never_below_critical() {
        let marks = Marks { low: Mark::Bytes(1), critical: Mark::Bytes(100) };
        assert_eq!(marks.low_of(Room::default()), 100);
    }

    #[test]
    fn what_must_be_taken_is_never_refused() {
        for level in [Level::Calm, Level::Low, Level::Critical] {
            assert!(!level.refuses(Demand::Must));
        }
    }
}
