//! What only the leader of a partition does: act on effects, fire timers, and rebuild both when it becomes
//! the leader.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use durahub_cluster::{GroupId, Leadership};
use futures::FutureExt as _;
use futures::future::{BoxFuture, Fuse, FusedFuture, pending};
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinError, JoinSet};

use super::Dispatcher;
use super::courier::Courier;
use super::meter::Returned;
use super::sweeper::Sweeper;
use crate::clock::Clock;
use crate::engine::command::FireTimers;
use crate::engine::read::{self, Open, OpenWork};
use crate::engine::{Command, Effect};
use crate::machine::{Listener, Partition, RowsView};
use crate::telemetry::metrics as names;

/// Instances, entities or tasks that a new leader reads while writers wait.
const READ_AT_ONCE: usize = 256;

/// Where the effects of partition 1, 2, ... go until their tasks run.
pub struct Leaders {
    effects: Vec<mpsc::UnboundedReceiver<Vec<Effect>>>,
    /// The metadata group told something.
    metadata_told: Arc<Notify>,
    /// It told that these task hubs were deleted.
    hubs_deleted: mpsc::UnboundedReceiver<u32>,
}

/// What can wake the task of a partition.
enum Wake {
    Effects(Vec<Effect>),
    Leadership,
    TimerDue,
    TimersFired,
    /// If this node still leads, a hand-over has come to nothing.
    LeadsOn,
}

impl Leaders {
    /// Makes room for the effects of so many partitions, and the listener that fills it. The metadata group
    /// has two effects only: a hub was deleted, another retention holds for one. Every node hears of them.
    pub fn new(partitions: u32) -> (Listener, Leaders) {
        let (senders, effects): (Vec<_>, Vec<_>) =
            (0..partitions).map(|_| mpsc::unbounded_channel()).unzip();
        let metadata_told = Arc::new(Notify::new());
        let in_metadata = metadata_told.clone();
        let (deleted, hubs_deleted) = mpsc::unbounded_channel();
        let listener = move |group: GroupId, told: Vec<Effect>| {
            if group == GroupId::METADATA {
                in_metadata.notify_one();
                for effect in &told {
                    if let Effect::HubGone { hub } = effect {
                        let _ = deleted.send(*hub);
                    }
                }
            }
            let sender: Option<&mpsc::UnboundedSender<Vec<Effect>>> =
                (group.0 as usize).checked_sub(1).and_then(|index| senders.get(index));
            if let Some(sender) = sender {
                // Nobody listens while the node stops.
                let _ = sender.send(told);
            }
        };
        (Box::new(listener), Leaders { effects, metadata_told, hubs_deleted })
    }

    /// Runs the tasks of all partitions until the set is dropped.
    pub fn run(self, dispatcher: &Dispatcher) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for (partition, effects) in dispatcher.0.partitions.iter().zip(self.effects) {
            tasks.spawn(Leader::new(dispatcher, partition).run(effects));
        }
        tasks.spawn(dispatcher.clone().watch_deadlines());
        let (told, metadata_told) = (dispatcher.clone(), self.metadata_told);
        let mut hubs_deleted = self.hubs_deleted;
        tasks.spawn(async move {
            loop {
                metadata_told.notified().await;
                while let Ok(hub) = hubs_deleted.try_recv() {
                    let now = told.0.clock.now();
                    told.take_in(Effect::HubGone { hub }, now);
                }
                // A look for nothing costs little.
                told.0.hub_deleted.notify_one();
                told.0.retention_set.notify_one();
            }
        });
        tasks
    }
}

pub(super) struct Leader {
    dispatcher: Dispatcher,
    partition: Partition,
    /// The term in which this node leads.
    term: Option<u64>,
    /// When the next timer is due, as far as is known.
    pub(super) next_due: Option<i64>,
    /// Carries the messages of the partition while it is led.
    courier: Option<Courier>,
    /// Removes what purges left while the partition is led.
    sweeper: Option<Sweeper>,
    /// The command that fires timers, while it is under way and the partition is led.
    pub(super) firing: Fuse<BoxFuture<'static, ()>>,
}

impl Leader {
    pub(super) fn new(dispatcher: &Dispatcher, partition: &Partition) -> Leader {
        Leader {
            dispatcher: dispatcher.clone(),
            partition: partition.clone(),
            term: None,
            next_due: None,
            courier: None,
            sweeper: None,
            firing: Fuse::terminated(),
        }
    }

