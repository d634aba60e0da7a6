//! Views of clusters, the step that follows, and where all steps lead to.

use super::*;

/// A replica that votes.
const HELD: Held = Held { begun: Some(1), growing: false, quarantined: false };

fn view(nodes: &[(u64, &str, State)], groups: u32, voters: &[u64]) -> View {
    let nodes = nodes.iter().map(|(id, zone, state)| {
        let (zone, address) = ((*zone).to_owned(), format!("node-{id}:1"));
        (*id, NodeView { zone, address, state: *state, short: false, reachable: true, parts: true })
    });
    let voters: BTreeSet<u64> = voters.iter().copied().collect();
    let group = |id: u32| {
        let leader = voters.iter().nth(id as usize % voters.len()).copied();
        let lag = voters.iter().map(|voter| (*voter, 0)).collect();
        let held = voters.iter().map(|voter| (*voter, HELD)).collect();
        (id, GroupView { leader, voters: voters.clone(), lag, held, ..GroupView::default() })
    };
    View {
        replication_factor: 3,
        nodes: nodes.collect(),
        groups: (0..groups).map(group).collect(),
        tried: Vec::new(),
    }
}

/// Does every step until there is none; checks that each one is safe.
fn run(view: &mut View) -> Vec<Step> {
    run_while(view, false)
}

/// The same, where copies of partitions grow only when nothing else is left to be done.
fn run_slowly(view: &mut View) -> Vec<Step> {
    run_while(view, true)
}

fn run_while(view: &mut View, growing: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        let Some(step) = next_step(view) else {
            let held = view.groups.values_mut().flat_map(|group| group.held.values_mut());
            let grown: usize =
                held.map(|held| usize::from(std::mem::take(&mut held.growing))).sum();
            if grown == 0 {
                return steps;
            }
            assert!(grown <= GROWING, "{grown} copies grow at the same time");
            continue;
        };
        assert!(steps.len() < 500, "it never ends: {:?}", &steps[480..]);
        match step.clone() {
            Step::AddLearner { group: id, node, .. } => {
                let group = view.groups.get_mut(&id).unwrap();
                assert!(group.learners.insert(node));
                group.lag.insert(node, 0);
                group.held.insert(node, Held { growing: growing && id != METADATA, ..HELD });
            }
            Step::SetVoters { group, voters } => {
                let group = view.groups.get_mut(&group).unwrap();
                assert!(voters.iter().all(|voter| group.lag.contains_key(voter)));
                assert!(
                    voters.iter().all(|voter| !group.held.get(voter).is_some_and(|it| it.growing))
                );
                assert!(voters.difference(&group.voters).count() <= 2, "{voters:?}");
                let all: BTreeSet<u64> = &group.voters | &group.learners;
                group.learners = &all - &voters;
                // A leader that loses its vote leads on.
                group.voters = voters;
                group.joint_target = None;
            }
            Step::RemoveLearner { group, node } => {
                let group = view.groups.get_mut(&group).unwrap();
                assert!(group.learners.remove(&node) && group.leader != Some(node));
            }
            Step::Drop { group, node, begun } => {
                assert_ne!(group, METADATA);
                let group = view.groups.get_mut(&group).unwrap();
                assert!(!group.is_member(node) && begun == 1);
                assert!(group.held.remove(&node).is_some());
            }
            Step::HandOver { group, to } => {
                let group = view.groups.get_mut(&group).unwrap();
                assert!(group.voters.contains(&to));
                group.leader = Some(to);
            }
            Step::Remove { node } => {
                // Its folder goes with it.
                view.groups
                    .values_mut()
                    .for_each(|group| group.held.retain(|held, _| *held != node));
                view.nodes.get_mut(&node).unwrap().state = State::Removed;
            }
        }
        steps.push(step);
    }
}

