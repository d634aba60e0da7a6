//! Every stored key, in one table.
//!
//! A key is a kind byte, then fields that sort as they compare: numbers big-endian, times with the sign
//! bit flipped, texts escaped and ended so that no text is the prefix of another. A retired kind keeps
//! its byte for ever.
//!
//! | kind | row | fields | value |
//! | --- | --- | --- | --- |
//! | 0x01 | hub | name | `HubRecord` |
//! | 0x02 | last hub id | | u32 |
//! | 0x03 | deleted hub | hub | `DeletedHubRecord` |
//! | 0x10 | instance | hub, id | `InstanceRecord` |
//! | 0x11 | inbox | hub, id, place | one encoded history event |
//! | 0x12 | history | hub, id, generation, index of its first event | events, each with its length |
//! | 0x13 | task | hub, id, generation, number | `TaskRecord` |
//! | 0x14 | timer | hub, id, generation, number | `TimerRecord` |
//! | 0x15 | due | time, hub, id, generation, number | empty |
//! | 0x16 | outbox | place | `MessageRecord` |
//! | 0x17 | delivered | number of the sending partition | `DeliveredRecord` |
//! | 0x18 | listed | hub, status, time of creation, id | empty |
//! | 0x19 | ended | hub, status, time of completion, id | empty |
//! | 0x1a | closed hub | hub | empty |
//! | 0x1b | leftover | hub, id, generation | one byte: whether the instance is gone too |
//! | 0x1c | child | hub, id of the parent, generation, number | `ChildRecord` |
//! | 0x1d | entity | hub, id | `EntityRecord` |
//! | 0x1e 0 | entity state | hub, id | the text |
//! | 0x1e 1 | | retired before the first release | |
//! | 0x1e 2 | entity by its last change | hub, second of it, id | empty |
//! | 0x1e 3 | request seen | hub, period, id of the entity, request id | empty |
//! | 0x1e 4 | entity that is locked or waited for | hub, id | empty |
//! | 0x1f | entity queue | hub, id, line (0 front, 1 main), place | `WaitingRecord` |
//! | 0x1f | lock request | hub, id, 2, instance, generation, section, request unless 0 | sequence and sub of its place |
//!
//! The functions of 0x18 and 0x19 stand in `listing`, those of 0x1d to 0x1f in `entity_keys`.

use super::{Leftover, Place};

const HUB: u8 = 0x01;
const LAST_HUB: u8 = 0x02;
const DELETED_HUB: u8 = 0x03;
const INSTANCE: u8 = 0x10;
const INBOX: u8 = 0x11;
const HISTORY: u8 = 0x12;
const TASK: u8 = 0x13;
const TIMER: u8 = 0x14;
const DUE: u8 = 0x15;
const OUTBOX: u8 = 0x16;
const DELIVERED: u8 = 0x17;
pub(super) const LISTED: u8 = 0x18;
pub(super) const ENDED: u8 = 0x19;
const CLOSED_HUB: u8 = 0x1a;
const LEFTOVER: u8 = 0x1b;
const CHILD: u8 = 0x1c;

/// Who is meant: an instance in a hub.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Address {
    /// Number of the task hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// Instance id, unique in the hub.
    #[prost(string, tag = "2")]
    pub instance: String,
}

impl Address {
    /// The address of `instance` in `hub`.
    pub fn new(hub: u32, instance: impl Into<String>) -> Address {
        Address { hub, instance: instance.into() }
    }

    /// Whether it is an entity's, which no list of orchestrations shows (R2.79).
    pub fn is_entity(&self) -> bool {
        is_entity(&self.instance)
    }
}

/// Whether an id is that of an entity: `@name@key`, the name not empty (R5.1).
pub fn is_entity(id: &str) -> bool {
    id.strip_prefix('@')
        .and_then(|rest| rest.split_once('@'))
        .is_some_and(|(name, _)| !name.is_empty())
}

/// A scheduled task, a timer or a child: counted per generation, because the ids that workers choose repeat
/// (R3.34, R4.48).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    /// The instance it belongs to.
    pub at: Address,
    /// The generation it belongs to.
    pub generation: u64,
    /// Its number in the generation.
    pub number: u64,
}

pub(crate) fn hub(name: &str) -> Vec<u8> {
    Key::of(HUB).text(name).0
}

pub(crate) fn hubs() -> Vec<u8> {
    vec![HUB]
}

pub(crate) fn last_hub() -> Vec<u8> {
    vec![LAST_HUB]
}

pub(crate) fn instance(at: &Address) -> Vec<u8> {
    Key::of(INSTANCE).address(at).0
}

/// The instances of a hub whose id begins with `prefix`.
pub(crate) fn instances_from(hub: u32, prefix: &str) -> Vec<u8> {
    let mut key = Key::of(INSTANCE).u32(hub).text(prefix).0;
    // Without the end of the text: what follows it may be anything.
    key.truncate(key.len() - 2);
    key
}

