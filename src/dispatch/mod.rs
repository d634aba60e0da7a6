//! Dispatch: from open work to workers and back, on the node that leads the work.
//!
//! Nothing here is stored. A partition's rows say what is open; its effects hint at what became open; this
//! room keeps queues, leases and waiting calls in memory, and a new leader rebuilds them from the rows
//! ([`leader`]). Losing all of it loses nothing: items are handed out again, and the engine accepts each
//! result once.
//!
//! The way of an item: an effect makes it *ready* in its hub ([`hub`], [`queue`]); a stream with room and a
//! fitting filter is found; the item is read from its partition and written as a wire message
//! ([`assemble`]); the stream carries it ([`feed`]), to another node's gateway over [`feeds`]. The completion
//! comes back with the item's token ([`token`]), to the leader again whatever gateway it reaches, is checked
//! against the lease and the [`limits`], and becomes a command ([`complete`]).
//!
//! When the lead of a partition is handed over as planned, its leases go with it ([`moving`]).
//!
//! Where a collector of traces is configured, [`traced`] tells it of each item.
//!
//! Where the rows of a partition are elsewhere, [`look`] reads them there.
//!
//! Messages between instances go another way: [`courier`] carries them from partition to partition.
//!
//! Locks: one mutex around all hubs, and inside it one around the outlets of their streams, held for table
//! look-ups only, never while reading rows or awaiting.

mod assemble;
mod complete;
mod courier;
mod feed;
mod feeds;
mod filter;
mod hub;
mod leader;
mod limits;
mod look;
mod meter;
mod moving;
mod queue;
mod reaper;
mod retention;
mod rules;
mod sweeper;
mod token;
mod traced;
mod waiters;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use durahub_cluster::{Leadership, Peers, Program, placement};
use durahub_proto::peer::{LeaderItem, leader_item};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use self::assemble::{Assembled, Form};
use self::feed::{Origin, Parcel};
use self::feeds::{Outlets, Sessions, Way};
use self::hub::{Assignment, End, Hub, Key};
use self::meter::Meters;
use self::moving::Moves;
use self::token::Token;
use self::waiters::Waiters;
use crate::clock::Clock;
use crate::engine::{Address, Class, Effect};
use crate::machine::Partition;
use crate::spans::Spans;

pub use complete::CompleteError;
pub use feed::{Closing, StreamOptions, WorkStream};
pub use feeds::{Abandoned, HubWork};
pub use hub::LeaseTimes;
pub use leader::Leaders;
pub use limits::Limits;
pub use look::{Reach, look, reach, see};
pub use retention::{Removed, Retention};
pub use rules::{CurrentRules, Rules};
pub use waiters::{Waiter, Wanted};

/// How dispatch behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long leases last.
    pub leases: LeaseTimes,
    /// How often an idle stream carries a health ping (R1.28).
    pub health_ping: std::time::Duration,
    /// Largest work item, in bytes, that is written to a stream (R1.27).
    pub item_bytes: usize,
    /// Larger histories, in bytes, are left out for workers that can ask for them (R3.30).
    pub stream_history_above: usize,
    /// How large instances may be, and how long they stay.
    pub rules: CurrentRules,
    /// Records what happens to items, if anybody wants to know.
    pub spans: Spans,
}

/// The dispatcher of a node; a cheap handle.
#[derive(Clone)]
pub struct Dispatcher(Arc<Shared>);

