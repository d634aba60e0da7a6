//! What nodes say to each other, without how it travels.
//!
//! A [`Transport`] carries calls to a peer; a [`PeerService`] answers them. The node implements the
//! service; a gRPC transport and plain function calls between nodes of one process implement the other
//! side. Payloads are opaque here: the consensus room encodes and decodes them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::RwLock;

use crate::error::Error;
use crate::machine::GroupId;

/// A node as others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Node id, never reused.
    pub id: u64,
    /// `host:port` of its peer endpoint.
    pub address: String,
}

/// Kind of a consensus call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// Entries, or a heartbeat without any.
    Append,
    /// A candidate asks for a vote.
    Vote,
    /// A node asks whether it would get a vote.
    PreVote,
    /// A leader asks its follower to take over.
    TransferLeader,
}

/// A consensus call to one group of a peer.
#[derive(Clone, Debug)]
pub struct Call {
    /// Cluster of the caller; a peer of another cluster refuses.
    pub cluster: String,
    /// Group that is addressed.
    pub group: GroupId,
    /// What is asked.
    pub kind: CallKind,
    /// Encoded by the consensus room.
    pub payload: Bytes,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Debug)]
pub struct SnapshotCall {
    /// Cluster of the caller.
    pub cluster: String,
    /// Group that is addressed.
    pub group: GroupId,
    /// Vote and meta data, encoded by the consensus room.
    pub payload: Bytes,
    /// The snapshot itself.
    pub body: SnapshotBody,
}

/// The bytes of a snapshot.
#[derive(Clone, Debug)]
pub enum SnapshotBody {
    /// In a file.
    File(PathBuf),
    /// In memory.
    Memory(Bytes),
}

/// Why a call to a peer gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The peer cannot be reached; the caller backs off.
    #[error("peer {peer} cannot be reached: {reason}")]
    Unreachable {
        /// Node id of the peer.
        peer: u64,
        /// What the transport says.
        reason: String,
    },
    /// The peer was reached and refused or failed.
    #[error("peer {peer} failed: {reason}")]
    Failed {
        /// Node id of the peer.
        peer: u64,
        /// What the peer says.
        reason: String,
    },
    /// No answer in time.
    #[error("peer {peer} did not answer within {timeout:?}")]
    Timeout {
        /// Node id of the peer.
        peer: u64,
        /// Time that was given.
        timeout: Duration,
    },
}

/// Carries calls to peers. Clones of the `Arc` are shared by all groups of a node.
pub trait Transport: Send + Sync + 'static {
    /// Sends a consensus call and waits for its answer, at most `timeout`.
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>>;

    /// Sends a snapshot and waits until the peer has installed it.
    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        call: SnapshotCall,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>>;

    /// Hands a command to the leader of a group on another node.
    fn propose<'a>(
        &'a self,
        to: &'a Peer,
        cluster: &'a str,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>>;
}

/// Answers the calls of peers.
pub trait PeerService: Send + Sync + 'static {
    /// Answers a consensus call.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Where the frames of a snapshot for `group` shall be written; `None` keeps them in memory.
    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError>;

    /// Installs a received snapshot.
    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Proposes a forwarded command.
    fn propose<'a>(
        &'a self,
        cluster: &'a str,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>>;
}

/// The transport of a node without peers.
#[derive(Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        _: Call,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        Box::pin(async move {
            Err(PeerError::Unreachable { peer: to.id, reason: "this node has no transport".into() })
        })
    }

    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        _: SnapshotCall,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        Box::pin(async move {
            Err(PeerError::Unreachable { peer: to.id, reason: "this node has no transport".into() })
        })
    }

    fn propose<'a>(
        &'a self,
        _: &'a Peer,
        _: &'a str,
        _: GroupId,
        _: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async { Err(Error::Unavailable("this node has no transport".into())) })
    }
}

/// Function calls between nodes of one process: for tests and simulation. Nodes can be cut off.
#[derive(Default)]
pub struct LocalNetwork {
    services: RwLock<HashMap<u64, Weak<dyn PeerService>>>,
    cut: RwLock<HashMap<u64, ()>>,
}

impl LocalNetwork {
    /// A network that nobody has joined.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Makes the node reachable under `id`; replaces an earlier node of that id.
    pub fn join(&self, id: u64, service: &Arc<dyn PeerService>) {
        self.services.write().insert(id, Arc::downgrade(service));
    }

    /// Cuts a node off in both directions, or lets it back in.
    pub fn set_cut(&self, id: u64, cut: bool) {
        if cut {
            self.cut.write().insert(id, ());
        } else {
            self.cut.write().remove(&id);
        }
    }

    /// The transport of node `from`.
    pub fn transport(self: &Arc<Self>, from: u64) -> Arc<dyn Transport> {
        Arc::new(LocalTransport { from, network: Arc::clone(self) })
    }

    fn find(&self, from: u64, to: u64) -> Result<Arc<dyn PeerService>, PeerError> {
        let unreachable = |reason: &str| PeerError::Unreachable { peer: to, reason: reason.into() };
        {
            let cut = self.cut.read();
            if cut.contains_key(&from) || cut.contains_key(&to) {
                return Err(unreachable("cut off"));
            }
        }
        self.services
            .read()
            .get(&to)
            .and_then(Weak::upgrade)
            .ok_or_else(|| unreachable("not running"))
    }
}

struct LocalTransport {
    from: u64,
    network: Arc<LocalNetwork>,
}

impl Transport for LocalTransport {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let service = self.network.find(self.from, to.id)?;
            tokio::time::timeout(timeout, service.call(call))
                .await
                .unwrap_or(Err(PeerError::Timeout { peer: to.id, timeout }))
        })
    }

    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        call: SnapshotCall,
        _timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let service = self.network.find(self.from, to.id)?;
            let failed = |error: std::io::Error| PeerError::Failed {
                peer: to.id,
                reason: error.to_string(),
            };
            let body = match (service.incoming_snapshot(call.group)?, &call.body) {
                (Some(path), SnapshotBody::File(source)) => {
                    std::fs::copy(source, &path).map_err(failed)?;
                    SnapshotBody::File(path)
                }
                (Some(path), SnapshotBody::Memory(bytes)) => {
                    std::fs::write(&path, bytes).map_err(failed)?;
                    SnapshotBody::File(path)
                }
                (None, SnapshotBody::File(source)) => {
                    SnapshotBody::Memory(std::fs::read(source).map_err(failed)?.into())
                }
                (None, SnapshotBody::Memory(bytes)) => SnapshotBody::Memory(bytes.clone()),
            };
            service.snapshot(SnapshotCall { body, ..call }).await
        })
    }

    fn propose<'a>(
        &'a self,
        to: &'a Peer,
        cluster: &'a str,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let service = self
                .network
                .find(self.from, to.id)
                .map_err(|error| Error::Unavailable(error.to_string()))?;
            service.propose(cluster, group, command).await
        })
    }
}
