//! Worker streams: what `GetWorkItems` answers (section 3.1).
//!
//! A [`WorkStream`] carries leased items and, while there are none, health pings. Dropping it is how the
//! end of a worker's stream is noticed: items that never left come back at once, the others after the
//! grace. Items come from this node and, over [`super::feeds`], from the leaders on all others.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use durahub_proto::wire;
use futures::Stream;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use super::Dispatcher;
use super::feeds::Link;
use super::filter::Filter;
use super::hub::{Key, Kind, LeaseId, Offer, StreamId};

/// Items outstanding on a stream that states no limit (R3.2).
const DEFAULT_CAPACITY: usize = 100;

/// What a worker asked for.
#[derive(Debug, Default)]
pub struct StreamOptions {
    /// Number of the task hub.
    pub hub: u32,
    /// The request.
    pub request: wire::GetWorkItemsRequest,
}

/// The node is going away: the last thing on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closing;

/// A leased item on its way to the connection.
pub(crate) struct Parcel {
    pub(crate) origin: Origin,
    pub(crate) item: Box<wire::WorkItem>,
    pub(crate) bytes: usize,
}

/// Which leader handed an item out.
pub(crate) enum Origin {
    /// This node.
    Here { key: Key, lease: LeaseId },
    /// The node at the other end.
    Link(Arc<Link>),
}

/// The stream of one worker.
pub struct WorkStream {
    dispatcher: Dispatcher,
    hub: u32,
    id: StreamId,
    parcels: mpsc::UnboundedReceiver<Parcel>,
    ping: Pin<Box<Sleep>>,
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Dispatcher {
    /// Opens the stream of a worker. It ends with [`Closing`] once `closing` is done, never by itself
    /// (R1.40).
    pub fn open_stream(
        &self,
        options: StreamOptions,
        closing: impl Future<Output = ()> + Send + 'static,
    ) -> WorkStream {
        let StreamOptions { hub, request } = options;
        let capacity = |stated: i32| match usize::try_from(stated) {
            Ok(stated @ 1..) => stated,
            _ => DEFAULT_CAPACITY,
        };
        let mut capacities = [0; Kind::COUNT];
        capacities[Kind::Turn as usize] = capacity(request.max_concurrent_orchestration_work_items);
        capacities[Kind::Activity as usize] = capacity(request.max_concurrent_activity_work_items);
        capacities[Kind::Entity as usize] = capacity(request.max_concurrent_entity_work_items);

        let id = self.next_id();
        let (sender, parcels) = mpsc::unbounded_channel();
        let encoded = Bytes::from(request.encode_to_vec());
        let mut offer = offer(request);
        self.with_hub(hub, |tables| {
            offer.room = self.0.outlets.lock().open(id, hub, encoded, capacities, sender);
            tables.open_stream(id, offer);
        });
        self.pump(hub);
        WorkStream {
            dispatcher: self.clone(),
            hub,
            id,
            parcels,
            // The first ping comes at once: a worker's silence timer starts with it (R1.28).
            ping: Box::pin(tokio::time::sleep_until(Instant::now())),
            closing: Box::pin(closing),
        }
    }
}

/// What a worker accepts, without the room that it has.
pub(super) fn offer(request: wire::GetWorkItemsRequest) -> Offer {
    Offer {
        // Numbers that are not known are ignored (R3.5).
        streams_history: request
            .capabilities()
            .any(|capability| capability == wire::WorkerCapability::HistoryStreaming),
        filter: Filter::new(request.work_item_filters),
        ..Default::default()
    }
}

impl Stream for WorkStream {
    type Item = Result<wire::WorkItem, Closing>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next_ping = Instant::now() + self.dispatcher.0.settings.health_ping;
        while let Poll::Ready(Some(parcel)) = self.parcels.poll_recv(cx) {
            let (hub, id) = (self.hub, self.id);
            match &parcel.origin {
                Origin::Here { .. } => {
                    if self.dispatcher.with_hub(hub, |hub| hub.sent(id, parcel.bytes)) {
                        self.dispatcher.pump(hub);
                    }
                }
                // Its lease has ended with the link, or will: somebody else gets the item.
                Origin::Link(link) if link.has_ended() => continue,
                Origin::Link(link) => link.taken(id, parcel.bytes),
            }
            self.ping.as_mut().reset(next_ping);
            return Poll::Ready(Some(Ok(*parcel.item)));
        }
        if self.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Closing)));
        }
        if self.ping.as_mut().poll(cx).is_ready() {
            self.ping.as_mut().reset(next_ping);
            // Polled again so that the new time is watched.
            let _ = self.ping.as_mut().poll(cx);
            let request = Some(wire::work_item::Request::HealthPing(wire::HealthPing {}));
            return Poll::Ready(Some(Ok(wire::WorkItem { request, ..Default::default() })));
        }
        Poll::Pending
    }
}

impl Drop for WorkStream {
    fn drop(&mut self) {
        self.parcels.close();
        let now = self.dispatcher.0.clock.now();
        let (hub, id) = (self.hub, self.id);
        let mut here = Vec::new();
        let mut elsewhere: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        while let Ok(parcel) = self.parcels.try_recv() {
            match parcel.origin {
                Origin::Here { key, lease } => here.push((key, lease)),
                Origin::Link(link) => {
                    let tokens = elsewhere.entry(link.node()).or_default();
                    tokens.push(parcel.item.completion_token);
                }
            }
        }
        self.dispatcher.with_hub(hub, |hub| {
            self.dispatcher.0.outlets.lock().close(id, elsewhere);
            // Closed first, so that what comes back does not go to this stream again.
            hub.close_stream(id, now);
            here.iter().for_each(|(key, lease)| hub.unsent(key, *lease, now));
        });
        self.dispatcher.pump(hub);
    }
}
