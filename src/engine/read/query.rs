//! Reads that can travel: where a node does not hold the rows, the question goes to one that does.
//!
//! Each [`Query`] is a message, and so is its answer; `run` is the one way to answer it, whether the rows are here or
//! elsewhere. Where they are here nothing is encoded. Nodes of two versions ask each other, so fields and variants are
//! only added, as with commands. An answer is a few MiB at most: what has no bound of its own gets one here, and says
//! how far it came.

use bytes::Bytes;
use durahub_proto::wire;
use prost::Message as _;

use super::{EntityList, EntityLock, EntitySlice, HistoryPart, Known, List, Order, Seen, Slice};
use crate::engine::state::{Address, InstanceRecord, Mark};
use crate::engine::view::View;

/// The form of queries written today.
const VERSION: u32 = 1;

/// Bytes of states after which an answer takes in no more.
const STATES_BYTES: usize = 4 << 20;

/// A question about the rows of one partition.
pub trait Query: Clone + Send + Sync + 'static {
    /// What is answered.
    type Answer: prost::Message + Default + 'static;

    /// Answers from the rows.
    fn run(&self, view: &dyn View) -> Self::Answer;

    /// The question as it travels.
    fn into_bytes(self) -> Bytes;
}

/// A query on its way.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(oneof = "Any", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    query: Option<Any>,
}

/// All queries, and how each is answered by one that came from elsewhere.
macro_rules! queries {
    ($($variant:ident($name:ident) => $answer:ty, $tag:tt;)*) => {
        #[derive(Clone, PartialEq, prost::Oneof)]
        enum Any {
            $(#[prost(message, tag = $tag)] $variant($name),)*
        }

        $(impl Query for $name {
            type Answer = $answer;

            fn run(&self, view: &dyn View) -> $answer {
                self.answer(view)
            }

            fn into_bytes(self) -> Bytes {
                let query = Some(Any::$variant(self));
                Envelope { version: VERSION, query }.encode_to_vec().into()
            }
        })*

        /// Answers a query that came from another node; `None` if this version does not know it.
        pub fn answer(view: &dyn View, query: &Bytes) -> Option<Bytes> {
            let envelope = Envelope::decode(query.clone()).ok()?;
            let answer = match envelope.query.filter(|_| envelope.version == VERSION)? {
                $(Any::$variant(query) => query.run(view).encode_to_vec(),)*
            };
            Some(answer.into())
        }
    };
}

queries! {
    Head(OfHead) => Instance, "2";
    State(OfState) => State, "3";
    List(OfList) => Slice, "4";
    Listed(OfListed) => States, "5";
    History(OfHistory) => Past, "6";
    Entity(OfEntity) => Entity, "7";
    Entities(OfEntities) => EntitySlice, "8";
    Locks(OfLocks) => Locks, "9";
    Tree(OfTree) => Tree, "10";
    Hub(OfHub) => Hub, "11";
}

/// The head of an instance.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfHead {
    /// The instance.
    #[prost(message, required, tag = "1")]
    pub at: Address,
}

/// A head, if there is one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Instance {
    /// The head.
    #[prost(message, optional, tag = "1")]
    pub record: Option<InstanceRecord>,
}

impl OfHead {
    fn answer(&self, view: &dyn View) -> Instance {
        Instance { record: super::head(view, &self.at) }
    }
}

/// The state of an instance.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfState {
    /// The instance.
    #[prost(message, required, tag = "1")]
    pub at: Address,
    /// With input, output, custom status and failure details.
    #[prost(bool, tag = "2")]
    pub payloads: bool,
}

/// A state, if there is one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// The state.
    #[prost(message, optional, tag = "1")]
    pub state: Option<wire::OrchestrationState>,
}

impl OfState {
    fn answer(&self, view: &dyn View) -> State {
        State { state: super::state(view, &self.at, self.payloads) }
    }
}

