//! Work feeds: workers at any node's gateway get items from the leaders on all nodes.
//!
//! A worker has one stream, at one gateway. The gateway opens one *link* to every other node ([`gateway`]) and
//! names its streams there; each leader then knows them like its own ([`leader`]) and hands out items as far as
//! it has room of them. Room is lent by the gateway ([`purse`]) and moves to where the work is.
//!
//! Completions, abandons and whatever else only a lease knows go to the leader as questions ([`ask`]): leases,
//! tokens and parts of completions stay with it, whatever gateway they come through. How much work a hub has, all
//! leaders are asked together ([`work`]).
//!
//! A link that breaks ends everything that was said on it: the leader closes the streams, so what they hold comes
//! back after the grace; the gateway takes all room back, and names its streams anew on the next link. A node
//! alone has no links, and all room is its own.
//!
//! Messages stand in proto/peer/peer.proto. They are sent under the lock of the tables that they tell of, so each
//! side hears of changes in the order in which they were made.

mod ask;
mod gateway;
mod leader;
mod outlets;
pub(crate) mod purse;
mod work;

pub use self::ask::Abandoned;
pub(super) use self::ask::program;
pub(super) use self::gateway::Link;
pub(super) use self::leader::Sessions;
pub(super) use self::outlets::{Outlets, StreamName, Way};
pub use self::work::HubWork;

/// This node among the leaders that room is lent to; other nodes count from 1.
const SELF: purse::Leader = 0;
