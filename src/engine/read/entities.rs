//! Lists of entities, slice by slice (R2.102): in the order of ids or, where a list is bounded by time, in the order
//! of the last change. The heads lie in the one order and an index in the other, so a page costs what it returns
//! and what its filter passes over: by time, only what changed in the first and the last second of the range.
//!
//! An entity that changes while pages are read moves to the end of a list by time, and may come twice. It is never
//! left out while it belongs to the list.

use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::wire;

use super::entity::{entity, entity_state};
use crate::engine::state::{Address, EntityRecord, Mark, decode, entity_keys};
use crate::engine::time::timestamp;
use crate::engine::view::{View, after_prefix};

/// How many rows one slice reads, and how many bytes of states it yields, about.
const SLICE_ROWS: u64 = 512;
const SLICE_BYTES: usize = 1 << 20;

/// What is listed; all conditions hold together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntityList {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// What ids begin with.
    #[prost(string, tag = "2")]
    pub prefix: String,
    /// Not changed before this, in nanoseconds since the Unix epoch.
    #[prost(int64, optional, tag = "3")]
    pub from: Option<i64>,
    /// Not changed after this.
    #[prost(int64, optional, tag = "4")]
    pub to: Option<i64>,
    /// Entities without a state, too.
    #[prost(bool, tag = "5")]
    pub transient: bool,
    /// With their states.
    #[prost(bool, tag = "6")]
    pub states: bool,
}

impl EntityList {
    /// Whether the list is in the order of the last change, not of ids.
    pub fn is_by_time(&self) -> bool {
        self.from.is_some() || self.to.is_some()
    }

    fn matches(&self, at: &Address, record: &EntityRecord) -> bool {
        (record.has_state || self.transient)
            && at.instance.starts_with(&self.prefix)
            && self.from.is_none_or(|from| record.modified >= from)
            && self.to.is_none_or(|to| record.modified <= to)
    }
}

/// A part of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntitySlice {
    /// What was found, in order.
    #[prost(message, repeated, tag = "1")]
    pub entities: Vec<ListedEntity>,
    /// Everything up to here was looked at; `None` once nothing is left.
    #[prost(message, optional, tag = "2")]
    pub reached: Option<Mark>,
    /// How many rows were read, states aside.
    #[prost(uint64, tag = "3")]
    pub rows: u64,
}

/// An entity in a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListedEntity {
    /// Its place: the second of its last change in a list by time, else 0, and its id.
    #[prost(message, required, tag = "1")]
    pub mark: Mark,
    /// What is shown of it.
    #[prost(message, required, tag = "2")]
    pub entity: wire::EntityMetadata,
}

/// The next part of a list behind `after`: at most `limit` entities.
pub fn entities(
    view: &dyn View,
    list: &EntityList,
    after: Option<&Mark>,
    limit: usize,
) -> EntitySlice {
    let mut gathering = Gathering { view, list, limit, bytes: 0, slice: EntitySlice::default() };
    match list.is_by_time() {
        true => gathering.by_time(after),
        false => gathering.by_id(after),
    }
    gathering.slice
}

struct Gathering<'a> {
    view: &'a dyn View,
    list: &'a EntityList,
    limit: usize,
    bytes: usize,
    slice: EntitySlice,
}

