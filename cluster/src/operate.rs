//! What operators ask of a running node: the cluster's status, and changes of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use durahub_proto::peer::{
    AddNodeRequest, GroupStatus, NodeReport, NodeStatus, ReplicaStatus, StatusResponse,
};
use futures::future::{BoxFuture, join_all};
use tokio::time::Instant;

use crate::admin::{AdminError, AdminService};
use crate::controller::leader_report;
use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::meta::change::{Answer, SetState, What};
use crate::meta::{Metadata, NodeRecord, State};
use crate::node::Inner;

/// How long a transfer may take until the new leader is seen.
const TRANSFER_TIME: Duration = Duration::from_secs(5);

fn unavailable(error: Error) -> AdminError {
    AdminError::Unavailable(error.to_string())
}

fn done(answer: Answer) -> Result<u64, AdminError> {
    if answer.refused.is_empty() {
        Ok(answer.node)
    } else {
        Err(AdminError::Refused(answer.refused))
    }
}

impl<M: Machine> Inner<M> {
    async fn set_state(&self, node: u64, state: State) -> Result<(), AdminError> {
        let what = What::SetState(SetState { node, state: state.into() });
        done(self.change(what).await.map_err(unavailable)?).map(drop)
    }

    async fn status_now(&self) -> Result<StatusResponse, AdminError> {
        let metadata = self.groups[0].peek(Metadata::read);
        let reports = self.reports(&metadata).await;
        let settings = metadata.settings.clone().unwrap_or_default();
        let groups: Vec<GroupStatus> =
            (0..=self.identity.partitions).map(|group| group_status(group, &reports)).collect();
        let present = metadata.nodes.values().filter(|node| node.state() != State::Removed);
        let nodes = present.map(|node| node_status(node, &reports, &groups)).collect();
        Ok(StatusResponse {
            cluster: self.identity.cluster.clone(),
            node: self.node_id,
            partitions: self.identity.partitions,
            replication_factor: settings.replication_factor,
            nodes,
            groups,
        })
    }

