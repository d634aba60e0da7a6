//! Lists of orchestrations in a fixed order, slice by slice (sections 2.9 and 2.10).
//!
//! A slice reads about as many index rows as it returns, so one can be read between two commands of a busy
//! partition. Where an instance stands in a list never changes while it is listed: what a caller has passed
//! does not come again, and what was there all the time is not missed.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use durahub_proto::wire::{self, OrchestrationStatus};

use super::instance::{head, state_of};
use crate::engine::state::{Address, Index, InstanceRecord, Mark, decode, is_terminal, keys};
use crate::engine::view::{View, after_prefix};

/// How many rows of one status are read at a time.
const RUN: usize = 8;

/// What the order of a list is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By time of creation, then id.
    Created,
    /// Terminal instances by time of completion, then id.
    Ended,
    /// By id alone: for a prefix of ids.
    Id,
}

/// What is listed; all conditions hold together (R2.73, R2.81).
#[derive(Clone, Debug)]
pub struct List {
    /// Number of the hub.
    pub hub: u32,
    /// The order, and which time `from` and `before` mean: that of completion in [`Order::Ended`], else that
    /// of creation.
    pub order: Order,
    /// Any of these; empty means all that the order holds.
    pub statuses: Vec<OrchestrationStatus>,
    /// Not earlier than this, in nanoseconds since the Unix epoch.
    pub from: Option<i64>,
    /// Earlier than this.
    pub before: Option<i64>,
    /// What ids begin with; only in [`Order::Id`].
    pub prefix: String,
}

/// A part of a list.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Slice {
    /// Where the instances stand, in order.
    #[prost(message, repeated, tag = "1")]
    pub marks: Vec<Mark>,
    /// Everything up to here was looked at; `None` once nothing is left.
    #[prost(message, optional, tag = "2")]
    pub reached: Option<Mark>,
    /// How many rows were read.
    #[prost(uint64, tag = "3")]
    pub rows: u64,
}

impl List {
    /// The statuses that are looked for, each once.
    fn statuses(&self) -> Vec<OrchestrationStatus> {
        use OrchestrationStatus::{Completed, Failed, Pending, Running, Suspended, Terminated};
        let all = [Pending, Running, Suspended, Completed, Failed, Terminated];
        let wanted = |status: &OrchestrationStatus| {
            let listed = self.statuses.is_empty() || self.statuses.contains(status);
            listed && (self.order != Order::Ended || is_terminal(*status))
        };
        all.into_iter().filter(wanted).collect()
    }

    /// Whether an instance belongs to the list now.
    pub fn matches(&self, at: &Address, record: &InstanceRecord) -> bool {
        let time = match self.order {
            Order::Ended => record.completed,
            Order::Created | Order::Id => Some(record.created),
        };
        let in_time = time.is_some_and(|time| {
            self.from.is_none_or(|from| time >= from)
                && self.before.is_none_or(|before| time < before)
        });
        in_time
            && !at.is_entity()
            && at.instance.starts_with(&self.prefix)
            && self.statuses().contains(&record.status())
    }

    /// Where an instance stands in this list.
    fn mark(&self, at: &Address, record: &InstanceRecord) -> Mark {
        let time = match self.order {
            Order::Created => record.created,
            Order::Ended => record.completed.unwrap_or_default(),
            Order::Id => 0,
        };
        Mark { time, instance: at.instance.clone() }
    }
}

/// The next part of a list behind `after`: at most `limit` instances.
pub fn list(view: &dyn View, list: &List, after: Option<&Mark>, limit: usize) -> Slice {
    match list.order {
        Order::Created => by_time(view, list, Index::Created, after, limit),
        Order::Ended => by_time(view, list, Index::Ended, after, limit),
        Order::Id => by_id(view, list, after, limit),
    }
}

/// The state of an instance that a slice has shown, if it still stands there.
pub fn listed_state(
    view: &dyn View,
    list: &List,
    mark: &Mark,
    payloads: bool,
) -> Option<wire::OrchestrationState> {
    let at = Address::new(list.hub, mark.instance.clone());
    let record = head(view, &at)?;
    let stands = list.matches(&at, &record) && list.mark(&at, &record) == *mark;
    stands.then(|| state_of(view, &at, record, payloads))
}

/// Rows of one status, in order, read a few at a time.
struct Run {
    ahead: VecDeque<Mark>,
    from: Vec<u8>,
    end: Vec<u8>,
    exhausted: bool,
}

impl Run {
    /// The next instance of this status.
    fn peek(&mut self, view: &dyn View, index: Index, rows: &mut u64) -> Option<&Mark> {
        if self.ahead.is_empty() && !self.exhausted {
            let mut last = None;
            view.scan(&self.from, &self.end, &mut |key, _| {
                *rows += 1;
                self.ahead.extend(index.parse(key));
                last = Some(after_prefix(key));
                if self.ahead.len() < RUN {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
            self.exhausted = self.ahead.len() < RUN;
            self.from = last.unwrap_or_default();
        }
        self.ahead.front()
    }
}

fn by_time(
    view: &dyn View,
    list: &List,
    index: Index,
    after: Option<&Mark>,
    limit: usize,
) -> Slice {
    let from = list.from.unwrap_or(i64::MIN);
    let run = |status| Run {
        ahead: VecDeque::new(),
        from: match after.filter(|after| after.time >= from) {
            Some(after) => after_prefix(&index.row(list.hub, status, after)),
            None => index.from(list.hub, status, from),
        },
        end: index.end(list.hub, status, list.before),
        exhausted: false,
    };
    let mut runs: Vec<Run> = list.statuses().into_iter().map(run).collect();
    let mut slice = Slice::default();
    while slice.marks.len() < limit {
        let mut first: Option<(usize, Mark)> = None;
        for (at, run) in runs.iter_mut().enumerate() {
            if let Some(mark) = run.peek(view, index, &mut slice.rows)
                && first.as_ref().is_none_or(|(_, first)| mark < first)
            {
                first = Some((at, mark.clone()));
            }
        }
        let Some((at, mark)) = first else { return slice };
        runs[at].ahead.pop_front();
        slice.marks.push(mark);
    }
    slice.reached = slice.marks.last().cloned();
    slice
}

/// Instances by id. The heads themselves are the index, so those that do not match cost as well: no more
/// than four for each that is wanted, then the slice ends early.
fn by_id(view: &dyn View, list: &List, after: Option<&Mark>, limit: usize) -> Slice {
    let start = keys::instances_from(list.hub, &list.prefix);
    let end = after_prefix(&start);
    let from = match after {
        Some(after) => {
            let at = Address::new(list.hub, after.instance.clone());
            after_prefix(&keys::instance(&at)).max(start)
        }
        None => start,
    };
    let mut slice = Slice::default();
    view.scan(&from, &end, &mut |key, value| {
        slice.rows += 1;
        let Some(at) = keys::parse_instance(key) else { return ControlFlow::Continue(()) };
        let record: InstanceRecord = decode(bytes::Bytes::copy_from_slice(value));
        let mark = list.mark(&at, &record);
        if list.matches(&at, &record) {
            slice.marks.push(mark.clone());
        }
        if slice.marks.len() < limit && slice.rows < limit as u64 * 4 {
            return ControlFlow::Continue(());
        }
        slice.reached = Some(mark);
        ControlFlow::Break(())
    });
    slice
}

#[cfg(test)]
mod tests;
