//! Replicates any deterministic state machine over many Raft groups.

pub mod machine;

pub use machine::{Applied, Changes, GroupId, Machine, Rows, Stamp};
