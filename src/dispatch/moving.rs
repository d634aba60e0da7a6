//! Leases go with the lead of a partition, when it is handed over as planned: for balance, to drain a node, or because
//! an operator says so. So nothing runs a second time without a fault.
//!
//! The old leader *holds back* what waits: it hands out nothing more of the partition. It waits a moment for what it
//! sent to reach the workers' connections, tells the next leader which worker has which item ([`Moving`]), and only then
//! does the lead move. The next leader, if it leads in the very next term, takes these leases into its tables together
//! with what the rows say is open: workers' streams have names that all nodes know, and completions carry the old
//! leader's numbers, which such a lease remembers. The item is handed out again when its worker goes, as ever.
//!
//! Nothing of this is stored, and nothing depends on it. Leases that are not told, or that are told to a node that does
//! not lead next, are leases that were lost: their items are handed out again. One that is told wrongly cannot hold an
//! item up: the rows must say that its work is still wanted, only an item that a connection took is told, and the lease
//! ends with its stream, or by its time. Workers may for a moment have more than they asked for, until their gateway
//! has called as much room back; the old leader keeps its room meanwhile.
//!
//! A completion is proposed by the leader whose tables were looked at, and by nobody else ([`super::complete`]). So what
//! the old leader has committed is in the rows before the next one reads them, and of all else that one's tables hear.
//! What the old leader could not commit is asked of the new one; what it gets back from a worker, it gives back there.
//!
//! If the hand-over comes to nothing, the old leader reads its rows again and goes on.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use durahub_cluster::{GroupId, Leadership};
use durahub_proto::peer::ask::About;
use durahub_proto::peer::{Ask, Lease, TakeOver};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::feeds::StreamName;
use super::hub::{End, Key, Moving, StreamId};
use super::token::{ActivityWork, Token, Work};
use super::{Abandoned, Dispatcher, item_of};
use crate::engine::read::{self, Open};
use crate::engine::{Address, Item};
use crate::machine::{Partition, RowsView};

/// How long what was sent may take to reach the workers' connections.
const ARRIVAL: Duration = Duration::from_millis(200);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Time for telling the next leader.
const TELL_TIME: Duration = Duration::from_secs(1);
/// After this time without another term, the lead has not moved. What was told is forgotten then, too.
const MOVE_TIME: Duration = Duration::from_secs(2);

const NANOS_PER_MS: i64 = 1_000_000;

/// How the lead of one partition comes and goes.
#[derive(Default)]
pub(super) struct Moves {
    /// The term in which this node leads it; 0 while it does not.
    led: AtomicU64,
    /// The term in which nothing more is handed out, for the next leader's sake, and who that is.
    held: Mutex<(u64, u64)>,
    /// The same term, without a lock.
    held_term: AtomicU64,
    /// What the leader of a term has told.
    told: Mutex<Option<(u64, Vec<Lease>)>>,
    /// The lead should have moved by now.
    leads_on: Notify,
}

impl Moves {
    /// Nothing more is handed out in this term. False if this node was told so before.
    fn hold(&self, term: u64, to: u64) -> bool {
        let is_news = std::mem::replace(&mut *self.held.lock(), (term, to)) != (term, to);
        self.held_term.store(term, Ordering::Release);
        is_news
    }

    /// Work is handed out again, if it was held back in this term.
    fn release(&self, term: u64) -> bool {
        let mut held = self.held.lock();
        if held.0 != term {
            return false;
        }
        *held = (0, 0);
        self.held_term.store(0, Ordering::Release);
        true
    }
}

impl Dispatcher {
    fn moves(&self, partition: &Partition) -> &Moves {
        &self.0.moves[partition.id().0 as usize - 1]
    }

    /// Whether nothing of a partition is handed out, because another node shall lead it.
    pub(super) fn is_held(&self, partition: &Partition) -> bool {
        let moves = self.moves(partition);
        let held = moves.held_term.load(Ordering::Acquire);
        held != 0 && held == moves.led.load(Ordering::Acquire)
    }

