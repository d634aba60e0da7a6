//! The gateway's side: a link to every other node, on which workers are named and items arrive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use durahub_cluster::{Feed, Peers};
use durahub_proto::peer::{CloseStream, LeaderItem, Taken, gateway_item, leader_item};
use durahub_proto::wire;
use prost::Message as _;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use super::Way;
use super::purse::{Leader, Order, Purse};
use crate::dispatch::Dispatcher;
use crate::dispatch::feed::{Origin, Parcel};
use crate::dispatch::hub::{Kind, StreamId};

/// Pause before a link that broke, or that could not be opened, is opened again.
const PAUSE: Duration = Duration::from_millis(100);

/// A link to the leaders on another node, from its opening to its end.
pub(in crate::dispatch) struct Link {
    pub(super) node: Leader,
    pub(super) sender: UnboundedSender<Bytes>,
    ended: AtomicBool,
}

impl Link {
    /// What came on it does not count any more.
    pub(in crate::dispatch) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The node at the other end.
    pub(in crate::dispatch) fn node(&self) -> Leader {
        self.node
    }

    /// A worker's connection has taken an item of so many bytes.
    pub(in crate::dispatch) fn taken(&self, stream: StreamId, bytes: usize) {
        self.send(stream, gateway_item::Item::Taken(Taken { items: 1, bytes: bytes as u64 }));
    }
}

impl Dispatcher {
    /// Keeps a link to every member of the cluster, until the future is dropped.
    pub(in crate::dispatch) async fn link_members(self, peers: Peers) {
        let mut members = peers.members();
        let mut links: BTreeMap<Leader, JoinSet<()>> = BTreeMap::new();
        loop {
            let wanted = members.borrow_and_update().clone();
            // A node that has left the cluster: dropping the task ends its feed.
            for (node, _) in links.extract_if(.., |node, _| !wanted.contains(node)) {
                self.leave(node);
            }
            for node in wanted {
                links.entry(node).or_insert_with(|| {
                    let mut task = JoinSet::new();
                    task.spawn(self.clone().keep_link(peers.clone(), node));
                    task
                });
            }
            if members.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    async fn keep_link(self, peers: Peers, node: Leader) {
        loop {
            if let Ok(feed) = peers.feed(node).await {
                self.follow(node, feed).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Takes in what the leaders on a node say, until the feed ends.
    pub(in crate::dispatch) async fn follow(&self, node: Leader, feed: Feed) {
        let Feed { sender, mut receiver } = feed;
        let link = Arc::new(Link { node, sender, ended: AtomicBool::new(false) });
        let _ended = EndsWith(link.clone());
        self.0.outlets.lock().join(node, link.clone());
        while let Some(bytes) = receiver.recv().await {
            match LeaderItem::decode(bytes) {
                Ok(LeaderItem { stream, item: Some(item) }) => self.hear(&link, stream, item),
                // Something that a newer version says.
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(node, %error, "a leader sends what cannot be read");
                    break;
                }
            }
        }
        self.leave(node);
    }

    fn hear(&self, link: &Arc<Link>, stream: StreamId, item: leader_item::Item) {
        let node = link.node;
        match item {
            leader_item::Item::Work(work) => {
                let bytes = work.len();
                let Ok(item) = wire::WorkItem::decode(work) else {
                    tracing::error!(node, bytes, "a leader sends a work item that cannot be read");
                    return;
                };
                let token = item.completion_token.clone();
                let origin = Origin::Link(link.clone());
                let parcel = Parcel { origin, item: Box::new(item), bytes };
                let is_sent = match self.0.outlets.lock().way(stream) {
                    Some(Way::Here(parcels)) => parcels.send(parcel).is_ok(),
                    _ => false,
                };
                if !is_sent {
                    // The worker went while the item was on its way: somebody else may have it at once.
                    let close = CloseStream { unsent: vec![token] };
                    link.send(stream, gateway_item::Item::Close(close));
                }
            }
            leader_item::Item::Want(room) => {
                self.change_room(stream, room.kind, |purse| purse.want(node, room.count as usize));
            }
            leader_item::Item::Back(room) => {
                self.change_room(stream, room.kind, |purse| purse.back(node, room.count as usize));
            }
            leader_item::Item::Took(room) => {
                self.change_room(stream, room.kind, |purse| purse.take(node, room.count as usize));
            }
        }
    }

    fn change_room(
        &self,
        stream: StreamId,
        kind: u32,
        change: impl FnOnce(&mut Purse) -> Vec<(Leader, Order)>,
    ) {
        let Some(kind) = Kind::numbered(kind) else { return };
        let Some(hub) = self.0.outlets.lock().hub_of(stream) else { return };
        self.with_hub(hub, |tables| {
            self.0.outlets.lock().change_room(stream, kind, tables, change);
        });
        self.pump(hub);
    }

    /// What a node had been lent is free.
    fn leave(&self, node: Leader) {
        let workers = {
            let mut outlets = self.0.outlets.lock();
            outlets.leave(node);
            outlets.workers()
        };
        for (stream, hub) in workers {
            self.with_hub(hub, |tables| {
                let mut outlets = self.0.outlets.lock();
                for kind in Kind::DISPATCHED {
                    outlets.change_room(stream, kind, tables, |purse| purse.leave(node));
                }
            });
            self.pump(hub);
        }
    }

    /// Calls back all room of the workers that are connected here: nothing new is handed to them.
    pub(in crate::dispatch) fn call_back_all(&self) {
        let workers = {
            let mut outlets = self.0.outlets.lock();
            outlets.begin_closing();
            outlets.workers()
        };
        for (stream, hub) in workers {
            self.with_hub(hub, |tables| {
                let mut outlets = self.0.outlets.lock();
                for kind in Kind::DISPATCHED {
                    outlets.change_room(stream, kind, tables, |purse| purse.close());
                }
            });
            self.pump(hub);
        }
    }
}

/// Marks a link as ended however its task ends.
struct EndsWith(Arc<Link>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}
