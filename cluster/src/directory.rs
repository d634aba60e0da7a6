//! Who leads what, as last seen by this node.
//!
//! A hint, never a proof: the leader itself decides whether it still leads when it is asked.

use tokio::sync::watch;

use crate::machine::GroupId;

/// Part of this node in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// This node leads, and everything committed before its term is applied here.
    Leader {
        /// The term; no other node leads in it.
        term: u64,
    },
    /// This node does not lead, or not yet.
    Follower {
        /// The leader, if one is known.
        leader: Option<u64>,
    },
}

/// Leaders of all groups, as last seen.
#[derive(Clone, Debug)]
pub struct Directory {
    node: u64,
    groups: Vec<watch::Receiver<Leadership>>,
}

impl Directory {
    pub(crate) fn new(node: u64, groups: Vec<watch::Receiver<Leadership>>) -> Self {
        Self { node, groups }
    }

    /// The node that leads a group, as last seen.
    pub fn leader(&self, group: GroupId) -> Option<u64> {
        match *self.groups.get(group.0 as usize)?.borrow() {
            Leadership::Leader { .. } => Some(self.node),
            Leadership::Follower { leader } => leader.filter(|leader| *leader != self.node),
        }
    }

    /// Every group with its leader, in order of groups.
    pub fn leaders(&self) -> Vec<(GroupId, Option<u64>)> {
        (0..self.groups.len() as u32)
            .map(|group| (GroupId(group), self.leader(GroupId(group))))
            .collect()
    }
}