    async fn transfer(&self, group: u32, to: u64) -> Result<(), AdminError> {
        if group > self.identity.partitions {
            let text = format!(
                "there is no partition {group}: they are 0 to {}",
                self.identity.partitions
            );
            return Err(AdminError::Refused(text));
        }
        let until = Instant::now() + TRANSFER_TIME;
        let mut last = AdminError::Unavailable(format!("partition {group} has no leader"));
        while Instant::now() < until {
            let metadata = self.groups[0].peek(Metadata::read);
            let reports = self.reports(&metadata).await;
            match leader_report(group, &reports) {
                Some((leader, _)) if leader == to => return Ok(()),
                Some((_, report)) if !report.voters.contains(&to) => {
                    let text = format!(
                        "node {to} has no vote in partition {group}, the nodes {:?} have",
                        report.voters
                    );
                    return Err(AdminError::Refused(text));
                }
                Some((leader, _)) => {
                    if let Err(error) = self.hand_over(GroupId(group), leader, to).await {
                        last = unavailable(error);
                    } else {
                        last = AdminError::Unavailable(format!("node {to} does not lead yet"));
                    }
                }
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Err(last)
    }

    /// Hands every group that this node leads to another node, as far as that is possible `within` the time, and not to
    /// one that drains as well: when all nodes stop at once, leads would go round between them until the last has gone.
    /// From now on the controller gives it no leader.
    pub(crate) async fn hand_over_all(&self, within: Duration) {
        self.set_draining();
        let until = Instant::now() + within;
        loop {
            let reports = self.reports(&self.groups[0].peek(Metadata::read)).await;
            let reports = &reports;
            let drains = |node: &u64| reports.get(node).is_some_and(|report| report.draining);
            let handed_over = self.groups.iter().map(|partition| async move {
                let now = partition.progress();
                let others = now.voters.iter().filter(|voter| **voter != self.node_id);
                let others = others.filter(|voter| !drains(voter));
                // The one that holds most, of those that answer.
                let to = others.max_by_key(|voter| {
                    let holds = now.followers.get(voter).copied().flatten();
                    (reports.contains_key(voter), holds)
                });
                let Some(to) = to.filter(|_| now.leader == Some(self.node_id)) else { return 0 };
                if let Err(error) = self.give_lead(partition, *to).await {
                    tracing::debug!(partition = %partition.id(), %error, "not handed over");
                }
                1
            });
            let led: usize = join_all(handed_over).await.into_iter().sum();
            if led == 0 || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn node_status(
    node: &NodeRecord,
    reports: &BTreeMap<u64, NodeReport>,
    groups: &[GroupStatus],
) -> NodeStatus {
    let report = reports.get(&node.node);
    let draining = report.is_some_and(|report| report.draining);
    let state = match node.state() {
        State::Active if draining => State::Draining,
        state => state,
    };
    let votes = |group: &&GroupStatus| {
        group.replicas.iter().any(|replica| replica.node == node.node && replica.voter)
    };
    NodeStatus {
        node: node.node,
        address: node.address.clone(),
        zone: node.zone.clone(),
        state: state.into(),
        reachable: report.is_some(),
        version: report.map(|report| report.version.clone()).unwrap_or_default(),
        store_bytes: report.map_or(0, |report| report.store_bytes),
        leads: groups.iter().filter(|group| group.leader == Some(node.node)).count() as u32,
        votes_in: groups.iter().filter(votes).count() as u32,
        holds: report.map_or(0, |report| report.groups.len() as u32),
    }
}

fn group_status(group: u32, reports: &BTreeMap<u64, NodeReport>) -> GroupStatus {
    let led = leader_report(group, reports);
    // Without a leader, whoever is in the highest term knows best who holds it.
    let known = led.map(|(_, report)| report).or_else(|| {
        let all = reports.values().flat_map(|report| &report.groups);
        all.filter(|report| report.group == group).max_by_key(|report| report.term)
    });
    let Some(known) = known else { return GroupStatus { group, ..GroupStatus::default() } };
    let replicas = known.voters.iter().map(|node| (*node, true));
    let replicas = replicas.chain(known.learners.iter().map(|node| (*node, false)));
    let replicas = replicas.map(|(node, voter)| {
        let report = reports.get(&node);
        let own = report.and_then(|report| report.groups.iter().find(|own| own.group == group));
        let applied = own.and_then(|own| own.applied_index);
        let lag = led.and_then(|(_, leader)| {
            Some(leader.last_index?.saturating_sub(applied.unwrap_or(0))).filter(|_| own.is_some())
        });
        ReplicaStatus {
            node,
            voter,
            reachable: report.is_some(),
            applied_index: applied,
            lag,
            quarantined: own.is_some_and(|own| own.quarantined),
        }
    });
    GroupStatus {
        group,
        leader: led.map(|(leader, _)| leader),
        term: known.term,
        replicas: replicas.collect(),
    }
}

impl<M: Machine> AdminService for Inner<M> {
    fn status(&self) -> BoxFuture<'_, Result<StatusResponse, AdminError>> {
        Box::pin(self.status_now())
    }

    fn add_node(&self, request: AddNodeRequest) -> BoxFuture<'_, Result<u64, AdminError>> {
        Box::pin(async move {
            let AddNodeRequest { node, address, zone } = request;
            let record = NodeRecord { node, address, zone, ..NodeRecord::default() };
            done(self.change(What::Expect(record)).await.map_err(unavailable)?)
        })
    }

    fn remove_node(&self, node: u64) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(self.set_state(node, State::Leaving))
    }

    fn transfer_leader(&self, group: u32, to: u64) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(self.transfer(group, to))
    }

    fn drain(&self, node: u64, undo: bool) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(self.set_state(node, if undo { State::Active } else { State::Draining }))
    }
}

/// Keeps the compiler from asking for a lifetime where a node is shared.
pub(crate) fn service<M: Machine>(inner: &Arc<Inner<M>>) -> Arc<dyn AdminService> {
    Arc::clone(inner) as Arc<dyn AdminService>
}
