//! Carries calls between processes: gRPC over TCP on the peer port.
//!
//! Each node opens one *link* to each peer that it has something to say to: one connection with one stream of
//! frames in each direction. Calls of all groups share it; answers come back on it, in any order. A message
//! longer than a frame is cut, and its pieces take turns with other messages, so that a heartbeat never waits
//! for a long entry. A snapshot travels on a connection of its own.
//!
//! - [`outbox`]: what waits to be sent: cut, taking turns, bounded in bytes;
//! - [`gather`]: frames that leave together;
//! - [`inbox`]: pieces that arrive, put together, capped in bytes;
//! - [`link`]: the calling side: connect, greet, match answers, back off, connect again;
//! - [`server`]: the answering side;
//! - [`greeting`]: a connection that does not begin in time;
//! - [`places`]: how many connections a port takes, in all and from one address;
//! - [`snapshot`]: both sides of a snapshot;
//! - [`stream`]: how a TCP connection becomes a stream of bytes: the place for TLS, and for who showed what.
//!
//! The name of a peer's host is looked up at every connect: addresses may change behind stable names.
//!
//! What is absent on purpose: sending a message again. A message that may have arrived is *lost*, and only its
//! sender knows whether it may be repeated.

mod gather;
mod greeting;
mod inbox;
mod link;
mod outbox;
mod places;
mod server;
mod snapshot;
mod stream;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::peer_client::PeerClient;
use durahub_proto::peer::{Hello, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse};
use futures::future::BoxFuture;
use parking_lot::{Mutex, RwLock};
use tonic::transport::{Channel, Endpoint};

pub use greeting::Greeting;
pub use places::{Full, Place, Places, Room};
pub use server::PeerServer;
pub use stream::{PeerInfo, PeerStream, Plain, Secure, Shown};

use crate::peers::{Call, Judge, Peer, PeerError, SnapshotCall, Transport};
use crate::program::Feed;
use link::Link;

/// Version of the protocol that this build speaks.
pub const PROTOCOL: u32 = 1;

/// Longest piece of a message in one frame, in bytes.
const FRAME_BYTES: usize = 256 << 10;
/// Longest message, in bytes: an append with one entry of the largest size, and what surrounds it.
const MESSAGE_BYTES: usize = 256 << 20;
/// Time to reach a host and be greeted.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Silence after which a connection is probed. A leader whose followers hear it, but which hears nobody, keeps
/// them from voting until its links end: so it is short.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// How long a probe may take.
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(2);
/// Window of one stream, in bytes: what may be on its way without the receiver having read it.
const STREAM_WINDOW: u32 = 2 << 20;
/// Window of a connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Where peers are reached, newer than what a group's membership says.
#[derive(Clone, Default)]
pub struct AddressBook(Arc<RwLock<Book>>);

#[derive(Default)]
struct Book {
    known: HashMap<u64, String>,
    pinned: HashMap<u64, String>,
}

impl AddressBook {
    /// Adds or replaces entries: node ids and their `host:port`. Empty ones are left out.
    pub fn extend(&self, addresses: impl IntoIterator<Item = (u64, String)>) {
        self.0
            .write()
            .known
            .extend(addresses.into_iter().filter(|(_, address)| !address.is_empty()));
    }

    /// Reaches a node at this address whatever the cluster says, as through a proxy.
    pub fn pin(&self, node: u64, address: String) {
        self.0.write().pinned.insert(node, address);
    }

