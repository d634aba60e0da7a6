//! The room of one worker stream for one kind of work, lent to the leaders that may have work for it: pure.
//!
//! At any time, what is free and what is lent are all that the worker asked for, so it never has more items than
//! that from leaders that live. Only a leader that takes over items with the lead of a partition takes room that it was
//! not lent; as much is called back, from those who do not use it first. A leader that wants more is lent what is free, at once. The rest is called back
//! from the others: what is *idle* there in any case, and what is *owed*, even if it is in use, as far as the
//! one that wants has less than its share. So no room is stranded at a leader without work, and none starves
//! behind a leader with a flood of it.

use std::collections::{BTreeMap, VecDeque};

/// What to tell a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// So much more is lent.
    Lend(usize),
    /// How much is wanted back from now on.
    Recall { idle: usize, owed: usize },
}

/// A leader, by the id of its node.
pub(crate) type Leader = u64;

/// Room that is called back in one go for a leader with less than its share.
const OWED_AT_ONCE: usize = 16;

#[derive(Default)]
struct Loan {
    count: usize,
    idle: usize,
    owed: usize,
}

/// The room of a stream for one kind.
pub(crate) struct Purse {
    total: usize,
    free: usize,
    /// How much more is lent than there is: what comes back makes up for it first.
    over: usize,
    loans: BTreeMap<Leader, Loan>,
    /// Who wants more, and how much; the one that waits longest first.
    wants: VecDeque<(Leader, usize)>,
    /// Everything is called back and nothing lent any more.
    is_closing: bool,
}

impl Purse {
    /// Room for so many items, lent evenly; what cannot be divided goes to the first.
    pub(crate) fn new(total: usize, leaders: &[Leader]) -> Purse {
        let share = total / leaders.len().max(1);
        let mut loans: BTreeMap<_, _> = leaders
            .iter()
            .map(|leader| (*leader, Loan { count: share, ..Loan::default() }))
            .collect();
        let mut free = total - share * leaders.len();
        if let Some(first) = leaders.first().and_then(|first| loans.get_mut(first)) {
            first.count += std::mem::take(&mut free);
        }
        Purse { total, free, over: 0, loans, wants: VecDeque::new(), is_closing: false }
    }

    /// How much is lent to a leader.
    pub(crate) fn lent(&self, to: Leader) -> usize {
        self.loans.get(&to).map_or(0, |loan| loan.count)
    }

    /// Whether anything is lent.
    pub(crate) fn is_out(&self) -> bool {
        self.loans.values().any(|loan| loan.count > 0)
    }

    /// A leader can be reached: it will say what it wants.
    pub(crate) fn join(&mut self, leader: Leader) {
        self.loans.entry(leader).or_default();
    }

    /// A leader is lost, and what it had is free.
    pub(crate) fn leave(&mut self, leader: Leader) -> Vec<(Leader, Order)> {
        let count = self.loans.remove(&leader).map_or(0, |loan| loan.count);
        self.regain(count);
        self.wants.retain(|(wanting, _)| *wanting != leader);
        self.orders()
    }

    /// A leader wants so much more, from now on. One that was just lost may still be heard: it gets nothing.
    pub(crate) fn want(&mut self, leader: Leader, count: usize) -> Vec<(Leader, Order)> {
        if self.is_closing || !self.loans.contains_key(&leader) {
            return Vec::new();
        }
        match self.wants.iter_mut().find(|(wanting, _)| *wanting == leader) {
            Some((_, wanted)) => *wanted = count,
            None => self.wants.push_back((leader, count)),
        }
        self.wants.retain(|(_, wanted)| *wanted > 0);
        self.orders()
    }

    /// A leader gives back.
    pub(crate) fn back(&mut self, leader: Leader, count: usize) -> Vec<(Leader, Order)> {
        let Some(loan) = self.loans.get_mut(&leader) else { return Vec::new() };
        let count = count.min(loan.count);
        loan.count -= count;
        // What is owed goes first, as it does over there.
        let owed = loan.owed.min(count);
        loan.owed -= owed;
        loan.idle = loan.idle.saturating_sub(count - owed);
        self.regain(count);
        if owed > 0
            && let Some(at) = self.wants.iter().position(|(wanting, _)| *wanting == leader)
        {
            // It was somebody else's turn.
            let want = self.wants.remove(at);
            self.wants.extend(want);
        }
        self.orders()
    }

