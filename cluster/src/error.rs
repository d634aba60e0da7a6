//! Why this room did not do what was asked.
//!
//! [`Error`] is "not here or not now" and may be retried. [`StartError`] needs a person: each variant is
//! one sentence that names the place and what to do. A broken disk is neither: see
//! [`FaultHook`](crate::FaultHook).

use std::path::PathBuf;

use crate::admission::Refusal;

/// Why a proposal or a read was not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Another node leads the group, or nobody is known to with a quorum. Nothing was committed.
    #[error("{}", .leader.map_or_else(|| "the partition has no leader that a quorum follows".to_owned(), |id| format!("node {id} leads the partition, not this one")))]
    NotLeader {
        /// The leader, as last seen.
        leader: Option<u64>,
    },
    /// The outcome is unknown, or no quorum answers: the command may have been committed or may still be.
    #[error("the partition is unavailable: {0}")]
    Unavailable(String),
    /// The command is longer than the log accepts. Nothing was committed.
    #[error("the command has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Length of the command in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The leader is short of something. Nothing was committed.
    #[error("{}", .0.reason)]
    Refused(Refusal),
    /// This node is stopping. Nothing was committed.
    #[error("this node is stopping")]
    Stopping,
}

/// Why a node does not start. Nothing in the data folder has been changed.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The folder cannot be created, read or written.
    #[error("the data folder {} cannot be used ({source}): check that it exists and that this user may write to it", .path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another process has the folder open.
    #[error("the data folder {} is in use by another process: stop that process or choose another --data-dir", .path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A newer version wrote the folder.
    #[error("the data folder {} has format {found}, this version knows up to {known}: start the newer version of durahub that wrote it", .path.display())]
    NewerFormat {
        /// The folder.
        path: PathBuf,
        /// Format in the folder.
        found: u32,
        /// Newest format that this build reads.
        known: u32,
    },
    /// The folder belongs to another node.
    #[error("the data folder {} belongs to node {found}, not to node {wanted}: pass --node-id {found} or choose another --data-dir", .path.display())]
    OtherNode {
        /// The folder.
        path: PathBuf,
        /// Node id in the folder.
        found: u64,
        /// Node id of this start.
        wanted: u64,
    },
    /// The folder belongs to another cluster.
    #[error("the data folder {} belongs to cluster {found}, not to cluster {wanted}: choose another --data-dir", .path.display())]
    OtherCluster {
        /// The folder.
        path: PathBuf,
        /// Cluster id in the folder.
        found: String,
        /// Cluster id of this start.
        wanted: String,
    },
    /// The number of partitions is fixed at the first start.
    #[error("--partitions {wanted} but the data folder {} was made with {found}: pass --partitions {found}, the number cannot change", .path.display())]
    OtherPartitions {
        /// The folder.
        path: PathBuf,
        /// Partitions of the folder.
        found: u32,
        /// Partitions of this start.
        wanted: u32,
    },
    /// The folder's identity file is missing or cannot be understood.
    #[error("the file {} is broken or missing beside existing data ({reason}): restore it from a backup, or move the folder away to start anew", .path.display())]
    Identity {
        /// The identity file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("the setting {name} is {value}, it must be {rule}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// The cluster does not take this node.
    #[error("the cluster refuses this node: {reason}")]
    Refused {
        /// What a member says.
        reason: String,
    },
    /// No member of the cluster could be asked to let this node in.
    #[error(
        "no node of the cluster lets this one join through {addresses:?} ({reason}): check --join, and that the cluster has a leader"
    )]
    NoMember {
        /// Addresses that were asked.
        addresses: Vec<String>,
        /// What the last one said.
        reason: String,
    },
    /// The disk has no room. Not a reason to move anything away.
    #[error("the disk of the data folder {} is full: make room and start again; all that was acknowledged is in it", .path.display())]
    Full {
        /// The data folder.
        path: PathBuf,
    },
    /// The stored data cannot be read.
    #[error("the data in {} cannot be read ({source}): restore the folder from a backup, or move it away and let this node join as a new one", .path.display())]
    Broken {
        /// The data folder.
        path: PathBuf,
        /// What the store says.
        source: std::io::Error,
    },
    /// Consensus did not come up.
    #[error("partition {group} does not start: {reason}")]
    Group {
        /// Number of the group.
        group: u32,
        /// What consensus says.
        reason: String,
    },
}