/// A [`List`] as it travels.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ListRecord {
    #[prost(uint32, tag = "1")]
    hub: u32,
    /// 1 by creation, 2 by completion, 3 by id.
    #[prost(uint32, tag = "2")]
    order: u32,
    #[prost(enumeration = "wire::OrchestrationStatus", repeated, tag = "3")]
    statuses: Vec<i32>,
    #[prost(int64, optional, tag = "4")]
    since: Option<i64>,
    #[prost(int64, optional, tag = "5")]
    before: Option<i64>,
    #[prost(string, tag = "6")]
    prefix: String,
}

impl From<&List> for ListRecord {
    fn from(list: &List) -> ListRecord {
        ListRecord {
            hub: list.hub,
            order: match list.order {
                Order::Created => 1,
                Order::Ended => 2,
                Order::Id => 3,
            },
            statuses: list.statuses.iter().map(|status| *status as i32).collect(),
            since: list.from,
            before: list.before,
            prefix: list.prefix.clone(),
        }
    }
}

impl ListRecord {
    fn list(&self) -> List {
        List {
            hub: self.hub,
            order: match self.order {
                2 => Order::Ended,
                3 => Order::Id,
                _ => Order::Created,
            },
            statuses: self.statuses().collect(),
            from: self.since,
            before: self.before,
            prefix: self.prefix.clone(),
        }
    }
}

/// The next part of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfList {
    /// The list.
    #[prost(message, required, tag = "1")]
    pub list: ListRecord,
    /// Behind this.
    #[prost(message, optional, tag = "2")]
    pub after: Option<Mark>,
    /// At most so many instances.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

impl OfList {
    fn answer(&self, view: &dyn View) -> Slice {
        super::list(view, &self.list.list(), self.after.as_ref(), self.limit as usize)
    }
}

/// The states of instances that a list has shown, as far as they still stand there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfListed {
    /// The list.
    #[prost(message, required, tag = "1")]
    pub list: ListRecord,
    /// Where they stand.
    #[prost(message, repeated, tag = "2")]
    pub marks: Vec<Mark>,
    /// With input, output, custom status and failure details.
    #[prost(bool, tag = "3")]
    pub payloads: bool,
}

/// States in the order in which they were asked for: one at least, and then as many as fit into an answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct States {
    /// The states; an instance that has changed has none.
    #[prost(message, repeated, tag = "1")]
    pub states: Vec<State>,
}

impl OfListed {
    fn answer(&self, view: &dyn View) -> States {
        let (list, mut states, mut bytes) = (self.list.list(), Vec::new(), 0);
        for mark in &self.marks {
            if bytes >= STATES_BYTES {
                break;
            }
            let state = super::listed_state(view, &list, mark, self.payloads);
            bytes += state.as_ref().map_or(0, prost::Message::encoded_len);
            states.push(State { state });
        }
        States { states }
    }
}

/// A part of a history: see [`history_part`](super::history_part).
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfHistory {
    /// The instance.
    #[prost(message, required, tag = "1")]
    pub at: Address,
    /// Its generation.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// From this event on.
    #[prost(uint32, tag = "3")]
    pub from: u32,
    /// Up to before this one.
    #[prost(uint32, tag = "4")]
    pub end: u32,
    /// Until there are so many bytes.
    #[prost(uint32, tag = "5")]
    pub bytes: u32,
}

/// A part of a history, unless it is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Past {
    /// The part.
    #[prost(message, optional, tag = "1")]
    pub part: Option<HistoryPart>,
}

impl OfHistory {
    fn answer(&self, view: &dyn View) -> Past {
        let (at, range) = (&self.at, self.from..self.end);
        Past { part: super::history_part(view, at, self.generation, range, self.bytes as usize) }
    }
}

/// An entity that has a state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfEntity {
    /// The entity.
    #[prost(message, required, tag = "1")]
    pub at: Address,
    /// With its state.
    #[prost(bool, tag = "2")]
    pub state: bool,
}

/// An entity, if it exists.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Entity {
    /// The entity.
    #[prost(message, optional, tag = "1")]
    pub entity: Option<wire::EntityMetadata>,
}