struct Shared {
    settings: Settings,
    clock: Clock,
    /// Names this run of the node in tokens.
    run: u64,
    partitions: Vec<Partition>,
    hubs: Mutex<HashMap<u32, Hub>>,
    /// Where the items of each stream go. Taken inside `hubs`, never the other way round.
    outlets: Mutex<Outlets>,
    sessions: Sessions,
    /// The other nodes; unset while this one is alone for good.
    peers: OnceLock<Peers>,
    waiters: Waiters,
    meters: Meters,
    /// Hubs that were deleted while this node runs: their streams end.
    closed_hubs: watch::Sender<BTreeSet<u32>>,
    /// Wakes the task that clears deleted hubs.
    hub_deleted: Notify,
    /// Wakes the task that removes what has stayed long enough.
    retention_set: Notify,
    /// Hears what it has removed.
    removed_told: Arc<OnceLock<retention::Told>>,
    next_id: AtomicU64,
    /// The first lease that each partition may have given out since this node leads it.
    first_lease: Vec<AtomicU64>,
    /// The term of each partition since when all its open work is in the tables, unless it is held back; 0 while it is not.
    rebuilt: Vec<AtomicU64>,
    /// How the lead of each partition comes and goes.
    moves: Vec<Moves>,
    /// Nothing is handed out any more.
    paused: AtomicBool,
    /// Nothing is handed out, and no timer fires, until there is room again.
    halted: watch::Sender<bool>,
    /// Wakes the task that ends leases and delays.
    deadline: Notify,
}

impl Dispatcher {
    /// A dispatcher for the partitions of this node, in the order of their numbers.
    pub fn new(settings: Settings, clock: Clock, partitions: Vec<Partition>) -> Dispatcher {
        let run = clock.entropy();
        let first_lease = partitions.iter().map(|_| AtomicU64::new(0)).collect();
        let rebuilt = partitions.iter().map(|_| AtomicU64::new(0)).collect();
        let moves = partitions.iter().map(|_| Moves::default()).collect();
        Dispatcher(Arc::new(Shared {
            settings,
            clock,
            run,
            partitions,
            hubs: Mutex::default(),
            outlets: Mutex::new(Outlets::new(run)),
            sessions: Sessions::default(),
            peers: OnceLock::new(),
            waiters: Waiters::default(),
            meters: Meters::default(),
            closed_hubs: watch::Sender::default(),
            hub_deleted: Notify::new(),
            retention_set: Notify::new(),
            removed_told: Arc::default(),
            next_id: AtomicU64::new(1),
            first_lease,
            rebuilt,
            moves,
            paused: AtomicBool::new(false),
            halted: watch::Sender::default(),
            deadline: Notify::new(),
        }))
    }

    /// Other rules hold from now on, here and for all who share them.
    pub fn set_rules(&self, rules: Rules) {
        self.0.settings.rules.set(rules);
        // What is kept shorter now may have to go at once.
        self.0.retention_set.notify_one();
    }

    fn rules(&self) -> Rules {
        self.0.settings.rules.get()
    }

    /// Registers a wait for an instance.
    pub fn wait_for(&self, at: &Address, wanted: Wanted) -> Waiter {
        self.0.waiters.register(at, wanted)
    }

    /// Works together with the dispatchers of the other nodes from now on: workers here are handed what is led
    /// there. `tasks` keeps it going; other nodes reach this one through [`Dispatcher::program`].
    pub fn join(&self, peers: Peers, tasks: &mut JoinSet<()>) {
        if self.0.peers.set(peers.clone()).is_ok() {
            tasks.spawn(self.clone().link_members(peers));
        }
    }

    /// What answers the dispatchers of other nodes.
    pub fn program(&self) -> Arc<dyn Program> {
        feeds::program(self.clone())
    }

    /// Whether any item is with a worker, as a leader or, once paused, as a gateway.
    pub fn is_busy(&self) -> bool {
        self.0.hubs.lock().values().any(Hub::is_busy) || self.0.outlets.lock().is_busy()
    }

    /// Hands out nothing more, on streams that are open or that are opened later, and lets no other node hand out
    /// anything on them: the node is going away.
    pub fn pause(&self) {
        self.0.paused.store(true, Ordering::Release);
        self.call_back_all();
    }

    /// Hands out nothing that this node leads and fires no timer, or does again: while room is short, nothing shall
    /// grow. What workers have is still taken in.
    pub fn set_halted(&self, halted: bool) {
        self.0.halted.send_replace(halted);
        if !halted {
            let hubs: Vec<u32> = self.0.hubs.lock().keys().copied().collect();
            hubs.into_iter().for_each(|hub| self.pump(hub));
        }
    }

