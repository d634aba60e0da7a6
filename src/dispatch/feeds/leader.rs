//! The leader's side: another node's gateway names its streams, and they become streams of our hubs.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use durahub_cluster::Feed;
use durahub_proto::peer::{GatewayItem, gateway_item};
use durahub_proto::wire;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::purse::Leader;
use crate::dispatch::Dispatcher;
use crate::dispatch::feed::offer;
use crate::dispatch::hub::{Kind, Offer, StreamId};
use crate::dispatch::token::Token;

/// The sessions of gateways, one per node.
#[derive(Default)]
pub(in crate::dispatch) struct Sessions(Mutex<HashMap<Leader, oneshot::Sender<()>>>);

/// The streams that a gateway has named on one feed.
struct Session {
    dispatcher: Dispatcher,
    sender: UnboundedSender<Bytes>,
    /// Hub and own number, by the gateway's number.
    streams: HashMap<StreamId, (u32, StreamId)>,
}

impl Dispatcher {
    /// Serves the gateway of another node until the feed ends.
    pub(super) fn serve_gateway(&self, from: Leader, feed: Feed) {
        let (replace, replaced) = oneshot::channel();
        // A gateway that comes again has lost the earlier feed, even if that is not noticed here yet.
        self.0.sessions.0.lock().insert(from, replace);
        let session =
            Session { dispatcher: self.clone(), sender: feed.sender, streams: HashMap::new() };
        let mut receiver = feed.receiver;
        tokio::spawn(async move {
            tracing::debug!(gateway = from, "feed opened");
            // Dropped at the end, which closes all streams.
            let mut session = session;
            let mut replaced = replaced;
            loop {
                tokio::select! {
                    item = receiver.recv() => match item.map(GatewayItem::decode) {
                        Some(Ok(GatewayItem { stream, item: Some(item) })) => {
                            session.hear(stream, item);
                        }
                        // Something that a newer version says.
                        Some(Ok(_)) => {}
                        Some(Err(error)) => {
                            tracing::error!(gateway = from, %error, "a gateway sends what cannot be read");
                            break;
                        }
                        None => break,
                    },
                    _ = &mut replaced => break,
                }
            }
            tracing::debug!(gateway = from, "feed ended");
        });
    }
}

impl Session {
    fn hear(&mut self, number: StreamId, item: gateway_item::Item) {
        use gateway_item::Item;
        let dispatcher = self.dispatcher.clone();
        if let Item::Open(open) = item {
            let Ok(request) = wire::GetWorkItemsRequest::decode(open.request) else { return };
            let id = dispatcher.next_id();
            let room =
                std::array::from_fn(|kind| open.room.get(kind).map_or(0, |room| *room as usize));
            let offer = Offer { room, is_remote: true, ..offer(request) };
            self.close(number, Vec::new());
            self.streams.insert(number, (open.hub, id));
            let sender = self.sender.clone();
            dispatcher.with_hub(open.hub, |hub| {
                dispatcher.0.outlets.lock().add(id, sender, (open.run, number));
                hub.open_stream(id, offer);
            });
            return dispatcher.pump(open.hub);
        }
        if let Item::Close(close) = item {
            return self.close(number, close.unsent);
        }
        let Some((hub, id)) = self.streams.get(&number).copied() else { return };
        match item {
            Item::Open(_) | Item::Close(_) => {}
            Item::Lend(room) => {
                let Some(kind) = Kind::numbered(room.kind) else { return };
                dispatcher.with_hub(hub, |hub| hub.lend(id, kind, room.count as usize));
                dispatcher.pump(hub);
            }
            Item::Recall(recall) => {
                let Some(kind) = Kind::numbered(recall.kind) else { return };
                let (idle, owed) = (recall.idle as usize, recall.owed as usize);
                dispatcher.with_hub(hub, |hub| hub.recall(id, kind, idle, owed));
                dispatcher.pump(hub);
            }
            Item::Taken(taken) => {
                let bytes = usize::try_from(taken.bytes).unwrap_or(usize::MAX);
                let more = dispatcher.with_hub(hub, |hub| {
                    let mut more = false;
                    for item in 0..taken.items {
                        more |= hub.sent(id, if item == 0 { bytes } else { 0 });
                    }
                    more
                });
                if more {
                    dispatcher.pump(hub);
                }
            }
        }
    }

    /// A stream has gone. Items that did not reach the worker are ready again at once, also those that were on
    /// their way when it was closed.
    fn close(&mut self, number: StreamId, unsent: Vec<String>) {
        let dispatcher = &self.dispatcher;
        let now = dispatcher.0.clock.now();
        let mut hubs = BTreeSet::new();
        if let Some((hub, id)) = self.streams.remove(&number) {
            dispatcher.with_hub(hub, |hub| {
                dispatcher.0.outlets.lock().remove(id);
                hub.close_stream(id, now);
            });
            hubs.insert(hub);
        }
        let unsent = unsent.iter().filter_map(|token| Token::from_text(token));
        for token in unsent.filter(|token| token.run == dispatcher.0.run) {
            let Some(work) = token.work else { continue };
            dispatcher.with_hub(work.hub(), |hub| hub.unsent(&work.key(), token.lease, now));
            hubs.insert(work.hub());
        }
        hubs.into_iter().for_each(|hub| dispatcher.pump(hub));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let numbers: Vec<_> = self.streams.keys().copied().collect();
        numbers.into_iter().for_each(|number| self.close(number, Vec::new()));
    }
}