impl OfEntity {
    fn answer(&self, view: &dyn View) -> Entity {
        let record = super::entity(view, &self.at).filter(|record| record.has_state);
        let entity = record.map(|record| super::metadata(view, &self.at, &record, self.state));
        Entity { entity }
    }
}

/// The next part of a list of entities.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfEntities {
    /// The list.
    #[prost(message, required, tag = "1")]
    pub list: EntityList,
    /// Behind this.
    #[prost(message, optional, tag = "2")]
    pub after: Option<Mark>,
    /// At most so many entities.
    #[prost(uint32, tag = "3")]
    pub limit: u32,
}

impl OfEntities {
    fn answer(&self, view: &dyn View) -> EntitySlice {
        super::entities(view, &self.list, self.after.as_ref(), self.limit as usize)
    }
}

/// Entities that are locked or waited for: see [`entity_locks`](super::entity_locks).
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfLocks {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// What ids begin with.
    #[prost(string, tag = "2")]
    pub prefix: String,
    /// Behind this id.
    #[prost(string, tag = "3")]
    pub after: String,
    /// At most so many.
    #[prost(uint32, tag = "4")]
    pub limit: u32,
}

/// Locked entities, in the order of ids.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Locks {
    /// The entities.
    #[prost(message, repeated, tag = "1")]
    pub locks: Vec<EntityLock>,
}

impl OfLocks {
    fn answer(&self, view: &dyn View) -> Locks {
        let (prefix, after) = (&self.prefix, &self.after);
        Locks { locks: super::entity_locks(view, self.hub, prefix, after, self.limit as usize) }
    }
}

/// What stands at some instances, and whom they know below them: see [`see`](super::see).
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfTree {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instances.
    #[prost(message, repeated, tag = "2")]
    pub known: Vec<Known>,
}

/// Those that are still there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Tree {
    /// What was seen.
    #[prost(message, repeated, tag = "1")]
    pub seen: Vec<Seen>,
}

impl OfTree {
    fn answer(&self, view: &dyn View) -> Tree {
        let seen = self.known.iter().filter_map(|known| super::see(view, self.hub, known));
        Tree { seen: seen.collect() }
    }
}

/// Whether a hub has anything in the partition.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OfHub {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
}

/// What a partition has of a hub.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hub {
    /// There are instances.
    #[prost(bool, tag = "1")]
    pub has_instances: bool,
}