    /// Ends once nothing is halted.
    async fn released(&self) {
        // The sender lives as long as this dispatcher.
        let _ = self.0.halted.subscribe().wait_for(|halted| !halted).await;
    }

    /// What waits and what runs, per hub.
    pub fn load(&self) -> Vec<HubLoad> {
        let hubs = self.0.hubs.lock();
        let load = hubs.iter().map(|(id, hub)| HubLoad {
            hub: *id,
            turns: hub.counts(hub::Kind::Turn),
            activities: hub.counts(hub::Kind::Activity),
            entities: hub.counts(hub::Kind::Entity),
            streams: hub.stream_count(),
            oldest_turn: hub.oldest(hub::Kind::Turn),
            oldest_activity: hub.oldest(hub::Kind::Activity),
            oldest_entity: hub.oldest(hub::Kind::Entity),
        });
        load.collect()
    }

    /// All partitions, in the order of their numbers.
    pub fn partitions(&self) -> &[Partition] {
        &self.0.partitions
    }

    /// The partition that holds an instance.
    pub fn partition_of(&self, hub: u32, instance: &str) -> &Partition {
        let partitions = &self.0.partitions;
        let group = placement::partition_of(hub, instance, partitions.len() as u32);
        &partitions[group.0 as usize - 1]
    }

    /// Ends once a hub is deleted.
    pub async fn hub_closed(&self, hub: u32) {
        let mut closed = self.0.closed_hubs.subscribe();
        // The sender lives as long as this dispatcher.
        let _ = closed.wait_for(|closed| closed.contains(&hub)).await;
    }

    /// Leases that the partition gave out before are forgotten.
    fn begin_leases(&self, partition: &Partition) {
        let first = &self.0.first_lease[partition.id().0 as usize - 1];
        first.store(self.next_id(), Ordering::Release);
    }

    /// Whether a lease was given out since this node leads the partition of its instance.
    fn knows_lease(&self, run: u64, lease: u64, hub: u32, instance: &str) -> bool {
        let partition = self.partition_of(hub, instance).id().0 as usize;
        run == self.0.run && lease >= self.0.first_lease[partition - 1].load(Ordering::Acquire)
    }

    /// Whether the work of a partition can be counted here.
    fn has_rebuilt(&self, partition: &Partition) -> bool {
        let rebuilt = self.0.rebuilt[partition.id().0 as usize - 1].load(Ordering::Acquire);
        rebuilt != 0 && !self.is_held(partition)
    }

    /// Whether the tables hold all that the last leader of an instance told, and all that was open then.
    fn has_settled(&self, hub: u32, instance: &str) -> bool {
        let partition = self.partition_of(hub, instance);
        let term = self.0.rebuilt[partition.id().0 as usize - 1].load(Ordering::Acquire);
        *partition.leadership().borrow() == Leadership::Leader { term }
    }

    /// All open work of a partition is in the tables, as the leader of that term; `None`: no longer.
    fn set_rebuilt(&self, partition: &Partition, term: Option<u64>) {
        let rebuilt = &self.0.rebuilt[partition.id().0 as usize - 1];
        rebuilt.store(term.unwrap_or(0), Ordering::Release);
    }

