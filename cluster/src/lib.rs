//! Replicates any deterministic state machine over many Raft groups.
//!
//! A [`Node`] hosts one metadata group and N partitions of one [`Machine`]. Commands are proposed to a
//! [`Partition`], gathered into log entries, flushed by a quorum and applied in the same order on every
//! replica; rows are read back by the machine and by readers. A node that is alone is a cluster of one, on
//! the same path.
//!
//! Read in this order:
//! - [`machine`]: the seam to whatever is replicated;
//! - [`partition`]: propose and read in one group; [`admission`]: what is refused while a node is short of room;
//! - `replica.rs`, `holding/`: one copy of a group on a node, and how it comes and goes;
//! - [`node`]: all groups of a process; start and stop; [`config`]: with which settings;
//! - [`placement`], [`directory`], [`membership`]: which group holds a key, who leads it, who votes;
//! - [`folder`]: whose data folder this is;
//! - [`admin`]: what an operator asks of a cluster;
//! - [`peers`]: what nodes say to each other; `transport/`: how it travels between processes;
//! - [`program`]: what the program on one node says to the program on another;
//! - `raft/`: consensus, the only room that names openraft;
//! - `store/`: bytes on disk, the only room that names sled.
//!
//! What is absent on purpose: any knowledge of what a command, a row or an effect means.
//!
//! DESIGN.md says why it is built this way, and what is synced when. A process that hosts a node should
//! install a panic hook that ends the process: sled panics where other stores return errors.

pub mod admin;
pub mod admission;
pub mod config;
pub mod directory;
pub mod error;
pub mod folder;
pub mod machine;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod partition;
pub mod peers;
pub mod placement;
pub mod program;
pub mod transport;

mod batch;
mod batcher;
mod controller;
mod divergence;
mod holding;
mod meta;
mod operate;
mod raft;
mod replica;
mod replicas;
mod routing;
mod service;
mod store;

pub use admission::{Admit, Demand, Refusal};
pub use config::{NodeConfig, Options, StampSource, Storage};
pub use directory::{Directory, Leadership};
pub use error::{Error, StartError};
pub use folder::Identity;
pub use machine::{Applied, Changes, GroupId, Machine, Rows, Stamp};
pub use node::Node;
pub use partition::Partition;
pub use program::{Feed, Peers, Program};
pub use raft::group::Progress;
pub use store::{FAULT_EXIT_CODE, FaultHook};
