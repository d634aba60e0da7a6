//! What a partition remembers: the stored records and their keys.
//!
//! Records are protobuf messages that evolve by adding fields; `format` says which meaning a record has.
//! A payload stands in the history (or, until a turn consumes it, in the inbox) and nowhere else but in
//! the task that carries it to a worker and in the message that carries it to another instance.

mod child;
mod chunk;
mod entity;
pub(crate) mod entity_keys;
mod hub;
mod instance;
pub(crate) mod keys;
mod leftover;
pub(crate) mod listing;
pub mod message;
mod task;
mod timer;

pub use child::ChildRecord;
pub(crate) use chunk::Chunk;
pub use chunk::Events;
pub use entity::{
    EntityRecord, Holder, Line, Lock, LockRequest, Operation, Section, Sender, Spot, Waiting,
    WaitingRecord, entity_id, entity_name,
};
pub use hub::{DeletedHubRecord, HubRecord, RetentionRecord};
pub use instance::{InstanceRecord, Recursion, Suspension, is_terminal};
pub use keys::{Address, Item, is_entity};
pub use leftover::Leftover;
pub use listing::{Index, Mark};
pub use message::{DeliveredRecord, MessageRecord};
pub use task::TaskRecord;
pub use timer::{TimerKind, TimerRecord};

use bytes::Bytes;

/// The meaning of the records written today.
pub(crate) const FORMAT: u32 = 1;

/// Place of an event in an inbox: the command that brought it, and which of its events it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Sequence of the command.
    pub sequence: u64,
    /// Counts the events of one command.
    pub sub: u32,
}

/// Reads a stored record.
///
/// # Panics
/// When the bytes are not such a record: only a broken disk or a broken program yields that, and a
/// replica that goes on would diverge.
pub(crate) fn decode<R: prost::Message + Default>(row: Bytes) -> R {
    R::decode(row).expect("stored record decodes")
}
