//! Changes of who holds a group: one safe step at a time, at the group's leader.
//!
//! A step is planned from one membership and refused when it is no longer that one, so two planners cannot
//! work against each other. Voters change through a joint membership, which openraft leaves by itself; if the
//! leader is lost in between, the next step asks for the same voters again and so ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use durahub_proto::peer::change_replicas::Change;
use durahub_proto::peer::{ChangeReplicas, Member};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::{BasicNode, ChangeMembers, RaftState};
use tokio::time::Instant;

use super::group::{Group, fatal};
use super::types::{LogId, Types};
use crate::error::Error;
use crate::machine::Machine;

/// How long another voter is asked to lead; elections follow by themselves.
const TRANSFER_TIME: Duration = Duration::from_millis(500);
/// Pause before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

impl<M: Machine> Group<M> {
    /// Does one step and returns when it is committed.
    pub(crate) async fn change_replicas(&self, request: ChangeReplicas) -> Result<(), Error> {
        let changes = match request.change {
            Some(Change::AddLearner(Member { node, address })) => {
                ChangeMembers::AddNodes(BTreeMap::from([(node, BasicNode::new(address))]))
            }
            Some(Change::SetVoters(voters)) => {
                ChangeMembers::ReplaceAllVoters(BTreeSet::from_iter(voters.nodes))
            }
            Some(Change::RemoveLearner(node)) => ChangeMembers::RemoveNodes(BTreeSet::from([node])),
            Some(Change::SetAddress(Member { node, address })) => {
                ChangeMembers::SetNodes(BTreeMap::from([(node, BasicNode::new(address))]))
            }
            // Nothing that the members change by.
            Some(Change::DropReplica(_)) | None => {
                return Err(Error::Unavailable("an unknown change of replicas".into()));
            }
        };
        let last_membership_log_id = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            *metrics.membership_config.log_id()
        };
        if last_membership_log_id.as_ref().map_or(0, |id| id.index()) != request.planned_from {
            return Err(Error::Unavailable("the membership has changed since the plan".into()));
        }
        let condition = Precondition::LastMembershipLogId { last_membership_log_id };
        // A voter that is no voter any more stays as a learner, until the next step.
        match self.raft.change_membership_if(changes, true, [condition]).await {
            Ok(_) => Ok(()),
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(error)) => Err(Error::Unavailable(error.to_string())),
        }
    }

    /// Log index of the membership here, if it is committed and a node is not in it, neither before nor after a change
    /// under way.
    pub(crate) async fn membership_without(&self, node: u64) -> Result<Option<u64>, Error> {
        let look = move |state: &RaftState<Types>| {
            let (committed, newest) =
                (state.membership_state.committed(), state.membership_state.effective());
            let is_settled = committed.log_id() == newest.log_id();
            let is_member = newest.nodes().any(|(member, _)| *member == node);
            let index = newest.log_id().as_ref().map_or(0, LogId::index);
            (is_settled && !is_member).then_some(index)
        };
        // Asked of the core itself: openraft's metrics may be behind it.
        self.raft.with_raft_state(look).await.map_err(fatal)
    }

    /// Whether this node leads and the other one has a vote.
    pub(crate) fn may_transfer(&self, to: u64) -> Result<(), Error> {
        let progress = self.progress();
        if !progress.voters.contains(&to) {
            let text = format!("node {to} has no vote in the partition");
            return Err(Error::Unavailable(text));
        }
        if !self.raft.is_leader() {
            return Err(Error::NotLeader { leader: progress.leader });
        }
        Ok(())
    }

    /// Asks to hand the leadership to another voter; may return before it has happened.
    ///
    /// From the first request on this node takes no more writes. The other one ignores a request while it lacks an
    /// entry, and on a busy group it often does: so it is asked again, until it has them all.
    pub(crate) async fn transfer_leader(&self, to: u64) -> Result<(), Error> {
        self.may_transfer(to)?;
        let (term, until) = (self.progress().term, Instant::now() + TRANSFER_TIME);
        while self.raft.is_leader() && self.progress().term == term && Instant::now() < until {
            self.raft.trigger().transfer_leader(to).await.map_err(fatal)?;
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }
}
