//! Function calls between nodes, of which some do not come through: long entries of partition 1 to one node wait, and
//! nobody may be asked before an election.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use durahub_cluster::GroupId;
use durahub_cluster::peers::{Call, Method, Peer, PeerError, SnapshotCall, Transport};
use durahub_cluster::program::Feed;
use futures::future::BoxFuture;
use tokio::sync::watch;

/// An append above this many bytes brings an entry with a [`long`] command.
const LONG: usize = 4 << 10;

/// A command that is held back: it adds one to `n`.
pub(crate) fn long() -> String {
    format!("add n 1 {}", "x".repeat(2 * LONG))
}

/// What is held back, for all nodes of a cluster.
#[derive(Default)]
pub(crate) struct Held {
    /// The node that is sent no long entries, until it has once been asked in vain to take over the lead.
    pub(crate) from: watch::Sender<Option<u64>>,
    /// No node wins an election unless it was asked to take over.
    pub(crate) elections: AtomicBool,
}

/// Gives the entries free when a call has ended, answered or not.
struct Release<'a>(&'a Held);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.from.send_replace(None);
    }
}

/// A transport under which calls are held back.
pub(crate) struct HeldTransport {
    pub(crate) inner: Arc<dyn Transport>,
    pub(crate) held: Arc<Held>,
}

impl Transport for HeldTransport {
    fn call<'a>(
        &'a self,
        to: &'a Peer,
        call: Call,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let (held, is_here) = (&*self.held, call.group == GroupId(1));
            let mut release = None;
            match call.method {
                Method::PreVote if is_here && held.elections.load(Ordering::SeqCst) => {
                    let reason = "elections are held back".into();
                    return Err(PeerError::Unreachable { peer: to.id, reason });
                }
                Method::Append if is_here && call.payload.len() > LONG => {
                    let free = |from: &Option<u64>| *from != Some(to.id);
                    held.from.subscribe().wait_for(free).await.unwrap();
                }
                Method::TransferLeader if is_here && *held.from.borrow() == Some(to.id) => {
                    release = Some(Release(held));
                }
                _ => {}
            }
            let answer = self.inner.call(to, call, timeout).await;
            drop(release);
            answer
        })
    }

    fn feed<'a>(&'a self, to: &'a Peer) -> BoxFuture<'a, Result<Feed, PeerError>> {
        self.inner.feed(to)
    }

    fn snapshot<'a>(
        &'a self,
        to: &'a Peer,
        call: SnapshotCall,
        timeout: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        self.inner.snapshot(to, call, timeout)
    }
}
