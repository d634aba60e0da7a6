//! One share: calls that may come now, filled up as time passes, and calls that are under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use super::Share;

const SECOND: i64 = 1_000_000_000;
/// When it is worth asking again after too many calls at the same time, in milliseconds.
const IN_FLIGHT_RETRY: u64 = 100;

/// Which limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Rate,
    InFlight,
}

impl Limit {
    pub(super) fn words(self) -> &'static str {
        match self {
            Limit::Rate => "calls per second",
            Limit::InFlight => "calls at the same time",
        }
    }

    pub(super) fn setting(self) -> &'static str {
        match self {
            Limit::Rate => "per_second",
            Limit::InFlight => "in_flight",
        }
    }
}

/// What is left of a share.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    /// Nanoseconds since the epoch at which the rate is as good as never used. A call moves it on by its part
    /// of a second; it must not be more than a second ahead of now.
    rested: Mutex<i64>,
    running: AtomicU32,
}

/// A call that is under way.
#[derive(Debug)]
pub(super) struct Running(Arc<Bucket>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bucket {
    /// Begins a call, or says which limit it would break and when to ask again, in milliseconds.
    pub(super) fn begin(self: &Arc<Self>, share: Share, now: i64) -> Result<Running, (Limit, u64)> {
        let before = self.running.fetch_add(1, Ordering::Relaxed);
        // Counts itself out again on every way.
        let running = Running(Arc::clone(self));
        if share.in_flight > 0 && before >= share.in_flight {
            return Err((Limit::InFlight, IN_FLIGHT_RETRY));
        }
        if share.per_second > 0 {
            let part = SECOND / i64::from(share.per_second);
            let mut rested = self.rested.lock();
            let next = (*rested).max(now) + part;
            let over = next - (now + SECOND.max(part));
            if over > 0 {
                return Err((Limit::Rate, (over as u64).div_ceil(1_000_000)));
            }
            *rested = next;
        }
        Ok(running)
    }

    /// Whether nothing would change if it were new.
    pub(super) fn is_idle(&self, share: Share, now: i64) -> bool {
        let rested = share.per_second == 0 || *self.rested.lock() <= now;
        rested && self.running.load(Ordering::Relaxed) == 0
    }
}
