//! The next step towards a balanced cluster: pure functions over what the controller sees.
//!
//! One step at a time is planned, done and looked at again, so a plan never outlives what it was made from. A step that
//! was tried a moment ago and did not come true is left out, so one that keeps failing holds up no other. In this order:
//! 1. a membership that was left half changed is finished;
//! 2. leaders are off nodes that drain, leave or are short of room, as far as another node can lead; from a node that
//!    goes away to one that is short, if there is no other;
//! 3. every node that stays has a copy of the metadata, as a learner at least; a partition is on as many nodes as the
//!    replication factor says, and on one more while it moves;
//! 4. votes are where they should be: spread over zones, balanced over nodes, with as few moves as possible, and only on
//!    copies that have caught up and grown;
//! 5. who leads has a vote;
//! 6. copies that are of no use any more are removed, and given up by their nodes; nodes that leave lose their place;
//! 7. votes that are missing, or lie badly, get a new copy, on the node that fits best;
//! 8. leaders are balanced.
//!
//! A new copy for balance is begun only while nothing else moves, so it is planned from what the votes will be.

use std::collections::{BTreeMap, BTreeSet};

use crate::meta::State;

/// Entries that a copy may lack and still count as caught up.
const NEAR: u64 = 1_000;
/// Copies that grow at the same time, where votes are missing.
const GROWING: usize = 4;
/// The group that every node holds.
const METADATA: u32 = 0;

/// What the controller sees of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) replication_factor: usize,
    pub(crate) nodes: BTreeMap<u64, NodeView>,
    pub(crate) groups: BTreeMap<u32, GroupView>,
    /// What was tried a moment ago.
    pub(crate) tried: Vec<Step>,
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct NodeView {
    pub(crate) zone: String,
    pub(crate) address: String,
    pub(crate) state: State,
    /// It has no room for what grows.
    pub(crate) short: bool,
    /// It has answered lately.
    pub(crate) reachable: bool,
    /// Its version can hold some partitions and not others.
    pub(crate) parts: bool,
}

impl NodeView {
    /// Whether it should lead, if it can.
    pub(crate) fn may_lead(&self) -> bool {
        self.state == State::Active && !self.short
    }
}

/// One group.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupView {
    pub(crate) leader: Option<u64>,
    pub(crate) voters: BTreeSet<u64>,
    pub(crate) learners: BTreeSet<u64>,
    /// Voters that a change under way leads to.
    pub(crate) joint_target: Option<BTreeSet<u64>>,
    /// Entries that each other member lacks, as the leader knows; unknown ones are left out.
    pub(crate) lag: BTreeMap<u64, u64>,
    /// What nodes say that they have of it, members or not.
    pub(crate) held: BTreeMap<u64, Held>,
}

/// What a node has of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Which replica; unknown while that changes.
    pub(crate) begun: Option<u64>,
    /// It does not vote yet.
    pub(crate) growing: bool,
    /// It takes no part any more.
    pub(crate) quarantined: bool,
}

impl GroupView {
    fn is_member(&self, node: u64) -> bool {
        let target = self.joint_target.as_ref().is_some_and(|target| target.contains(&node));
        self.voters.contains(&node) || self.learners.contains(&node) || target
    }

    /// Whether a copy may get a vote.
    fn has_caught_up(&self, node: u64) -> bool {
        let is_unfit = self.held.get(&node).is_some_and(|held| held.growing || held.quarantined);
        let is_near = self.lag.get(&node).is_some_and(|lag| *lag <= NEAR);
        self.leader == Some(node) || (is_near && !is_unfit)
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AddLearner { group: u32, node: u64, address: String },
    SetVoters { group: u32, voters: BTreeSet<u64> },
    RemoveLearner { group: u32, node: u64 },
    Drop { group: u32, node: u64, begun: u64 },
    HandOver { group: u32, to: u64 },
    Remove { node: u64 },
}

impl View {
    fn staying(&self) -> impl Iterator<Item = (u64, &NodeView)> {
        let stays = |node: &NodeView| matches!(node.state, State::Active | State::Draining);
        self.nodes.iter().filter(move |(_, node)| stays(node)).map(|(id, node)| (*id, node))
    }

    fn stays(&self, node: u64) -> bool {
        self.staying().any(|(id, _)| id == node)
    }

