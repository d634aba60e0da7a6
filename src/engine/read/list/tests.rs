//! Lists over rows that the engine itself wrote: order, filters, cost, and paging while things change.

use super::*;
use crate::engine::rig::Partition;

impl Partition {
    /// All pages of a list, as ids, `limit` at a time.
    fn pages(&self, list: &List, limit: usize) -> Vec<Vec<String>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let slice = super::list(self, list, after.as_ref(), limit);
            assert!(slice.marks.is_sorted());
            pages.push(slice.marks.into_iter().map(|mark| mark.instance).collect());
            after = slice.reached;
            if after.is_none() {
                return pages;
            }
        }
    }

    fn all(&self, list: &List) -> String {
        self.pages(list, 2).concat().join(" ")
    }
}

fn everything(order: Order) -> List {
    List { hub: 1, order, statuses: Vec::new(), from: None, before: None, prefix: String::new() }
}

/// Created b a c d e at 1 to 5; c, a, b ended at 6 to 8.
fn some() -> Partition {
    let mut partition = Partition::default();
    ["b", "a", "c", "d", "@e@1"].iter().for_each(|id| partition.start(id));
    partition.end("c", OrchestrationStatus::Completed);
    partition.end("a", OrchestrationStatus::Failed);
    partition.end("b", OrchestrationStatus::Completed);
    partition
}

#[test]
fn lists_are_in_order_and_all_conditions_hold_together() {
    use OrchestrationStatus::{Canceled, Completed, Failed, Pending};
    let partition = some();
    let created = everything(Order::Created);
    assert_eq!(partition.all(&created), "b a c d", "no entity (R2.79)");
    assert_eq!(partition.all(&List { from: Some(2), ..created.clone() }), "a c d", "inclusive");
    assert_eq!(partition.all(&List { before: Some(3), ..created.clone() }), "b a", "exclusive");
    let list = List { statuses: vec![Completed, Failed, Completed], ..created.clone() };
    assert_eq!(partition.all(&list), "b a c");
    let list =
        List { from: Some(2), before: Some(4), statuses: vec![Completed], ..created.clone() };
    assert_eq!(partition.all(&list), "c");
    let list = List { statuses: vec![Canceled], ..created.clone() };
    assert_eq!(partition.all(&list), "", "a status that no instance can have");
    assert_eq!(partition.all(&List { hub: 2, ..created }), "");

    let ended = everything(Order::Ended);
    assert_eq!(partition.all(&ended), "c a b");
    assert_eq!(partition.all(&List { statuses: vec![Pending], ..ended.clone() }), "");
    assert_eq!(partition.all(&List { statuses: vec![Completed], ..ended.clone() }), "c b");
    assert_eq!(partition.all(&List { from: Some(7), before: Some(8), ..ended }), "a");

    let id = everything(Order::Id);
    assert_eq!(partition.all(&id), "a b c d");
    assert_eq!(partition.all(&List { prefix: "c".into(), ..id.clone() }), "c");
    assert_eq!(partition.all(&List { prefix: "@".into(), ..id.clone() }), "");
    let list = List { statuses: vec![Completed], from: Some(2), ..id };
    assert_eq!(partition.all(&list), "c");
}

#[test]
fn a_mark_shows_a_state_only_while_it_stands_there() {
    let mut partition = some();
    let list = List { statuses: vec![OrchestrationStatus::Pending], ..everything(Order::Created) };
    let mark = super::list(&partition, &list, None, 9).marks.remove(0);
    let state = listed_state(&partition, &list, &mark, true).expect("stands there");
    assert_eq!((state.instance_id.as_str(), state.input), ("d", Some("in".into())));
    assert!(listed_state(&partition, &list, &mark, false).expect("stands").input.is_none());
    partition.end("d", OrchestrationStatus::Completed);
    assert_eq!(listed_state(&partition, &list, &mark, true), None, "another status");
    let list = everything(Order::Created);
    assert!(listed_state(&partition, &list, &mark, true).is_some());
    partition.start("d");
    assert_eq!(listed_state(&partition, &list, &mark, true), None, "begun anew, further on");
}

/// R2.78: what stands there all the time is listed exactly once, whatever happens around it.
#[test]
fn paging_is_stable_while_instances_come_change_and_begin_anew() {
    let mut partition = Partition::default();
    let id = |n: i32| format!("i{n:03}");
    (0..100).for_each(|n| partition.start(&id(n)));
    let list = everything(Order::Created);
    let (mut seen, mut after, mut step) = (Vec::new(), None, 0);
    loop {
        let slice = super::list(&partition, &list, after.as_ref(), 7);
        seen.extend(slice.marks.into_iter().map(|mark| mark.instance));
        after = slice.reached;
        if after.is_none() {
            break;
        }
        // Behind and before the reader: status changes, new instances, and one that begins anew.
        if step < 12 {
            partition.end(&id(step * 3), OrchestrationStatus::Completed);
            partition.end(&id(99 - step * 3), OrchestrationStatus::Failed);
            partition.start(&format!("new{step}"));
            partition.start(&id(99 - step * 3));
            step += 1;
        }
    }
    for n in 0..100 {
        let times = seen.iter().filter(|seen| **seen == id(n)).count();
        let anew = (0..step).any(|step| 99 - step * 3 == n);
        assert!(times == 1 || (anew && times == 2), "{} was listed {times} times", id(n));
    }
}

/// The rows that a page reads follow from its size and not from what is stored.
#[test]
fn a_page_costs_what_it_returns() {
    use OrchestrationStatus::{Completed, Failed};
    let mut partition = Partition::default();
    let id = |n: usize| format!("i{n:05}");
    for n in 0..10_000 {
        partition.start(&id(n));
        if n % 5 != 0 {
            partition.end(&id(n), if n % 100 == 1 { Failed } else { Completed });
        }
    }
    let lists = [
        everything(Order::Created),
        List { statuses: vec![Failed], ..everything(Order::Created) },
        List { from: Some(9_000), ..everything(Order::Created) },
        everything(Order::Ended),
        List { statuses: vec![Failed], ..everything(Order::Ended) },
        List { prefix: "i05".into(), ..everything(Order::Id) },
    ];
    for list in lists {
        let mut after = None;
        for _page in 0..3 {
            partition.read.set(0);
            let slice = super::list(&partition, &list, after.as_ref(), 25);
            assert_eq!(slice.marks.len(), 25, "{list:?}");
            assert_eq!(slice.rows as usize, partition.read.get(), "the slice says what it read");
            // At most one run of each of the six statuses is read ahead.
            assert!(slice.rows as usize <= 25 + 6 * RUN, "{list:?} read {} rows", slice.rows);
            for mark in &slice.marks {
                assert!(listed_state(&partition, &list, mark, true).is_some());
            }
            // A head, the first and the last history row each.
            let rows = partition.read.get();
            assert!(rows <= 25 * 4 + 6 * RUN, "{list:?} read {rows} rows with states");
            after = slice.reached;
        }
    }
    // A prefix with a condition that little fulfils: the slice ends early and says how far it came.
    let list = List { prefix: "i".into(), statuses: vec![Failed], ..everything(Order::Id) };
    let slice = super::list(&partition, &list, None, 25);
    assert!(slice.rows <= 100 && slice.marks.len() < 25 && slice.reached.is_some());
    assert_eq!(partition.pages(&list, 25).concat().len(), 100);
}