pub(crate) fn parse_instance(key: &[u8]) -> Option<Address> {
    Fields::of(INSTANCE, key)?.address()
}

pub(crate) fn inbox(at: &Address, place: Place) -> Vec<u8> {
    Key::of(INBOX).address(at).u64(place.sequence).u32(place.sub).0
}

pub(crate) fn inbox_of(at: &Address) -> Vec<u8> {
    Key::of(INBOX).address(at).0
}

pub(crate) fn all_inboxes() -> Vec<u8> {
    vec![INBOX]
}

pub(crate) fn history(at: &Address, generation: u64, first: u32) -> Vec<u8> {
    Key::of(HISTORY).address(at).u64(generation).u32(first).0
}

pub(crate) fn history_of(at: &Address, generation: u64) -> Vec<u8> {
    Key::of(HISTORY).address(at).u64(generation).0
}

pub(crate) fn task(item: &Item) -> Vec<u8> {
    Key::of(TASK).item(item).0
}

pub(crate) fn tasks_of(at: &Address, generation: u64) -> Vec<u8> {
    Key::of(TASK).address(at).u64(generation).0
}

pub(crate) fn all_tasks() -> Vec<u8> {
    vec![TASK]
}

pub(crate) fn timer(item: &Item) -> Vec<u8> {
    Key::of(TIMER).item(item).0
}

pub(crate) fn timers_of(at: &Address, generation: u64) -> Vec<u8> {
    Key::of(TIMER).address(at).u64(generation).0
}

pub(crate) fn due(time: i64, item: &Item) -> Vec<u8> {
    Key::of(DUE).time(time).item(item).0
}

/// What the keys of the timers of a hub begin with.
pub(super) fn timers_of_hub(hub: u32) -> Vec<u8> {
    Key::of(TIMER).u32(hub).0
}

pub(crate) fn all_due() -> Vec<u8> {
    vec![DUE]
}

/// The end of the keys due at `time` or before.
pub(crate) fn due_after(time: i64) -> Vec<u8> {
    Key::of(DUE).time(time.saturating_add(1)).0
}

pub(crate) fn outbox(place: Place) -> Vec<u8> {
    Key::of(OUTBOX).u64(place.sequence).u32(place.sub).0
}

pub(crate) fn all_outbox() -> Vec<u8> {
    vec![OUTBOX]
}

pub(crate) fn delivered(from: u32) -> Vec<u8> {
    Key::of(DELIVERED).u32(from).0
}

pub(crate) fn child(item: &Item) -> Vec<u8> {
    Key::of(CHILD).item(item).0
}

pub(crate) fn children_of(at: &Address, generation: u64) -> Vec<u8> {
    Key::of(CHILD).address(at).u64(generation).0
}

pub(crate) fn deleted_hub(hub: u32) -> Vec<u8> {
    Key::of(DELETED_HUB).u32(hub).0
}

pub(crate) fn deleted_hubs() -> Vec<u8> {
    vec![DELETED_HUB]
}

pub(crate) fn closed_hub(hub: u32) -> Vec<u8> {
    Key::of(CLOSED_HUB).u32(hub).0
}

pub(crate) fn leftover(leftover: &Leftover) -> Vec<u8> {
    Key::of(LEFTOVER).address(&leftover.at).u64(leftover.generation).0
}

pub(crate) fn leftovers_of(hub: u32) -> Vec<u8> {
    Key::of(LEFTOVER).u32(hub).0
}

pub(crate) fn all_leftovers() -> Vec<u8> {
    vec![LEFTOVER]
}

/// What a row says is to be swept.
pub(crate) fn parse_leftover(key: &[u8], value: &[u8]) -> Option<Leftover> {
    let mut fields = Fields::of(LEFTOVER, key)?;
    Some(Leftover { at: fields.address()?, generation: fields.u64()?, whole: value == [1] })
}

/// The name of a hub row.
pub(crate) fn parse_hub(key: &[u8]) -> Option<String> {
    Fields::of(HUB, key)?.text()
}

/// Whose inbox a row belongs to, and its place there.
pub(crate) fn parse_inbox(key: &[u8]) -> Option<(Address, Place)> {
    let mut fields = Fields::of(INBOX, key)?;
    let at = fields.address()?;
    Some((at, Place { sequence: fields.u64()?, sub: fields.u32()? }))
}

/// The task of a row.
pub(crate) fn parse_task(key: &[u8]) -> Option<Item> {
    Fields::of(TASK, key)?.item()
}

/// The timer of a row.
pub(crate) fn parse_timer(key: &[u8]) -> Option<Item> {
    Fields::of(TIMER, key)?.item()
}

/// When the timer of a row is due.
pub(crate) fn parse_due(key: &[u8]) -> Option<(i64, Item)> {
    let mut fields = Fields::of(DUE, key)?;
    Some((fields.time()?, fields.item()?))
}

/// The place of a message in the outbox.
pub(crate) fn parse_outbox(key: &[u8]) -> Option<Place> {
    let mut fields = Fields::of(OUTBOX, key)?;
    Some(Place { sequence: fields.u64()?, sub: fields.u32()? })
}