    fn reachable(&self, node: u64) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.reachable)
    }

    fn zone(&self, node: u64) -> &str {
        self.nodes.get(&node).map_or("", |node| &node.zone)
    }

    fn is_fresh(&self, step: &Step) -> bool {
        !self.tried.contains(step)
    }

    /// Partitions in which each node that stays votes. The metadata, which is everywhere, does not count.
    fn votes(&self) -> BTreeMap<u64, usize> {
        let mut votes: BTreeMap<u64, usize> = self.staying().map(|(id, _)| (id, 0)).collect();
        for voter in self.partitions().flat_map(|(_, group)| &group.voters) {
            votes.entry(*voter).and_modify(|count| *count += 1);
        }
        votes
    }

    fn partitions(&self) -> impl Iterator<Item = (u32, &GroupView)> {
        let partitions = self.groups.iter().filter(|(id, _)| **id != METADATA);
        partitions.map(|(id, group)| (*id, group))
    }

    /// Learners of a partition on nodes that stay and answer: copies that come, or that are about to go.
    fn learners<'a>(&'a self, group: &'a GroupView) -> impl Iterator<Item = u64> + 'a {
        group.learners.iter().copied().filter(|node| self.stays(*node) && self.reachable(*node))
    }

    /// Copies of partitions that are no voters.
    fn extra_copies(&self) -> usize {
        self.partitions().map(|(_, group)| self.learners(group).count()).sum()
    }

    /// Whether all nodes that answer can hold some partitions and not others. While a cluster is being upgraded they
    /// cannot: then what is there stays.
    fn can_part(&self) -> bool {
        self.nodes.values().all(|node| node.parts || !node.reachable)
    }

    fn wanted_votes(&self) -> usize {
        self.replication_factor.min(self.staying().count())
    }
}

/// The next step, if any; groups without a leader are left alone.
pub(crate) fn next_step(view: &View) -> Option<Step> {
    let first = |plan: fn(&View, u32, &GroupView) -> Option<Step>| {
        let led = view.groups.iter().filter(|(_, group)| group.leader.is_some());
        led.filter_map(|(id, group)| plan(view, *id, group)).find(|step| view.is_fresh(step))
    };
    first(finish)
        .or_else(|| first(leave_leader))
        .or_else(|| first(copy_metadata))
        .or_else(|| first(place_votes))
        .or_else(|| first(swap_votes))
        .or_else(|| first(give_up_without_vote))
        .or_else(|| first(remove_copy))
        .or_else(|| first(drop_copy))
        .or_else(|| remove(view))
        .or_else(|| first(copy_for_missing))
        .or_else(|| first(copy_for_balance))
        .or_else(|| balance_leaders(view))
}

fn finish(_: &View, id: u32, group: &GroupView) -> Option<Step> {
    let voters = group.joint_target.clone()?;
    Some(Step::SetVoters { group: id, voters })
}

fn copy_metadata(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let missing = view.staying().find(|(node, seen)| seen.reachable && !group.is_member(*node))?;
    let (node, address) = (missing.0, missing.1.address.clone());
    (id == METADATA).then_some(Step::AddLearner { group: id, node, address })
}

/// Votes that are missing, or on nodes that leave.
fn place_votes(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let wanted = view.wanted_votes();
    let mut voters: BTreeSet<u64> =
        group.voters.iter().copied().filter(|voter| view.stays(*voter)).collect();
    while voters.len() < wanted {
        match best_newcomer(view, group, &voters) {
            Some(node) => voters.insert(node),
            // Copies are still catching up; until then the votes stay where they are.
            None => break,
        };
    }
    while voters.len() > wanted {
        voters.remove(&worst_voter(view, group, &voters)?);
    }
    // Never fewer votes than before while a replacement may still come.
    let settled = voters.len() == wanted || voters.len() > group.voters.len();
    (settled && voters != group.voters && !voters.is_empty())
        .then_some(Step::SetVoters { group: id, voters })
}

/// A copy that may get a vote: caught up, in a new zone if there is one, on the node with the fewest votes.
fn best_newcomer(view: &View, group: &GroupView, voters: &BTreeSet<u64>) -> Option<u64> {
    let votes = view.votes();
    group
        .learners
        .iter()
        .chain(&group.voters)
        .filter(|node| !voters.contains(node) && view.stays(**node) && view.reachable(**node))
        .filter(|node| group.has_caught_up(**node))
        .min_by_key(|node| (crowd(view, voters, **node), votes.get(node), **node))
        .copied()
}

/// A new copy where it belongs: in a new zone if there is one, on the node with the fewest votes; not where it has just
/// failed.
fn add_copy(
    view: &View,
    id: u32,
    group: &GroupView,
    voters: &BTreeSet<u64>,
) -> Option<(u64, Step)> {
    let mut votes = view.votes();
    for coming in view.partitions().flat_map(|(_, group)| view.learners(group)) {
        votes.entry(coming).and_modify(|count| *count += 1);
    }
    let fits = |node: &NodeView| node.may_lead() && node.reachable && node.parts;
    view.nodes
        .iter()
        .filter(|(node, seen)| fits(seen) && !group.is_member(**node) && !voters.contains(node))
        .map(|(node, seen)| {
            let (node, address) = (*node, seen.address.clone());
            (node, Step::AddLearner { group: id, node, address })
        })
        .filter(|(_, step)| view.is_fresh(step))
        .min_by_key(|(node, _)| (crowd(view, voters, *node), votes.get(node).copied(), *node))
}

