//! Children of an orchestration: a row from the turn that asked for one until the generation is gone.
//!
//! The row outlives the child's end, since a termination or a purge of the whole tree goes through children
//! that have ended (R2.51, R2.89). Whether the instance that it names is this child still, or somebody
//! else's by now, is for that instance to say: [`InstanceRecord::is_child`](super::InstanceRecord::is_child)
//! compares the links.

use super::{Item, message::Link};

/// A child that a generation asked for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChildRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Id of the child, in the same hub.
    #[prost(string, tag = "2")]
    pub instance: String,
    /// The id that the worker gave the action; repeats within an instance (R4.19).
    #[prost(int32, tag = "3")]
    pub task_id: i32,
    /// Whether its answer came: there is only one (S9).
    #[prost(bool, tag = "4")]
    pub answered: bool,
    /// The link in the child's head, where a rewind has moved the row since.
    #[prost(message, optional, tag = "5")]
    pub moved_from: Option<Link>,
}

impl ChildRecord {
    /// The link that the child's head has, for the row at `item`.
    pub fn link(&self, item: &Item) -> Link {
        self.moved_from.unwrap_or(Link { generation: item.generation, number: item.number })
    }
}
