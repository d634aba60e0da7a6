//! Consensus: the only room that names openraft.
//!
//! - [`types`]: what openraft is instantiated with;
//! - [`runtime`]: tokio as openraft sees it, with ticks of all groups at the same moments;
//! - [`codec`]: the stored form of openraft's own bookkeeping (bincode, with a version byte);
//! - [`log`]: openraft's log storage over a [`GroupLog`](crate::store::log::GroupLog);
//! - [`state`]: openraft's state machine over [`StateRows`](crate::store::rows::StateRows) and a machine;
//! - [`origins`]: which commands were applied already, by where they came from;
//! - [`chain`]: a hash over all changes, to compare replicas by;
//! - [`snapshots`]: compaction points, snapshot files and their install;
//! - [`network`]: openraft's network over a [`Transport`](crate::peers::Transport);
//! - [`commits`]: a commit travels with the entries that come next;
//! - [`members`]: changes of who holds a group, one safe step at a time;
//! - [`group`]: one running Raft group, in this crate's own words. Everything outside uses only this.
//!
//! openraft is pinned to one alpha version on purpose; DESIGN.md lists the pitfalls that shaped the code.

pub(crate) mod chain;
pub(crate) mod codec;
mod commits;
pub(crate) mod group;
pub(crate) mod log;
pub(crate) mod members;
pub(crate) mod network;
pub(crate) mod origins;
pub(crate) mod runtime;
pub(crate) mod snapshots;
pub(crate) mod state;
#[cfg(test)]
mod suite;
pub(crate) mod types;
