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
/// Bytes of children after which an answer about a tree takes in no more.
const TREE_BYTES: usize = 256 << 10;

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
            let query = envelope.query.filter(|_| envelope.version == VERSION)?;
            let answer = match query.is_known().then_some(query)? {
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

impl Any {
    /// Whether all that it says is known here: what is not must not be taken for something else.
    fn is_known(&self) -> bool {
        match self {
            Any::List(OfList { list, .. }) | Any::Listed(OfListed { list, .. }) => {
                list.list().is_some()
            }
            _ => true,
        }
    }
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
    /// One that takes more bytes is not answered. 0 is no limit: who asks so is of an older version.
    #[prost(uint64, tag = "3")]
    pub limit: u64,
}

/// A state, if there is one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct State {
    /// The state.
    #[prost(message, optional, tag = "1")]
    pub state: Option<wire::OrchestrationState>,
    /// There is one, and it takes so many bytes, more than may be answered.
    #[prost(uint64, optional, tag = "2")]
    pub too_large: Option<u64>,
}

impl OfState {
    fn answer(&self, view: &dyn View) -> State {
        let state = super::state(view, &self.at, self.payloads);
        let bytes = state.as_ref().map_or(0, prost::Message::encoded_len) as u64;
        if self.limit > 0 && bytes > self.limit {
            return State { state: None, too_large: Some(bytes) };
        }
        State { state, too_large: None }
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
    /// The list, unless a newer version means one that this one does not know.
    fn list(&self) -> Option<List> {
        let order = match self.order {
            1 => Order::Created,
            2 => Order::Ended,
            3 => Order::Id,
            _ => return None,
        };
        let status = |status: &i32| wire::OrchestrationStatus::try_from(*status).ok();
        let statuses = self.statuses.iter().map(status).collect::<Option<_>>()?;
        let (hub, from, before, prefix) = (self.hub, self.since, self.before, self.prefix.clone());
        Some(List { hub, order, statuses, from, before, prefix })
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
        let list = self.list.list();
        let (after, limit) = (self.after.as_ref(), self.limit as usize);
        list.map(|list| super::list(view, &list, after, limit)).unwrap_or_default()
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
        let Some(list) = self.list.list() else { return States::default() };
        let (mut states, mut bytes) = (Vec::new(), 0);
        for mark in &self.marks {
            if bytes >= STATES_BYTES {
                break;
            }
            let state = super::listed_state(view, &list, mark, self.payloads);
            bytes += state.as_ref().map_or(0, prost::Message::encoded_len);
            states.push(State { state, too_large: None });
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
    /// The first child that is asked for, by its number.
    #[prost(uint64, tag = "3")]
    pub from: u64,
    /// Whoever asks asks again where an answer does not hold everything; older versions do not.
    #[prost(bool, tag = "4")]
    pub in_parts: bool,
}

/// Those that are still there, of as many as fit into an answer.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Tree {
    /// What was seen.
    #[prost(message, repeated, tag = "1")]
    pub seen: Vec<Seen>,
    /// How many of the instances were looked at, if not all.
    #[prost(uint32, optional, tag = "2")]
    pub looked: Option<u32>,
}

impl OfTree {
    fn answer(&self, view: &dyn View) -> Tree {
        let (most, mut tree, mut bytes) = (self.in_parts.then_some(TREE_BYTES), Tree::default(), 0);
        for (looked, known) in self.known.iter().enumerate() {
            if most.is_some_and(|most| bytes >= most) {
                tree.looked = Some(looked as u32);
                break;
            }
            let seen = super::see(view, self.hub, known, self.from, most);
            bytes += seen.as_ref().map_or(0, prost::Message::encoded_len);
            tree.seen.extend(seen);
        }
        tree
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
mod tests;
