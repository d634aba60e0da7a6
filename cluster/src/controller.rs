//! What a node does for its cluster besides answering: it watches the metadata, says that it has come, and, on
//! the leader of the metadata group, brings the cluster step by step into balance.
//!
//! The controller keeps nothing but what it tried in the last seconds: it looks (every node reports on its groups),
//! plans one step ([`plan`](crate::placement::plan)), does it, and looks again. Two controllers in the moment of a leader
//! change cannot harm: a step names the membership that it was planned from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::change_outcome::Outcome as Told;
use durahub_proto::peer::change_replicas::Change as Replicas;
use durahub_proto::peer::{
    ChangeOutcome, ChangeReplicas, FollowerReport, GroupReport, HandOver, Lead, Leads, Member,
    NodeReport, NotLeader, Replica, Voters,
};
use futures::future::join_all;
use prost::Message;
use tokio::time::Instant;

use crate::admission::Demand;
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::meta::change::{Answer, Change, Found, SetState, What};
use crate::meta::{Metadata, NodeRecord, SettingsRecord, State};
use crate::node::Inner;
use crate::peers::{Call, Method, Peer};
use crate::placement::plan::{GroupView, Held, NodeView, Step, View, next_step};

/// Pause between two looks when nothing is to be done.
const CALM_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a step.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// A leader moves for balance only so long after the last one that did, or after the controller took over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(1500);
/// A step that did not come true is left out so long, for the sake of others.
const TRIED_PAUSE: Duration = Duration::from_secs(5);
/// Time for a node to report.
const REPORT_TIME: Duration = Duration::from_secs(1);
/// Time for one step.
const STEP_TIME: Duration = Duration::from_secs(20);
/// Pause between two looks at the metadata when nobody tells of a change.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What a controller remembers between two steps.
struct Memory {
    /// When a leader last moved.
    handed_over: Instant,
    /// Steps that may not have come true.
    tried: Vec<(Step, Instant)>,
}

impl<M: Machine> Inner<M> {
    /// The metadata as last seen here.
    pub(crate) fn metadata(&self) -> Arc<Metadata> {
        self.metadata.read().clone()
    }

    /// Proposes a command of the cluster and reads its answer.
    pub(crate) async fn change(&self, what: What) -> Result<Answer, Error> {
        let reply = self.groups[0].propose_system(Change::encode(what)).await?;
        Answer::decode(reply).map_err(|error| Error::Unavailable(error.to_string()))
    }

    /// Keeps what this node knows of the cluster fresh.
    pub(crate) async fn watch_metadata(self: Arc<Self>) {
        let group = &self.groups[0];
        // Every node holds the metadata, always.
        let Ok(running) = group.group() else { return };
        loop {
            let changed = running.facts().changed.notified();
            tokio::pin!(changed);
            // Registered before the rows are read: a change in between is not missed.
            changed.as_mut().enable();
            let seen = group.peek(Metadata::read);
            if seen.settings.is_some() && seen != **self.metadata.read() {
                if let Some(book) = self.transport.addresses() {
                    let there = seen.nodes.values().filter(|node| node.state() != State::Removed);
                    book.extend(there.map(|node| (node.node, node.address.clone())));
                }
                let others = seen.nodes.values().filter(|node| {
                    let is_gone = matches!(node.state(), State::Removed | State::Expected);
                    !is_gone && node.node != self.node_id
                });
                let others: BTreeSet<u64> = others.map(|node| node.node).collect();
                self.others.send_if_modified(|known| {
                    let changed = *known != others;
                    *known = others;
                    changed
                });
                *self.metadata.write() = Arc::new(seen);
            }
            let _ = tokio::time::timeout(WATCH_PAUSE, changed).await;
        }
    }