fn spread(counts: impl IntoIterator<Item = usize>) -> usize {
    let counts: Vec<usize> = counts.into_iter().collect();
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

const A: State = State::Active;

/// Each partition is on so many nodes, which all vote, evenly; the metadata are everywhere; nothing is left over.
fn assert_placed(view: &View, copies: usize) {
    for (id, group) in &view.groups {
        assert_eq!(group.voters.len(), copies, "{id}: {group:?}");
        let held: BTreeSet<u64> = group.held.keys().copied().collect();
        match *id {
            METADATA => {
                assert!(view.staying().all(|(node, _)| group.is_member(node)), "{group:?}");
            }
            _ => assert_eq!((&held, group.learners.len()), (&group.voters, 0), "{id}"),
        }
        assert!(group.voters.contains(&group.leader.unwrap()), "{id}");
    }
    assert!(spread(view.votes().into_values()) <= 1, "{:?}", view.votes());
    assert!(spread(leads(view).into_values()) <= 1, "{:?}", leads(view));
}

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
    let steps = run_slowly(&mut view);
    assert_placed(&view, 3);
    let copies = steps.iter().filter(|step| matches!(step, Step::AddLearner { group: 1.., .. }));
    // 48 votes: the newcomers need 9 or 10 each, and nothing is copied twice.
    assert!((18..=20).contains(&copies.count()), "{steps:?}");
    for leaving in [1, 2] {
        view.nodes.get_mut(&leaving).unwrap().state = State::Leaving;
        let steps = run_slowly(&mut view);
        assert_eq!(steps.iter().filter(|step| **step == Step::Remove { node: leaving }).count(), 1);
    }
    assert!(view.groups.values().all(|group| group.voters == BTreeSet::from([3, 4, 5])));
    view.nodes.retain(|_, node| node.state == A);
    assert_placed(&view, 3);
    assert_eq!(run(&mut view), [], "and so it stays");
}

#[test]
fn folders_of_before_give_up_what_is_too_much() {
    let five = [(1, "", A), (2, "", A), (3, "", A), (4, "", A), (5, "", A)];
    let mut view = view(&five, 9, &[1, 2, 3, 4, 5]);
    run(&mut view);
    assert_placed(&view, 3);
    for group in view.groups.values_mut() {
        let others: Vec<u64> = (1..=5).filter(|node| !group.voters.contains(node)).collect();
        group.learners.extend(&others);
        group.held.extend(others.into_iter().map(|node| (node, HELD)));
        group.lag = (1..=5).map(|node| (node, 0)).collect();
    }
    let old = view.clone();
    // As long as one of them runs the version of before, all stays.
    view.nodes.get_mut(&4).unwrap().parts = false;
    assert_eq!(run(&mut view), []);
    view = old;
    let steps = run(&mut view);
    assert_placed(&view, 3);
    let count = |kind: fn(&Step) -> bool| steps.iter().filter(|step| kind(step)).count();
    assert_eq!(count(|step| matches!(step, Step::Drop { .. })), 16);
    assert_eq!(count(|step| matches!(step, Step::RemoveLearner { .. })), 16);
    assert_eq!(steps.len(), 32, "{steps:?}");
}

#[test]
fn a_lost_node_that_is_removed_is_replaced_everywhere() {
    let nodes = [(1, "", A), (2, "", A), (3, "", A), (4, "", A), (5, "", A)];
    let mut view = view(&nodes, 11, &[1, 2, 3]);
    run(&mut view);
    view.nodes.get_mut(&2).unwrap().reachable = false;
    for group in view.groups.values_mut() {
        group.held.remove(&2);
        if group.leader == Some(2) {
            group.leader = group.voters.iter().copied().find(|voter| *voter != 2);
        }
    }
    let steps = run(&mut view);
    assert!(steps.iter().all(|step| matches!(step, Step::HandOver { .. })), "{steps:?}");
    view.nodes.get_mut(&2).unwrap().state = State::Leaving;
    run(&mut view);
    assert_eq!(view.nodes[&2].state, State::Removed);
    view.nodes.remove(&2);
    assert_placed(&view, 3);
}

/// The next step that changes who holds what.
fn placing(view: &View) -> Option<Step> {
    next_step(view).filter(|step| !matches!(step, Step::HandOver { .. }))
}

