//! The next step towards a balanced cluster: pure functions over what the controller sees.
//!
//! One step at a time is planned, done and looked at again, so a plan never outlives what it was made from.
//! In this order:
//! 1. a membership that was left half changed is finished;
//! 2. leaders are off nodes that drain, leave or are short of room, as far as another node can lead;
//! 3. every node that stays holds a copy of every group, as a learner at least: then any node can read;
//! 4. votes are where they should be: as many as the replication factor, spread over zones, balanced over
//!    nodes, with as few moves as possible, and only to copies that have caught up;
//! 5. nodes that leave lose their copies, and then their place in the cluster;
//! 6. who leads has a vote, and leaders are balanced.

use std::collections::{BTreeMap, BTreeSet};

use crate::meta::State;

/// Entries that a copy may lack and still count as caught up.
const NEAR: u64 = 1_000;

/// What the controller sees of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) replication_factor: usize,
    pub(crate) nodes: BTreeMap<u64, NodeView>,
    pub(crate) groups: BTreeMap<u32, GroupView>,
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
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AddLearner { group: u32, node: u64, address: String },
    SetVoters { group: u32, voters: BTreeSet<u64> },
    RemoveLearner { group: u32, node: u64 },
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

    /// Votes of each node that stays.
    fn votes(&self) -> BTreeMap<u64, usize> {
        let mut votes: BTreeMap<u64, usize> = self.staying().map(|(id, _)| (id, 0)).collect();
        for voter in self.groups.values().flat_map(|group| &group.voters) {
            votes.entry(*voter).and_modify(|count| *count += 1);
        }
        votes
    }
}

/// The next step, if any; groups without a leader are left alone.
pub(crate) fn next_step(view: &View) -> Option<Step> {
    let led = || view.groups.iter().filter(|(_, group)| group.leader.is_some());
    led()
        .find_map(|(id, group)| finish(*id, group))
        .or_else(|| led().find_map(|(id, group)| leave_leader(view, *id, group)))
        .or_else(|| led().find_map(|(id, group)| add_copy(view, *id, group)))
        .or_else(|| led().find_map(|(id, group)| place_votes(view, *id, group)))
        .or_else(|| led().find_map(|(id, group)| balance_votes(view, *id, group)))
        .or_else(|| led().find_map(|(id, group)| drop_copy(view, *id, group)))
        .or_else(|| remove(view))
        .or_else(|| led().find_map(|(id, group)| give_up_without_vote(view, *id, group)))
        .or_else(|| balance_leaders(view))
}

fn finish(id: u32, group: &GroupView) -> Option<Step> {
    let voters = group.joint_target.clone()?;
    Some(Step::SetVoters { group: id, voters })
}

fn add_copy(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let missing = view.staying().find(|(node, seen)| {
        seen.reachable && !group.voters.contains(node) && !group.learners.contains(node)
    });
    missing.map(|(node, seen)| Step::AddLearner { group: id, node, address: seen.address.clone() })
}

