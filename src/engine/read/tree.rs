//! Trees of orchestrations, one instance at a time: what stands at it, and whom it knows below it.

use super::{children, head};
use crate::engine::Address;
use crate::engine::command::Target;
use crate::engine::state::message::Link;
use crate::engine::view::View;

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
}

/// Looks at an instance; `None` if it is gone, or is somebody else's by now.
pub fn see(view: &dyn View, hub: u32, known: &Known) -> Option<Seen> {
    let at = Address::new(hub, known.instance.clone());
    let record = head(view, &at)?;
    if let Some(parent) = &known.parent
        && !record.is_child(parent, known.link)
    {
        return None;
    }
    let children = children(view, &at, record.generation).into_iter().map(|(item, child)| {
        let link = child.link(&item);
        Known { instance: child.instance, parent: Some(at.instance.clone()), link }
    });
    Some(Seen {
        children: children.collect(),
        ended: record.is_terminal(),
        target: Target { instance: at.instance.clone(), generation: record.generation },
    })
}
