//! Where the items of each stream go, and who has the room of the workers that are connected here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use durahub_proto::peer::{
    CloseStream, GatewayItem, LeaderItem, OpenStream, Recall, Room, gateway_item, leader_item,
};
use prost::Message as _;
use tokio::sync::mpsc::UnboundedSender;

use super::purse::{Leader, Order, Purse};
use super::{Link, SELF};
use crate::dispatch::feed::Parcel;
use crate::dispatch::hub::{Hub, Kind, Note, RoomNote, StreamId};

/// The way of an item to its worker.
#[derive(Clone)]
pub(in crate::dispatch) enum Way {
    /// The worker is connected here.
    Here(UnboundedSender<Parcel>),
    /// Over the gateway of another node, which knows the stream by that number.
    There { sender: UnboundedSender<Bytes>, stream: StreamId },
}

enum Outlet {
    Worker(Box<Worker>),
    Gateway { sender: UnboundedSender<Bytes>, run: u64, stream: StreamId },
}

/// What all nodes call a stream: the run of its gateway, and its number there.
pub(in crate::dispatch) type StreamName = (u64, StreamId);

/// A worker that is connected here.
struct Worker {
    hub: u32,
    parcels: UnboundedSender<Parcel>,
    /// What it asked for, as it is passed on to other nodes.
    request: Bytes,
    /// Its room per kind.
    purses: [Purse; Kind::COUNT],
}

/// All streams that this node hands items to.
#[derive(Default)]
pub(in crate::dispatch) struct Outlets {
    /// The run of this node.
    run: u64,
    all: HashMap<StreamId, Outlet>,
    links: BTreeMap<Leader, Arc<Link>>,
    /// Nothing is lent any more.
    is_closing: bool,
}

impl Outlets {
    pub(in crate::dispatch) fn new(run: u64) -> Outlets {
        Outlets { run, ..Outlets::default() }
    }

    /// Adds a worker with room for so many items of each kind, and names it on all links. Returns the room that
    /// is lent to this node.
    pub(in crate::dispatch) fn open(
        &mut self,
        id: StreamId,
        hub: u32,
        request: Bytes,
        room: [usize; Kind::COUNT],
        parcels: UnboundedSender<Parcel>,
    ) -> [usize; Kind::COUNT] {
        let leaders: Vec<Leader> = [SELF].into_iter().chain(self.links.keys().copied()).collect();
        let purses = room.map(|room| Purse::new(if self.is_closing { 0 } else { room }, &leaders));
        let own = std::array::from_fn(|kind| purses[kind].lent(SELF));
        let worker = Worker { hub, parcels, request, purses };
        for (leader, link) in &self.links {
            link.send(id, worker.opening(self.run, *leader));
        }
        self.all.insert(id, Outlet::Worker(Box::new(worker)));
        own
    }

    /// Adds a stream of another node's gateway.
    pub(super) fn add(
        &mut self,
        id: StreamId,
        sender: UnboundedSender<Bytes>,
        (run, stream): StreamName,
    ) {
        self.all.insert(id, Outlet::Gateway { sender, run, stream });
    }

    /// What all nodes call a stream; `None` for one of a gateway that does not say.
    pub(in crate::dispatch) fn name(&self, id: StreamId) -> Option<StreamName> {
        match self.all.get(&id)? {
            Outlet::Worker(_) => Some((self.run, id)),
            Outlet::Gateway { run, stream, .. } => {
                Some((*run, *stream)).filter(|(run, _)| *run != 0)
            }
        }
    }

    /// All streams, by what all nodes call them.
    pub(in crate::dispatch) fn by_name(&self) -> HashMap<StreamName, StreamId> {
        self.all.keys().filter_map(|id| Some((self.name(*id)?, *id))).collect()
    }

    /// Removes a stream of another node's gateway.
    pub(super) fn remove(&mut self, id: StreamId) {
        self.all.remove(&id);
    }

    /// Removes a worker, and says on all links that it has gone. `unsent` has the completion tokens of items that
    /// did not reach it, by the node that they came from.
    pub(in crate::dispatch) fn close(
        &mut self,
        id: StreamId,
        mut unsent: BTreeMap<Leader, Vec<String>>,
    ) {
        self.all.remove(&id);
        for (leader, link) in &self.links {
            let unsent = unsent.remove(leader).unwrap_or_default();
            link.send(id, gateway_item::Item::Close(CloseStream { unsent }));
        }
    }

    /// The way of items to a stream, if it is open.
    pub(in crate::dispatch) fn way(&self, id: StreamId) -> Option<Way> {
        Some(match self.all.get(&id)? {
            Outlet::Worker(worker) => Way::Here(worker.parcels.clone()),
            Outlet::Gateway { sender, stream, .. } => {
                Way::There { sender: sender.clone(), stream: *stream }
            }
        })
    }