#[test]
fn a_copy_comes_before_the_vote_and_the_old_one_goes_after_it() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 3, &[1, 2, 3]);
    view.groups.get_mut(&0).unwrap().learners.insert(4);
    view.nodes.get_mut(&3).unwrap().state = State::Leaving;
    view.groups.get_mut(&0).unwrap().lag.insert(4, NEAR + 1);
    view.groups.values_mut().for_each(|group| group.leader = Some(1));
    let add = |group| Step::AddLearner { group, node: 4, address: "node-4:1".into() };
    for id in [1, 2] {
        assert_eq!(next_step(&view), Some(add(id)), "votes are missing in both");
        let group = view.groups.get_mut(&id).unwrap();
        group.learners.insert(4);
        group.lag.insert(4, 0);
        group.held.insert(4, Held { growing: true, ..HELD });
    }
    assert_eq!(placing(&view), None, "it waits until they have grown");
    view.groups.get_mut(&2).unwrap().held.insert(4, HELD);
    let voters = BTreeSet::from([1, 2, 4]);
    assert_eq!(next_step(&view), Some(Step::SetVoters { group: 2, voters: voters.clone() }));
    let group = view.groups.get_mut(&2).unwrap();
    (group.voters, group.learners) = (voters, BTreeSet::from([3]));
    assert_eq!(next_step(&view), Some(Step::RemoveLearner { group: 2, node: 3 }));
    view.groups.get_mut(&2).unwrap().learners.clear();
    assert_eq!(placing(&view), None, "a node that leaves need not clean up");
    view.nodes.get_mut(&3).unwrap().state = A;
    assert_eq!(next_step(&view), Some(Step::RemoveLearner { group: 1, node: 4 }), "not needed now");
    view.groups.get_mut(&1).unwrap().learners.clear();
    assert_eq!(next_step(&view), Some(Step::Drop { group: 1, node: 4, begun: 1 }));
}

#[test]
fn a_node_that_is_short_or_drains_is_given_no_copy() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 9, &[1, 2, 3]);
    view.groups.get_mut(&0).unwrap().learners.insert(4);
    for make in [
        (|node| node.short = true) as fn(&mut NodeView),
        |node| node.state = State::Draining,
        |node| node.reachable = false,
        |node| node.parts = false,
    ] {
        let mut view = view.clone();
        make(view.nodes.get_mut(&4).unwrap());
        assert_eq!(run(&mut view), []);
    }
    run(&mut view);
    assert_placed(&view, 3);
}

#[test]
fn a_learner_that_has_lost_its_replica_is_added_anew() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 2, &[1, 2]);
    view.replication_factor = 2;
    view.groups.get_mut(&0).unwrap().learners.extend([3, 4]);
    let group = view.groups.get_mut(&1).unwrap();
    group.voters = BTreeSet::from([1]);
    group.leader = Some(1);
    group.learners = BTreeSet::from([3]);
    group.held.remove(&2);
    group.lag.remove(&2);
    assert_eq!(next_step(&view), Some(Step::RemoveLearner { group: 1, node: 3 }));
    run(&mut view);
    assert_placed(&view, 2);
}

#[test]
fn a_copy_that_fails_on_one_node_is_made_on_another() {
    let five = [(1, "", A), (2, "", A), (3, "", A), (4, "", A), (5, "", A)];
    let mut view = view(&five, 2, &[1, 2, 3]);
    view.groups.get_mut(&0).unwrap().learners.extend([4, 5]);
    view.nodes.get_mut(&3).unwrap().state = State::Leaving;
    let add = |node| Step::AddLearner { group: 1, node, address: format!("node-{node}:1") };
    view.groups.get_mut(&0).unwrap().voters = BTreeSet::from([1, 2, 4]);
    view.groups.get_mut(&0).unwrap().learners = BTreeSet::from([5]);
    assert_eq!(placing(&view), Some(add(4)));
    view.tried.push(add(4));
    assert_eq!(placing(&view), Some(add(5)));
    view.tried.push(add(5));
    assert_eq!(placing(&view), None);
}

#[test]
fn one_copy_moves_with_its_lead() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 8, &[1]);
    view.replication_factor = 1;
    run_slowly(&mut view);
    for (_, group) in view.partitions() {
        let held: Vec<u64> = group.held.keys().copied().collect();
        assert_eq!((held, group.voters.len()), (group.leader.into_iter().collect(), 1));
        assert!(group.learners.is_empty() && group.voters.contains(&group.leader.unwrap()));
    }
    assert!(spread(view.votes().into_values()) <= 1, "{:?}", view.votes());
}

