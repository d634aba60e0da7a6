//! Wall time and entropy: the only place that reads either for what is stored or replicated.
//!
//! A leader stamps commands with [`Clock::now`] and [`Clock::entropy`]; nothing after the stamp reads a
//! clock. Times are nanoseconds since the Unix epoch in an `i64`, enough until the year 2262. Wall time may
//! jump, in both directions; the partition that is stamped keeps it from running backwards.
//!
//! [`Clock`] is a cheap handle with a manual twin, so that a test decides what time it is and nobody sleeps.
//! Durations that never reach state (timeouts, metrics) use tokio's own clock, not this one.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// A sleep looks at the wall clock at least this often, since the clock may be set while it sleeps.
const LONGEST_NAP: Duration = Duration::from_secs(1);

/// Nanoseconds since the Unix epoch; 0 for a clock that stands before 1970.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// 64 bits that nobody can guess from outside and that differ between calls, threads and nodes.
///
/// The hasher's keys come from the operating system, which two nodes that boot alike do not share.
#[must_use]
pub fn entropy() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    RandomState::new().hash_one(CALLS.fetch_add(1, Ordering::Relaxed))
}

/// A source of time and entropy: the real one, or one that a test moves by hand.
#[derive(Clone, Default)]
pub struct Clock {
    /// `None` is the system's clock.
    manual: Option<Arc<Manual>>,
}

struct Manual {
    now: watch::Sender<i64>,
    draws: AtomicU64,
}

impl Clock {
    /// The clock and the entropy of this machine.
    #[must_use]
    pub fn system() -> Clock {
        Clock::default()
    }

    /// A clock that stands at `start` (nanoseconds since the epoch) until it is advanced. Its entropy is the
    /// same in every run.
    #[must_use]
    pub fn manual(start: i64) -> Clock {
        Clock {
            manual: Some(Arc::new(Manual {
                now: watch::Sender::new(start),
                draws: AtomicU64::new(0),
            })),
        }
    }

    /// Nanoseconds since the Unix epoch.
    #[must_use]
    pub fn now(&self) -> i64 {
        self.manual.as_ref().map_or_else(now, |manual| *manual.now.borrow())
    }

    /// 64 bits of entropy, different for every call.
    #[must_use]
    pub fn entropy(&self) -> u64 {
        self.manual
            .as_ref()
            .map_or_else(entropy, |manual| scramble(manual.draws.fetch_add(1, Ordering::Relaxed)))
    }

    /// Moves a manual clock, and all its clones, forward and wakes who sleeps on it.
    ///
    /// # Panics
    /// On the system's clock: only tests decide what time it is.
    pub fn advance(&self, by: Duration) {
        let Some(manual) = &self.manual else { panic!("the system's clock cannot be advanced") };
        let by = i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
        manual.now.send_modify(|now| *now = now.saturating_add(by));
    }

    /// Waits until the clock shows `at` or later; never returns early, and at most a second late when the
    /// wall clock was set forward meanwhile.
    pub async fn sleep_until(&self, at: i64) {
        if let Some(manual) = &self.manual {
            // The sender lives as long as this handle: waiting cannot fail.
            let _ = manual.now.subscribe().wait_for(|now| *now >= at).await;
            return;
        }
        while let Ok(left @ 1..) = u64::try_from(at.saturating_sub(now())) {
            // Tokio rounds to whole milliseconds, upwards: no spinning near the end.
            tokio::time::sleep(Duration::from_nanos(left).min(LONGEST_NAP)).await;
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.manual {
            None => f.write_str("Clock::system"),
            Some(manual) => write!(f, "Clock::manual({})", *manual.now.borrow()),
        }
    }
}

/// Spreads a counter over 64 bits (the finaliser of splitmix64), one to one.
fn scramble(counter: u64) -> u64 {
    let mut x = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn entropy_differs_between_calls_and_threads() {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..1000).map(|_| entropy()).collect::<Vec<_>>()))
            .collect();
        let all: BTreeSet<_> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(all.len(), 4000);
    }

    #[test]
    fn a_manual_clock_repeats_itself_and_moves_only_by_hand() {
        let (a, b) = (Clock::manual(5), Clock::manual(5));
        assert_eq!([a.entropy(), a.entropy()], [b.entropy(), b.entropy()]);
        let twin = a.clone();
        assert_eq!(twin.now(), 5);
        twin.advance(Duration::from_nanos(2));
        assert_eq!((a.now(), b.now()), (7, 5));
    }

    #[tokio::test]
    async fn sleepers_wake_when_the_manual_clock_arrives() {
        let clock = Clock::manual(0);
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(10).await }
        });
        clock.advance(Duration::from_nanos(9));
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_nanos(1));
        sleeper.await.unwrap();
    }

    #[tokio::test]
    async fn the_system_clock_never_wakes_early() {
        let clock = Clock::system();
        let at = clock.now() + 3_000_000;
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
        clock.sleep_until(0).await;
    }
}