    /// Nothing more of a partition is handed out in this term. False if that was said before.
    pub(super) fn begin_hold(&self, partition: &Partition, term: u64, to: u64) -> bool {
        self.moves(partition).hold(term, to)
    }

    /// Work is handed out again, if it was held back in this term; what was forgotten has to be told anew.
    pub(super) fn end_hold(&self, partition: &Partition, term: u64) -> bool {
        self.moves(partition).release(term)
    }

    /// Ends when a hand-over may have come to nothing.
    pub(super) async fn leads_on(&self, partition: &Partition) {
        self.moves(partition).leads_on.notified().await;
    }

    /// This node leads in this term from now on, or no longer. Returns what the leader before has told.
    pub(super) fn begin_term(&self, partition: &Partition, term: Option<u64>) -> Vec<Lease> {
        let moves = self.moves(partition);
        moves.led.store(term.unwrap_or(0), Ordering::Release);
        let told = term.and_then(|term| Some((term, moves.told.lock().take()?)));
        told.map_or_else(Vec::new, |(term, (told_in, leases))| match told_in + 1 == term {
            true => leases,
            false => Vec::new(),
        })
    }

    /// The lead of a partition is about to go to a node: tells it what workers have.
    pub(super) async fn tell_next_leader(&self, group: GroupId, to: u64) {
        let partition = self.partitions().iter().find(|partition| partition.id() == group);
        let (Some(partition), Some(peers)) = (partition, self.0.peers.get()) else { return };
        let term = self.moves(partition).led.load(Ordering::Acquire);
        if term == 0 || !self.begin_hold(partition, term, to) {
            return;
        }
        let (own, led) = (self.clone(), partition.clone());
        tokio::spawn(async move {
            tokio::time::sleep(MOVE_TIME).await;
            own.moves(&led).leads_on.notify_one();
        });
        let leases = self.hold_back(partition, term).await;
        let count = leases.len();
        let take_over = TakeOver { partition: group.0, term, leases };
        let question = Ask { hub: 0, about: Some(About::TakeOver(take_over)) };
        let question = Bytes::from(question.encode_to_vec());
        match peers.ask(to, question, TELL_TIME).await {
            Ok(_) => tracing::debug!(partition = %group, to, count, "told the next leader"),
            Err(error) => tracing::debug!(partition = %group, to, %error, "not told"),
        }
    }

