//! The cluster's own commands, and what each does to the rows: pure, the same on every replica.

use bytes::Bytes;
use prost::{Message, Oneof};

use super::{Metadata, NodeRecord, SettingsRecord, State, node_key, settings_key};
use crate::machine::{Changes, Rows};

/// A command of the cluster.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Change {
    #[prost(oneof = "What", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) what: Option<What>,
}

/// What a command asks for.
#[derive(Clone, PartialEq, Oneof)]
pub(crate) enum What {
    /// Writes the settings and the first nodes, unless there are some.
    #[prost(message, tag = "1")]
    Found(Found),
    /// A node that started says where it is now.
    #[prost(message, tag = "2")]
    Arrive(NodeRecord),
    /// A new node wants in. `node` 0 lets the cluster choose.
    #[prost(message, tag = "3")]
    Join(NodeRecord),
    /// An operator reserves an id. `node` 0 lets the cluster choose.
    #[prost(message, tag = "4")]
    Expect(NodeRecord),
    /// A node is given another state.
    #[prost(message, tag = "5")]
    SetState(SetState),
    /// All replicas note the hash of their state. The only command for partitions.
    #[prost(message, tag = "6")]
    HashPoint(HashPoint),
}

/// Asks for the hash of the state.
#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct HashPoint {}

/// The first settings and nodes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Found {
    #[prost(message, optional, tag = "1")]
    pub(crate) settings: Option<SettingsRecord>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) nodes: Vec<NodeRecord>,
}

/// Another state for a node.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetState {
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    #[prost(enumeration = "State", tag = "2")]
    pub(crate) state: i32,
}

/// Answer to a command.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Answer {
    /// The node that it was about.
    #[prost(uint64, tag = "1")]
    pub(crate) node: u64,
    /// Why nothing was changed, in one sentence; empty when it was done.
    #[prost(string, tag = "2")]
    pub(crate) refused: String,
}

impl Change {
    pub(crate) fn encode(what: What) -> Bytes {
        Bytes::from(Self { what: Some(what) }.encode_to_vec())
    }
}

/// Whether a command asks for the hash of the state.
pub(crate) fn is_hash_point(command: &Bytes) -> bool {
    let change = Change::decode(command.clone()).ok().and_then(|change| change.what);
    matches!(change, Some(What::HashPoint(_)))
}

/// Applies an encoded command; returns changed rows and the encoded answer.
pub(crate) fn apply(rows: &dyn Rows, command: &Bytes) -> (Changes, Bytes) {
    let change = Change::decode(command.clone()).ok().and_then(|change| change.what);
    let mut changes = Changes::new();
    let result = match change {
        Some(what) => decide(&Metadata::read(rows), what, &mut changes),
        None => Err("this version does not know the command".into()),
    };
    let answer = match result {
        Ok(node) => Answer { node, refused: String::new() },
        Err(refused) => {
            changes.clear();
            Answer { node: 0, refused }
        }
    };
    (changes, Bytes::from(answer.encode_to_vec()))
}

