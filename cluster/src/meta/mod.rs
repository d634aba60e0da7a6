//! What the whole cluster must agree on: its nodes and its settings, as rows of the metadata group.
//!
//! Rows of this room begin with 0xff in every group, so a machine's own rows must not. They are changed only
//! by the cluster's own commands ([`change`]), which travel and are applied like any other command; every node
//! holds the metadata group and watches it. Who holds a partition is not repeated here: the partition's own
//! membership says it, and two places could disagree.
//!
//! Stored records are protobuf, hand-written: fields are only added.

pub(crate) mod change;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use durahub_proto::peer::Hello;
use parking_lot::{Mutex, RwLock};
use prost::Message;

use crate::machine::Rows;

/// First byte of this room's rows.
pub(crate) const RESERVED: u8 = 0xff;
const NODE: u8 = b'n';
const SETTINGS: u8 = b's';

/// Key of the settings.
pub(crate) fn settings_key() -> Vec<u8> {
    vec![RESERVED, SETTINGS]
}

/// Key of a node.
pub(crate) fn node_key(node: u64) -> Vec<u8> {
    let mut key = vec![RESERVED, NODE];
    key.extend_from_slice(&node.to_be_bytes());
    key
}

/// Settings of the cluster, fixed when it is founded.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SettingsRecord {
    #[prost(uint32, tag = "1")]
    pub(crate) replication_factor: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) partitions: u32,
}

/// What is known of a node. Its numbers are those of `NodeState` in the peer protocol.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeRecord {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(string, tag = "2")]
    pub(crate) address: String,
    #[prost(string, tag = "3")]
    pub(crate) zone: String,
    #[prost(enumeration = "State", tag = "4")]
    pub(crate) state: i32,
    /// Incarnation of its folder; 0 until it has come.
    #[prost(fixed64, tag = "5")]
    pub(crate) incarnation: u64,
}

/// Part of a node in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    /// Not known to this version.
    Unspecified = 0,
    /// An id is reserved, no node has come yet.
    Expected = 1,
    /// Holds replicas and leads.
    Active = 2,
    /// Holds replicas and leads nothing that another node can lead.
    Draining = 3,
    /// Its replicas are being moved away.
    Leaving = 4,
    /// Gone for good.
    Removed = 5,
}

/// The metadata as one node sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Metadata {
    /// `None` until the cluster is founded.
    pub(crate) settings: Option<SettingsRecord>,
    pub(crate) nodes: BTreeMap<u64, NodeRecord>,
}

impl Metadata {
    pub(crate) fn read(rows: &dyn Rows) -> Self {
        let settings = rows.get(&settings_key()).and_then(decode);
        let mut nodes = BTreeMap::new();
        rows.scan(&[RESERVED, NODE], &[RESERVED, NODE + 1], &mut |_, value| {
            if let Some(node) = decode::<NodeRecord>(Bytes::copy_from_slice(value)) {
                nodes.insert(node.node, node);
            }
            ControlFlow::Continue(())
        });
        Self { settings, nodes }
    }
}

/// Which data folder each node id belongs to: a node that lost its folder must not go on under its old id, since
/// it has forgotten how it voted. The metadata says it; before a node stands there, the first one to greet does.
#[derive(Debug)]
pub(crate) struct Folders {
    metadata: Arc<RwLock<Arc<Metadata>>>,
    greeted: Mutex<BTreeMap<u64, u64>>,
}

impl Folders {
    pub(crate) fn new(metadata: Arc<RwLock<Arc<Metadata>>>) -> Self {
        Self { metadata, greeted: Mutex::default() }
    }

    /// Refuses the greeting of a node that was removed, or that comes with another folder than before.
    pub(crate) fn judge(&self, hello: &Hello) -> Result<(), String> {
        let arrived = NodeRecord { incarnation: hello.incarnation, ..NodeRecord::default() };
        let known = self.registered(hello.node).unwrap_or_else(|| {
            let first = *self.greeted.lock().entry(hello.node).or_insert(hello.incarnation);
            NodeRecord { node: hello.node, incarnation: first, ..NodeRecord::default() }
        });
        change::same_folder(&known, &arrived)
    }

    /// Incarnation of the folder of this id; 0 if no node has used it. A node greets before it votes, so the
    /// first peer that could have counted its vote knows it.
    pub(crate) fn incarnation(&self, node: u64) -> u64 {
        self.registered(node).map_or_else(
            || self.greeted.lock().get(&node).copied().unwrap_or_default(),
            |known| known.incarnation,
        )
    }

    /// The node as the metadata knows it, once it has come or is gone.
    fn registered(&self, node: u64) -> Option<NodeRecord> {
        let metadata = self.metadata.read().clone();
        let known = metadata.nodes.get(&node)?;
        let decided = known.incarnation != 0 || known.state() == State::Removed;
        decided.then(|| known.clone())
    }
}

fn decode<T: Message + Default>(bytes: Bytes) -> Option<T> {
    T::decode(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_folder_of_an_id_wins_until_the_metadata_knows_better() {
        let metadata = Arc::<RwLock<Arc<Metadata>>>::default();
        let folders = Folders::new(Arc::clone(&metadata));
        let hello = |node, incarnation| Hello { node, incarnation, ..Hello::default() };
        assert_eq!(folders.incarnation(2), 0);
        folders.judge(&hello(2, 7)).unwrap();
        folders.judge(&hello(2, 7)).unwrap();
        assert!(folders.judge(&hello(2, 8)).unwrap_err().contains("another data folder"));
        assert_eq!(folders.incarnation(2), 7);
        let known = NodeRecord { node: 2, incarnation: 8, ..NodeRecord::default() };
        let nodes = BTreeMap::from([(2, known)]);
        *metadata.write() = Arc::new(Metadata { settings: None, nodes });
        folders.judge(&hello(2, 8)).unwrap();
        folders.judge(&hello(2, 7)).unwrap_err();
        assert_eq!(folders.incarnation(2), 8);
    }
}