#[test]
fn zones_get_one_vote_each() {
    let nodes = [(1, "a", A), (2, "a", A), (3, "b", A), (4, "b", A), (5, "c", A)];
    let mut view = view(&nodes, 8, &[1, 2, 3]);
    run(&mut view);
    for group in view.groups.values() {
        let zones: BTreeSet<&str> = group.voters.iter().map(|voter| view.zone(*voter)).collect();
        assert_eq!(zones.len(), 3, "{:?}", group.voters);
    }
    assert_eq!(view.votes()[&5], 7, "the only one in its zone has all");
    assert!(view.groups.iter().all(|(id, group)| *id == METADATA || group.held.len() == 3));
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
        group.learners = (1..=5).filter(|node| id == 0 && !voters.contains(node)).collect();
        group.held = voters.iter().map(|voter| (*voter, HELD)).collect();
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
        group.learners = (1..=3).filter(|node| id == 0 && !voters.contains(node)).collect();
        group.held = voters.iter().map(|voter| (*voter, HELD)).collect();
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

/// A hand-over that does not come true holds up neither the same leader's other ways nor other steps.
#[test]
fn what_was_tried_a_moment_ago_is_left_out() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A), (4, "", A)], 2, &[1, 2, 3]);
    view.nodes.get_mut(&1).unwrap().state = State::Draining;
    assert_eq!(view.groups[&0].leader, Some(1));
    let first = Step::HandOver { group: 0, to: 3 };
    assert_eq!(next_step(&view), Some(first.clone()));
    view.tried.push(first);
    let second = Step::HandOver { group: 0, to: 2 };
    assert_eq!(next_step(&view), Some(second.clone()), "another node may take it");
    view.tried.push(second);
    let copy = Step::AddLearner { group: 0, node: 4, address: "node-4:1".into() };
    assert_eq!(next_step(&view), Some(copy.clone()), "or something else can be done");
    view.tried.push(copy);
    let other = next_step(&view);
    assert!(matches!(other, Some(Step::HandOver { group: 1, .. }) | None), "{other:?}");
    view.tried.clear();
    assert_eq!(next_step(&view), Some(Step::HandOver { group: 0, to: 3 }), "it is tried again");
}

#[test]
fn balance_goes_on_past_a_leader_that_does_not_move() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 6, &[1, 2, 3]);
    view.groups.values_mut().for_each(|group| group.leader = Some(1));
    let first = next_step(&view).unwrap();
    view.tried.push(first.clone());
    let other = next_step(&view).unwrap();
    assert!(matches!(other, Step::HandOver { .. }) && other != first, "{other:?}");
}

/// A node that goes away ends; one that is short of room still leads better than nobody.
#[test]
fn a_node_that_goes_hands_over_to_one_that_is_short_if_there_is_no_other() {
    for state in [State::Draining, State::Leaving] {
        let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 3, &[1, 2, 3]);
        view.nodes.get_mut(&2).unwrap().short = true;
        view.nodes.get_mut(&1).unwrap().state = state;
        assert_eq!(
            leave_leader(&view, 0, &view.groups[&0]),
            Some(Step::HandOver { group: 0, to: 3 })
        );
        view.nodes.get_mut(&3).unwrap().short = true;
        assert_eq!(
            leave_leader(&view, 0, &view.groups[&0]),
            Some(Step::HandOver { group: 0, to: 2 })
        );
        assert_eq!(leave_leader(&view, 1, &view.groups[&1]), None, "short to short moves nothing");
        view.nodes.get_mut(&2).unwrap().reachable = false;
        assert_eq!(
            leave_leader(&view, 0, &view.groups[&0]),
            Some(Step::HandOver { group: 0, to: 3 })
        );
    }
}

/// It is left where it is if it has a vote; without one it must go, to whoever can lead.
#[test]
fn a_leader_without_a_vote_goes_to_a_node_that_is_short() {
    let mut view = view(&[(1, "", A), (2, "", A), (3, "", A)], 1, &[2, 3]);
    view.groups.get_mut(&0).unwrap().leader = Some(1);
    view.nodes.values_mut().for_each(|node| node.short = true);
    let step = give_up_without_vote(&view, 0, &view.groups[&0]);
    assert_eq!(step, Some(Step::HandOver { group: 0, to: 2 }));
}
