//! Linearizability of one value: could these writes and reads have happened one after the other?
//!
//! Each operation takes effect at one moment between its begin and its end. A write whose outcome is unknown
//! may take effect at any moment after its begin, or never. The checker walks through begins and ends in order
//! and keeps every state in which the value may be: the value itself, and which of the open operations have
//! taken effect. An operation is let take effect only when it must have (at its end), or when a read needs it:
//! a write that nobody read might as well have come at another time.

use std::collections::{BTreeMap, BTreeSet};

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// Set the value.
    Write(u64),
    /// Found this value; 0 before the first write.
    Read(u64),
}

/// One operation of a client. Times are those of one clock, each only once.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) begin: u64,
    /// `None`: nobody knows whether and when it took effect. A read without an answer is left out altogether.
    pub(crate) end: Option<u64>,
    pub(crate) did: Did,
    /// Through which server, for the message.
    pub(crate) through: u64,
}

/// The value, and which of the open operations have taken effect.
type State = (u64, BTreeSet<usize>);

/// Says which operation cannot have happened, if there is one.
pub(crate) fn violation(operations: &[Operation]) -> Option<String> {
    let mut moments = BTreeMap::new();
    for (number, operation) in operations.iter().enumerate() {
        let twice = moments.insert(operation.begin, (number, false));
        assert!(twice.is_none(), "two moments are the same");
        if let Some(end) = operation.end {
            assert!(end > operation.begin && moments.insert(end, (number, true)).is_none());
        }
    }
    let mut open = BTreeSet::new();
    let mut states = BTreeSet::from([(0, BTreeSet::new())]);
    for (number, ends) in moments.into_values() {
        if !ends {
            open.insert(number);
            continue;
        }
        let reached = reach(&states, &open, operations);
        open.remove(&number);
        states = reached
            .into_iter()
            .filter(|(_, done)| done.contains(&number))
            .map(|(value, mut done)| {
                done.remove(&number);
                (value, done)
            })
            .collect();
        if states.is_empty() {
            return Some(describe(operations, number));
        }
    }
    None
}

/// Every state that open operations can lead to.
fn reach(
    states: &BTreeSet<State>,
    open: &BTreeSet<usize>,
    operations: &[Operation],
) -> BTreeSet<State> {
    let mut reached = states.clone();
    let mut fresh: Vec<State> = states.iter().cloned().collect();
    while let Some((value, done)) = fresh.pop() {
        for number in open.iter().filter(|number| !done.contains(number)) {
            let value = match operations[*number].did {
                Did::Read(read) if read == value => read,
                Did::Read(_) => continue,
                // One that may never happen is of use only to a read that finds its value.
                Did::Write(written) => {
                    let found = |other: &usize| {
                        !done.contains(other) && operations[*other].did == Did::Read(written)
                    };
                    if operations[*number].end.is_none() && !open.iter().any(found) {
                        continue;
                    }
                    written
                }
            };
            let mut done = done.clone();
            done.insert(*number);
            if reached.insert((value, done.clone())) {
                fresh.push((value, done));
            }
        }
    }
    reached
}

fn describe(operations: &[Operation], number: usize) -> String {
    let last = &operations[number];
    let mut around: Vec<_> = operations
        .iter()
        .filter(|other| other.begin < last.end.unwrap_or(u64::MAX))
        .filter(|other| other.end.is_none_or(|end| end + 60 > last.begin))
        .collect();
    around.sort_by_key(|operation| operation.begin);
    let around = around.iter().rev().take(16).rev().map(|operation| {
        let Operation { begin, end, did, through } = operation;
        match end {
            Some(end) => format!("  [{begin}, {end}] {did:?} through {through}"),
            None => format!("  [{begin}, ?] {did:?} through {through}"),
        }
    });
    let around = around.collect::<Vec<_>>().join("\n");
    format!("{:?} cannot be explained (S1, S2, S12); around it:\n{around}", last.did)
}
