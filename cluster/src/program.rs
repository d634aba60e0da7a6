//! What the program on one node says to the program on another: carried here, never understood.
//!
//! A program may *ask* the one on another node, and may open a *feed*: a stream of items both ways, in order,
//! until either side drops its end or the link breaks. What became of an item, only an answer tells.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, watch};

use crate::machine::GroupId;
use crate::peers::{Call, Method, Peer, PeerError, Transport};

/// The program of this node, as others reach it.
pub trait Program: Send + Sync + 'static {
    /// Answers a question of another node. An error is one sentence for its log.
    fn answer(&self, question: Bytes) -> BoxFuture<'_, Result<Bytes, String>>;

    /// Takes in a feed that the node `from` has opened. Must return at once.
    fn accept(&self, from: u64, feed: Feed);

    /// The lead of a group is about to be handed to the node `to`; it is not before this returns, which must be soon.
    /// The hand-over may fail: then this node, or any other, leads on, and nobody is told.
    fn hand_over(&self, group: GroupId, to: u64) -> BoxFuture<'_, ()> {
        let _ = (group, to);
        Box::pin(async {})
    }
}

/// One end of a feed. Nothing here slows a sender down: it must itself bound what is on its way.
#[derive(Debug)]
pub struct Feed {
    /// Items to the other end. Dropping all clones of it ends the feed.
    pub sender: mpsc::UnboundedSender<Bytes>,
    /// Items from the other end; it ends with the feed.
    pub receiver: mpsc::UnboundedReceiver<Bytes>,
}

impl Feed {
    /// Two ends that are connected.
    pub fn pair() -> (Feed, Feed) {
        let (to_right, from_left) = mpsc::unbounded_channel();
        let (to_left, from_right) = mpsc::unbounded_channel();
        (
            Feed { sender: to_right, receiver: from_right },
            Feed { sender: to_left, receiver: from_left },
        )
    }
}

/// The other nodes of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    node: u64,
    transport: Arc<dyn Transport>,
    nodes: watch::Receiver<BTreeSet<u64>>,
}

impl Peers {
    pub(crate) fn new(
        node: u64,
        transport: Arc<dyn Transport>,
        nodes: watch::Receiver<BTreeSet<u64>>,
    ) -> Self {
        Self { node, transport, nodes }
    }

    /// Id of this node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// Ids of the other members, from now on.
    pub fn members(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.nodes.clone()
    }

    /// Asks the program on another node; waits at most `timeout`.
    ///
    /// # Errors
    /// [`PeerError::not_sent`] tells whether the question may have arrived.
    pub async fn ask(
        &self,
        node: u64,
        question: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let call = Call { group: GroupId::METADATA, method: Method::Ask, payload: question };
        self.transport.call(&peer(node), call, timeout).await
    }

    /// Opens a feed to the program on another node. That it is open does not mean that the other node takes it:
    /// a feed that is refused ends.
    ///
    /// # Errors
    /// When the node cannot be reached.
    pub async fn feed(&self, node: u64) -> Result<Feed, PeerError> {
        self.transport.feed(&peer(node)).await
    }
}

/// Addresses stand in the transport's book.
fn peer(id: u64) -> Peer {
    Peer { id, address: String::new() }
}