/// The vote to give up: in the most crowded zone, on the node with the most votes, not the leader's.
fn worst_voter(view: &View, group: &GroupView, voters: &BTreeSet<u64>) -> Option<u64> {
    let votes = view.votes();
    voters
        .iter()
        .filter(|voter| group.leader != Some(**voter))
        .max_by_key(|voter| (crowd(view, voters, **voter), votes.get(voter), **voter))
        .copied()
}

/// Voters besides `node` in its zone. Nodes without a zone crowd nobody.
fn crowd(view: &View, voters: &BTreeSet<u64>, node: u64) -> usize {
    let zone = view.zone(node);
    if zone.is_empty() {
        return 0;
    }
    voters.iter().filter(|voter| **voter != node && view.zone(**voter) == zone).count()
}

/// What it brings to move a vote: a better zone, or one vote less on the node with more. Best gain first, the node that
/// loses its vote next.
fn gain(view: &View, id: u32, group: &GroupView, to: u64) -> Option<(usize, usize, u64)> {
    let votes = view.votes();
    let count = |node: u64| votes.get(&node).copied().unwrap_or(0);
    let from_each = group.voters.iter().filter(|from| view.stays(**from)).filter_map(|from| {
        let mut rest = group.voters.clone();
        rest.remove(from);
        let (old, new) = (crowd(view, &rest, *from), crowd(view, &rest, to));
        let better_zone = old.saturating_sub(new);
        // All nodes hold the metadata: no vote in it is heavier than another.
        let lighter = match id {
            METADATA => 0,
            _ => count(*from).saturating_sub(count(to)).saturating_sub(1),
        };
        let is_better = (better_zone > 0 || lighter > 0) && new <= old;
        is_better.then_some((better_zone, lighter, *from))
    });
    from_each.max()
}

/// Moves one vote to a copy that has caught up.
fn swap_votes(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let ready = view.learners(group).filter(|node| group.has_caught_up(*node));
    let gains = ready.filter_map(|to| Some((gain(view, id, group, to)?, to)));
    let ((.., from), to) = gains.max_by_key(|((zone, lighter, from), to)| {
        (*zone, *lighter, *from, std::cmp::Reverse(*to))
    })?;
    let mut voters = group.voters.clone();
    voters.remove(&from);
    voters.insert(to);
    Some(Step::SetVoters { group: id, voters })
}

/// A copy on a node that leaves and no longer votes; or one of a partition that nobody wants a vote of.
fn remove_copy(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let staying = group.voters.iter().filter(|voter| view.stays(**voter)).count();
    // Votes may be missing: then those that come are wanted, as many as that.
    let mut missing = view.wanted_votes().saturating_sub(staying);
    let mut is_wanted = |node: u64| {
        let is_short = view.nodes.get(&node).is_some_and(|node| node.short);
        // One that has lost its replica is added anew.
        if group.held.get(&node).is_none_or(|held| held.quarantined) {
            return false;
        }
        if missing > 0 && (!is_short || group.has_caught_up(node)) {
            missing -= 1;
            return true;
        }
        !is_short && gain(view, id, group, node).is_some()
    };
    let useless = |node: &u64| id != METADATA && view.can_part() && view.reachable(*node);
    let mut others = group.learners.iter().filter(|node| group.leader != Some(**node));
    let node = *others.find(|node| !view.stays(**node) || (useless(node) && !is_wanted(**node)))?;
    Some(Step::RemoveLearner { group: id, node })
}

/// A replica on a node that is no member.
fn drop_copy(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let stranger =
        |node: &u64| view.stays(*node) && view.reachable(*node) && !group.is_member(*node);
    let held = group.held.iter().filter(|(node, _)| id != METADATA && stranger(node));
    let mut steps = held
        .filter_map(|(node, held)| Some(Step::Drop { group: id, node: *node, begun: held.begun? }));
    steps.find(|step| view.can_part() && view.is_fresh(step))
}

/// A new copy where a vote is missing, or lies on a node that leaves.
fn copy_for_missing(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    if id == METADATA {
        return None;
    }
    let mut voters: BTreeSet<u64> =
        group.voters.iter().copied().filter(|voter| view.stays(*voter)).collect();
    voters.extend(view.learners(group));
    if voters.len() >= view.wanted_votes() || view.extra_copies() >= GROWING {
        return None;
    }
    add_copy(view, id, group, &voters).map(|(_, step)| step)
}

