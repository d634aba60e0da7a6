//! What openraft is instantiated with.
//!
//! Terms have at most one leader (`leader_id_std`), so a term alone fences what a leader handed out.
//! A proposal is the encoded batch of commands; its answer is one reply per command, delivered through
//! [`OnDone`] right from the task that applied it.

use std::fmt;

use bytes::Bytes;
use openraft::impls::leader_id_std;
use openraft::raft::responder::Responder;
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, EntryPayload, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::store::snapshot::Body;

/// openraft's type configuration of all groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl RaftTypeConfig for Types {
    type D = Proposal;
    type R = Replies;
    type NodeId = u64;
    type Node = BasicNode;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = openraft::impls::Vote<LeaderId>;
    type Payload = EntryPayload<Self::D, Self::NodeId, Self::Node>;
    type Entry = openraft::Entry<CommittedLeaderId, Self::Payload>;
    type AsyncRuntime = super::runtime::Runtime;
    type Responder<T>
        = OnDone<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = leader_id_std::LeaderId<u64, u64>;
pub(crate) type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, EntryPayload<Proposal, u64, BasicNode>>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<CommittedLeaderId, u64, BasicNode>;
pub(crate) type Snapshot = openraft::Snapshot<CommittedLeaderId, u64, BasicNode, Body>;

/// An encoded [`Batch`](crate::batch::Batch).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Payloads are never printed.
impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// One reply per command of a batch; none for openraft's own entries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Replies(pub(crate) Vec<Bytes>);

/// Called once with the outcome of a proposal.
pub(crate) struct OnDone<T>(Box<dyn FnOnce(T) + Send>);

impl<T> OnDone<T> {
    pub(crate) fn new(call: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(call))
    }
}

impl<T: OptionalSend + 'static> Responder<Types, T> for OnDone<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
