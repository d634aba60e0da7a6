//! Keys of the rows of entities: heads, states, queues, and the requests that were seen.
//!
//! The heads are the index of the entities of a hub, too: they lie in the order of ids. Another index has them in
//! the order of their last change, to the second: an entity that is busy all the time moves there once a second.

use bytes::Bytes;

use super::keys::{Fields, Key, timers_of_hub};
use super::{Address, Holder, Line, Mark, Place, Sender, Spot};

const ENTITY: u8 = 0x1d;
const ENTITY_STATE: [u8; 2] = [0x1e, 0];
const CHANGED: [u8; 2] = [0x1e, 2];
const REQUEST: [u8; 2] = [0x1e, 3];
const LOCKED: [u8; 2] = [0x1e, 4];
const QUEUE: u8 = 0x1f;
const LOCK_REQUESTS: u8 = 2;

pub(crate) fn entity(at: &Address) -> Vec<u8> {
    Key::of(ENTITY).address(at).0
}

/// What the keys of the entities of a hub with such ids begin with.
pub(crate) fn entities(hub: u32, prefix: &str) -> Vec<u8> {
    let mut key = Key::of(ENTITY).u32(hub).text(prefix).0;
    // Without the two bytes that end a text.
    key.truncate(key.len() - 2);
    key
}

pub(crate) fn entity_state(at: &Address) -> Vec<u8> {
    Key(ENTITY_STATE.to_vec()).address(at).0
}

/// The second in which something happened: nanoseconds, rounded down.
pub(crate) fn second(nanos: i64) -> i64 {
    nanos.div_euclid(1_000_000_000)
}

/// The index row of an entity that was last changed in a second.
pub(crate) fn changed(at: &Address, second: i64) -> Vec<u8> {
    Key(changed_from(at.hub, second)).text(&at.instance).0
}

/// The first key of the entities of a hub that were last changed in a second or later.
pub(crate) fn changed_from(hub: u32, second: i64) -> Vec<u8> {
    Key(changed_of(hub)).time(second).0
}

/// What the index rows of the entities of a hub begin with.
pub(crate) fn changed_of(hub: u32) -> Vec<u8> {
    Key(CHANGED.to_vec()).u32(hub).0
}

/// The second and the entity of an index row.
pub(crate) fn parse_changed(key: &[u8]) -> Option<Mark> {
    let mut fields = Fields(key.strip_prefix(CHANGED.as_slice())?);
    let (_hub, time) = (fields.u32()?, fields.time()?);
    Some(Mark { time, instance: fields.text()? })
}

/// The row of an entity that is locked or waited for.
pub(crate) fn locked(at: &Address) -> Vec<u8> {
    Key(LOCKED.to_vec()).address(at).0
}

/// What the rows of such entities with such ids begin with.
pub(crate) fn locked_of(hub: u32, prefix: &str) -> Vec<u8> {
    let mut key = Key(LOCKED.to_vec()).u32(hub).text(prefix).0;
    // Without the two bytes that end a text.
    key.truncate(key.len() - 2);
    key
}

/// The entity of such a row.
pub(crate) fn parse_locked(key: &[u8]) -> Option<Address> {
    Fields(key.strip_prefix(LOCKED.as_slice())?).address()
}

pub(crate) fn request(period: u32, at: &Address, id: &str) -> Vec<u8> {
    Key(requests_of(at.hub, period)).text(&at.instance).text(id).0
}

/// What the keys of the requests of a hub that were seen in a period begin with.
pub(crate) fn requests_of(hub: u32, period: u32) -> Vec<u8> {
    Key(REQUEST.to_vec()).u32(hub).u32(period).0
}

pub(crate) fn queue(at: &Address, (line, place): Spot) -> Vec<u8> {
    Key(queue_line(at, line)).u64(place.sequence).u32(place.sub).0
}

pub(crate) fn queue_line(at: &Address, line: Line) -> Vec<u8> {
    Key::of(QUEUE).address(at).byte(line as u8).0
}

pub(crate) fn queue_of(at: &Address) -> Vec<u8> {
    Key::of(QUEUE).address(at).0
}

pub(crate) fn all_queues() -> Vec<u8> {
    vec![QUEUE]
}