/// A new copy where a vote shall move to for balance, while nothing else moves.
fn copy_for_balance(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    if id == METADATA || !view.can_part() || view.extra_copies() > 0 {
        return None;
    }
    let whole = group.voters.len() == view.wanted_votes();
    let each = group.voters.iter().filter(|_| whole).filter_map(|from| {
        let mut rest = group.voters.clone();
        rest.remove(from);
        let (to, step) = add_copy(view, id, group, &rest)?;
        let (zone, lighter, _) = gain(view, id, group, to)?;
        Some(((zone, lighter, std::cmp::Reverse(to)), step))
    });
    each.max_by_key(|(gain, _)| *gain).map(|(_, step)| step)
}

/// A node that leaves and holds nothing any more.
fn remove(view: &View) -> Option<Step> {
    let holds = |node: u64| {
        view.groups
            .values()
            .any(|group| group.voters.contains(&node) || group.learners.contains(&node))
    };
    let leaving = view.nodes.iter().filter(|(_, node)| node.state == State::Leaving);
    let empty = leaving.filter(|(id, _)| !holds(**id));
    empty.map(|(node, _)| Step::Remove { node: *node }).find(|step| view.is_fresh(step))
}

/// Voters that can lead: active, reachable, caught up, and with room, if that `may` be asked for.
fn able<'a>(
    view: &'a View,
    (id, group): (u32, &'a GroupView),
    may: fn(&NodeView) -> bool,
) -> impl Iterator<Item = u64> + 'a {
    group.voters.iter().copied().filter(move |voter| {
        view.nodes.get(voter).is_some_and(may)
            && view.reachable(*voter)
            && group.has_caught_up(*voter)
            && view.is_fresh(&Step::HandOver { group: id, to: *voter })
    })
}

/// Voters that should lead, as others do.
fn candidates<'a>(view: &'a View, led: (u32, &'a GroupView)) -> impl Iterator<Item = u64> + 'a {
    able(view, led, NodeView::may_lead)
}

/// Who leads a group instead of its leader: the one with the fewest groups. A node that is short of room is better
/// than none where the leader has to go.
fn instead(view: &View, (id, group): (u32, &GroupView), must_go: bool) -> Option<Step> {
    let leads = leads(view);
    let fewest = |to: &u64| (leads.get(to).copied().unwrap_or(0), *to);
    let others = |may| able(view, (id, group), may).filter(|to| group.leader != Some(*to));
    let to = others(NodeView::may_lead).min_by_key(fewest).or_else(|| {
        let short = |node: &NodeView| node.state == State::Active;
        others(short).min_by_key(fewest).filter(|_| must_go)
    })?;
    Some(Step::HandOver { group: id, to })
}

/// Groups that each node leads, every node that may lead included.
fn leads(view: &View) -> BTreeMap<u64, usize> {
    let able = view.nodes.iter().filter(|(_, node)| node.may_lead());
    let mut leads: BTreeMap<u64, usize> = able.map(|(id, _)| (*id, 0)).collect();
    for leader in view.groups.values().filter_map(|group| group.leader) {
        *leads.entry(leader).or_default() += 1;
    }
    leads
}

fn leave_leader(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let leader = view.nodes.get(&group.leader?);
    if leader.is_some_and(NodeView::may_lead) {
        return None;
    }
    instead(view, (id, group), leader.is_none_or(|node| node.state != State::Active))
}

/// A leader that lost its vote goes on leading, though its own copy counts for nothing.
fn give_up_without_vote(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    if group.voters.contains(&group.leader?) {
        return None;
    }
    instead(view, (id, group), true)
}

/// Moves a leader from a node with many to one with at least two less: directly, or over others if no group that the
/// first one leads has a vote on the second. The last of these moves comes first, so the way is shorter afterwards, and
/// nobody leads more meanwhile than before.
fn balance_leaders(view: &View) -> Option<Step> {
    let leads = leads(view);
    let mut richest: Vec<(u64, usize)> =
        leads.iter().map(|(node, count)| (*node, *count)).collect();
    richest.sort_by_key(|(node, count)| (std::cmp::Reverse(*count), *node));
    richest.iter().find_map(|(from, most)| {
        let mut seen = BTreeSet::from([*from]);
        let mut reached = vec![*from];
        while !reached.is_empty() {
            let led = view
                .groups
                .iter()
                .filter(|(_, group)| group.leader.is_some_and(|leader| reached.contains(&leader)));
            let next: Vec<(u64, u32)> = led
                .flat_map(|(id, group)| candidates(view, (*id, group)).map(|to| (to, *id)))
                .filter(|(to, _)| !seen.contains(to))
                .collect();
            let poor = next.iter().filter_map(|(to, id)| Some((leads.get(to)?, to, id)));
            if let Some((_, to, group)) = poor.filter(|(count, ..)| *count + 1 < *most).min() {
                return Some(Step::HandOver { group: *group, to: *to });
            }
            reached = next.into_iter().map(|(to, _)| to).collect();
            seen.extend(&reached);
        }
        None
    })
}

#[cfg(test)]
mod tests;
