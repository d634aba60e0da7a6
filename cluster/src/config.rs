//! What a node is started with, and which settings make sense.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admission::{Admit, everything};
use crate::batch::COMMANDS_LIMIT;
use crate::batcher::BatchLimits;
use crate::error::StartError;
use crate::peers::{NoPeers, Transport};
use crate::store::FaultHook;
use crate::transport::{Plain, Secure};

/// Most partitions of a cluster.
pub const PARTITIONS_LIMIT: u32 = 1024;
/// Longest log entry, in bytes: half of what a message between nodes may hold.
const ENTRY_LIMIT: usize = 128 << 20;

/// Clock and entropy: nanoseconds since the Unix epoch and 64 random bits, fresh at every call.
pub type StampSource = Arc<dyn Fn() -> (i64, u64) + Send + Sync>;

/// Told why a node has no place in its cluster.
pub type Expelled = Arc<dyn Fn(&str) + Send + Sync>;

/// Exit code of a process whose node has no place in its cluster (`EX_CONFIG`).
pub const EXPELLED_EXIT_CODE: i32 = 78;

/// Where a node keeps its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: all is gone with the process.
    Memory,
    /// In a folder, which is made if it does not exist.
    Folder(PathBuf),
}

/// What a node is started with.
#[derive(Clone)]
pub struct NodeConfig {
    /// Id of this node, unique in the cluster and never reused. 0: that of the data folder; without one, the
    /// cluster that is joined chooses, and a node alone is 1.
    pub node_id: u64,
    /// Where the data lies.
    pub storage: Storage,
    /// Number of partitions beside the metadata group; fixed at the first start.
    pub partitions: u32,
    /// Memory for the store's page cache, in bytes.
    pub cache_bytes: u64,
    /// Clock and entropy of the leader.
    pub stamp: StampSource,
    /// Everything with a sensible default.
    pub options: Options,
}

impl NodeConfig {
    /// A node alone, with defaults for everything else.
    pub fn new(node_id: u64, storage: Storage, partitions: u32, stamp: StampSource) -> Self {
        Self {
            node_id,
            storage,
            partitions,
            cache_bytes: 128 << 20,
            stamp,
            options: Options::default(),
        }
    }
}

/// Settings that rarely change.
#[derive(Clone)]
pub struct Options {
    /// `host:port` under which peers reach this node; empty while it has none.
    pub peer_address: String,
    /// All members of a cluster that starts for the first time, with their peer addresses; empty for a
    /// cluster of one.
    pub initial_members: BTreeMap<u64, String>,
    /// Peer addresses of members of a running cluster; a node with a new folder asks them to let it join.
    pub join: Vec<String>,
    /// Failure domain of this node; replicas are spread over them. Empty when it does not matter.
    pub zone: String,
    /// Votes per partition, fixed when the cluster is founded.
    pub replication_factor: u32,
    /// Carries calls to peers.
    pub transport: Arc<dyn Transport>,
    /// Wraps the connections on which a node asks before it is a member.
    pub secure: Arc<dyn Secure>,
    /// Called with one sentence when the cluster says that this node is not, or no longer, a member. Going on
    /// would be wrong; the default leaves the process.
    pub expelled: Expelled,
    /// Longest command, in bytes.
    pub command_bytes: usize,
    /// Bytes after which a log entry is closed.
    pub entry_bytes: usize,
    /// Commands after which a log entry is closed; at most 65 536.
    pub entry_commands: usize,
    /// Log entries of one group that may be on their way at the same time.
    pub entries_in_flight: usize,
    /// Commands of one group that may wait before callers do.
    pub waiting_commands: usize,
    /// Time after which a proposal is given up as "outcome unknown".
    pub propose_timeout: Duration,
    /// Asked before a command is put into the log of a group that this node leads. The default takes everything.
    pub admit: Admit,
    /// Whether the disk of this node is short of room; then the store gives space back that it would keep otherwise.
    /// Must return at once. The default is never.
    pub disk_is_short: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Entries after which the log may be compacted.
    pub snapshot_every: u64,
    /// Entries that stay in the log behind a compaction point, for followers that are a little behind.
    pub keep_entries: u64,
    /// How often the replicas of a group compare their state.
    pub compare_every: Duration,
    /// What to do when the disk fails.
    pub fault: FaultHook,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            peer_address: String::new(),
            initial_members: BTreeMap::new(),
            join: Vec::new(),
            zone: String::new(),
            replication_factor: 3,
            transport: Arc::new(NoPeers),
            secure: Arc::new(Plain),
            expelled: Arc::new(|reason| {
                tracing::error!("this node cannot go on: {reason}");
                std::process::exit(EXPELLED_EXIT_CODE);
            }),
            command_bytes: 8 << 20,
            entry_bytes: 1 << 20,
            entry_commands: 1024,
            entries_in_flight: 1,
            waiting_commands: 4096,
            propose_timeout: Duration::from_secs(15),
            admit: everything(),
            disk_is_short: Arc::new(|| false),
            snapshot_every: 50_000,
            keep_entries: 10_000,
            compare_every: Duration::from_secs(60),
            fault: FaultHook::default(),
        }
    }
}

/// Refuses settings that make no sense.
pub(crate) fn check(config: &NodeConfig) -> Result<(), StartError> {
    let refuse = |name, value: String, rule| Err(StartError::Setting { name, value, rule });
    if config.partitions == 0 || config.partitions > PARTITIONS_LIMIT {
        return refuse("partitions", config.partitions.to_string(), "between 1 and 1024");
    }
    let commands = config.options.entry_commands;
    if commands == 0 || commands > COMMANDS_LIMIT {
        return refuse("entry_commands", commands.to_string(), "between 1 and 65536");
    }
    if config.options.entries_in_flight == 0 || config.options.waiting_commands == 0 {
        return refuse("entries_in_flight", "0".into(), "at least 1");
    }
    if config.options.replication_factor == 0 {
        return refuse("replication-factor", "0".into(), "at least 1");
    }
    if !config.options.join.is_empty() && !config.options.initial_members.is_empty() {
        return refuse("join", "set".into(), "left out when --initial-cluster is given");
    }
    // An entry must fit into one message between nodes, with room to spare.
    if config.options.command_bytes > ENTRY_LIMIT || config.options.entry_bytes > ENTRY_LIMIT {
        return refuse(
            "command_bytes",
            config.options.command_bytes.to_string(),
            "at most 134217728",
        );
    }
    Ok(())
}

/// The batcher's share of the options.
pub(crate) fn limits(options: &Options) -> BatchLimits {
    BatchLimits {
        command_bytes: options.command_bytes,
        entry_bytes: options.entry_bytes,
        entry_commands: options.entry_commands,
        in_flight: options.entries_in_flight,
        waiting: options.waiting_commands,
        timeout: options.propose_timeout,
    }
}