/// The child of a row.
pub(crate) fn parse_child(key: &[u8]) -> Option<Item> {
    Fields::of(CHILD, key)?.item()
}

/// A key while it is written.
pub(super) struct Key(pub(super) Vec<u8>);

impl Key {
    pub(super) fn of(kind: u8) -> Key {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(kind);
        Key(bytes)
    }

    pub(super) fn byte(mut self, byte: u8) -> Key {
        self.0.push(byte);
        self
    }

    pub(super) fn u32(mut self, number: u32) -> Key {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Key {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn time(self, nanos: i64) -> Key {
        self.u64(nanos as u64 ^ SIGN)
    }

    pub(super) fn text(mut self, text: &str) -> Key {
        for &byte in text.as_bytes() {
            self.0.push(byte);
            if byte == 0 {
                self.0.push(0xff);
            }
        }
        self.0.extend([0, 0]);
        self
    }

    pub(super) fn address(self, at: &Address) -> Key {
        self.u32(at.hub).text(&at.instance)
    }

    fn item(self, item: &Item) -> Key {
        self.address(&item.at).u64(item.generation).u64(item.number)
    }
}

const SIGN: u64 = 1 << 63;

/// A key while it is read. Every reader yields `None` where the bytes are not of that form.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn of(kind: u8, key: &'a [u8]) -> Option<Fields<'a>> {
        let (first, rest) = key.split_first()?;
        (*first == kind).then_some(Fields(rest))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn time(&mut self) -> Option<i64> {
        self.u64().map(|bits| (bits ^ SIGN) as i64)
    }

    pub(super) fn text(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            match self.array::<1>()? {
                [0] if self.array::<1>()? == [0] => return String::from_utf8(text).ok(),
                [byte] => text.push(byte),
            }
        }
    }

    pub(super) fn address(&mut self) -> Option<Address> {
        Some(Address { hub: self.u32()?, instance: self.text()? })
    }

    fn item(&mut self) -> Option<Item> {
        Some(Item { at: self.address()?, generation: self.u64()?, number: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(instance: &str) -> Item {
        Item { at: Address::new(7, instance), generation: 3, number: 5 }
    }

    #[test]
    fn keys_read_back_what_was_written() {
        for instance in ["", "a", "a\0b", "\0", "ü@x@y"] {
            let item = item(instance);
            assert_eq!(parse_task(&task(&item)), Some(item.clone()));
            assert_eq!(parse_due(&due(-12, &item)), Some((-12, item.clone())));
            let place = Place { sequence: 9, sub: 2 };
            assert_eq!(parse_child(&child(&item)), Some(item.clone()));
            assert_eq!(parse_outbox(&outbox(place)), Some(place));
            assert_eq!(parse_inbox(&inbox(&item.at, place)), Some((item.at, place)));
        }
        assert_eq!(parse_task(&timer(&item("a"))), None);
        assert_eq!(parse_task(&task(&item("a"))[..6]), None);
    }

    #[test]
    fn entity_ids_are_told_from_others() {
        for (id, is) in
            [("@a@b", true), ("@a@", true), ("@@b", false), ("@a", false), ("a@b@c", false)]
        {
            assert_eq!(is_entity(id), is, "{id}");
        }
    }

    #[test]
    fn no_instance_lies_inside_the_range_of_another() {
        let (a, ab) = (Address::new(1, "a"), Address::new(1, "a\0b"));
        assert!(!inbox(&ab, Place::default()).starts_with(&inbox_of(&a)));
        assert!(instance(&a) < instance(&ab));
    }

    #[test]
    fn a_prefix_finds_all_ids_that_begin_with_it_and_no_others() {
        let begins = |id: &str, prefix| {
            instance(&Address::new(1, id)).starts_with(&instances_from(1, prefix))
        };
        for prefix in ["", "a", "a\0", "ab"] {
            for id in ["", "a", "a\0", "a\0b", "ab", "abc", "b"] {
                assert_eq!(begins(id, prefix), id.starts_with(prefix), "{id:?} {prefix:?}");
            }
        }
        assert_eq!(parse_instance(&instance(&Address::new(1, "a"))), Some(Address::new(1, "a")));
    }

    #[test]
    fn due_rows_sort_by_time() {
        let item = item("z");
        let times = [i64::MIN, -1, 0, 1, i64::MAX];
        assert!(times.is_sorted_by(|a, b| due(*a, &item) < due(*b, &item)));
        assert!(due(4, &item) < due_after(4) && due_after(4) < due(5, &item));
    }

    /// The bytes themselves: a change here would lose what users have stored.
    #[test]
    fn the_form_of_a_key_never_changes() {
        assert_eq!(
            task(&Item { at: Address::new(258, "x\0y"), generation: 1, number: 2 }),
            [
                0x13, 0, 0, 1, 2, b'x', 0, 0xff, b'y', 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0,
                0, 0, 2
            ]
        );
    }
}
