//! Connections of the three ports: how many there may be, and who is told when there are too many.
//!
//! One that finds no place is closed without a word: whoever floods would not listen. The operator is told, by a
//! counter and by one line in the log every few seconds. What the settings say holds for the ports of clients; nodes
//! have a room that no setting makes too small for them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use durahub_cluster::transport::{Full, Places, Room};
use metrics::{Gauge, counter, gauge};
use parking_lot::Mutex;

use crate::config::Limits;
use crate::telemetry::metrics as names;

/// Shortest time between two lines of one port in the log.
const QUIET: Duration = Duration::from_secs(10);
/// The ports, as labels name them.
const PORTS: [&str; 3] = ["grpc", "http", "peer"];
/// Connections at the peer port. Another node has one that lasts, and one for each snapshot that is on its way; all
/// nodes may come from one address.
const PEERS: Room = Room { all: 2048, per_address: 512 };

/// The places of all ports; a cheap handle.
#[derive(Clone)]
pub(crate) struct Connections(Arc<[(Places, Gauge); PORTS.len()]>);

impl Connections {
    /// So many as the limits say, at each port.
    pub(crate) fn new(limits: &Limits) -> Connections {
        let port = |port, room, settings| {
            let places = Places::new(room, refusals(port, settings));
            (places, gauge!(names::CONNECTIONS, "port" => port))
        };
        let [grpc, http, peer] = PORTS;
        let settings = ["limits.connections", "limits.connections_per_address"];
        Connections(Arc::new([
            port(grpc, room(limits), settings),
            port(http, room(limits), settings),
            port(peer, PEERS, ["fixed"; 2]),
        ]))
    }

    /// Those of the gRPC port.
    pub(crate) fn grpc(&self) -> Places {
        self.0[0].0.clone()
    }

    /// Those of the HTTP port.
    pub(crate) fn http(&self) -> Places {
        self.0[1].0.clone()
    }

    /// Those of the peer port.
    pub(crate) fn peer(&self) -> Places {
        self.0[2].0.clone()
    }

    /// Other limits hold for clients, for connections from now on.
    pub(crate) fn set(&self, limits: &Limits) {
        [self.grpc(), self.http()].iter().for_each(|places| places.set(room(limits)));
    }

    /// Sets the gauges to what is there at this moment.
    pub(crate) fn measure(&self) {
        self.0.iter().for_each(|(places, gauge)| gauge.set(places.taken() as f64));
    }
}

fn room(limits: &Limits) -> Room {
    Room { all: limits.connections as usize, per_address: limits.connections_per_address as usize }
}

/// What was not told yet.
#[derive(Default)]
struct Untold {
    count: u64,
    last: Option<Instant>,
}

/// Counts the refusals of a port, and tells of them now and then; the settings are those of the two limits.
fn refusals(
    port: &'static str,
    settings: [&'static str; 2],
) -> impl Fn(IpAddr, Full) + Send + Sync + 'static {
    let counted = |reason: &'static str| counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => reason);
    let (all, address) = (counted("all"), counted("address"));
    let untold = Mutex::new(Untold::default());
    move |from, full| {
        let (counter, setting) = match full {
            Full::All => (&all, settings[0]),
            Full::Address => (&address, settings[1]),
        };
        counter.increment(1);
        let count = {
            let mut untold = untold.lock();
            untold.count += 1;
            if untold.last.is_some_and(|last| last.elapsed() < QUIET) {
                return;
            }
            untold.last = Some(Instant::now());
            std::mem::take(&mut untold.count)
        };
        tracing::warn!(port, %from, setting, count, "connections are refused: there are too many");
    }
}