    fn next_id(&self) -> u64 {
        self.0.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn with_hub<T>(&self, hub: u32, f: impl FnOnce(&mut Hub) -> T) -> T {
        let leases = self.0.settings.leases;
        let (result, deadline_moved) = {
            let mut hubs = self.0.hubs.lock();
            let tables = hubs.entry(hub).or_insert_with(|| Hub::new(leases));
            let before = tables.next_deadline();
            let result = f(tables);
            let after = tables.next_deadline();
            // What comes late for a hub that was deleted leaves nothing behind.
            if tables.is_unused() && self.0.closed_hubs.borrow().contains(&hub) {
                hubs.remove(&hub);
            }
            (result, after.is_some_and(|now| before.is_none_or(|before| now < before)))
        };
        if deadline_moved {
            self.0.deadline.notify_one();
        }
        result
    }

    /// Takes in an effect of a partition that this node leads, true since that time. Returns the hub that
    /// may have work now.
    fn take_in(&self, effect: Effect, since: i64) -> Option<u32> {
        match effect {
            Effect::TurnReady { .. }
            | Effect::ActivityReady { .. }
            | Effect::EntityReady { .. } => {
                let (hub, key, class) = item_of(effect)?;
                // The next leader finds it in the rows, and so does this one if it leads on.
                if self.is_held(self.partition_of(hub, key.instance())) {
                    return None;
                }
                self.with_hub(hub, |hub| hub.ready(key, class, since));
                return Some(hub);
            }
            Effect::InstanceChanged { at, status } => self.0.waiters.changed(&at, status),
            Effect::InstanceGone { at } => self.0.waiters.gone(&at),
            Effect::HubGone { hub } => {
                self.0.closed_hubs.send_modify(|closed| {
                    closed.insert(hub);
                });
                // Nothing of it is handed out any more; streams that are still open end now.
                self.0.hubs.lock().remove(&hub);
                self.0.meters.forget(hub);
            }
            Effect::InstanceStarted { hub } => self.0.meters.of(hub).started(),
            Effect::InstanceEnded { hub, status, nanos } => {
                self.0.meters.of(hub).ended(status, nanos);
            }
            Effect::SweepDue
            | Effect::TimerSet { .. }
            | Effect::MessageSent
            | Effect::RetentionSet => {}
        }
        None
    }

    /// Hands out what can be handed out in a hub, and sees to the room of its streams.
    fn pump(&self, hub: u32) {
        let is_paused = || self.0.paused.load(Ordering::Acquire) || *self.0.halted.borrow();
        loop {
            let paused = is_paused();
            if !paused {
                let (id, now) = (self.next_id(), self.0.clock.now());
                if let Some(assignment) = self.with_hub(hub, |hub| hub.assign(now, id)) {
                    self.deliver(hub, assignment);
                    continue;
                }
            }
            let settled = self.with_hub(hub, |tables| {
                let notes = tables.settle(!paused);
                if !notes.is_empty() {
                    let mut outlets = self.0.outlets.lock();
                    notes.iter().for_each(|note| outlets.note(*note, tables));
                }
                notes.is_empty()
            });
            // What was told may have changed the room here; and what paused may have gone on meanwhile, and told of
            // room before this did.
            if settled && paused == is_paused() {
                return;
            }
        }
    }

    fn deliver(&self, hub: u32, to: Assignment) {
        let Assignment { key, stream, lease, .. } = &to;
        let partition = self.partition_of(hub, key.instance());
        if self.is_held(partition) {
            return self.drop_assignment(hub, &to, End::Later);
        }
        let now = self.0.clock.now();
        let form = Form {
            now,
            limit: self.0.settings.item_bytes,
            stream_history_above: to
                .streams_history
                .then_some(self.0.settings.stream_history_above),
            turn: to.turn.as_ref(),
        };
        match partition.peek(|rows| assemble::assemble(rows, hub, key, form)) {
            Assembled::Item { work, mut item, bytes } => {
                let may_go = self.with_hub(hub, |hub| hub.assembled(&to, work.clone(), bytes, now));
                if !may_go {
                    return;
                }
                let token = Token { run: self.0.run, lease: *lease, work: Some(work) };
                item.completion_token = token.to_text();
                self.0.meters.of(hub).sent(key.kind(), now - to.since);
                self.begin_span(hub, &to, &item, now);
                // A stream that has gone gives its leases back when it is closed.
                let way = self.0.outlets.lock().way(*stream);
                // Under the lock: then items arrive in the order in which the tables know them.
                let put = |send: &mut dyn FnMut() -> bool| {
                    self.with_hub(hub, |hub| hub.put(&to, bytes) && send())
                };
                let is_sent = match way {
                    Some(Way::Here(parcels)) => {
                        let origin = Origin::Here { key: key.clone(), lease: *lease };
                        let mut parcel = Some(Parcel { origin, item, bytes });
                        put(&mut || parcel.take().is_some_and(|it| parcels.send(it).is_ok()))
                    }
                    Some(Way::There { sender, stream }) => {
                        let work = leader_item::Item::Work(Bytes::from(item.encode_to_vec()));
                        let item = LeaderItem { stream, item: Some(work) };
                        let item = Bytes::from(item.encode_to_vec());
                        put(&mut || sender.send(item.clone()).is_ok())
                    }
                    None => true,
                };
                if !is_sent {
                    self.with_hub(hub, |hub| hub.unsent(key, *lease, now));
                }
            }
            Assembled::Nothing => self.drop_assignment(hub, &to, End::Done),
            Assembled::TooLarge { fits_without_past: true, .. }
                if self.with_hub(hub, |hub| hub.set_aside(&to, now)) => {}
            Assembled::TooLarge { command, reason, .. } => {
                tracing::warn!(
                    hub = %self.hub_name(hub),
                    partition = %partition.id(),
                    instance = %key.instance(),
                    reason,
                    "work item cannot be handed out"
                );
                let (dispatcher, partition) = (self.clone(), partition.clone());
                tokio::spawn(async move {
                    let end = match partition.propose(command.into_bytes()).await {
                        Ok(_) => End::Done,
                        Err(error) => {
                            tracing::warn!(
                                hub = %dispatcher.hub_name(hub),
                                partition = %partition.id(),
                                instance = %to.key.instance(),
                                %error,
                                "fail a work item that is too large"
                            );
                            End::Later
                        }
                    };
                    dispatcher.drop_assignment(hub, &to, end);
                    dispatcher.pump(hub);
                });
            }
        }
    }

    /// Ends the lease of an item that was not sent after all.
    fn drop_assignment(&self, hub: u32, to: &Assignment, end: End) {
        let now = self.0.clock.now();
        self.with_hub(hub, |hub| {
            hub.unput(to.stream);
            hub.finish(&to.key, to.lease, end, now);
        });
    }
}

/// The item that an effect tells of.
fn item_of(effect: Effect) -> Option<(u32, Key, Class)> {
    Some(match effect {
        Effect::TurnReady { at, class } => {
            (at.hub, Key::Turn { instance: at.instance.into() }, class)
        }
        Effect::ActivityReady { item, class } => {
            let (generation, number) = (item.generation, item.number);
            let instance = item.at.instance.into();
            (item.at.hub, Key::Activity { instance, generation, number }, class)
        }
        Effect::EntityReady { at, class } => {
            (at.hub, Key::Entity { instance: at.instance.into() }, class)
        }
        _ => return None,
    })
}

/// What waits and what runs in a hub, on this node.
#[derive(Clone, Debug)]
pub struct HubLoad {
    /// Number of the hub.
    pub hub: u32,
    /// Orchestrator turns that wait, and that are with a worker.
    pub turns: (usize, usize),
    /// Activities that wait, and that are with a worker.
    pub activities: (usize, usize),
    /// Entities with operations that wait for a worker, and with a batch that is with one.
    pub entities: (usize, usize),
    /// Open worker streams.
    pub streams: usize,
    /// Since when the oldest turn waits, in nanoseconds since the Unix epoch.
    pub oldest_turn: Option<i64>,
    /// Since when the oldest activity waits.
    pub oldest_activity: Option<i64>,
    /// Since when the oldest entity with operations waits.
    pub oldest_entity: Option<i64>,
}

impl HubLoad {
    /// Whether anything waits, runs or listens.
    fn has_any(&self) -> bool {
        let items = [self.turns, self.activities, self.entities];
        self.streams > 0 || items.iter().any(|(waiting, leased)| waiting + leased > 0)
    }
}
