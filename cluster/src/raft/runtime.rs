//! tokio, as openraft sees it, with ticks of all groups at the same moments.
//!
//! openraft wakes every group twenty times a second, each at a phase of its own. With many groups that is all that an
//! idle node does: thousands of wake-ups, and as many small packets. Here sleeps end on one grid for all groups, so
//! they tick together, a few times a second, and what they send to a node leaves in one write.

use std::fmt;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft::impls::TokioRuntime;

/// Distance of two moments at which sleeps end. Election timeouts are ten times as long, so they hardly notice.
const GRID: Duration = Duration::from_millis(50);

/// Shorter sleeps are none: tokio's timers would make a millisecond of them.
const SHORTEST: Duration = Duration::from_micros(2);

type Instant = <TokioRuntime as AsyncRuntime>::Instant;

/// The runtime of all groups.
pub(crate) struct Runtime(TokioRuntime);

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The moment at which a sleep until `deadline` ends. One that is over lies long ago: a timer for now would still
/// wait for the next millisecond.
fn on_grid(origin: Instant, now: Instant, deadline: Instant) -> Instant {
    if deadline <= now + SHORTEST {
        return origin;
    }
    let (since, grid) = ((deadline - origin).as_micros() as u64, GRID.as_micros() as u64);
    origin + Duration::from_micros(since.next_multiple_of(grid))
}

impl AsyncRuntime for Runtime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + Send> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: Send + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + Send + 'static,
        T::Output: Send + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    /// What ticks wait for.
    fn sleep_until(deadline: Instant) -> Self::Sleep {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let now = <Instant as openraft::Instant>::now();
        let origin = *ORIGIN.get_or_init(|| now);
        TokioRuntime::sleep_until(on_grid(origin, now, deadline))
    }

    fn timeout<R, F: Future<Output = R> + Send>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + Send>(
        deadline: Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_end_on_the_grid_and_never_early() {
        let origin = <Instant as openraft::Instant>::now();
        let at = |micros| origin + Duration::from_micros(micros);
        let now = at(120_000);
        assert_eq!(on_grid(origin, now, at(130_000)), at(150_000));
        assert_eq!(on_grid(origin, now, at(150_000)), at(150_000));
        assert_eq!(on_grid(origin, now, at(150_001)), at(200_000));
        // openraft waits a microsecond for more of the same: no sleep is so short.
        assert_eq!(on_grid(origin, now, at(120_001)), origin);
        assert_eq!(on_grid(origin, now, at(100_000)), origin, "it is over already");
    }
}
