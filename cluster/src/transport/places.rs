//! Places for connections: so many at one port in all, and so many from one address, so that whoever floods a port
//! keeps nobody else out.
//!
//! A place is taken when a connection is accepted, before anything is read from it, and is free again when the
//! connection is dropped. An address of version 6 counts with the 64 bits that its owner cannot choose.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// How many connections there may be; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// In all.
    pub all: usize,
    /// From one address.
    pub per_address: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All are taken.
    All,
    /// The address has its share.
    Address,
}

/// The places of a port; a cheap handle. The default has no limit.
#[derive(Clone, Default)]
pub struct Places(Arc<Shared>);

#[derive(Default)]
struct Shared {
    taken: Mutex<Taken>,
    refused: Option<Box<dyn Fn(IpAddr, Full) + Send + Sync>>,
}

#[derive(Default)]
struct Taken {
    room: Room,
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The place of one connection, for as long as it is held.
pub struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// So much room; `refused` is told of each connection that finds none.
    pub fn new(room: Room, refused: impl Fn(IpAddr, Full) + Send + Sync + 'static) -> Places {
        let taken = Mutex::new(Taken { room, ..Taken::default() });
        Places(Arc::new(Shared { taken, refused: Some(Box::new(refused)) }))
    }

    /// So much room from now on. Connections that are there stay.
    pub fn set(&self, room: Room) {
        self.0.taken.lock().room = room;
    }

    /// How many places are taken.
    pub fn taken(&self) -> usize {
        self.0.taken.lock().all
    }

    /// Takes a place for a connection from an address, if there is one.
    pub fn enter(&self, from: IpAddr) -> Option<Place> {
        let address = network(from);
        match self.take(address) {
            Ok(()) => Some(Place { places: self.clone(), address }),
            Err(full) => {
                if let Some(refused) = &self.0.refused {
                    refused(from, full);
                }
                None
            }
        }
    }

    fn take(&self, address: IpAddr) -> Result<(), Full> {
        let taken = &mut *self.0.taken.lock();
        let is_full = |count: usize, limit: usize| limit > 0 && count >= limit;
        let count = taken.by_address.get(&address).copied().unwrap_or(0);
        if is_full(count, taken.room.per_address) {
            return Err(Full::Address);
        }
        if is_full(taken.all, taken.room.all) {
            return Err(Full::All);
        }
        taken.by_address.insert(address, count + 1);
        taken.all += 1;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let taken = &mut *self.places.0.taken.lock();
        taken.all -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// What counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let bits = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn an_address_has_its_share_and_all_have_theirs() {
        let refused = Arc::new(AtomicUsize::new(0));
        let counted = refused.clone();
        let room = Room { all: 3, per_address: 2 };
        let places = Places::new(room, move |_, full| {
            counted.fetch_add(if full == Full::All { 100 } else { 1 }, Ordering::Relaxed);
        });
        let enter = |address: &str| places.enter(address.parse().unwrap());
        let one = (enter("10.0.0.1"), enter("::ffff:10.0.0.1"));
        assert!(one.0.is_some() && one.1.is_some() && enter("10.0.0.1").is_none());
        assert_eq!(refused.load(Ordering::Relaxed), 1);
        let other = enter("fd00::1:2:3:4");
        assert!(other.is_some() && enter("fd00::5").is_none());
        assert_eq!((refused.load(Ordering::Relaxed), places.taken()), (101, 3));
        drop(one);
        let second = enter("fd00::5");
        assert!(second.is_some() && enter("fd00::6").is_none(), "one network");
        assert!(enter("fd00:0:0:1::6").is_some());
        places.set(Room::default());
        assert!(enter("fd00::6").is_some());
        drop((other, second));
        assert!(places.0.taken.lock().by_address.is_empty() && places.taken() == 0);
    }
}
