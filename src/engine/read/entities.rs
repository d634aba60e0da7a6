//! Lists of entities in the order of their ids, slice by slice (R2.102). The heads lie in that order, so a page
//! costs what it returns and what its filter passes over.

use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::wire;

use super::entity::entity_state;
use crate::engine::state::{Address, EntityRecord, decode, entity_keys};
use crate::engine::time::timestamp;
use crate::engine::view::{View, after_prefix};

/// How many rows one slice reads, and how many bytes of states it yields, about.
const SLICE_ROWS: usize = 512;
const SLICE_BYTES: usize = 1 << 20;

/// What is listed; all conditions hold together.
#[derive(Clone, Debug, Default)]
pub struct EntityList {
    /// Number of the hub.
    pub hub: u32,
    /// What ids begin with.
    pub prefix: String,
    /// Not changed before this, in nanoseconds since the Unix epoch.
    pub from: Option<i64>,
    /// Not changed after this.
    pub to: Option<i64>,
    /// Entities without a state, too.
    pub transient: bool,
    /// With their states.
    pub states: bool,
}

impl EntityList {
    fn matches(&self, record: &EntityRecord) -> bool {
        (record.has_state || self.transient)
            && self.from.is_none_or(|from| record.modified >= from)
            && self.to.is_none_or(|to| record.modified <= to)
    }
}

/// A part of a list.
#[derive(Debug, Default, PartialEq)]
pub struct EntitySlice {
    /// What was found, in the order of ids.
    pub entities: Vec<wire::EntityMetadata>,
    /// Everything up to here was looked at; `None` once nothing is left.
    pub reached: Option<String>,
    /// How many rows were read.
    pub rows: usize,
}

/// The next part of a list behind `after`: at most `limit` entities.
pub fn entities(
    view: &dyn View,
    list: &EntityList,
    after: Option<&str>,
    limit: usize,
) -> EntitySlice {
    let prefix = entity_keys::entities(list.hub, &list.prefix);
    let from = match after {
        Some(after) => {
            after_prefix(&entity_keys::entity(&Address::new(list.hub, after))).max(prefix.clone())
        }
        None => prefix.clone(),
    };
    let (mut slice, mut bytes) = (EntitySlice::default(), 0);
    view.scan(&from, &after_prefix(&prefix), &mut |key, value| {
        let at = entity_keys::parse_entity(key).expect("stored key reads back");
        slice.rows += 1;
        let record: EntityRecord = decode(Bytes::copy_from_slice(value));
        if list.matches(&record) {
            let entity = metadata(view, &at, &record, list.states);
            bytes += entity.serialized_state.as_ref().map_or(0, durahub_proto::Text::len);
            slice.entities.push(entity);
        }
        let is_enough =
            slice.entities.len() >= limit || slice.rows >= SLICE_ROWS || bytes >= SLICE_BYTES;
        slice.reached = is_enough.then_some(at.instance);
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    slice
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

/// Keys of rows that the entities of a hub have, at most about `limit`. Requests that were seen are not among
/// them: they go by themselves.
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

    fn rows() -> BTreeMap<Vec<u8>, Bytes> {
        let mut rows = BTreeMap::new();
        for (number, (id, has_state)) in
            [("@a@", true), ("@a@1", true), ("@a@2", false), ("@a@3", true), ("@b@1", true)]
                .into_iter()
                .enumerate()
        {
            for hub in [1, 2] {
                let at = Address::new(hub, id);
                let modified = number as i64 * 10;
                let record = EntityRecord { has_state, modified, ..Default::default() };
                rows.insert(entity_keys::entity(&at), record.encode_to_vec().into());
                rows.insert(entity_keys::entity_state(&at), Bytes::from(id.as_bytes()));
            }
        }
        rows
    }

    fn ids(slice: &EntitySlice) -> Vec<&str> {
        slice.entities.iter().map(|entity| entity.instance_id.as_str()).collect()
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
        let (from, to) = (Some(10), Some(30));
        assert_eq!(all(&EntityList { from, to, ..list.clone() }), "@a@1 @a@3", "inclusive");
        let with = entities(&rows, &EntityList { states: true, ..list.clone() }, None, 1);
        assert_eq!(with.entities[0].serialized_state, Some("@a@".into()));
        assert_eq!(entities(&rows, &list, None, 1).entities[0].serialized_state, None);
    }

    #[test]
    fn slices_follow_each_other() {
        let (rows, list) =
            (rows(), EntityList { hub: 1, prefix: "@a@".into(), ..Default::default() });
        let first = entities(&rows, &list, None, 1);
        assert_eq!((ids(&first), first.reached.as_deref()), (vec!["@a@"], Some("@a@")));
        let second = entities(&rows, &list, Some("@a@"), 2);
        assert_eq!((ids(&second), second.reached.as_deref()), (vec!["@a@1", "@a@3"], Some("@a@3")));
        let last = entities(&rows, &list, Some("@a@3"), 2);
        assert_eq!((ids(&last).len(), last.reached), (0, None));
        let before = entities(&rows, &list, Some("@"), 9);
        assert_eq!(ids(&before).len(), 3, "a token from before the prefix");
    }

    #[test]
    fn the_rows_of_a_hub_are_found_bit_by_bit() {
        let mut rows = rows();
        for _ in 0..4 {
            let found = entity_rows_of_hub(&rows, 1, 3);
            assert!(found.len() <= 3);
            found.iter().for_each(|key| drop(rows.remove(key)));
        }
        assert_eq!(entity_rows_of_hub(&rows, 1, 3), Vec::<Vec<u8>>::new());
        assert_eq!(rows.len(), 10, "the other hub keeps its own");
    }
}
