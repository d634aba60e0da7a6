//! Keys of the index rows: what makes a page of a list cost what it returns, not what is stored.
//!
//! Every orchestration has a row under its status and the time of its creation, and a terminal one has
//! another under its status and the time of its completion. Rows of one status lie in the order of time
//! and id, so a list of several statuses is a merge, and a list goes on behind the last row it gave.
//! Entities are in neither: their index, by name and time of the last change, belongs to kinds of its own.

use durahub_proto::wire::OrchestrationStatus;

use super::keys::{ENDED, Fields, Key, LISTED};
use super::{Address, InstanceRecord};
use crate::engine::view::after_prefix;

/// An index over the orchestrations of a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Index {
    /// All of them, by the time of their creation (section 2.9).
    Created,
    /// The terminal ones, by the time of their completion (section 2.10).
    Ended,
}

/// Where an instance stands in a list; lists go up in this order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, prost::Message)]
pub struct Mark {
    /// What the list is ordered by, in nanoseconds since the Unix epoch; 0 in lists by id.
    #[prost(int64, tag = "1")]
    pub time: i64,
    /// The instance.
    #[prost(string, tag = "2")]
    pub instance: String,
}

impl Index {
    fn kind(self) -> u8 {
        match self {
            Index::Created => LISTED,
            Index::Ended => ENDED,
        }
    }

    fn status(self, hub: u32, status: OrchestrationStatus) -> Key {
        Key::of(self.kind()).u32(hub).u32(status as u32)
    }

    /// The key of a row.
    pub(crate) fn row(self, hub: u32, status: OrchestrationStatus, mark: &Mark) -> Vec<u8> {
        self.status(hub, status).time(mark.time).text(&mark.instance).0
    }

    /// The first key at `time` or later.
    pub(crate) fn from(self, hub: u32, status: OrchestrationStatus, time: i64) -> Vec<u8> {
        self.status(hub, status).time(time).0
    }

    /// The end of the keys before `time`, or of all keys of the status.
    pub(crate) fn end(self, hub: u32, status: OrchestrationStatus, time: Option<i64>) -> Vec<u8> {
        match time {
            Some(time) => self.from(hub, status, time),
            None => after_prefix(&self.status(hub, status).0),
        }
    }

    /// Where the instance of a row stands.
    pub(crate) fn parse(self, key: &[u8]) -> Option<Mark> {
        let mut fields = Fields::of(self.kind(), key)?;
        let (_hub, _status) = (fields.u32()?, fields.u32()?);
        Some(Mark { time: fields.time()?, instance: fields.text()? })
    }
}

/// The index rows that belong to the head of an instance.
pub(crate) fn rows(at: &Address, record: &InstanceRecord) -> Vec<Vec<u8>> {
    if at.is_entity() {
        return Vec::new();
    }
    let status = record.status();
    let mark = |time| Mark { time, instance: at.instance.clone() };
    let created = Index::Created.row(at.hub, status, &mark(record.created));
    let ended = record.completed.filter(|_| record.is_terminal());
    let ended = ended.map(|time| Index::Ended.row(at.hub, status, &mark(time)));
    std::iter::once(created).chain(ended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_back_and_lie_in_the_order_of_time_and_id() {
        let marks = [(-5, "z"), (0, ""), (7, "a"), (7, "a\0"), (7, "ab"), (8, "a")];
        let marks = marks.map(|(time, id)| Mark { time, instance: id.to_owned() });
        assert!(marks.is_sorted());
        for index in [Index::Created, Index::Ended] {
            let row = |mark| index.row(3, OrchestrationStatus::Failed, mark);
            assert!(marks.is_sorted_by(|a, b| row(a) < row(b)));
            for mark in &marks {
                assert_eq!(index.parse(&row(mark)).as_ref(), Some(mark));
                let (from, end) = (
                    index.from(3, OrchestrationStatus::Failed, mark.time),
                    index.end(3, OrchestrationStatus::Failed, Some(mark.time)),
                );
                assert!(from <= row(mark) && end <= row(mark));
                assert!(row(mark) < index.end(3, OrchestrationStatus::Failed, None));
            }
        }
    }

    /// The bytes themselves: a change here would lose what users have stored.
    #[test]
    fn the_form_of_a_row_never_changes() {
        let mark = Mark { time: 1, instance: "x".to_owned() };
        let row = Index::Ended.row(258, OrchestrationStatus::Failed, &mark);
        assert_eq!(row, [0x19, 0, 0, 1, 2, 0, 0, 0, 3, 0x80, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0]);
    }
}