    async fn run(mut self, mut effects: mpsc::UnboundedReceiver<Vec<Effect>>) {
        let mut leadership = self.partition.leadership();
        leadership.mark_changed();
        let dispatcher = self.dispatcher.clone();
        let clock = dispatcher.0.clock.clone();
        loop {
            let due = match self.next_due.filter(|_| self.firing.is_terminated()) {
                Some(due) => clock.sleep_until(due).boxed(),
                None => pending().boxed(),
            };
            let wake = tokio::select! {
                Some(told) = effects.recv() => Wake::Effects(told),
                changed = leadership.changed() => match changed {
                    Ok(()) => Wake::Leadership,
                    Err(_) => return,
                },
                () = dispatcher.leads_on(&self.partition) => Wake::LeadsOn,
                () = &mut self.firing, if !self.firing.is_terminated() => Wake::TimersFired,
                () = due => Wake::TimerDue,
            };
            match wake {
                Wake::Effects(told) if self.term.is_some() => {
                    let mut more = vec![told];
                    while let Ok(told) = effects.try_recv() {
                        more.push(told);
                    }
                    let now = clock.now();
                    self.act(more.into_iter().flatten().map(|effect| (effect, now)));
                }
                // Calls and streams wait on any node for what only the leader acts on.
                Wake::Effects(told) => told.into_iter().for_each(|effect| {
                    if let Effect::InstanceChanged { .. }
                    | Effect::InstanceGone { .. }
                    | Effect::HubGone { .. } = effect
                    {
                        let now = clock.now();
                        self.dispatcher.take_in(effect, now);
                    }
                }),
                Wake::Leadership => {
                    let term = match *leadership.borrow_and_update() {
                        Leadership::Leader { term } => Some(term),
                        Leadership::Follower { .. } => None,
                    };
                    self.lead(term).await;
                }
                Wake::TimerDue => {
                    let due = self.next_due.take();
                    let (dispatcher, partition) = (self.dispatcher.clone(), self.partition.clone());
                    self.firing = fire(dispatcher, partition, clock.clone(), due).boxed().fuse();
                }
                Wake::TimersFired => self.look_for_timers(),
                Wake::LeadsOn => self.lead_on().await,
            }
        }
    }

    /// Begins or ends to lead. Effects that arrive meanwhile are only repeated: every hint may be. In another
    /// term somebody else may have led in between, and what was leased before may be done: it begins anew.
    pub(super) async fn lead(&mut self, term: Option<u64>) {
        let before = std::mem::replace(&mut self.term, term);
        if before == term {
            return;
        }
        // First: a lease of before says nothing any more, not even that its item is done.
        self.dispatcher.set_rebuilt(&self.partition, None);
        self.dispatcher.begin_leases(&self.partition);
        let told = self.dispatcher.begin_term(&self.partition, term);
        if before.is_some() {
            self.resign();
        }
        if let Some(now) = term {
            let open = Self::read_open_work(self.partition.clone()).await;
            if *self.partition.leadership().borrow() != (Leadership::Leader { term: now }) {
                // That took long, and somebody else leads: the next wake sees to it.
                self.term = None;
                self.dispatcher.begin_term(&self.partition, None);
                return;
            }
            tracing::info!(
                partition = %self.partition.id(),
                open = open.len(),
                told = told.len(),
                "leading"
            );
            metrics::gauge!(names::PARTITIONS_LED).increment(1.0);
            let open = self.dispatcher.take_over(&self.partition, told, open);
            self.act(open.into_iter().map(|open| (open.effect, open.since)));
            self.dispatcher.set_rebuilt(&self.partition, Some(now));
            self.look_for_timers();
            self.sweeper = Some(Sweeper::start(self.partition.clone()));
            self.courier = Some(Courier::start(self.dispatcher.clone(), self.partition.clone()));
        }
    }

    /// What was held back for the next leader is handed out again, if it was in this term.
    pub(super) async fn lead_on(&mut self) {
        let Some(term) = self.term else { return };
        let open = Self::read_open_work(self.partition.clone()).await;
        let still_leads = *self.partition.leadership().borrow() == (Leadership::Leader { term });
        // What becomes open meanwhile is told to this very task, which looks at it later.
        if still_leads && self.dispatcher.end_hold(&self.partition, term) {
            self.act(open.into_iter().map(|open| (open.effect, open.since)));
        }
    }

