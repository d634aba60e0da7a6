//! How much one task hub and one connection may ask: calls per second, and calls at the same time.
//!
//! A call above that is answered with `RESOURCE_EXHAUSTED` and the time after which it is worth asking again,
//! in words and in the header `grpc-retry-pushback-ms`. Counted are the calls of clients. Those of workers are
//! not: a completion that is refused would make the work be done twice, and what a worker may hold is bounded
//! by what it is handed. The settings may change while the node runs.
//!
//! - [`bucket`]: one share: its rate and what is under way;
//! - [`layer`]: the gRPC port's part.
//!
//! What is absent on purpose: a share of the whole cluster. Each node counts what reaches it.

mod bucket;
mod layer;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};

pub use layer::{ThrottleLayer, Throttled};

use crate::clock::Clock;
use crate::tls::ConnectionInfo;
use bucket::{Bucket, Running};

/// Task hubs that are remembered; beyond that, those that are idle are forgotten.
const HUBS: usize = 1024;

/// What one task hub or one connection may ask. 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Calls per second; as many may come at once after a pause of a second.
    pub per_second: u32,
    /// Calls at the same time.
    pub in_flight: u32,
}

impl Share {
    fn is_unlimited(&self) -> bool {
        *self == Share::default()
    }
}

/// What everybody may ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shares {
    /// Each task hub.
    pub hub: Share,
    /// Each connection.
    pub connection: Share,
}

/// Counts calls; a cheap handle.
#[derive(Clone)]
pub struct Throttle(Arc<Shared>);

struct Shared {
    shares: RwLock<Shares>,
    hubs: Mutex<BTreeMap<String, Arc<Bucket>>>,
    clock: Clock,
}

/// Why a call has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What is used up, and the setting that says how much there is.
    text: String,
    /// Milliseconds after which it is worth asking again.
    retry_ms: u64,
}

impl Throttle {
    /// Counts from now on.
    #[must_use]
    pub fn new(shares: Shares, clock: Clock) -> Throttle {
        let (shares, hubs) = (RwLock::new(shares), Mutex::default());
        Throttle(Arc::new(Shared { shares, hubs, clock }))
    }

    /// Changes what may be asked, for calls from now on.
    pub fn set(&self, shares: Shares) {
        *self.0.shares.write() = shares;
    }

    fn is_unlimited(&self) -> bool {
        let shares = self.0.shares.read();
        shares.hub.is_unlimited() && shares.connection.is_unlimited()
    }

    /// Takes a call into account for as long as what is returned lives.
    fn begin(
        &self,
        hub: &str,
        connection: Option<&ConnectionInfo>,
    ) -> Result<[Option<Running>; 2], Refused> {
        let (shares, now) = (*self.0.shares.read(), self.0.clock.now());
        let told = |what: String, setting: &'static str| {
            move |(limit, retry_ms): (bucket::Limit, u64)| Refused {
                text: format!(
                    "{what} has used up its {} (limits.{setting}_{}); ask again in {retry_ms} ms",
                    limit.words(),
                    limit.setting()
                ),
                retry_ms,
            }
        };
        let own = match connection.filter(|_| !shares.connection.is_unlimited()) {
            None => None,
            Some(connection) => {
                let bucket = of_connection(connection);
                let run = bucket.begin(shares.connection, now);
                Some(run.map_err(told("this connection".to_owned(), "connection_calls"))?)
            }
        };
        let shared = match shares.hub.is_unlimited() {
            true => None,
            false => {
                let run = self.of_hub(hub, now, shares.hub).begin(shares.hub, now);
                Some(run.map_err(told(format!("the task hub {hub}"), "hub_calls"))?)
            }
        };
        Ok([own, shared])
    }

    fn of_hub(&self, hub: &str, now: i64, share: Share) -> Arc<Bucket> {
        let mut hubs = self.0.hubs.lock();
        if let Some(bucket) = hubs.get(hub) {
            return bucket.clone();
        }
        if hubs.len() >= HUBS {
            hubs.retain(|_, bucket| !bucket.is_idle(share, now));
        }
        let bucket = Arc::<Bucket>::default();
        hubs.insert(hub.to_owned(), bucket.clone());
        bucket
    }
}

/// The bucket of a connection lives as long as the connection.
fn of_connection(connection: &ConnectionInfo) -> Arc<Bucket> {
    let new = || Arc::<Bucket>::default() as Arc<dyn Any + Send + Sync>;
    let kept = connection.memory.get_or_init(new).clone();
    kept.downcast().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connection() -> ConnectionInfo {
        ConnectionInfo {
            remote: "127.0.0.1:1".parse().unwrap(),
            certificate: None,
            memory: Arc::default(),
        }
    }

    #[test]
    fn rates_refill_and_say_when() {
        let clock = Clock::manual(0);
        let hub = Share { per_second: 10, in_flight: 0 };
        let throttle = Throttle::new(Shares { hub, ..Shares::default() }, clock.clone());
        for _ in 0..10 {
            throttle.begin("a", None).unwrap();
        }
        let refused = throttle.begin("a", None).err().unwrap();
        assert_eq!(refused.retry_ms, 100);
        assert!(
            refused.text.contains("task hub a") && refused.text.contains("hub_calls_per_second")
        );
        // Another hub has its own share.
        throttle.begin("b", None).unwrap();
        clock.advance(Duration::from_millis(100));
        throttle.begin("a", None).unwrap();
        assert!(throttle.begin("a", None).is_err());
        throttle.set(Shares::default());
        throttle.begin("a", None).unwrap();
    }

    #[test]
    fn calls_at_the_same_time_are_counted_per_connection_until_they_end() {
        let connection_share = Share { per_second: 0, in_flight: 2 };
        let shares = Shares { connection: connection_share, ..Shares::default() };
        let throttle = Throttle::new(shares, Clock::manual(0));
        let (one, other) = (connection(), connection());
        let held: Vec<_> = (0..2).map(|_| throttle.begin("a", Some(&one)).unwrap()).collect();
        let refused = throttle.begin("b", Some(&one)).err().unwrap();
        assert!(refused.text.contains("connection_calls_in_flight"), "{}", refused.text);
        throttle.begin("a", Some(&other)).unwrap();
        drop(held);
        throttle.begin("a", Some(&one)).unwrap();
    }

    #[test]
    fn idle_hubs_are_forgotten() {
        let clock = Clock::manual(0);
        let hub = Share { per_second: 5, in_flight: 5 };
        let throttle = Throttle::new(Shares { hub, ..Shares::default() }, clock.clone());
        for n in 0..10 * HUBS {
            clock.advance(Duration::from_secs(2));
            throttle.begin(&format!("hub-{n}"), None).unwrap();
        }
        assert!(throttle.0.hubs.lock().len() <= HUBS);
    }
}
