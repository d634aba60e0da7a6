//! Trees of orchestrations, one instance at a time: what stands at it, and whom it knows below it.

use super::{children, head};
use crate::engine::Address;
use crate::engine::command::Target;
use crate::engine::state::message::Link;
use crate::engine::view::View;

/// An instance as the one above it knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known {
    /// Its id.
    pub instance: String,
    /// The parent's id, and the link in the child's head; `None` for the root.
    pub parent: Option<(String, (u64, u64))>,
}

impl Known {
    /// The instance of that id, whoever asked for it.
    pub fn root(instance: String) -> Known {
        Known { instance, parent: None }
    }
}

/// What a look at an instance found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The instance, in its present generation.
    pub target: Target,
    /// Whether it has ended.
    pub ended: bool,
    /// Those that it has asked for in this generation, whatever became of them.
    pub children: Vec<Known>,
}

/// Looks at an instance; `None` if it is gone, or is somebody else's by now.
pub fn see(view: &dyn View, hub: u32, known: &Known) -> Option<Seen> {
    let at = Address::new(hub, known.instance.clone());
    let record = head(view, &at)?;
    if let Some((parent, (generation, number))) = &known.parent
        && !record.is_child(parent, Link { generation: *generation, number: *number })
    {
        return None;
    }
    let children = children(view, &at, record.generation).into_iter().map(|(item, child)| {
        let link = child.link(&item);
        let parent = Some((at.instance.clone(), (link.generation, link.number)));
        Known { instance: child.instance, parent }
    });
    Some(Seen {
        children: children.collect(),
        ended: record.is_terminal(),
        target: Target { instance: at.instance.clone(), generation: record.generation },
    })
}