    /// Hands out nothing more of what was led in this term, and says what workers have.
    pub(super) async fn hold_back(&self, partition: &Partition, term: u64) -> Vec<Lease> {
        let hubs: Vec<u32> = self.0.hubs.lock().keys().copied().collect();
        let mine =
            |hub| move |instance: &str| self.partition_of(hub, instance).id() == partition.id();
        let mut held = Vec::new();
        for hub in hubs {
            let keys = self.with_hub(hub, |tables| match self.leads_in(partition, term) {
                true => tables.hold_back(mine(hub)),
                // What is in the tables now is of another term, and stays.
                false => Vec::new(),
            });
            held.push((hub, keys));
            self.pump(hub);
        }
        let until = Instant::now() + ARRIVAL;
        let on_way =
            |(hub, keys): &(u32, Vec<Key>)| self.with_hub(*hub, |tables| tables.any_on_way(keys));
        while held.iter().any(on_way) && Instant::now() < until {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let now = self.0.clock.now();
        let mut leases = Vec::new();
        for (hub, keys) in held {
            self.with_hub(hub, |tables| {
                let outlets = self.0.outlets.lock();
                for moving in tables.tell(&keys, self.0.run, now) {
                    let name = moving.stream.and_then(|stream| outlets.name(stream));
                    leases.push(told(moving, name));
                }
            });
        }
        leases
    }

    /// The leader of a partition says what workers have, before this node leads it.
    pub(super) fn hear_of_leases(&self, told: TakeOver) {
        let TakeOver { partition, term, leases } = told;
        let known = self.partitions().iter().find(|known| known.id().0 == partition);
        let Some(partition) = known.cloned() else { return };
        *self.moves(&partition).told.lock() = Some((term, leases));
        let own = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(MOVE_TIME).await;
            own.moves(&partition).told.lock().take_if(|(of, _)| *of == term);
        });
    }

    /// An item of which the next leader was told comes back here: if that one leads now, it gets it back as well.
    pub(super) fn give_back_there(&self, token: Token) {
        let (own, Some(work)) = (self.clone(), &token.work) else { return };
        let (hub, key) = (work.hub(), work.key());
        let mut leadership = self.partition_of(hub, key.instance()).leadership();
        tokio::spawn(async move {
            let has_moved =
                |now: &Leadership| matches!(now, Leadership::Follower { leader: Some(_) });
            let _ = tokio::time::timeout(TELL_TIME, leadership.wait_for(has_moved)).await;
            let _ = own.abandon(hub, Abandoned::of(key.kind()), &token.to_text()).await;
        });
    }

    fn leads_in(&self, partition: &Partition, term: u64) -> bool {
        self.moves(partition).led.load(Ordering::Acquire) == term
    }

    /// Takes what workers have into the tables, as far as it is still open. Returns what else is open.
    pub(super) fn take_over(
        &self,
        partition: &Partition,
        told: Vec<Lease>,
        mut open: Vec<Open>,
    ) -> Vec<Open> {
        let hubs: Vec<u32> = self.0.hubs.lock().keys().copied().collect();
        for hub in hubs {
            let mine = |instance: &str| self.partition_of(hub, instance).id() == partition.id();
            self.with_hub(hub, |tables| tables.forget_moved(mine));
        }
        if told.is_empty() {
            return open;
        }
        let streams = self.0.outlets.lock().by_name();
        let mut told: HashMap<(u32, Key), Moving> = told
            .into_iter()
            .filter_map(|lease| {
                let moving = heard(lease, &streams)?;
                Some(((moving.work.hub(), moving.work.key()), moving))
            })
            .collect();
        let mut taken = BTreeSet::new();
        open.retain(|open| {
            let Some((hub, key, class)) = item_of(open.effect.clone()) else { return true };
            let Some(moving) = told.remove(&(hub, key.clone())) else { return true };
            let (id, now, work) = (self.next_id(), self.0.clock.now(), moving.work.clone());
            self.with_hub(hub, |tables| {
                tables.take_over(id, (key.clone(), class, open.since), moving, now);
            });
            // In this order: a completion that comes meanwhile ends the lease, or shows here.
            let is_current = partition.peek(|rows| is_current(&RowsView(rows), &work));
            if !is_current {
                self.with_hub(hub, |tables| tables.finish(&key, id, End::Again, now));
            } else {
                taken.insert(hub);
            }
            !is_current
        });
        // Gateways hear at once what room the leases take.
        taken.into_iter().for_each(|hub| self.pump(hub));
        open
    }
}

/// Whether the completion of this work would be accepted.
fn is_current(view: &RowsView<'_>, work: &Work) -> bool {
    match work {
        Work::Turn(turn) => read::turn_is_current(view, turn),
        Work::Activity(ActivityWork { task, .. }) => {
            let at = Address::new(task.hub, task.instance.clone());
            let item = Item { at, generation: task.generation, number: task.number };
            read::task(view, &item).is_some()
        }
        Work::Entity(batch) => read::batch_is_current(view, batch),
    }
}

fn told(moving: Moving, name: Option<StreamName>) -> Lease {
    let Moving { work, given: (run, lease), left, .. } = moving;
    let token = Token { run, lease, work: Some(work) }.to_text();
    let (run, stream) = name.unwrap_or_default();
    Lease { token, run, stream, left_ms: left.map(|left| (left / NANOS_PER_MS).unsigned_abs()) }
}

fn heard(lease: Lease, streams: &HashMap<StreamName, StreamId>) -> Option<Moving> {
    let Token { run, lease: given, work } = Token::from_text(&lease.token)?;
    Some(Moving {
        work: work?,
        given: (run, given),
        stream: streams.get(&(lease.run, lease.stream)).copied(),
        left: lease
            .left_ms
            .map(|ms| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(NANOS_PER_MS)),
    })
}