impl Gathering<'_> {
    fn by_id(&mut self, after: Option<&Mark>) {
        let (view, hub) = (self.view, self.list.hub);
        let prefix = entity_keys::entities(hub, &self.list.prefix);
        let behind = after.map(|mark| Address::new(hub, mark.instance.clone()));
        let from = behind.map_or_else(Vec::new, |at| after_prefix(&entity_keys::entity(&at)));
        let (from, end) = (from.max(prefix.clone()), after_prefix(&prefix));
        if from >= end {
            return;
        }
        view.scan(&from, &end, &mut |key, value| {
            let at = entity_keys::parse_entity(key).expect("stored key reads back");
            let record: EntityRecord = decode(Bytes::copy_from_slice(value));
            let mark = Mark { time: 0, instance: at.instance.clone() };
            self.look_at(mark, &at, &record, 1)
        });
    }

    fn by_time(&mut self, after: Option<&Mark>) {
        let (view, list) = (self.view, self.list);
        let first = list.from.map_or(i64::MIN, entity_keys::second);
        let mut from = entity_keys::changed_from(list.hub, first);
        if let Some(Mark { time, instance }) = after {
            let at = Address::new(list.hub, instance.clone());
            from = from.max(after_prefix(&entity_keys::changed(&at, *time)));
        }
        let end = match list.to.map(entity_keys::second) {
            Some(last) => entity_keys::changed_from(list.hub, last + 1),
            None => after_prefix(&entity_keys::changed_of(list.hub)),
        };
        if from >= end {
            return;
        }
        view.scan(&from, &end, &mut |key, _| {
            let mark = entity_keys::parse_changed(key).expect("stored key reads back");
            let at = Address::new(list.hub, mark.instance.clone());
            let Some(record) = entity(view, &at) else { return ControlFlow::Continue(()) };
            self.look_at(mark, &at, &record, 2)
        });
    }

    fn look_at(
        &mut self,
        mark: Mark,
        at: &Address,
        record: &EntityRecord,
        rows: u64,
    ) -> ControlFlow<()> {
        let slice = &mut self.slice;
        slice.rows += rows;
        if self.list.matches(at, record) {
            let entity = metadata(self.view, at, record, self.list.states);
            self.bytes += entity.serialized_state.as_ref().map_or(0, durahub_proto::Text::len);
            slice.entities.push(ListedEntity { mark: mark.clone(), entity });
        }
        let is_enough = slice.entities.len() >= self.limit
            || slice.rows >= SLICE_ROWS
            || self.bytes >= SLICE_BYTES;
        slice.reached = is_enough.then_some(mark);
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// An entity as clients see it (R2.100). The queue counts a batch that is with a worker, too.
pub fn metadata(
    view: &dyn View,
    at: &Address,
    record: &EntityRecord,
    state: bool,
) -> wire::EntityMetadata {
    let lock = record.lock.as_ref();
    wire::EntityMetadata {
        instance_id: at.instance.clone(),
        last_modified_time: Some(timestamp(record.modified)),
        backlog_queue_size: i32::try_from(record.backlog()).unwrap_or(i32::MAX),
        locked_by: lock.map(|lock| lock.holder.owner.instance.as_str().into()),
        serialized_state: if state && record.has_state { entity_state(view, at) } else { None },
    }
}

/// Keys of rows that the entities of a hub have, at most about `limit`.
pub(crate) fn entity_rows_of_hub(view: &dyn View, hub: u32, limit: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for prefix in entity_keys::of_hub(hub) {
        if found.len() >= limit {
            break;
        }
        view.scan(&prefix, &after_prefix(&prefix), &mut |key, value| {
            found.extend(super::items::due_row(key, value));
            found.push(key.to_vec());
            if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message as _;

    use super::*;
    use crate::engine::view::Counted;

    fn rows() -> BTreeMap<Vec<u8>, Bytes> {
        let mut rows = BTreeMap::new();
        for (number, (id, has_state)) in
            [("@a@", true), ("@a@1", true), ("@a@2", false), ("@a@3", true), ("@b@1", true)]
                .into_iter()
                .enumerate()
        {
            for hub in [1, 2] {
                let at = Address::new(hub, id);
                let modified = number as i64 * 1_000_000_010;
                let record = EntityRecord { has_state, modified, ..Default::default() };
                rows.insert(entity_keys::entity(&at), record.encode_to_vec().into());
                rows.insert(entity_keys::entity_state(&at), Bytes::from(id.as_bytes()));
                rows.insert(entity_keys::request(1, &at, "r"), Bytes::new());
                rows.insert(entity_keys::changed(&at, entity_keys::second(modified)), Bytes::new());
            }
        }
        rows
    }

    fn ids(slice: &EntitySlice) -> Vec<&str> {
        slice.entities.iter().map(|it| it.entity.instance_id.as_str()).collect()
    }

    #[test]
    fn a_list_has_what_its_filter_says_in_the_order_of_ids() {
        let (rows, list) = (rows(), EntityList { hub: 1, ..Default::default() });
        let all = |list: &EntityList| {
            let slice = entities(&rows, list, None, 100);
            assert_eq!(slice.reached, None);
            ids(&slice).join(" ")
        };
        assert_eq!(all(&list), "@a@ @a@1 @a@3 @b@1");
        assert_eq!(all(&EntityList { transient: true, ..list.clone() }), "@a@ @a@1 @a@2 @a@3 @b@1");
        assert_eq!(
            all(&EntityList { prefix: "@a@".into(), hub: 1, ..Default::default() }),
            "@a@ @a@1 @a@3"
        );
        assert_eq!(all(&EntityList { prefix: "@A@".into(), hub: 1, ..Default::default() }), "");
        let (from, to) = (Some(1_000_000_010), Some(3_000_000_030));
        assert_eq!(all(&EntityList { from, to, ..list.clone() }), "@a@1 @a@3", "inclusive");
        let with = entities(&rows, &EntityList { states: true, ..list.clone() }, None, 1);
        assert_eq!(with.entities[0].entity.serialized_state, Some("@a@".into()));
        assert_eq!(entities(&rows, &list, None, 1).entities[0].entity.serialized_state, None);
    }

    #[test]
    fn slices_follow_each_other() {
        let mark = |id: &str| Mark { time: 0, instance: id.to_owned() };
        let (rows, list) =
            (rows(), EntityList { hub: 1, prefix: "@a@".into(), ..Default::default() });
        let first = entities(&rows, &list, None, 1);
        assert_eq!((ids(&first), first.reached.clone()), (vec!["@a@"], Some(mark("@a@"))));
        let second = entities(&rows, &list, Some(&mark("@a@")), 2);
        let reached = Some(mark("@a@3"));
        assert_eq!((ids(&second), second.reached.clone()), (vec!["@a@1", "@a@3"], reached));
        let last = entities(&rows, &list, Some(&mark("@a@3")), 2);
        assert_eq!((ids(&last).len(), last.reached), (0, None));
        let before = entities(&rows, &list, Some(&mark("@")), 9);
        assert_eq!(ids(&before).len(), 3, "a token from before the prefix");
    }

    /// A page by time costs what it returns, wherever in a large hub it lies.
    #[test]
    fn a_page_by_time_reads_what_it_returns() {
        const MILLI: i64 = 1_000_000;
        let mut rows: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
        for number in 0..20_000_i64 {
            // Ids are in another order than times, twenty of them a second.
            let at = Address::new(1, format!("@a@{:05}", number * 7_919 % 20_000));
            let modified = number * 50 * MILLI;
            let record = EntityRecord { has_state: true, modified, ..Default::default() };
            rows.insert(entity_keys::entity(&at), record.encode_to_vec().into());
            rows.insert(entity_keys::changed(&at, entity_keys::second(modified)), Bytes::new());
        }
        let list = EntityList {
            hub: 1,
            from: Some(500_025 * MILLI),
            to: Some(510_025 * MILLI),
            ..Default::default()
        };
        let (mut after, mut found, mut looked) = (None, Vec::new(), 0);
        loop {
            let counted = Counted::new(&rows);
            let slice = entities(&counted, &list, after.as_ref(), 50);
            looked += counted.looked();
            // Behind the last one that it returns, the second of an end of the range at most.
            assert!(counted.looked() <= 2 * (slice.entities.len() + 40), "{}", counted.looked());
            found.extend(slice.entities.into_iter().map(|it| it.mark));
            after = slice.reached;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(found.len(), 200, "ten seconds of them, the ends inclusive");
        assert!(found.is_sorted_by(|a, b| a < b), "each once, by second and id");
        assert!(looked <= 2 * (200 + 40), "{looked}");

        let none = EntityList { from: Some(2_000_000 * MILLI), ..list };
        let counted = Counted::new(&rows);
        assert_eq!(entities(&counted, &none, None, 50), EntitySlice::default());
        assert_eq!(counted.looked(), 0);
    }

    #[test]
    fn the_rows_of_a_hub_are_found_bit_by_bit() {
        let mut rows = rows();
        for _ in 0..7 {
            let found = entity_rows_of_hub(&rows, 1, 3);
            assert!(found.len() <= 3);
            found.iter().for_each(|key| drop(rows.remove(key)));
        }
        assert_eq!(entity_rows_of_hub(&rows, 1, 3), Vec::<Vec<u8>>::new());
        assert_eq!(rows.len(), 20, "the other hub keeps its own");
    }
}
