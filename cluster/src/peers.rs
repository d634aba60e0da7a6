//! What nodes say to each other, without how it travels.
//!
//! A [`Transport`] carries calls to a peer; a [`PeerService`] answers them. The node implements the
//! service; the transport between processes (`transport/`) and plain function calls between nodes of one
//! process implement the other side. Payloads are opaque here.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
pub use durahub_proto::peer::Method;
use durahub_proto::peer::{Hello, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse};
use futures::future::BoxFuture;
use parking_lot::RwLock;

use crate::machine::GroupId;
use crate::program::Feed;
pub use crate::store::snapshot::Body as SnapshotBody;
use crate::transport::AddressBook;

/// A node as others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Node id, never reused.
    pub id: u64,
    /// `host:port` of its peer endpoint.
    pub address: String,
}

/// A call to one group of a peer.
#[derive(Clone, Debug)]
pub struct Call {
    /// Group that is addressed.
    pub group: GroupId,
    /// What is asked.
    pub method: Method,
    /// Encoded by whoever asks.
    pub payload: Bytes,
}

/// A snapshot on its way to a peer.
#[derive(Clone, Debug)]
pub struct SnapshotCall {
    /// Group that is addressed.
    pub group: GroupId,
    /// Vote and meta data, encoded by the consensus room.
    pub payload: Bytes,
    /// The snapshot itself.
    pub body: SnapshotBody,
}

/// Why a node does not want to talk to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Not yet, or not here: worth asking again.
    NotNow(String),
    /// The two were started with settings that do not fit.
    Mismatch(String),
    /// The caller is not, or no longer, a member of the cluster: it must not go on.
    Expelled(String),
}

/// Why a call to a peer gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// The peer cannot be reached: the call has not arrived. The caller backs off.
    #[error("peer {peer} cannot be reached: {reason}")]
    Unreachable {
        /// Node id of the peer.
        peer: u64,
        /// What the transport says.
        reason: String,
    },
    /// The connection broke before the answer: the call may have arrived.
    #[error("peer {peer} was lost: {reason}")]
    Lost {
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
    /// No answer in time: the call may have arrived.
    #[error("peer {peer} did not answer within {timeout:?}")]
    Timeout {
        /// Node id of the peer.
        peer: u64,
        /// Time that was given.
        timeout: Duration,
    },
}

impl PeerError {
    /// True when the call cannot have arrived.
    pub fn not_sent(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// What went wrong, without whose peer it was.
    pub fn reason(&self) -> String {
        match self {
            Self::Unreachable { reason, .. }
            | Self::Lost { reason, .. }
            | Self::Failed { reason, .. } => reason.clone(),
            Self::Timeout { timeout, .. } => format!("no answer within {timeout:?}"),
        }
    }
}

/// Says whether a greeting comes from the node that the cluster knows under that id.
pub type Judge = Arc<dyn Fn(&Hello) -> Result<(), String> + Send + Sync>;

/// Carries calls to peers. Clones of the `Arc` are shared by all groups of a node.
pub trait Transport: Send + Sync + 'static {
    /// Tells the transport who its node is, and who says whether an answering peer is the right one, before the
    /// first call.
    fn introduce(&self, hello: Hello, judge: Judge) {
        let _ = (hello, judge);
    }

    /// False when there is nobody to talk to, now and ever.
    fn reaches_peers(&self) -> bool {
        true
    }

    /// Where the transport looks up addresses, if it does.
    fn addresses(&self) -> Option<AddressBook> {
        None
    }

    /// Sends a call and waits for its answer, at most `timeout`.
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>>;

    /// Opens a feed to the program of a peer.
    fn feed<'a>(&'a self, to: &'a Peer) -> BoxFuture<'a, Result<Feed, PeerError>> {
        let reason = "this transport has no feeds".into();
        Box::pin(async move { Err(PeerError::Unreachable { peer: to.id, reason }) })
    }

    /// Sends a snapshot and waits until the peer has installed it.
    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        call: SnapshotCall,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>>;
}

/// Answers the calls of peers.
pub trait PeerService: Send + Sync + 'static {
    /// Says who this node is, or why it does not want to talk to the caller.
    fn greet(&self, hello: &Hello) -> Result<Hello, Rejection>;

    /// Answers a call.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Takes in a feed that the node `from` has opened; dropping it ends it.
    fn feed(&self, from: u64, feed: Feed) {
        let _ = (from, feed);
    }

    /// Where the frames of a snapshot for `group` shall be written; `None` keeps them in memory.
    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError>;

    /// Installs a received snapshot.
    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>>;

    /// Says who this node is and what it knows of the caller.
    fn identify(&self, request: &IdentifyRequest) -> IdentifyResponse;

    /// Where the cluster knows a node (`host:port`), or all of its nodes.
    fn addresses(&self, node: Option<u64>) -> Vec<String>;

    /// Takes a new node into the cluster.
    fn join(&self, request: JoinRequest) -> BoxFuture<'_, Result<JoinResponse, Rejection>>;
}

/// The transport of a node without peers.
#[derive(Debug, Default)]
pub struct NoPeers;

impl Transport for NoPeers {
    fn reaches_peers(&self) -> bool {
        false
    }

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

    fn feed<'a>(&'a self, to: &'a Peer) -> BoxFuture<'a, Result<Feed, PeerError>> {
        Box::pin(async move {
            let service = self.network.find(self.from, to.id)?;
            let (mine, theirs) = Feed::pair();
            service.feed(self.from, theirs);
            Ok(mine)
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
            let failed =
                |error: io::Error| PeerError::Failed { peer: to.id, reason: error.to_string() };
            let target = service.incoming_snapshot(call.group)?;
            let source = call.body.clone();
            let copy = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                source.open()?.read_to_end(&mut bytes)?;
                match target {
                    Some(path) => std::fs::write(&path, bytes).map(|()| SnapshotBody::File(path)),
                    None => Ok(SnapshotBody::Memory(bytes.into())),
                }
            });
            let body =
                copy.await.map_err(io::Error::other).and_then(|read| read).map_err(failed)?;
            service.snapshot(SnapshotCall { body, ..call }).await
        })
    }
}
