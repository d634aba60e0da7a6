//! Trees of orchestrations, one instance at a time: what stands at it, and whom it knows below it.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message as _;

use super::head;
use crate::engine::command::Target;
use crate::engine::state::message::Link;
use crate::engine::state::{ChildRecord, decode, keys};
use crate::engine::view::{View, after_prefix};
use crate::engine::{Address, Item};

/// An instance as the one above it knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Known {
    /// Its id.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// The parent's id; absent for the root.
    #[prost(string, optional, tag = "2")]
    pub parent: Option<String>,
    /// The link in the child's head.
    #[prost(message, required, tag = "3")]
    pub link: Link,
}

impl Known {
    /// The instance of that id, whoever asked for it.
    pub fn root(instance: String) -> Known {
        Known { instance, parent: None, link: Link::default() }
    }
}

/// What a look at an instance found.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Seen {
    /// The instance, in its present generation.
    #[prost(message, required, tag = "1")]
    pub target: Target,
    /// Whether it has ended.
    #[prost(bool, tag = "2")]
    pub ended: bool,
    /// Those that it has asked for in this generation, whatever became of them.
    #[prost(message, repeated, tag = "3")]
    pub children: Vec<Known>,
    /// There are more of them, from this number on.
    #[prost(uint64, optional, tag = "4")]
    pub more: Option<u64>,
}

/// Looks at an instance, and at its children from number `from` on until they take so many bytes, if they are bounded;
/// `None` if it is gone, or is somebody else's by now.
pub fn see(
    view: &dyn View,
    hub: u32,
    known: &Known,
    from: u64,
    bytes: Option<usize>,
) -> Option<Seen> {
    let at = Address::new(hub, known.instance.clone());
    let record = head(view, &at)?;
    if let Some(parent) = &known.parent
        && !record.is_child(parent, known.link)
    {
        return None;
    }
    let generation = record.generation;
    let target = Target { instance: at.instance.clone(), generation };
    let mut seen = Seen { target, ended: record.is_terminal(), children: Vec::new(), more: None };
    let end = after_prefix(&keys::children_of(&at, generation));
    let first = keys::child(&Item { at, generation, number: from });
    let mut size = 0;
    view.scan(&first, &end, &mut |key, value| {
        let Some(item) = keys::parse_child(key) else { return ControlFlow::Continue(()) };
        if bytes.is_some_and(|bytes| size >= bytes) {
            seen.more = Some(item.number);
            return ControlFlow::Break(());
        }
        let child: ChildRecord = decode(Bytes::copy_from_slice(value));
        let link = child.link(&item);
        let child = Known { instance: child.instance, parent: Some(item.at.instance), link };
        size += child.encoded_len();
        seen.children.push(child);
        ControlFlow::Continue(())
    });
    Some(seen)
}
