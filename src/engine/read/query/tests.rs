//! Answers are the same here and elsewhere, and all can travel.

use std::collections::BTreeMap;
use std::fmt::Debug;

use wire::OrchestrationStatus::Completed;

use super::*;
use crate::engine::rig::Partition;
use crate::engine::state::{ChildRecord, keys};
use crate::engine::{Item, read};

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
    let query = OfState { at: at.clone(), payloads: true, limit: 1 << 20 };
    let state = ask(rows, query).state.expect("is there");
    assert_eq!(state.output, Some("out".into()));
    let past = OfHistory { at, generation: head.generation, from: 0, end: 9, bytes: 1 << 20 };
    let part = ask(rows, past).part.expect("is there");
    assert_eq!((part.events.len() as u32, part.next), (head.history_events, head.history_events));

    let ended = List {
        hub: 1,
        order: Order::Ended,
        statuses: vec![Completed],
        from: Some(0),
        before: Some(i64::MAX),
        prefix: String::new(),
    };
    let created = List { order: Order::Created, statuses: Vec::new(), from: None, ..ended.clone() };
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
    let seen = ask(rows, OfTree { hub: 1, known, from: 0, in_parts: true }).seen;
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

/// A state that is larger than its asker can use does not travel.
#[test]
fn a_state_that_is_too_large_is_told_and_not_sent() {
    let mut partition = Partition::default();
    partition.start("a");
    let (rows, at) = (&partition.rows, Address::new(1, "a"));
    let query = OfState { at, payloads: true, limit: 0 };
    let bytes = ask(rows, query.clone()).state.expect("no limit").encoded_len() as u64;
    let fits = ask(rows, OfState { limit: bytes, ..query.clone() });
    assert!(fits.state.is_some() && fits.too_large.is_none());
    let large = ask(rows, OfState { limit: bytes - 1, ..query });
    assert_eq!(large, State { state: None, too_large: Some(bytes) });
}

/// Children come in parts, in the order of their numbers, and only to those who ask for the rest.
#[test]
fn a_tree_comes_in_parts_that_can_travel() {
    let mut partition = Partition::default();
    for id in ["a", "b"] {
        partition.start(id);
    }
    let at = Address::new(1, "a");
    let generation = read::head(&partition.rows, &at).expect("is there").generation;
    let count = 3 * TREE_BYTES as u64 / 1000;
    for number in 0..count {
        let item = Item { at: at.clone(), generation, number };
        let child = ChildRecord { instance: format!("{number:0>1000}"), ..Default::default() };
        partition.rows.insert(keys::child(&item), child.encode_to_vec().into());
    }
    let known = ["a", "b"].map(|id| Known::root(id.to_owned())).to_vec();
    let whole = OfTree { hub: 1, known, from: 0, in_parts: false };
    let all = ask(&partition.rows, whole.clone());
    assert_eq!((all.seen.len(), all.looked), (2, None), "an older version gets everything");

    let mut query = OfTree { in_parts: true, ..whole };
    let mut children = Vec::new();
    loop {
        let tree = ask(&partition.rows, query.clone());
        assert!(tree.encoded_len() < TREE_BYTES + 2000);
        let [seen] = &tree.seen[..] else { panic!("{} instances", tree.seen.len()) };
        children.extend(seen.children.clone());
        let Some(from) = seen.more else { break };
        let not_all = (query.known.len() > 1).then_some(1);
        assert_eq!(tree.looked, not_all, "there is no room for the second");
        query = OfTree { from, known: query.known[..1].to_vec(), ..query };
    }
    assert_eq!(children, all.seen[0].children);
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

    let list = ListRecord { hub: 1, order: 1, ..Default::default() };
    let ask = |list: ListRecord| {
        let listed = OfListed { list: list.clone(), marks: Vec::new(), payloads: false };
        let slice = OfList { list, after: None, limit: 9 };
        [slice.into_bytes(), listed.into_bytes()].map(|query| answer(&rows, &query).is_some())
    };
    assert_eq!(ask(list.clone()), [true, true]);
    assert_eq!(ask(ListRecord { order: 4, ..list.clone() }), [false, false]);
    assert_eq!(ask(ListRecord { statuses: vec![0, 99], ..list }), [false, false]);
}
