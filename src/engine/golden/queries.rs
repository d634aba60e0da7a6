//! Reads as they travel between nodes of two versions, and their answers.

use durahub_proto::wire;

use super::commands::target;
use super::{Entry, record};
use crate::engine::read::query::{
    Entity, Hub, Instance, ListRecord, Locks, OfEntities, OfEntity, OfHead, OfHistory, OfHub,
    OfList, OfListed, OfLocks, OfState, OfTree, Past, State, States, Tree,
};
use crate::engine::read::{
    EntityList, EntityLock, EntitySlice, HistoryPart, Known, List, ListedEntity, LockParty, Order,
    Seen, Slice,
};
use crate::engine::state::message::Link;
use crate::engine::{Address, InstanceRecord, Mark};

fn at() -> Address {
    Address::new(1, "o1")
}

fn mark() -> Mark {
    Mark { time: -5, instance: "o1".into() }
}

fn list() -> ListRecord {
    ListRecord::from(&List {
        hub: 1,
        order: Order::Ended,
        statuses: vec![wire::OrchestrationStatus::Completed, wire::OrchestrationStatus::Failed],
        from: Some(2),
        before: Some(3),
        prefix: "o".into(),
    })
}

fn entity_list() -> EntityList {
    EntityList {
        hub: 1,
        prefix: "@a@".into(),
        from: Some(2),
        to: Some(3),
        transient: true,
        states: true,
    }
}

fn metadata() -> wire::EntityMetadata {
    wire::EntityMetadata { instance_id: "@a@1".into(), ..Default::default() }
}

fn state() -> State {
    let state = wire::OrchestrationState { instance_id: "o1".into(), ..Default::default() };
    State { state: Some(state), too_large: None }
}

fn party() -> LockParty {
    LockParty { instance: "o1".into(), section: "s".into(), since: 4 }
}

fn lock() -> EntityLock {
    EntityLock {
        entity: "@a@1".into(),
        holder: Some(party()),
        waiting: 1,
        first: vec![party()],
        operations: 2,
    }
}

fn known() -> Known {
    let link = Link { generation: 1, number: 2 };
    Known { instance: "o1".into(), parent: Some("p".into()), link }
}

fn seen() -> Seen {
    Seen { target: target(), ended: true, children: vec![known()], more: Some(5) }
}

fn part() -> HistoryPart {
    HistoryPart { events: vec![vec![8, 1].into(), vec![8, 2].into()], next: 7 }
}

fn listed() -> ListedEntity {
    ListedEntity { mark: mark(), entity: metadata() }
}

/// One entry per message.
pub(super) fn table() -> Vec<Entry> {
    let instance = InstanceRecord { name: "N".into(), ..Default::default() };
    vec![
        record(at(), &["0801 12026f31"]),
        record(mark(), &["08fbffffffffffffffff01 12026f31"]),
        record(OfHead { at: at() }, &["0a06080112026f31"]),
        record(Instance { record: Some(instance) }, &["0a0312014e"]),
        record(
            OfState { at: at(), payloads: true, limit: 9 },
            &["0a06080112026f31 1001", "0a06080112026f31 1001 1809"],
        ),
        record(State { too_large: Some(9), ..state() }, &["0a040a026f31", "0a040a026f31 1009"]),
        record(list(), &["0801 1002 1a020103 2002 2803 32016f"]),
        record(
            OfList { list: list(), after: Some(mark()), limit: 9 },
            &["0a0f080110021a0201032002280332016f 120f08fbffffffffffffffff0112026f31 1809"],
        ),
        record(
            Slice { marks: vec![mark()], reached: Some(mark()), rows: 3 },
            &["0a0f08fbffffffffffffffff0112026f31 120f08fbffffffffffffffff0112026f31 1803"],
        ),
        record(
            OfListed { list: list(), marks: vec![mark()], payloads: true },
            &["0a0f080110021a0201032002280332016f 120f08fbffffffffffffffff0112026f31 1801"],
        ),
        record(States { states: vec![state(), State::default()] }, &["0a060a040a026f31 0a00"]),
        record(
            OfHistory { at: at(), generation: 1, from: 2, end: 3, bytes: 300 },
            &["0a06080112026f31 1001 1802 2003 28ac02"],
        ),
        record(part(), &["0a020801 0a020802 1007"]),
        record(Past { part: Some(part()) }, &["0a0a0a0208010a0208021007"]),
        record(OfEntity { at: at(), state: true }, &["0a06080112026f31 1001"]),
        record(Entity { entity: Some(metadata()) }, &["0a060a0440614031"]),
        record(entity_list(), &["0801 1203406140 1802 2003 2801 3001"]),
        record(
            OfEntities { list: entity_list(), after: Some(mark()), limit: 9 },
            &["0a0f080112034061401802200328013001 120f08fbffffffffffffffff0112026f31 1809"],
        ),
        record(listed(), &["0a0f08fbffffffffffffffff0112026f31 12060a0440614031"]),
        record(
            EntitySlice { entities: vec![listed()], reached: Some(mark()), rows: 3 },
            &[
                "0a190a0f08fbffffffffffffffff0112026f3112060a0440614031 120f08fbffffffffffffffff0112026f31 1803",
            ],
        ),
        record(
            OfLocks { hub: 1, prefix: "@a@".into(), after: "@a@1".into(), limit: 9 },
            &["0801 1203406140 1a0440614031 2009"],
        ),
        record(party(), &["0a026f31 120173 1804"]),
        record(lock(), &["0a0440614031 12090a026f311201731804 1801 22090a026f311201731804 2802"]),
        record(
            Locks { locks: vec![lock()] },
            &["0a200a044061403112090a026f311201731804180122090a026f3112017318042802"],
        ),
        record(
            OfTree { hub: 1, known: vec![known()], from: 3, in_parts: true },
            &[
                "0801 120d0a026f311201701a0408011002",
                "0801 120d0a026f311201701a0408011002 1803 2001",
            ],
        ),
        record(known(), &["0a026f31 120170 1a0408011002"]),
        record(
            seen(),
            &[
                "0a0b0a026f3110808080808020 1001 1a0d0a026f311201701a0408011002",
                "0a0b0a026f3110808080808020 1001 1a0d0a026f311201701a0408011002 2005",
            ],
        ),
        record(
            Tree { seen: vec![seen()], looked: Some(1) },
            &[
                "0a1e0a0b0a026f311080808080802010011a0d0a026f311201701a0408011002",
                "0a200a0b0a026f311080808080802010011a0d0a026f311201701a04080110022005 1001",
            ],
        ),
        record(OfHub { hub: 1 }, &["0801"]),
        record(Hub { has_instances: true }, &["0801"]),
    ]
}