    /// A leader has taken so much for items that the worker had from another one. If that is more than there is, as
    /// much is called back.
    pub(crate) fn take(&mut self, leader: Leader, count: usize) -> Vec<(Leader, Order)> {
        let Some(loan) = self.loans.get_mut(&leader) else { return Vec::new() };
        loan.count += count;
        let free = self.free.min(count);
        self.free -= free;
        self.over += count - free;
        self.orders()
    }

    fn regain(&mut self, count: usize) {
        let over = self.over.min(count);
        self.over -= over;
        self.free += count - over;
    }

    /// Calls everything back for good.
    pub(crate) fn close(&mut self) -> Vec<(Leader, Order)> {
        self.is_closing = true;
        self.wants.clear();
        self.orders()
    }

    fn orders(&mut self) -> Vec<(Leader, Order)> {
        let mut orders = self.lend();
        orders.extend(self.recall());
        orders
    }

    /// Lends what is free, in turn, first to those with less than their share.
    fn lend(&mut self) -> Vec<(Leader, Order)> {
        let mut lent: BTreeMap<Leader, usize> = BTreeMap::new();
        let share = self.share();
        while self.free > 0 {
            let is_poor = |(leader, _): &(Leader, usize)| self.lent(*leader) < share;
            let at = self.wants.iter().position(is_poor).unwrap_or(0);
            let Some((leader, wanted)) = self.wants.remove(at) else { break };
            let Some(loan) = self.loans.get_mut(&leader) else { continue };
            self.free -= 1;
            loan.count += 1;
            *lent.entry(leader).or_default() += 1;
            if wanted > 1 {
                self.wants.push_back((leader, wanted - 1));
            }
        }
        lent.into_iter().map(|(leader, count)| (leader, Order::Lend(count))).collect()
    }

    /// Calls back what is wanted elsewhere, where that is news.
    fn recall(&mut self) -> Vec<(Leader, Order)> {
        let owed = self.owed();
        let wanted = self.over + self.wants.iter().map(|(_, wanted)| wanted).sum::<usize>();
        let mut orders = Vec::new();
        for (leader, loan) in &mut self.loans {
            let own = self.wants.iter().find(|(wanting, _)| wanting == leader);
            let idle = loan.count.min(wanted - own.map_or(0, |(_, wanted)| *wanted));
            let (idle, owed) = match self.is_closing {
                true => (loan.count, loan.count),
                false => (idle, owed.get(leader).copied().unwrap_or(0)),
            };
            // Less is not worth a message, unless it is nothing; and who has nothing has nothing to give.
            let is_news = owed != loan.owed || idle > loan.idle || (idle == 0 && loan.idle > 0);
            if is_news && loan.count > 0 {
                (loan.idle, loan.owed) = (idle, owed);
                orders.push((*leader, Order::Recall { idle, owed }));
            }
        }
        orders
    }

    /// What every leader has a right to.
    fn share(&self) -> usize {
        (self.total / self.loans.len().max(1)).max(1)
    }