/// Votes that are missing, or on nodes that leave.
fn place_votes(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let wanted = view.replication_factor.min(view.staying().count());
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
    let caught_up = |node: &u64| {
        group.leader == Some(*node) || group.lag.get(node).is_some_and(|lag| *lag <= NEAR)
    };
    group
        .learners
        .iter()
        .chain(&group.voters)
        .filter(|node| !voters.contains(node) && view.stays(**node) && view.reachable(**node))
        .filter(|node| caught_up(node))
        .min_by_key(|node| (crowd(view, voters, **node), votes.get(node), **node))
        .copied()
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

/// Moves one vote to a better zone, or from the node with the most votes to the one with the fewest.
fn balance_votes(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let votes = view.votes();
    let count = |node: u64| votes.get(&node).copied().unwrap_or(0);
    let mut best: Option<(usize, usize, u64, u64)> = None;
    for from in &group.voters {
        let mut rest = group.voters.clone();
        rest.remove(from);
        let Some(to) = best_newcomer(view, group, &rest).filter(|to| to != from) else { continue };
        let better_zone = crowd(view, &rest, *from).saturating_sub(crowd(view, &rest, to));
        let lighter = count(*from).saturating_sub(count(to)).saturating_sub(1);
        let worse_zone = crowd(view, &rest, to) > crowd(view, &rest, *from);
        if (better_zone > 0 || lighter > 0) && !worse_zone {
            let gain = (better_zone, lighter, *from, to);
            best = best.max(Some(gain));
        }
    }
    let (_, _, from, to) = best?;
    let mut voters = group.voters.clone();
    voters.remove(&from);
    voters.insert(to);
    Some(Step::SetVoters { group: id, voters })
}

/// A copy on a node that leaves and no longer votes.
fn drop_copy(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    let node = group.learners.iter().copied().find(|learner| !view.stays(*learner))?;
    Some(Step::RemoveLearner { group: id, node })
}

/// A node that leaves and holds nothing any more.
fn remove(view: &View) -> Option<Step> {
    let holds = |node: u64| {
        view.groups
            .values()
            .any(|group| group.voters.contains(&node) || group.learners.contains(&node))
    };
    let leaving = view.nodes.iter().find(|(id, node)| node.state == State::Leaving && !holds(**id));
    leaving.map(|(node, _)| Step::Remove { node: *node })
}

/// Voters that can lead: active, with room, reachable, caught up.
fn candidates<'a>(view: &'a View, group: &'a GroupView) -> impl Iterator<Item = u64> + 'a {
    group.voters.iter().copied().filter(|voter| {
        let may = view.nodes.get(voter).is_some_and(NodeView::may_lead);
        may && view.reachable(*voter)
            && (group.leader == Some(*voter)
                || group.lag.get(voter).is_some_and(|lag| *lag <= NEAR))
    })
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
    let leader = group.leader?;
    if view.nodes.get(&leader).is_some_and(NodeView::may_lead) {
        return None;
    }
    let leads = leads(view);
    let to = candidates(view, group)
        .filter(|to| *to != leader)
        .min_by_key(|to| (leads.get(to).copied(), *to))?;
    Some(Step::HandOver { group: id, to })
}

/// A leader that lost its vote goes on leading, though its own copy counts for nothing.
fn give_up_without_vote(view: &View, id: u32, group: &GroupView) -> Option<Step> {
    if group.voters.contains(&group.leader?) {
        return None;
    }
    let leads = leads(view);
    let to = candidates(view, group).min_by_key(|to| (leads.get(to).copied(), *to))?;
    Some(Step::HandOver { group: id, to })
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
                .flat_map(|(id, group)| candidates(view, group).map(|to| (to, *id)))
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
mod tests {
    use super::*;

    fn view(nodes: &[(u64, &str, State)], groups: u32, voters: &[u64]) -> View {
        let nodes = nodes.iter().map(|(id, zone, state)| {
            let (zone, address) = ((*zone).to_owned(), format!("node-{id}:1"));
            (*id, NodeView { zone, address, state: *state, short: false, reachable: true })
        });
        let voters: BTreeSet<u64> = voters.iter().copied().collect();
        let group = |id: u32| {
            let leader = voters.iter().nth(id as usize % voters.len()).copied();
            let lag = voters.iter().map(|voter| (*voter, 0)).collect();
            (id, GroupView { leader, voters: voters.clone(), lag, ..GroupView::default() })
        };
        View {
            replication_factor: 3,
            nodes: nodes.collect(),
            groups: (0..groups).map(group).collect(),
        }
    }

    /// Does every step until there is none; checks that each one is safe.
    fn run(view: &mut View) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = next_step(view) {
            assert!(steps.len() < 500, "it never ends: {:?}", &steps[480..]);
            match step.clone() {
                Step::AddLearner { group, node, .. } => {
                    let group = view.groups.get_mut(&group).unwrap();
                    assert!(group.learners.insert(node));
                    group.lag.insert(node, 0);
                }
                Step::SetVoters { group, voters } => {
                    let group = view.groups.get_mut(&group).unwrap();
                    assert!(voters.iter().all(|voter| group.lag.contains_key(voter)));
                    assert!(voters.difference(&group.voters).count() <= 2, "{voters:?}");
                    let all: BTreeSet<u64> = &group.voters | &group.learners;
                    group.learners = &all - &voters;
                    // A leader that loses its vote leads on.
                    group.voters = voters;
                    group.joint_target = None;
                }
                Step::RemoveLearner { group, node } => {
                    assert!(view.groups.get_mut(&group).unwrap().learners.remove(&node));
                }
                Step::HandOver { group, to } => {
                    let group = view.groups.get_mut(&group).unwrap();
                    assert!(group.voters.contains(&to));
                    group.leader = Some(to);
                }
                Step::Remove { node } => {
                    view.nodes.get_mut(&node).unwrap().state = State::Removed;
                }
            }
            steps.push(step);
        }
        steps
    }

    fn spread(counts: impl IntoIterator<Item = usize>) -> usize {
        let counts: Vec<usize> = counts.into_iter().collect();
        counts.iter().max().unwrap() - counts.iter().min().unwrap()
    }

    const A: State = State::Active;

    #[test]
    fn balanced_cluster_is_left_alone() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 9, &[1, 2, 3]);
        assert_eq!(run(&mut view), []);
    }

    #[test]
    fn node_alone_becomes_three() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 9, &[1]);
        run(&mut view);
        assert!(view.groups.values().all(|group| group.voters == BTreeSet::from([1, 2, 3])));
        assert_eq!(leads(&view).into_values().collect::<Vec<_>>(), [3, 3, 3]);
    }

    #[test]
    fn three_nodes_become_five_and_three_again() {
        let five = [(1, "", A), (2, "", A), (3, "", A), (4, "", A), (5, "", A)];
        let mut view = view(&five, 17, &[1, 2, 3]);
        run(&mut view);
        assert!(spread(view.votes().into_values()) <= 1, "{:?}", view.votes());
        assert!(spread(leads(&view).into_values()) <= 1, "{:?}", leads(&view));
        for group in view.groups.values() {
            assert_eq!((group.voters.len(), group.learners.len()), (3, 2));
        }
        for leaving in [1, 2] {
            view.nodes.get_mut(&leaving).unwrap().state = State::Leaving;
            let steps = run(&mut view);
            assert_eq!(
                steps.iter().filter(|step| **step == Step::Remove { node: leaving }).count(),
                1
            );
        }
        assert!(view.groups.values().all(|group| group.voters == BTreeSet::from([3, 4, 5])));
        assert!(view.groups.values().all(|group| group.learners.is_empty()));
        assert!(spread([3, 4, 5].iter().map(|node| leads(&view)[node])) <= 1);
    }

    #[test]
    fn zones_get_one_vote_each() {
        let nodes = [(1, "a", A), (2, "a", A), (3, "b", A), (4, "b", A), (5, "c", A)];
        let mut view = view(&nodes, 8, &[1, 2, 3]);
        run(&mut view);
        for group in view.groups.values() {
            let zones: BTreeSet<&str> =
                group.voters.iter().map(|voter| view.zone(*voter)).collect();
            assert_eq!(zones.len(), 3, "{:?}", group.voters);
        }
    }

    #[test]
    fn votes_wait_for_copies_that_lag() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 1, &[1, 2, 3]);
        view.nodes.get_mut(&3).unwrap().state = State::Leaving;
        let group = view.groups.get_mut(&0).unwrap();
        group.learners.insert(4);
        group.lag.insert(4, NEAR + 1);
        assert_eq!(next_step(&view), None);
        view.groups.get_mut(&0).unwrap().lag.insert(4, 10);
        let voters = BTreeSet::from([1, 2, 4]);
        assert_eq!(next_step(&view), Some(Step::SetVoters { group: 0, voters }));
    }

    #[test]
    fn draining_node_keeps_its_votes_and_loses_its_leaders() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 9, &[1, 2, 3]);
        view.nodes.get_mut(&2).unwrap().state = State::Draining;
        let steps = run(&mut view);
        assert!(steps.iter().all(|step| matches!(step, Step::HandOver { .. })), "{steps:?}");
        assert_eq!(leads(&view), BTreeMap::from([(1, 5), (3, 4)]));
    }

    /// Seen when three nodes became five: 3 led two groups without a vote on 5, which led none.
    #[test]
    fn leaders_are_balanced_over_others_where_no_vote_fits() {
        let nodes = [(1, "", A), (2, "", A), (3, "", A), (4, "", A), (5, "", A)];
        let mut view = view(&nodes, 5, &[1, 2, 3]);
        let all = [(4, [1, 2, 5]), (2, [3, 4, 5]), (1, [3, 4, 5]), (3, [1, 2, 4]), (3, [1, 2, 3])];
        for (id, (leader, voters)) in (0..).zip(all) {
            let group = view.groups.get_mut(&id).unwrap();
            group.voters = BTreeSet::from(voters);
            group.learners = (1..=5).filter(|node| !voters.contains(node)).collect();
            group.leader = Some(leader);
            group.lag = (1..=5).map(|node| (node, 0)).collect();
        }
        let steps = run(&mut view);
        assert!(steps.iter().all(|step| matches!(step, Step::HandOver { .. })), "{steps:?}");
        assert_eq!(leads(&view).into_values().collect::<Vec<_>>(), [1; 5], "{steps:?}");
        assert!(view.groups.values().all(|group| group.voters.contains(&group.leader.unwrap())));
    }

    /// Two moves in a row, where each alone changes nothing.
    #[test]
    fn a_leader_moves_over_a_node_that_leads_as_many_before_and_after() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 3, &[1, 2]);
        view.replication_factor = 2;
        for (id, leader, voters) in [(0, 1, [1, 2]), (1, 1, [1, 2]), (2, 2, [2, 3])] {
            let group = view.groups.get_mut(&id).unwrap();
            group.voters = BTreeSet::from(voters);
            group.learners = (1..=3).filter(|node| !voters.contains(node)).collect();
            group.leader = Some(leader);
            group.lag = (1..=3).map(|node| (node, 0)).collect();
        }
        let moves = [Step::HandOver { group: 2, to: 3 }, Step::HandOver { group: 0, to: 2 }];
        let first = balance_leaders(&view);
        assert_eq!(first, Some(moves[0].clone()));
        view.groups.get_mut(&2).unwrap().leader = Some(3);
        assert_eq!(balance_leaders(&view), Some(moves[1].clone()));
        view.groups.get_mut(&0).unwrap().leader = Some(2);
        assert_eq!(balance_leaders(&view), None);
    }

    #[test]
    fn node_short_of_room_loses_its_leaders_until_it_has_some_again() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 9, &[1, 2, 3]);
        view.nodes.get_mut(&2).unwrap().short = true;
        let steps = run(&mut view);
        assert!(steps.iter().all(|step| matches!(step, Step::HandOver { .. })), "{steps:?}");
        assert_eq!(leads(&view), BTreeMap::from([(1, 5), (3, 4)]));
        // Where nobody has room, leaders stay where they are.
        for node in [1, 3] {
            view.nodes.get_mut(&node).unwrap().short = true;
        }
        assert_eq!(run(&mut view), []);
        view.nodes.values_mut().for_each(|node| node.short = false);
        run(&mut view);
        assert!(spread(leads(&view).into_values()) <= 1, "{:?}", leads(&view));
    }

    #[test]
    fn unreachable_node_gets_nothing_and_loses_nothing() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 4, &[1, 2, 3]);
        view.nodes.get_mut(&4).unwrap().reachable = false;
        view.nodes.get_mut(&3).unwrap().reachable = false;
        assert!(run(&mut view).iter().all(|step| matches!(step, Step::HandOver { .. })));
        assert!(view.groups.values().all(|group| group.voters == BTreeSet::from([1, 2, 3])));
    }

    #[test]
    fn half_changed_membership_is_finished_first() {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 4, &[1, 2, 3]);
        let target = BTreeSet::from([1, 2, 4]);
        view.groups.get_mut(&3).unwrap().joint_target = Some(target.clone());
        assert_eq!(next_step(&view), Some(Step::SetVoters { group: 3, voters: target }));
    }
}