/// What the rows of the requests for the lock of an entity begin with.
pub(crate) fn lock_requests(at: &Address) -> Vec<u8> {
    Key::of(QUEUE).address(at).byte(LOCK_REQUESTS).0
}

/// What the rows of those of one orchestration begin with.
pub(crate) fn lock_requests_of(at: &Address, owner: &Sender) -> Vec<u8> {
    Key(lock_requests(at)).text(&owner.instance).u64(owner.generation).0
}

pub(crate) fn lock_request(at: &Address, holder: &Holder) -> Vec<u8> {
    let key = Key(lock_requests_of(at, &holder.owner)).text(&holder.section);
    if holder.request == 0 { key.0 } else { key.u32(holder.request).0 }
}

/// A place as the value of a row.
pub(crate) fn place(place: Place) -> Bytes {
    Key(Vec::with_capacity(12)).u64(place.sequence).u32(place.sub).0.into()
}

/// Reads such a value.
pub(crate) fn parse_place(value: &[u8]) -> Option<Place> {
    let mut fields = Fields(value);
    Some(Place { sequence: fields.u64()?, sub: fields.u32()? })
}

/// What the keys of the rows of the entities of a hub begin with. Its timers are theirs once its instances are
/// gone: signals that wait for their time.
pub(crate) fn of_hub(hub: u32) -> [Vec<u8>; 7] {
    let pair = |kind: [u8; 2]| Key(kind.to_vec()).u32(hub).0;
    [
        Key::of(ENTITY).u32(hub).0,
        pair(ENTITY_STATE),
        pair(CHANGED),
        pair(REQUEST),
        pair(LOCKED),
        Key::of(QUEUE).u32(hub).0,
        timers_of_hub(hub),
    ]
}

/// The entity of a head.
pub(crate) fn parse_entity(key: &[u8]) -> Option<Address> {
    Fields::of(ENTITY, key)?.address()
}

/// Whose queue a row belongs to.
pub(crate) fn parse_queue_of(key: &[u8]) -> Option<Address> {
    Fields::of(QUEUE, key)?.address()
}

/// The place of a row in a line.
pub(crate) fn parse_queue(key: &[u8]) -> Option<Place> {
    let mut fields = Fields::of(QUEUE, key)?;
    let (_at, _line) = (fields.address()?, fields.array::<1>()?);
    Some(Place { sequence: fields.u64()?, sub: fields.u32()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_of_an_entity_read_back_and_do_not_mix() {
        for id in ["@a@b", "@a@b\0", "@a@"] {
            let at = Address::new(7, id);
            let place = Place { sequence: 9, sub: 2 };
            assert_eq!(parse_entity(&entity(&at)), Some(at.clone()));
            for time in [-1, 0, 1] {
                let mark = Mark { time, instance: id.to_owned() };
                assert_eq!(parse_changed(&changed(&at, time)), Some(mark));
                assert!(changed_from(7, time) <= changed(&at, time));
                assert!(changed(&at, time) < changed_from(7, time + 1));
            }
            assert_eq!(parse_changed(&request(1, &at, "r")), None);
            assert_eq!(parse_locked(&locked(&at)), Some(at.clone()));
            assert!(locked(&at).starts_with(&locked_of(7, "@a@")));
            for line in [Line::Front, Line::Main] {
                let key = queue(&at, (line, place));
                assert_eq!(parse_queue(&key), Some(place));
                assert_eq!(parse_queue_of(&key), Some(at.clone()));
                assert!(key.starts_with(&queue_line(&at, line)));
            }
            assert!(queue_line(&at, Line::Front) < queue_line(&at, Line::Main));
            assert!(queue_line(&at, Line::Main) < lock_request(&at, &Holder::default()));
        }
        let (a, ab) = (Address::new(7, "@a@"), Address::new(7, "@a@b"));
        assert_eq!((second(-1), second(999_999_999), second(1_000_000_000)), (-1, 0, 1));
        assert!(!queue_of(&ab).starts_with(&queue_of(&a)));
        assert!(entity(&ab).starts_with(&entities(7, "@a@")));
        assert!(!entity(&ab).starts_with(&entities(7, "@b@")));
    }
}
