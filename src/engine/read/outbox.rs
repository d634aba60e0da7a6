//! Messages of this partition that wait for delivery, and what came from others.

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message as _;

use crate::engine::state::{Address, DeliveredRecord, Place, decode, keys};
use crate::engine::view::{View, after_prefix};

/// The head of a message; decoding it skips the body.
#[derive(Clone, PartialEq, prost::Message)]
struct Head {
    #[prost(uint32, tag = "2")]
    hub: u32,
    #[prost(string, tag = "3")]
    instance: String,
}

/// Places and receivers of the waiting messages behind `after`, oldest first, at most `limit`.
pub fn outbox_after(view: &dyn View, after: Option<Place>, limit: usize) -> Vec<(Place, Address)> {
    let from = match after {
        Some(place) => after_prefix(&keys::outbox(place)),
        None => keys::all_outbox(),
    };
    let mut waiting = Vec::new();
    view.scan(&from, &after_prefix(&keys::all_outbox()), &mut |key, value| {
        let head = Head::decode(value).expect("stored record decodes");
        let to = Address::new(head.hub, head.instance);
        waiting.extend(keys::parse_outbox(key).map(|place| (place, to)));
        if waiting.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    waiting
}

/// The encoded message at a place of the outbox; `None` once it was delivered.
pub fn message(view: &dyn View, place: Place) -> Option<Bytes> {
    view.get(&keys::outbox(place))
}

/// The last message that came from a partition.
pub(crate) fn delivered(view: &dyn View, from: u32) -> Option<Place> {
    view.get(&keys::delivered(from)).map(|row| decode::<DeliveredRecord>(row).place())
}