impl OfHub {
    fn answer(&self, view: &dyn View) -> Hub {
        Hub { has_instances: super::has_instances(view, self.hub) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fmt::Debug;

    use wire::OrchestrationStatus::Completed;

    use super::*;
    use crate::engine::rig::Partition;

    /// Asks both ways, and returns what both say.
    fn ask<Q: Query<Answer: PartialEq + Debug>>(
        rows: &BTreeMap<Vec<u8>, Bytes>,
        query: Q,
    ) -> Q::Answer {
        let here = query.run(rows);
        let there = answer(rows, &query.into_bytes()).expect("a known query");
        assert_eq!(Q::Answer::decode(there).expect("an answer"), here);
        here
    }

    #[test]
    fn answers_are_the_same_wherever_the_rows_are() {
        let mut partition = Partition::default();
        for number in 0..9 {
            partition.start(&format!("i{number}"));
        }
        partition.end("i3", Completed);
        let (rows, at) = (&partition.rows, Address::new(1, "i3"));
        let head = ask(rows, OfHead { at: at.clone() }).record.expect("is there");
        assert_eq!(head.status(), Completed);
        assert_eq!(ask(rows, OfHead { at: Address::new(2, "i3") }).record, None);
        let state = ask(rows, OfState { at: at.clone(), payloads: true }).state.expect("is there");
        assert_eq!(state.output, Some("out".into()));
        let past = OfHistory { at, generation: head.generation, from: 0, end: 9, bytes: 1 << 20 };
        let part = ask(rows, past).part.expect("is there");
        assert_eq!(
            (part.events.len() as u32, part.next),
            (head.history_events, head.history_events)
        );

        let ended = List {
            hub: 1,
            order: Order::Ended,
            statuses: vec![Completed],
            from: Some(0),
            before: Some(i64::MAX),
            prefix: String::new(),
        };
        let created =
            List { order: Order::Created, statuses: Vec::new(), from: None, ..ended.clone() };
        let by_id = List { order: Order::Id, prefix: "i".into(), before: None, ..created.clone() };
        for (list, count) in [(ended, 1), (created, 9), (by_id, 9)] {
            let list = ListRecord::from(&list);
            let slice = ask(rows, OfList { list: list.clone(), after: None, limit: 20 });
            assert_eq!((slice.marks.len(), slice.reached), (count, None), "{list:?}");
            let listed = OfListed { list: list.clone(), marks: slice.marks, payloads: true };
            assert_eq!(ask(rows, listed).states.len(), count);
            let first = ask(rows, OfList { list: list.clone(), after: None, limit: 4 });
            let rest = ask(rows, OfList { list, after: first.reached, limit: 20 });
            assert!(count == 1 || first.marks.len() + rest.marks.len() == count);
        }
        let known = ["i3", "i4", "nobody"].map(|id| Known::root(id.to_owned())).to_vec();
        let seen = ask(rows, OfTree { hub: 1, known }).seen;
        assert_eq!(seen.iter().map(|seen| seen.ended).collect::<Vec<_>>(), [true, false]);
        assert!(ask(rows, OfHub { hub: 1 }).has_instances);
        assert!(!ask(rows, OfHub { hub: 2 }).has_instances);
        assert_eq!(ask(rows, OfEntity { at: Address::new(1, "@a@1"), state: true }).entity, None);
        let list = EntityList { hub: 1, ..Default::default() };
        assert_eq!(ask(rows, OfEntities { list, after: None, limit: 9 }), EntitySlice::default());
        assert!(ask(rows, OfLocks { hub: 1, limit: 9, ..Default::default() }).locks.is_empty());
    }

    /// However much is asked for, an answer can travel.
    #[test]
    fn states_come_as_many_as_fit_and_one_at_least() {
        let mut partition = Partition::default();
        let long = "x".repeat(STATES_BYTES / 3);
        for id in ["a", "b", "c", "d", "e"] {
            let request = wire::CreateInstanceRequest {
                instance_id: id.to_owned(),
                name: "A".to_owned(),
                input: Some(long.as_str().into()),
                ..Default::default()
            };
            let start = crate::engine::command::Start { hub: 1, request };
            partition.apply(crate::engine::Command::Start(start)).0.expect("started");
        }
        let list = List {
            hub: 1,
            order: Order::Created,
            statuses: Vec::new(),
            from: None,
            before: None,
            prefix: String::new(),
        };
        let list = ListRecord::from(&list);
        let marks = OfList { list: list.clone(), after: None, limit: 9 }.run(&partition.rows).marks;
        assert_eq!(marks.len(), 5);
        let all = OfListed { list, marks: marks.clone(), payloads: true };
        assert_eq!(all.run(&partition.rows).states.len(), 3);
        let without = OfListed { payloads: false, ..all.clone() };
        assert_eq!(without.run(&partition.rows).states.len(), 5);
        let rest = OfListed { marks: marks[3..].to_vec(), ..all };
        assert_eq!(rest.run(&partition.rows).states.len(), 2);
    }

    #[test]
    fn what_a_newer_version_asks_is_not_answered() {
        let rows = BTreeMap::new();
        let newer = Envelope { version: VERSION + 1, query: Some(Any::Hub(OfHub { hub: 1 })) };
        assert_eq!(answer(&rows, &newer.encode_to_vec().into()), None);
        assert_eq!(
            answer(&rows, &Envelope { version: VERSION, query: None }.encode_to_vec().into()),
            None
        );
        assert_eq!(answer(&rows, &Bytes::from_static(&[0xff; 5])), None);
    }
}
