//! When to look again: pure.
//!
//! A small disk can fill within the second between two looks. So the pause shortens as the room above the next mark
//! gets small beside the speed with which it goes.

use std::time::Duration;

use super::{Marks, Room};

/// Longest pause between two looks, and shortest.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// How fast room goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    free: Option<u64>,
    /// Bytes per second. What is written comes in bursts: a quiet moment only halves it.
    speed: f64,
}

impl Pace {
    /// Takes in what was seen `after` the last look. Returns the pause: should room go twice as fast from now on, at
    /// most half of what is left above the next mark goes in it.
    pub(super) fn pause(&mut self, room: Room, after: Duration, marks: &Marks) -> Duration {
        let gone = self.free.map_or(0, |before| before.saturating_sub(room.free));
        self.free = Some(room.free);
        self.speed = (gone as f64 / after.as_secs_f64().max(1e-3)).max(self.speed / 2.0);
        let next = [marks.low_of(room), marks.critical_of(room), 0];
        let mark = next.into_iter().find(|mark| room.free > *mark).unwrap_or(0);
        let seconds = (room.free - mark) as f64 / 2.0 / (2.0 * self.speed);
        // Without any speed that is no number, or more than all of them.
        Duration::try_from_secs_f64(seconds).unwrap_or(PAUSE).clamp(PAUSE_MIN, PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    const MIB: u64 = 1 << 20;
    const SECOND: Duration = Duration::from_secs(1);

    fn room(free: u64) -> Room {
        Room { free: free * MIB, total: 1000 * MIB }
    }

    fn marks() -> Marks {
        Marks { low: Mark::Bytes(100 * MIB), critical: Mark::Bytes(20 * MIB) }
    }

    #[test]
    fn a_disk_that_does_not_fill_is_looked_at_once_a_second() {
        for free in [500, 101, 50, 0] {
            let mut pace = Pace::default();
            for _ in 0..3 {
                assert_eq!(pace.pause(room(free), SECOND, &marks()), SECOND, "{free}");
            }
        }
        // Nor one that gets emptier.
        let mut pace = Pace { free: Some(101 * MIB), speed: 0.0 };
        assert_eq!(pace.pause(room(102), SECOND, &marks()), SECOND);
        assert_eq!(Pace::default().pause(Room::default(), SECOND, &Marks::default()), SECOND);
    }

    #[test]
    fn the_pause_shortens_as_the_next_mark_comes_near() {
        let mut pace = Pace { free: Some(600 * MIB), speed: 0.0 };
        // 100 MiB a second, and 400 MiB left: at twice the speed, half of them takes a second.
        assert_eq!(pace.pause(room(500), SECOND, &marks()), SECOND);
        // 200 MiB a second, and 200 MiB left: a quarter of a second.
        assert_eq!(pace.pause(room(300), SECOND, &marks()), Duration::from_millis(250));
        assert_eq!(pace.pause(room(250), SECOND / 4, &marks()).as_millis(), 187);
        assert_eq!(pace.pause(room(110), SECOND / 5, &marks()), PAUSE_MIN);
        // Beyond a mark the next one counts, and beyond the last what there is.
        let mut pace = Pace { free: Some(170 * MIB), speed: 0.0 };
        assert_eq!(pace.pause(room(90), SECOND, &marks()).as_millis(), 218);
        let mut pace = Pace { free: Some(30 * MIB), speed: 0.0 };
        assert_eq!(pace.pause(room(20), SECOND, &marks()), SECOND / 2);
    }

    #[test]
    fn a_quiet_moment_is_not_taken_for_the_end() {
        let mut pace = Pace { free: Some(200 * MIB), speed: 0.0 };
        let pauses: Vec<_> = [120, 120, 120, 120, 120]
            .map(|free| pace.pause(room(free), SECOND, &marks()).as_millis())
            .into();
        assert_eq!(pauses, [62, 125, 250, 500, 1000]);
    }

    /// However fast it goes, as long as it gets no more than twice as fast between two looks, the mark is seen before
    /// more than half of what is left beyond it is gone.
    #[test]
    fn a_disk_that_fills_faster_and_faster_is_seen_at_its_mark() {
        let (mut pace, mut free, mut speed) = (Pace::default(), 900.0, 1.0);
        let mut pause = SECOND;
        while free > 100.0 {
            let before = free;
            // In MiB; it never more than doubles.
            free -= speed * pause.as_secs_f64();
            speed *= 1.3;
            assert!(free > 60.0, "{before} MiB, then {free}");
            let seen = Room { free: (free.max(0.0) * MIB as f64) as u64, total: 1000 * MIB };
            pause = pace.pause(seen, pause, &marks());
        }
    }
}
