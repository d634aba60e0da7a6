//! Views of clusters, the step that follows, and where all steps lead to.

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
        tried: Vec::new(),
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
        assert_eq!(steps.iter().filter(|step| **step == Step::Remove { node: leaving }).count(), 1);
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
        let zones: BTreeSet<&str> = group.voters.iter().map(|voter| view.zone(*voter)).collect();
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
    let copy = |group| Step::AddLearner { group, node: 4, address: "node-4:1".into() };
    assert_eq!(next_step(&view), Some(copy(0)), "or something else can be done");
    view.tried.push(copy(0));
    assert_eq!(next_step(&view), Some(copy(1)), "in another group");
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