fn decide(now: &Metadata, what: What, changes: &mut Changes) -> Result<u64, String> {
    match what {
        What::HashPoint(_) => Ok(0),
        What::Found(found) => {
            let Some(settings) = found.settings.filter(|_| now.settings.is_none()) else {
                return Ok(0);
            };
            changes.insert(settings_key(), Some(settings.encode_to_vec().into()));
            for node in found.nodes {
                put(changes, NodeRecord { state: State::Active.into(), ..node });
            }
            Ok(0)
        }
        What::Arrive(arrived) => {
            let known = find(now, arrived.node)?;
            same_folder(known, &arrived)?;
            let state = match known.state() {
                State::Expected => return Err(unknown(arrived.node)),
                // A start ends a drain.
                State::Draining => State::Active.into(),
                other => other.into(),
            };
            put_if_new(changes, known, NodeRecord { state, ..arrived });
            Ok(known.node)
        }
        What::Join(new) => {
            // The answer to an earlier request may have been lost.
            let again = now.nodes.values().find(|known| known.incarnation == new.incarnation);
            if let Some(known) = again.filter(|known| known.state() != State::Removed) {
                return Ok(known.node);
            }
            if now.settings.is_none() {
                return Err("the cluster is not founded yet".into());
            }
            let node = choose(now, new.node, Some(State::Expected))?;
            put(changes, NodeRecord { node, state: State::Active.into(), ..new });
            Ok(node)
        }
        What::Expect(new) => {
            let node = choose(now, new.node, None)?;
            put(changes, NodeRecord { node, state: State::Expected.into(), incarnation: 0, ..new });
            Ok(node)
        }
        What::SetState(SetState { node, state }) => {
            let known = find(now, node)?;
            let (from, to) = (known.state(), State::try_from(state).unwrap_or(State::Unspecified));
            let allowed = match to {
                State::Active => from == State::Draining,
                State::Draining => from == State::Active,
                State::Leaving => matches!(from, State::Expected | State::Active | State::Draining),
                State::Removed => from == State::Leaving,
                State::Unspecified | State::Expected => false,
            };
            if from == to {
                return Ok(node);
            }
            if !allowed {
                return Err(format!("node {node} is {from:?}, it cannot become {to:?}"));
            }
            let staying = |known: &&NodeRecord| {
                known.node != node && matches!(known.state(), State::Active | State::Draining)
            };
            if to == State::Leaving && !now.nodes.values().any(|known| staying(&known)) {
                return Err(format!("node {node} is the last one: nothing can take its replicas"));
            }
            put(changes, NodeRecord { state, ..known.clone() });
            Ok(node)
        }
    }
}

fn find(now: &Metadata, node: u64) -> Result<&NodeRecord, String> {
    now.nodes.get(&node).ok_or_else(|| unknown(node))
}

fn unknown(node: u64) -> String {
    format!("node {node} is not a member of the cluster: start it with --join to make it one")
}

/// Refuses a node that was removed, or that comes with another folder than before.
pub(crate) fn same_folder(known: &NodeRecord, arrived: &NodeRecord) -> Result<(), String> {
    let node = known.node;
    if known.state() == State::Removed {
        return Err(format!(
            "node {node} was removed from the cluster, and ids are not used again: empty its data folder and \
             start it with --join and without --node-id"
        ));
    }
    if known.incarnation != 0 && known.incarnation != arrived.incarnation {
        return Err(format!(
            "node {node} is known with another data folder: restore that folder, or remove node {node} from \
             the cluster and start this one with --join and without --node-id"
        ));
    }
    Ok(())
}

/// A free node id: the wanted one if it was never used (or is `reserved`), otherwise the next.
fn choose(now: &Metadata, wanted: u64, reserved: Option<State>) -> Result<u64, String> {
    if wanted == 0 {
        return Ok(now.nodes.keys().next_back().map_or(1, |last| last + 1));
    }
    match now.nodes.get(&wanted) {
        None => Ok(wanted),
        Some(known) if Some(known.state()) == reserved => Ok(wanted),
        Some(known) => Err(format!(
            "node id {wanted} is taken ({:?}), and ids are not used again: leave out --node-id to get a free one",
            known.state()
        )),
    }
}

fn put(changes: &mut Changes, node: NodeRecord) {
    changes.insert(node_key(node.node), Some(node.encode_to_vec().into()));
}