    /// What leaders with more than others owe to those that want and have less than their share, and what is lent
    /// beyond all there is.
    fn owed(&self) -> BTreeMap<Leader, usize> {
        let share = self.share();
        let mut owed: BTreeMap<Leader, usize> = BTreeMap::new();
        let left = |owed: &BTreeMap<Leader, usize>, leader: &Leader, loan: &Loan| {
            loan.count - owed.get(leader).copied().unwrap_or(0)
        };
        for _ in 0..self.over {
            let loans = self.loans.iter().map(|(leader, loan)| (left(&owed, leader, loan), leader));
            if let Some((1.., leader)) = loans.max_by_key(|(left, _)| *left) {
                *owed.entry(*leader).or_default() += 1;
            }
        }
        for (wanting, wanted) in &self.wants {
            let has = self.lent(*wanting);
            let due = (*wanted).min(share.saturating_sub(has)).min(OWED_AT_ONCE);
            for more in 0..due {
                let others = self.loans.iter().filter(|(leader, _)| *leader != wanting);
                let richest = others
                    .map(|(leader, loan)| (left(&owed, leader, loan), *leader))
                    .max_by_key(|(left, _)| *left);
                match richest {
                    Some((left, leader)) if left > has + more => {
                        *owed.entry(leader).or_default() += 1;
                    }
                    _ => break,
                }
            }
        }
        owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECALL_1: Order = Order::Recall { idle: 1, owed: 1 };

    #[test]
    fn room_is_shared_and_moves_to_where_the_work_is() {
        let mut purse = Purse::new(10, &[0, 1, 2]);
        assert_eq!([0, 1, 2].map(|leader| purse.lent(leader)), [4, 3, 3]);
        // 1 has a flood: the others give what they do not need, and owe nothing.
        let idle = |count| Order::Recall { idle: count, owed: 0 };
        assert_eq!(purse.want(1, 100), [(0, idle(4)), (2, idle(3))]);
        assert_eq!(purse.back(0, 4), [(1, Order::Lend(4))]);
        assert_eq!(purse.back(2, 3), [(1, Order::Lend(3))], "nothing is stranded");
        assert_eq!(purse.lent(1), 10);
        // 2 has a right to its share, though 1 is busy.
        let owed = purse.want(2, 2);
        assert_eq!(owed, [(1, Order::Recall { idle: 2, owed: 2 })]);
        // What it then does not need is still wanted by 1.
        assert_eq!(purse.back(1, 1), [(2, Order::Lend(1)), (2, idle(1))]);
        assert_eq!(purse.back(1, 1), [(2, Order::Lend(1)), (1, idle(0)), (2, idle(2))]);
        assert_eq!((purse.lent(0), purse.lent(1), purse.lent(2)), (0, 8, 2));
    }

    #[test]
    fn who_is_lost_is_lent_nothing() {
        let mut purse = Purse::new(2, &[0, 1]);
        assert_eq!(purse.leave(1), []);
        assert_eq!(purse.want(1, 5), [], "it was heard a moment too late");
        assert_eq!(purse.want(0, 1), [(0, Order::Lend(1))]);
        assert_eq!(purse.want(1, 5), [], "nor is anything called back for it");
        purse.join(1);
        assert_eq!(purse.want(1, 1), [(0, RECALL_1)], "it is back");
    }

    #[test]
    fn leaders_take_turns_with_the_only_place() {
        let mut purse = Purse::new(1, &[0, 1, 2]);
        assert_eq!(purse.want(1, 5), [(0, RECALL_1)]);
        assert_eq!(purse.want(2, 5), []);
        assert_eq!(purse.back(0, 1), [(1, Order::Lend(1)), (1, RECALL_1)]);
        assert_eq!(purse.want(0, 5), []);
        assert_eq!(purse.back(1, 1), [(2, Order::Lend(1)), (2, RECALL_1)]);
        assert_eq!(purse.want(1, 5), []);
        assert_eq!(purse.back(2, 1), [(0, Order::Lend(1)), (0, RECALL_1)]);
    }

    #[test]
    fn a_want_that_is_over_moves_nothing_more() {
        let mut purse = Purse::new(4, &[0, 1]);
        assert_eq!(purse.want(1, 2), [(0, Order::Recall { idle: 2, owed: 0 })]);
        assert_eq!(purse.want(1, 0), [(0, Order::Recall { idle: 0, owed: 0 })]);
        // It was on its way already, and is lent to whoever asks first.
        assert_eq!(purse.back(0, 2), []);
        assert_eq!(purse.want(1, 1), [(1, Order::Lend(1))]);
        assert_eq!(purse.want(0, 1), [(0, Order::Lend(1))]);
    }

    #[test]
    fn a_want_for_more_than_there_is_stays_until_it_is_taken_back() {
        let mut purse = Purse::new(1, &[0, 1]);
        assert_eq!(purse.want(1, 9), [(0, RECALL_1)]);
        assert_eq!(purse.back(0, 1), [(1, Order::Lend(1))]);
        assert_eq!(purse.want(0, 1), [(1, RECALL_1)]);
        assert_eq!(purse.back(1, 1), [(0, Order::Lend(1)), (0, RECALL_1)], "1 still wants 8");
    }

    #[test]
    fn what_a_lost_leader_had_is_free_and_what_closes_comes_back() {
        let mut purse = Purse::new(3, &[0, 1, 2]);
        purse.want(0, 9);
        assert_eq!(purse.leave(2), [(0, Order::Lend(1))]);
        purse.join(2);
        assert_eq!(purse.lent(2), 0);
        let all = |count| Order::Recall { idle: count, owed: count };
        assert_eq!(purse.close(), [(0, all(2)), (1, all(1))]);
        assert!(purse.is_out());
        assert_eq!((purse.back(0, 2), purse.back(1, 1)), (vec![], vec![]));
        assert!(!purse.is_out());
        assert_eq!(purse.want(0, 3), [], "nothing is lent any more");
    }

    #[test]
    fn room_that_is_taken_over_comes_back_from_whoever_has_some() {
        let mut purse = Purse::new(4, &[0, 1]);
        // 1 led a partition whose two items 0 has now; it frees their room, and is asked for it.
        let recalls = purse.take(0, 2);
        assert!(recalls.contains(&(1, Order::Recall { idle: 2, owed: 0 })), "{recalls:?}");
        assert_eq!((purse.lent(0), purse.lent(1), purse.over), (4, 2, 2));
        purse.back(1, 2);
        assert_eq!((purse.free, purse.over), (0, 0), "it makes up for what was taken");
        // Nobody is lent more as long as there is too much.
        purse.take(0, 1);
        assert!(purse.want(1, 1).iter().all(|(_, order)| !matches!(order, Order::Lend(_))));
        purse.back(0, 1);
        assert_eq!((purse.free, purse.over), (0, 0));
        assert!(purse.back(0, 1).contains(&(1, Order::Lend(1))));
        // What was taken while the worker leaves comes back like all the rest.
        purse.close();
        let closing = purse.take(1, 3);
        assert!(closing.contains(&(1, Order::Recall { idle: 4, owed: 4 })), "{closing:?}");
        purse.back(1, 4);
        purse.back(0, 3);
        assert!(!purse.is_out() && purse.over == 0);
        assert_eq!(purse.take(7, 1), [], "one that is not known");
    }

    /// Whatever leaders do, a worker has no more than it asked for, and whoever wants gets its turn.
    #[test]
    fn room_is_neither_lost_nor_made() {
        for (total, leaders) in [(1, 3), (2, 3), (3, 2), (7, 4), (100, 5)] {
            let nodes: Vec<Leader> = (0..leaders).collect();
            let mut purse = Purse::new(total, &nodes);
            // What each leader has, holds, waits for and is asked for. The first has a flood of work, the others
            // something now and then.
            let mut has: Vec<usize> = nodes.iter().map(|node| purse.lent(*node)).collect();
            let mut busy = vec![0_usize; nodes.len()];
            let mut ready = vec![0_usize; nodes.len()];
            let mut wanted = vec![0_usize; nodes.len()];
            let mut asked = vec![(0_usize, 0_usize); nodes.len()];
            let mut served = vec![0; nodes.len()];
            let mut seed = 7_u64;
            for round in 0..4_000 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = (seed >> 33) as usize % nodes.len();
                let mut orders = Vec::new();
                ready[at] += if at == 0 { 3 } else { usize::from(round % 3 == 0) };
                if busy[at] > 0 {
                    // An item of it ends.
                    busy[at] -= 1;
                    let owed = asked[at].1.min(has[at] - busy[at]);
                    (has[at], asked[at].1) = (has[at] - owed, asked[at].1 - owed);
                    orders.extend(purse.back(nodes[at], owed));
                }
                let handed_out = ready[at].min(has[at] - busy[at]);
                (busy[at], ready[at]) = (busy[at] + handed_out, ready[at] - handed_out);
                served[at] += handed_out;
                let is_news = (wanted[at] == 0) != (ready[at] == 0);
                if is_news {
                    wanted[at] = ready[at];
                    orders.extend(purse.want(nodes[at], ready[at]));
                }
                let spare = has[at] - busy[at];
                let owed = asked[at].1.min(spare);
                let idle = asked[at].0.min(spare - owed);
                asked[at] = (asked[at].0 - idle, asked[at].1 - owed);
                has[at] -= owed + idle;
                orders.extend(purse.back(nodes[at], owed + idle));
                for (leader, order) in orders {
                    let leader = leader as usize;
                    match order {
                        Order::Lend(count) => {
                            has[leader] += count;
                            wanted[leader] = wanted[leader].saturating_sub(count);
                        }
                        Order::Recall { idle, owed } => asked[leader] = (idle, owed),
                    }
                }
                let sum = has.iter().sum::<usize>() + purse.free;
                assert_eq!(sum, total, "round {round} of {total} for {leaders}");
            }
            assert!(served.iter().all(|served| *served > 50), "{total}: {served:?}");
        }
    }
}