    /// Says that this node has come, until the cluster has heard it.
    pub(crate) async fn announce(self: Arc<Self>) {
        let arrived = NodeRecord {
            node: self.node_id,
            address: self.address.clone(),
            zone: self.zone.clone(),
            state: State::Active.into(),
            incarnation: self.hello.incarnation,
        };
        loop {
            if self.metadata().settings.is_some() {
                match self.change(What::Arrive(arrived.clone())).await {
                    Ok(answer) if answer.refused.is_empty() => return,
                    Ok(answer) => return (self.expelled)(&answer.refused),
                    Err(error) => {
                        tracing::debug!(%error, "the cluster does not hear this node yet")
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs the controller while this node leads the metadata group.
    pub(crate) async fn control(self: Arc<Self>) {
        let mut leadership = self.groups[0].leadership();
        loop {
            let leads = |now: &Leadership| matches!(now, Leadership::Leader { .. });
            if leadership.wait_for(leads).await.is_err() {
                return;
            }
            tracing::info!("controlling the cluster");
            let mut memory = Memory { handed_over: Instant::now(), tried: Vec::new() };
            while leads(&leadership.borrow()) {
                let pause = match self.control_once(&mut memory).await {
                    Ok(true) => BUSY_PAUSE,
                    Ok(false) => CALM_PAUSE,
                    Err(error) => {
                        tracing::debug!(%error, "a step was not done");
                        CALM_PAUSE / 4
                    }
                };
                let _ = tokio::time::timeout(pause, leadership.changed()).await;
            }
        }
    }

    /// Does at most one step; true if there was one.
    async fn control_once(&self, memory: &mut Memory) -> Result<bool, Error> {
        let metadata = self.groups[0].peek(Metadata::read);
        if metadata.settings.is_none() {
            self.found().await?;
            return Ok(true);
        }
        let reports = self.reports(&metadata).await;
        memory.tried.retain(|(_, tried)| tried.elapsed() < TRIED_PAUSE);
        let tried = memory.tried.iter().map(|(step, _)| step.clone()).collect();
        let view = View { tried, ..view(&metadata, &reports) };
        let Some(step) = next_step(&view) else { return Ok(false) };
        if let Step::HandOver { .. } = step {
            let leader = self.step_leader(&step, &view);
            let active = leader.is_some_and(|leader| view.nodes[&leader].may_lead());
            if active && memory.handed_over.elapsed() < HAND_OVER_PAUSE {
                return Ok(false);
            }
            memory.handed_over = Instant::now();
        }
        tracing::info!(?step, "a step towards balance");
        let taken = self.take(step.clone(), &view, &reports).await;
        // A leader says that it hands over, not that it has.
        if taken.is_err() || matches!(step, Step::HandOver { .. }) {
            memory.tried.push((step, Instant::now()));
        }
        taken.map(|()| true)
    }

    fn step_leader(&self, step: &Step, view: &View) -> Option<u64> {
        match step {
            Step::AddLearner { group, .. }
            | Step::SetVoters { group, .. }
            | Step::RemoveLearner { group, .. }
            | Step::Drop { group, .. }
            | Step::HandOver { group, .. } => {
                view.groups.get(group)?.leader.filter(|leader| view.nodes.contains_key(leader))
            }
            Step::Remove { .. } => None,
        }
    }

    async fn found(&self) -> Result<(), Error> {
        let settings = SettingsRecord {
            replication_factor: self.replication_factor,
            partitions: self.identity.partitions,
        };
        let alone = BTreeMap::from([(self.node_id, self.address.clone())]);
        let members = if self.initial_members.is_empty() { &alone } else { &self.initial_members };
        let node = |(node, address): (&u64, &String)| NodeRecord {
            node: *node,
            address: address.clone(),
            ..NodeRecord::default()
        };
        let nodes = members.iter().map(node).collect();
        self.change(What::Found(Found { settings: Some(settings), nodes })).await.map(drop)
    }

    async fn take(
        &self,
        step: Step,
        view: &View,
        reports: &BTreeMap<u64, NodeReport>,
    ) -> Result<(), Error> {
        let leader = self.step_leader(&step, view).unwrap_or(self.node_id);
        let planned_from = |group: u32| {
            let report = reports
                .get(&leader)
                .and_then(|report| report.groups.iter().find(|report| report.group == group));
            report.map_or(0, |report| report.membership_index)
        };
        let (group, change) = match step {
            Step::AddLearner { group, node, address } => {
                (group, Replicas::AddLearner(Member { node, address }))
            }
            Step::SetVoters { group, voters } => {
                (group, Replicas::SetVoters(Voters { nodes: voters.into_iter().collect() }))
            }
            Step::RemoveLearner { group, node } => (group, Replicas::RemoveLearner(node)),
            Step::Drop { group, node, begun } => {
                (group, Replicas::DropReplica(Replica { node, begun }))
            }
            Step::HandOver { group, to } => {
                return self.hand_over(GroupId(group), leader, to).await;
            }
            Step::Remove { node } => {
                let state = State::Removed.into();
                return self.change(What::SetState(SetState { node, state })).await.map(drop);
            }
        };
        let request = ChangeReplicas { planned_from: planned_from(group), change: Some(change) };
        let payload = Bytes::from(request.encode_to_vec());
        self.ask(leader, GroupId(group), Method::ChangeReplicas, payload).await
    }

    /// Asks the leader of a group to hand over.
    pub(crate) async fn hand_over(
        &self,
        group: GroupId,
        leader: u64,
        to: u64,
    ) -> Result<(), Error> {
        let payload = Bytes::from(HandOver { to }.encode_to_vec());
        self.ask(leader, group, Method::HandOver, payload).await
    }

    async fn ask(
        &self,
        node: u64,
        group: GroupId,
        method: Method,
        payload: Bytes,
    ) -> Result<(), Error> {
        self.ask_within(node, group, method, payload, STEP_TIME).await
    }

    /// Asks a node for a change of what it leads or holds.
    pub(crate) async fn ask_within(
        &self,
        node: u64,
        group: GroupId,
        method: Method,
        payload: Bytes,
        time: Duration,
    ) -> Result<(), Error> {
        let answer = if node == self.node_id {
            Box::pin(self.answer_change(group, method, payload)).await
        } else {
            let call = Call { group, method, payload };
            self.transport
                .call(&self.peer(node), call, time)
                .await
                .map_err(|error| Error::Unavailable(error.to_string()))?
        };
        let answer =
            ChangeOutcome::decode(answer).map_err(|error| Error::Unavailable(error.to_string()))?;
        match answer.outcome {
            Some(Told::Done(_)) => Ok(()),
            Some(Told::NotLeader(NotLeader { leader })) => Err(Error::NotLeader { leader }),
            Some(Told::Unavailable(reason)) => Err(Error::Unavailable(reason)),
            None => Err(Error::Unavailable("the leader gave no outcome".into())),
        }
    }

    pub(crate) fn peer(&self, node: u64) -> Peer {
        let known = self.metadata();
        let address = known.nodes.get(&node).map(|node| node.address.clone());
        Peer { id: node, address: address.unwrap_or_default() }
    }

    /// How the groups of this node are.
    pub(crate) fn report(&self) -> NodeReport {
        let groups = self.groups.iter().filter_map(|partition| {
            let group = partition.group().ok()?;
            let (now, is_quarantined) = (group.progress(), group.is_quarantined());
            Some(GroupReport {
                group: partition.id().0,
                term: now.term,
                leader: now.leader.filter(|_| !is_quarantined),
                last_index: now.last_index,
                applied_index: now.applied_index,
                purged_index: now.purged_index,
                voters: now.voters,
                learners: now.learners,
                membership_index: now.membership_index,
                quarantined: is_quarantined,
                growing: !group.is_grown(),
                begun: partition.holding().map(|holding| holding.begun),
                joint_target: now.joint_target.unwrap_or_default(),
                followers: now
                    .followers
                    .into_iter()
                    .map(|(node, matched_index)| FollowerReport { node, matched_index })
                    .collect(),
            })
        });
        NodeReport {
            node: self.node_id,
            version: env!("CARGO_PKG_VERSION").into(),
            store_bytes: self.store_bytes(),
            groups: groups.collect(),
            draining: self.draining(),
            short: (self.admit)(Demand::Grows).is_err(),
            parts: true,
        }
    }

    /// Reports of all nodes that answer in time. Each is told who leads what it does not hold.
    pub(crate) async fn reports(&self, metadata: &Metadata) -> BTreeMap<u64, NodeReport> {
        let present = |node: &&NodeRecord| {
            !matches!(node.state(), State::Removed | State::Expected) && node.node != self.node_id
        };
        let leads = self.leads.lock().clone();
        let told = |node: u64| {
            let elsewhere = leads.iter().filter(|lead| !lead.members.contains(&node)).cloned();
            Leads { leads: elsewhere.collect() }.encode_to_vec()
        };
        self.hear(told(self.node_id).into());
        let asked = metadata.nodes.values().filter(present).map(|node| async move {
            let peer = Peer { id: node.node, address: node.address.clone() };
            let (group, payload) = (GroupId::METADATA, Bytes::from(told(node.node)));
            let call = Call { group, method: Method::Report, payload };
            let answer = self.transport.call(&peer, call, REPORT_TIME).await.ok()?;
            Some((node.node, NodeReport::decode(answer).ok()?))
        });
        let mut reports: BTreeMap<_, _> = join_all(asked).await.into_iter().flatten().collect();
        reports.insert(self.node_id, self.report());
        *self.leads.lock() = leads_of(self.identity.partitions, &reports);
        reports
    }
}

/// Who leads the partitions, and who holds them.
fn leads_of(partitions: u32, reports: &BTreeMap<u64, NodeReport>) -> Vec<Lead> {
    let lead = |group| {
        let (leader, report) = leader_report(group, reports)?;
        let members = report.voters.iter().chain(&report.learners).copied().collect();
        Some(Lead { group, term: report.term, leader, members })
    };
    (1..=partitions).filter_map(lead).collect()
}

/// Puts together what the nodes report.
fn view(metadata: &Metadata, reports: &BTreeMap<u64, NodeReport>) -> View {
    let nodes = metadata.nodes.iter().map(|(id, node)| {
        let draining = reports.get(id).is_some_and(|report| report.draining);
        let state = match node.state() {
            State::Active if draining => State::Draining,
            state => state,
        };
        let short = reports.get(id).is_some_and(|report| report.short);
        let (zone, address) = (node.zone.clone(), node.address.clone());
        let parts = reports.get(id).is_some_and(|report| report.parts);
        let reachable = reports.contains_key(id);
        (*id, NodeView { zone, address, state, short, reachable, parts })
    });
    let settings = metadata.settings.clone().unwrap_or_default();
    let mut groups = BTreeMap::new();
    for id in 0..=settings.partitions {
        let held = reports.iter().filter_map(|(node, report)| {
            let own = report.groups.iter().find(|own| own.group == id)?;
            let (begun, growing, quarantined) = (own.begun, own.growing, own.quarantined);
            Some((*node, Held { begun, growing, quarantined }))
        });
        let group = leader_report(id, reports).map(group_view).unwrap_or_default();
        groups.insert(id, GroupView { held: held.collect(), ..group });
    }
    View {
        replication_factor: settings.replication_factor.max(1) as usize,
        nodes: nodes.collect(),
        groups,
        tried: Vec::new(),
    }
}

/// What the leader of a group says of it: the one in the highest term, should two believe to lead.
pub(crate) fn leader_report(
    group: u32,
    reports: &BTreeMap<u64, NodeReport>,
) -> Option<(u64, &GroupReport)> {
    let leads = |(node, report): (&u64, &'_ NodeReport)| {
        let found = report.groups.iter().position(|report| report.group == group)?;
        (report.groups[found].leader == Some(*node)).then_some((*node, found))
    };
    reports
        .iter()
        .filter_map(leads)
        .map(|(node, found)| (node, &reports[&node].groups[found]))
        .max_by_key(|(_, report)| report.term)
}

fn group_view((leader, report): (u64, &GroupReport)) -> GroupView {
    let last = report.last_index.unwrap_or(0);
    let lag = report.followers.iter().filter_map(|follower| {
        follower.matched_index.map(|matched| (follower.node, last.saturating_sub(matched)))
    });
    GroupView {
        leader: Some(leader),
        voters: BTreeSet::from_iter(report.voters.iter().copied()),
        learners: BTreeSet::from_iter(report.learners.iter().copied()),
        joint_target: (!report.joint_target.is_empty())
            .then(|| BTreeSet::from_iter(report.joint_target.iter().copied())),
        lag: lag.collect(),
        held: BTreeMap::new(),
    }
}
