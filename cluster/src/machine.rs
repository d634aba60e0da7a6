//! The seam to whatever is replicated: a deterministic state machine over ordered rows.
//!
//! This room keeps many copies of a [`Machine`] equal. It gives the machine three things (the rows of
//! one group, a [`Stamp`], one command) and takes three things back (changed rows, a reply, effects).
//! It never looks inside a command, a row or an effect.
//!
//! Rules that a machine must keep, or replicas diverge:
//! - the result depends on rows, stamp and command only: no clock, no randomness, no unordered maps;
//! - bad input is a reply, never a panic: a panic in `apply` would repeat on every replica;
//! - effects are hints: whoever acts on them must be able to compute them again from the rows.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;

/// Number of a Raft group on every node: 0 is the metadata group, 1 to N are the partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group that holds what the whole cluster must agree on.
    pub const METADATA: GroupId = GroupId(0);
}

impl std::fmt::Display for GroupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Time, entropy and place of one command: the only door through which they reach a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Nanoseconds since the Unix epoch on the leader; never smaller than in an earlier command of the group.
    pub now: i64,
    /// Entropy drawn by the leader, different for every command.
    pub seed: u64,
    /// Place of the command in the group: strictly grows from command to command, with gaps.
    pub sequence: u64,
}

/// Ordered rows of one group, read synchronously. A storage fault inside a read stops the process.
pub trait Rows {
    /// The row stored under `key`.
    fn get(&self, key: &[u8]) -> Option<Bytes>;

    /// Visits the rows with `from <= key < to` in ascending order, until `visit` breaks.
    #[allow(clippy::type_complexity)]
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>);
}

/// Changed rows: a value to put, or `None` to delete.
pub type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// What one command did.
#[derive(Debug)]
pub struct Applied<E> {
    /// Rows to write, in one atomic batch with the applied position.
    pub changes: Changes,
    /// Answer for the caller that proposed the command.
    pub reply: Bytes,
    /// What became true; handed to [`Machine::committed`] once the rows can be read.
    pub effects: Vec<E>,
}

/// A deterministic state machine.
pub trait Machine: Send + Sync + 'static {
    /// A hint for the leader's side.
    type Effect: Send + 'static;

    /// Applies one command. Called once per command and replica, in log order.
    fn apply(&self, rows: &dyn Rows, stamp: Stamp, command: &Bytes) -> Applied<Self::Effect>;

    /// Answers a question about the rows, in bytes that only the machine understands: for readers on nodes that do
    /// not hold them. `None` if this version does not know the question. The group applies nothing meanwhile, so it
    /// must be quick, and the answer must be small enough to travel: some MiB.
    fn read(&self, rows: &dyn Rows, query: &Bytes) -> Option<Bytes>;

    /// Tells what became true, after the rows of a batch are readable, in log order, on every replica.
    /// Called on the apply path: it must hand over quickly and never block.
    fn committed(&self, group: GroupId, effects: Vec<Self::Effect>);
}