fn put_if_new(changes: &mut Changes, known: &NodeRecord, node: NodeRecord) {
    if *known != node {
        put(changes, node);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;

    use super::*;

    #[derive(Default)]
    struct Map(BTreeMap<Vec<u8>, Bytes>);

    impl Rows for Map {
        fn get(&self, key: &[u8]) -> Option<Bytes> {
            self.0.get(key).cloned()
        }
        fn scan(
            &self,
            from: &[u8],
            to: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>,
        ) {
            for (key, value) in self.0.range(from.to_vec()..to.to_vec()) {
                if visit(key, value).is_break() {
                    return;
                }
            }
        }
    }

    impl Map {
        fn founded() -> Self {
            let mut rows = Self::default();
            let nodes = (1..=3).map(|id| node(id, 10 * id)).collect();
            let settings = Some(SettingsRecord { replication_factor: 3, partitions: 8 });
            rows.done(What::Found(Found { settings, nodes }));
            rows
        }

        fn apply(&mut self, what: What) -> Answer {
            let (changes, answer) = apply(self, &Change::encode(what));
            for (key, value) in changes {
                assert_eq!(key[0], super::super::RESERVED);
                match value {
                    Some(value) => self.0.insert(key, value),
                    None => self.0.remove(&key),
                };
            }
            Answer::decode(answer).unwrap()
        }

        fn done(&mut self, what: What) -> u64 {
            let answer = self.apply(what);
            assert_eq!(answer.refused, "");
            answer.node
        }

        fn state(&self, node: u64) -> State {
            Metadata::read(self).nodes[&node].state()
        }
    }

    fn node(node: u64, incarnation: u64) -> NodeRecord {
        NodeRecord { node, incarnation, address: format!("host-{node}:1"), ..Default::default() }
    }

    fn set(node: u64, state: State) -> What {
        What::SetState(SetState { node, state: state.into() })
    }

    #[test]
    fn cluster_is_founded_once() {
        let mut rows = Map::founded();
        let settings = Some(SettingsRecord { replication_factor: 1, partitions: 1 });
        rows.done(What::Found(Found { settings, nodes: vec![node(9, 9)] }));
        let metadata = Metadata::read(&rows);
        assert_eq!(metadata.settings.unwrap().replication_factor, 3);
        assert_eq!(metadata.nodes.into_keys().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn new_node_gets_a_fresh_id_and_the_same_one_when_it_asks_again() {
        let mut rows = Map::founded();
        assert_eq!(rows.done(What::Join(node(0, 77))), 4);
        assert_eq!(rows.done(What::Join(node(0, 77))), 4);
        assert_eq!(rows.done(What::Join(node(9, 78))), 9);
        assert_eq!(rows.done(What::Join(node(0, 79))), 10);
        let refused = rows.apply(What::Join(node(2, 80))).refused;
        assert!(refused.starts_with("node id 2 is taken"), "{refused}");
    }

    #[test]
    fn reserved_id_goes_to_the_node_that_asks_for_it() {
        let mut rows = Map::founded();
        assert_eq!(rows.done(What::Expect(node(0, 0))), 4);
        assert!(rows.apply(What::Arrive(node(4, 5))).refused.contains("--join"));
        assert_eq!(rows.done(What::Join(node(4, 5))), 4);
        assert_eq!(rows.state(4), State::Active);
        assert!(rows.apply(What::Expect(node(4, 0))).refused.contains("taken"));
    }

    #[test]
    fn emptied_folder_and_removed_node_are_refused() {
        let mut rows = Map::founded();
        rows.done(What::Arrive(NodeRecord { address: "elsewhere:1".into(), ..node(2, 20) }));
        assert_eq!(Metadata::read(&rows).nodes[&2].address, "elsewhere:1");
        let refused = rows.apply(What::Arrive(node(2, 21))).refused;
        assert!(refused.contains("another data folder"), "{refused}");
        rows.done(set(2, State::Leaving));
        rows.done(set(2, State::Removed));
        let refused = rows.apply(What::Arrive(node(2, 20))).refused;
        assert!(refused.contains("was removed"), "{refused}");
        assert!(rows.apply(What::Join(node(2, 22))).refused.contains("not used again"));
    }

    #[test]
    fn nodes_change_state_in_order_only() {
        let mut rows = Map::founded();
        assert!(rows.apply(set(1, State::Removed)).refused.contains("cannot become"));
        rows.done(set(1, State::Draining));
        rows.done(set(1, State::Active));
        rows.done(set(1, State::Leaving));
        assert!(rows.apply(set(1, State::Active)).refused.contains("cannot become"));
        rows.done(set(2, State::Leaving));
        let refused = rows.apply(set(3, State::Leaving)).refused;
        assert!(refused.contains("the last one"), "{refused}");
    }

    #[test]
    fn stored_records_never_change() {
        let record = NodeRecord { state: State::Active.into(), zone: "z".into(), ..node(1, 2) };
        assert_eq!(
            record.encode_to_vec(),
            b"\x08\x01\x12\x08host-1:1\x1a\x01z\x20\x02\x29\x02\0\0\0\0\0\0\0"
        );
        assert_eq!(Change::encode(set(1, State::Leaving)), &b"\x2a\x04\x08\x01\x10\x04"[..]);
    }
}
