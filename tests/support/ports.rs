//! Ports for servers that must be known before they listen, and stay theirs while they are down.
//!
//! The system hands out port 0 anew as soon as a server lets go of it: to another server, or to the near end of
//! any connection. So these come from below the range that it picks from, and each is given once in a process.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// From here up to where Linux begins to pick ports by itself (`net.ipv4.ip_local_port_range`).
const FIRST: u32 = 15_000;
const COUNT: u32 = 32_768 - FIRST;

/// How many were given; each process begins elsewhere.
static GIVEN: AtomicU32 = AtomicU32::new(0);

/// An address on loopback that nobody listens at, and that no other call in this process returns.
pub fn free() -> SocketAddr {
    for _ in 0..COUNT {
        let next = GIVEN.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(97).wrapping_add(next)) % COUNT;
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).expect("a port")));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
    panic!("every port from {FIRST} to {} is in use", FIRST + COUNT - 1);
}