    /// Nodes of the book.
    pub(crate) fn nodes(&self) -> Vec<u64> {
        let mut nodes: Vec<u64> = self.0.read().known.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// Where the book knows a node, or all of its nodes.
    pub(crate) fn addresses(&self, node: Option<u64>) -> Vec<String> {
        let book = self.0.read();
        let known = book.known.iter().filter(|(id, _)| node.is_none_or(|node| node == **id));
        known.map(|(_, address)| address.clone()).collect()
    }

    fn find(&self, peer: &Peer) -> String {
        let book = self.0.read();
        let known = book.pinned.get(&peer.id).or_else(|| book.known.get(&peer.id));
        // Before the first read of the metadata only the membership knows.
        known.unwrap_or(&peer.address).clone()
    }
}

/// What all links of a node share.
struct Shared {
    hello: OnceLock<(Hello, Judge)>,
    book: AddressBook,
    secure: Arc<dyn Secure>,
    /// Told when a peer says for good that this node does not belong to the cluster.
    expelled: Box<dyn Fn(&str) + Send + Sync>,
}

/// The transport between processes.
pub struct GrpcTransport {
    shared: Arc<Shared>,
    links: Mutex<HashMap<u64, Arc<Link>>>,
}

impl GrpcTransport {
    /// A transport that has connected to nobody yet. `expelled` is called with one sentence when a peer says
    /// that this node is not, or no longer, a member: going on would be wrong.
    pub fn new(secure: Arc<dyn Secure>, expelled: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let shared = Shared {
            hello: OnceLock::new(),
            book: AddressBook::default(),
            secure,
            expelled: Box::new(expelled),
        };
        Self { shared: Arc::new(shared), links: Mutex::default() }
    }

    fn link(&self, peer: u64) -> Arc<Link> {
        let new = || Arc::new(Link::new(peer, Arc::clone(&self.shared)));
        Arc::clone(self.links.lock().entry(peer).or_insert_with(new))
    }
}

impl Transport for GrpcTransport {
    fn introduce(&self, hello: Hello, judge: Judge) {
        // A transport serves one node; a second introduction is a mistake of the caller.
        let _ = self.shared.hello.set((hello, judge));
    }

    fn addresses(&self) -> Option<AddressBook> {
        Some(self.shared.book.clone())
    }

    fn call<'a>(
        &'a self,
        to: &'a Peer,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        let link = self.link(to.id);
        Box::pin(async move { link.call(to, call, timeout).await })
    }

    fn feed<'a>(&'a self, to: &'a Peer) -> BoxFuture<'a, Result<Feed, PeerError>> {
        let link = self.link(to.id);
        Box::pin(async move { link.feed(to).await })
    }

    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        call: SnapshotCall,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move { snapshot::send(&shared, to, call, timeout).await })
    }
}

/// Asks the node at `address` who it is and what it knows of the caller.
///
/// # Errors
/// [`PeerError::Unreachable`] when nothing answers there.
pub async fn identify(
    secure: &Arc<dyn Secure>,
    address: &str,
    request: IdentifyRequest,
) -> Result<IdentifyResponse, PeerError> {
    let mut client = PeerClient::new(connect(secure, 0, address).await?);
    let answer = tokio::time::timeout(CONNECT_TIME, client.identify(request)).await;
    settle(0, answer)
}

/// Asks the node at `address` to let the caller join.
///
/// # Errors
/// [`PeerError::Failed`] with a sentence when the cluster refuses; others when it may be asked again.
pub async fn join(
    secure: &Arc<dyn Secure>,
    address: &str,
    request: JoinRequest,
) -> Result<JoinResponse, PeerError> {
    let mut client = PeerClient::new(connect(secure, 0, address).await?);
    settle(0, tokio::time::timeout(Duration::from_secs(20), client.join(request)).await)
}

fn settle<T>(
    peer: u64,
    answer: Result<Result<tonic::Response<T>, tonic::Status>, tokio::time::error::Elapsed>,
) -> Result<T, PeerError> {
    match answer {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(link::refusal(peer, &status)),
        Err(_) => Err(PeerError::Lost { peer, reason: "no answer in time".into() }),
    }
}

/// Opens a connection of its own.
async fn connect(secure: &Arc<dyn Secure>, peer: u64, address: &str) -> Result<Channel, PeerError> {
    let unreachable = |reason: String| PeerError::Unreachable { peer, reason };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| unreachable(format!("{address:?} is not HOST:PORT")))?
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(true);
    let dial = stream::Dial { secure: Arc::clone(secure), address: address.to_owned() };
    let connecting = endpoint.connect_with_connector(dial);
    match tokio::time::timeout(CONNECT_TIME, connecting).await {
        Ok(connected) => connected.map_err(|error| unreachable(causes(&error))),
        Err(_) => Err(unreachable(format!("{address} does not answer within {CONNECT_TIME:?}"))),
    }
}

/// An error with its causes, in one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