    /// The hub of a worker that is connected here.
    pub(super) fn hub_of(&self, id: StreamId) -> Option<u32> {
        match self.all.get(&id)? {
            Outlet::Worker(worker) => Some(worker.hub),
            Outlet::Gateway { .. } => None,
        }
    }

    /// Workers that are connected here, with their hubs.
    pub(super) fn workers(&self) -> Vec<(StreamId, u32)> {
        self.all.keys().filter_map(|id| Some((*id, self.hub_of(*id)?))).collect()
    }

    /// Another node's leaders can be reached: names all workers to them.
    pub(super) fn join(&mut self, node: Leader, link: Arc<Link>) {
        for (id, outlet) in &mut self.all {
            if let Outlet::Worker(worker) = outlet {
                worker.purses.iter_mut().for_each(|purse| purse.join(node));
                link.send(*id, worker.opening(self.run, node));
            }
        }
        self.links.insert(node, link);
    }

    /// The link to a node is lost.
    pub(super) fn leave(&mut self, node: Leader) {
        self.links.remove(&node);
    }

    /// Whether workers have items that some leader has not heard back of, or might still be handed some.
    pub(in crate::dispatch) fn is_busy(&self) -> bool {
        self.all.values().any(|outlet| match outlet {
            Outlet::Worker(worker) => self.is_closing && worker.purses.iter().any(Purse::is_out),
            Outlet::Gateway { .. } => false,
        })
    }

    /// From now on nothing is lent, to workers that come later neither.
    pub(super) fn begin_closing(&mut self) {
        self.is_closing = true;
    }

    /// Changes the room of a worker, and tells every leader what follows; this node's is told at once.
    pub(super) fn change_room(
        &mut self,
        id: StreamId,
        kind: Kind,
        hub: &mut Hub,
        change: impl FnOnce(&mut Purse) -> Vec<(Leader, Order)>,
    ) {
        let Some(Outlet::Worker(worker)) = self.all.get_mut(&id) else { return };
        for (leader, order) in change(&mut worker.purses[kind as usize]) {
            match (leader, order) {
                (SELF, Order::Lend(count)) => hub.lend(id, kind, count),
                (SELF, Order::Recall { idle, owed }) => hub.recall(id, kind, idle, owed),
                (leader, order) => {
                    let kind = kind as u32;
                    let item = match order {
                        Order::Lend(count) => {
                            gateway_item::Item::Lend(Room { kind, count: number(count) })
                        }
                        Order::Recall { idle, owed } => gateway_item::Item::Recall(Recall {
                            kind,
                            idle: number(idle),
                            owed: number(owed),
                        }),
                    };
                    if let Some(link) = self.links.get(&leader) {
                        link.send(id, item);
                    }
                }
            }
        }
    }

    /// What this node as a leader has to say about the room of a stream.
    pub(in crate::dispatch) fn note(&mut self, note: Note, hub: &mut Hub) {
        let Note { stream, kind, about } = note;
        match self.all.get(&stream) {
            Some(Outlet::Worker(_)) => {
                self.change_room(stream, kind, hub, |purse| match about {
                    RoomNote::Want(count) => purse.want(SELF, count),
                    RoomNote::Back(count) => purse.back(SELF, count),
                    RoomNote::Took(count) => purse.take(SELF, count),
                });
            }
            Some(Outlet::Gateway { sender, stream, .. }) => {
                let room = |count| Room { kind: kind as u32, count: number(count) };
                let item = match about {
                    RoomNote::Want(count) => leader_item::Item::Want(room(count)),
                    RoomNote::Back(count) => leader_item::Item::Back(room(count)),
                    RoomNote::Took(count) => leader_item::Item::Took(room(count)),
                };
                let item = LeaderItem { stream: *stream, item: Some(item) };
                // A feed that has ended is noticed by its session.
                let _ = sender.send(Bytes::from(item.encode_to_vec()));
            }
            None => {}
        }
    }
}

impl Worker {
    /// How it is named to a leader.
    fn opening(&self, run: u64, leader: Leader) -> gateway_item::Item {
        gateway_item::Item::Open(OpenStream {
            run,
            hub: self.hub,
            request: self.request.clone(),
            room: self.purses.iter().map(|purse| number(purse.lent(leader))).collect(),
        })
    }
}

impl Link {
    /// Says something about a stream of this gateway.
    pub(super) fn send(&self, stream: StreamId, item: gateway_item::Item) {
        let item = GatewayItem { stream, item: Some(item) };
        // A feed that has ended is noticed where it is read.
        let _ = self.sender.send(Bytes::from(item.encode_to_vec()));
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