    /// There may be a million: reads them beside the threads that serve, and lets writers in between.
    async fn read_open_work(partition: Partition) -> Vec<Open> {
        let reading = tokio::task::spawn_blocking(move || {
            let mut work = OpenWork::default();
            while partition.peek(|rows| work.read_on(&RowsView(rows), READ_AT_ONCE)) {}
            work.oldest_first()
        });
        match reading.await.map_err(JoinError::try_into_panic) {
            Ok(open) => open,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(Err(_)) => Vec::new(),
        }
    }

    fn resign(&mut self) {
        tracing::info!(partition = %self.partition.id(), "no longer leading");
        metrics::gauge!(names::PARTITIONS_LED).decrement(1.0);
        self.next_due = None;
        // The next leader fires them.
        self.firing = Fuse::terminated();
        self.courier = None;
        self.sweeper = None;
        let (dispatcher, id) = (&self.dispatcher, self.partition.id());
        let now = dispatcher.0.clock.now();
        let hubs: Vec<u32> = dispatcher.0.hubs.lock().keys().copied().collect();
        for hub in hubs {
            let mine = |instance: &str| dispatcher.partition_of(hub, instance).id() == id;
            dispatcher.with_hub(hub, |work| work.resign(mine, now));
            // Room that the items had is free for others, here and elsewhere.
            dispatcher.pump(hub);
        }
    }

    /// Acts on effects, each true since that time.
    fn act(&mut self, effects: impl Iterator<Item = (Effect, i64)>) {
        let mut hubs = BTreeSet::new();
        for (effect, since) in effects {
            match effect {
                Effect::TimerSet { due } => self.expect_timer(due),
                Effect::SweepDue => self.sweeper.iter().for_each(Sweeper::poke),
                Effect::MessageSent => self.courier.iter().for_each(Courier::poke),
                effect => hubs.extend(self.dispatcher.take_in(effect, since)),
            }
        }
        hubs.into_iter().for_each(|hub| self.dispatcher.pump(hub));
    }

    fn expect_timer(&mut self, due: i64) {
        self.next_due = Some(self.next_due.map_or(due, |next| next.min(due)));
    }

    fn look_for_timers(&mut self) {
        if let Some(due) = self.partition.peek(|rows| read::next_due(&RowsView(rows))) {
            self.expect_timer(due);
        }
    }
}

async fn fire(dispatcher: Dispatcher, partition: Partition, clock: Clock, earliest: Option<i64>) {
    dispatcher.released().await;
    let command = Command::FireTimers(FireTimers { up_to: clock.now() });
    if let Err(error) = partition.propose(command.into_bytes()).await {
        // The timers stand in the rows; they are looked for again, here or on the next leader.
        tracing::warn!(partition = %partition.id(), %error, "fire timers");
        tokio::time::sleep(Duration::from_millis(100)).await;
    } else if let Some(due) = earliest {
        let lag = Duration::from_nanos(clock.now().saturating_sub(due).max(0).unsigned_abs());
        metrics::histogram!(names::TIMER_LAG).record(lag.as_secs_f64());
    }
}

impl Dispatcher {
    /// Ends leases and delays when their time has come.
    async fn watch_deadlines(self) {
        loop {
            let next = self.0.hubs.lock().values().filter_map(|hub| hub.next_deadline()).min();
            let sleep = match next {
                Some(at) => self.0.clock.sleep_until(at).boxed(),
                None => pending().boxed(),
            };
            tokio::select! {
                () = sleep => {}
                () = self.0.deadline.notified() => continue,
            }
            let now = self.0.clock.now();
            let hubs: Vec<u32> = self.0.hubs.lock().keys().copied().collect();
            for hub in hubs {
                let (expired, late) =
                    self.with_hub(hub, |hub| (hub.expire(now), hub.take_late_spans()));
                self.expire_spans(late);
                // To find it may take a look at all hubs.
                let name = expired.first().map(|_| self.hub_name(hub)).unwrap_or_default();
                for key in expired {
                    let instance = key.instance();
                    tracing::info!(
                        hub = %name,
                        partition = %self.partition_of(hub, instance).id(),
                        %instance,
                        "lease ended; work is handed out again"
                    );
                    self.0.meters.of(hub).returned(key.kind(), Returned::Expired);
                }
                self.pump(hub);
            }
        }
    }
}
