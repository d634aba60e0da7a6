//! What was sent and what was acknowledged, as seen by client and worker: the truth to check against.
//!
//! The ledger counts the lives of the server. A worker stream belongs to the life that had begun when it
//! was opened, an acknowledgement to the life that is current when it arrives. Only where both are the
//! same is it certain that one process handed a task out and took its result; across a crash a token may
//! have lost its meaning and the server still answers OK (R3.48, R3.55). Both are read on the side that
//! errs towards "different".
//!
//! A cluster has no lives: a token stays good as long as its task is open, whoever leads (R3.48).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::books::Books;

/// What an orchestration does, step by step. Step `n` uses the action id `n + 1`, as Python and JS count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// Run an activity.
    Activity,
    /// Wait this long.
    Timer(Duration),
    /// Wait until this many different events have arrived.
    Events(usize),
    /// Run a child, a [`Kind::Sequence`], and wait for its answer.
    Child,
}

/// An orchestration of the load, by the name under which it is started.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Sequence,
    Timed,
    Eventful,
    Family,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Sequence, Kind::Timed, Kind::Eventful, Kind::Family];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Sequence => "Sequence",
            Kind::Timed => "Timed",
            Kind::Eventful => "Eventful",
            Kind::Family => "Family",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn steps(self) -> &'static [Step] {
        use Step::{Activity, Child, Events, Timer};
        match self {
            Kind::Sequence => &[Activity, Activity, Activity],
            Kind::Timed => const { &[Activity, Timer(Duration::from_millis(150)), Activity] },
            Kind::Eventful => &[Events(3), Activity],
            Kind::Family => &[Activity, Child],
        }
    }

    /// How many events its steps wait for.
    pub(crate) fn events(self) -> usize {
        self.steps()
            .iter()
            .map(|step| if let Step::Events(count) = step { *count } else { 0 })
            .sum()
    }
}

/// The id of a child, and what it is given.
pub(crate) fn child(instance: &str, task: i32) -> (String, String) {
    (format!("{instance}.{task}"), format!("\"child of {instance}/{task}\""))
}

/// What an activity of this instance is given; the worker checks it, and so does the history.
pub(crate) fn activity_input(instance: &str, task: i32) -> String {
    format!("\"input of {instance}/{task}\"")
}

/// The name of every event of the load.
pub(crate) const EVENT: &str = "News";

/// The orchestration behind a register: it does nothing.
pub(crate) const REGISTER: &str = "Register";

/// The orchestration that moves money between two accounts, and the beginning of the ids of its instances.
pub(crate) const TRANSFER: &str = "Transfer";

/// What the calls go to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Servers {
    /// One process, which dies and comes back.
    #[default]
    One,
    /// A cluster.
    Many,
}

/// One instance, its start acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) input: String,
    pub(crate) servers: Servers,
    /// From the acknowledgement of its start until its end was told to a client.
    pub(crate) took: Option<Duration>,
    pub(crate) acknowledged: Option<Instant>,
    /// In the order in which they were sent.
    pub(crate) events: Vec<Sent>,
    /// What was handed out, by task id, in the order in which it arrived.
    pub(crate) tasks: BTreeMap<i32, Vec<Attempt>>,
    /// The longest committed history that a worker has been shown.
    pub(crate) past: Vec<Bytes>,
    /// A client was told that it is purged, alone or with its parent.
    pub(crate) purged: bool,
}

/// An event that was acknowledged in the end.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) payload: String,
    /// How often it was sent. More than one: earlier answers were lost, and with them what became of it (R2.46).
    pub(crate) sends: u32,
}

/// One dispatch of an activity to the worker.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Unlike the result of any other attempt.
    pub(crate) result: String,
    /// The life of the server that handed it out.
    pub(crate) life: u64,
    /// When it arrived, by the ledger's own count.
    pub(crate) dispatched: u64,
    /// When its completion was answered OK, and in which life.
    pub(crate) acknowledged: Option<(u64, u64)>,
}

impl Attempt {
    /// Answered OK by the very process that had handed it out.
    pub(crate) fn surely_acknowledged(&self) -> Option<u64> {
        self.acknowledged.filter(|(_, life)| *life == self.life).map(|(at, _)| at)
    }
}

impl Record {
    /// A record of an instance about which nothing is known yet.
    pub(crate) fn new(kind: Kind, input: &str, servers: Servers) -> Record {
        Record {
            kind,
            input: input.to_owned(),
            servers,
            took: None,
            acknowledged: None,
            events: Vec::new(),
            tasks: BTreeMap::new(),
            past: Vec::new(),
            purged: false,
        }
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    /// Payments and transfers.
    pub(crate) books: Books,
    servers: Servers,
    failed: Mutex<Vec<String>>,
    instances: Mutex<BTreeMap<String, Record>>,
    violations: Mutex<Vec<String>>,
    life: AtomicU64,
    clock: AtomicU64,
    starts: AtomicU64,
    over: AtomicBool,
}

impl Ledger {
    /// A ledger of calls to a cluster.
    pub(crate) fn of_a_cluster() -> Ledger {
        Ledger { servers: Servers::Many, ..Ledger::default() }
    }

    /// A call failed although an SDK would have repeated it as often as it does.
    pub(crate) fn call_failed(&self, what: String) {
        self.failed.lock().push(what);
    }

    /// Calls that failed for their callers.
    pub(crate) fn failed_calls(&self) -> Vec<String> {
        self.failed.lock().clone()
    }

    /// The current life of the server, from 0. Between two lives the coming one.
    pub(crate) fn life(&self) -> u64 {
        self.life.load(Ordering::SeqCst)
    }

    /// To be called when the process is gone and the next is not yet there.
    pub(crate) fn begin_next_life(&self) {
        self.life.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn end_load(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Something that must never happen was seen while the load ran.
    #[allow(clippy::print_stderr)] // a run that goes on for minutes should say at once why it will fail
    pub(crate) fn violation(&self, what: String) {
        eprintln!("violation: {what}");
        self.violations.lock().push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    pub(crate) fn acknowledged_starts(&self) -> u64 {
        self.starts.load(Ordering::SeqCst)
    }

    /// Ends once more than `starts` instances were acknowledged.
    pub(crate) async fn progress_beyond(&self, starts: u64) {
        while self.acknowledged_starts() <= starts {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Written down before the start is sent: a worker may see the instance before the client hears of it.
    pub(crate) fn starting(&self, instance: &str, kind: Kind, input: &str) {
        let record = Record::new(kind, input, self.servers);
        let mut instances = self.instances.lock();
        // Of one that was purged, nothing is left to compare with.
        instances.retain(|id, _| !is_of(id, instance));
        instances.insert(instance.to_owned(), record);
    }

    /// A client was told that an instance is purged, and its children with it.
    pub(crate) fn purged(&self, instance: &str) {
        let mut instances = self.instances.lock();
        let all = instances.iter_mut().filter(|(id, _)| is_of(id, instance));
        all.for_each(|(_, record)| record.purged = true);
    }

    pub(crate) fn started(&self, instance: &str) {
        self.starts.fetch_add(1, Ordering::SeqCst);
        self.with(instance, |record| record.acknowledged = Some(Instant::now()));
    }

    /// A client was told that the instance has ended.
    pub(crate) fn ended(&self, instance: &str) {
        self.with(instance, |record| {
            record.took = record.acknowledged.map(|begun| begun.elapsed());
        });
    }

    /// How long instances took whose end was told, shortest first.
    pub(crate) fn durations(&self) -> Vec<Duration> {
        let instances = self.instances.lock();
        let mut took: Vec<_> = instances.values().filter_map(|record| record.took).collect();
        took.sort_unstable();
        took
    }

    /// How long instances took that were acknowledged in this time and whose end was told, shortest first.
    pub(crate) fn durations_of(&self, begun: std::ops::Range<Instant>) -> Vec<Duration> {
        let instances = self.instances.lock();
        let of = |record: &&Record| record.acknowledged.is_some_and(|at| begun.contains(&at));
        let mut took: Vec<_> =
            instances.values().filter(of).filter_map(|record| record.took).collect();
        took.sort_unstable();
        took
    }

    /// A turn of an instance that no client started: the child of one that a client did start.
    pub(crate) fn born(&self, instance: &str) {
        let mut instances = self.instances.lock();
        let Some((parent, task)) = instance.rsplit_once('.') else { return };
        if instances.contains_key(instance) || !instances.contains_key(parent) {
            return;
        }
        let task = task.parse().unwrap_or_default();
        let record = Record::new(Kind::Sequence, &child(parent, task).1, self.servers);
        instances.insert(instance.to_owned(), record);
    }

    pub(crate) fn raised(&self, instance: &str, payload: String, sends: u32) {
        self.with(instance, |record| record.events.push(Sent { payload, sends }));
    }

    /// A new attempt; gives its number and its result.
    pub(crate) fn dispatched(
        &self,
        instance: &str,
        task: i32,
        life: u64,
    ) -> Option<(usize, String)> {
        let dispatched = self.tick();
        self.with(instance, |record| {
            let attempts = record.tasks.entry(task).or_default();
            let result = format!("\"{instance}/{task} attempt {}\"", attempts.len() + 1);
            attempts.push(Attempt { result: result.clone(), life, dispatched, acknowledged: None });
            (attempts.len() - 1, result)
        })
    }

    pub(crate) fn acknowledged(&self, instance: &str, task: i32, attempt: usize) {
        let (at, life) = (self.tick(), self.life());
        self.with(instance, |record| {
            if let Some(attempt) =
                record.tasks.get_mut(&task).and_then(|attempts| attempts.get_mut(attempt))
            {
                attempt.acknowledged = Some((at, life));
            }
        });
    }

    /// The committed history that came with a turn. It may only ever grow at its end (S3, R4.9).
    pub(crate) fn saw_past(&self, instance: &str, past: &[Bytes]) {
        let changed = self.with(instance, |record| {
            let common = record.past.len().min(past.len());
            let changed = record.past[..common] != past[..common];
            if past.len() > record.past.len() {
                record.past = past.to_vec();
            }
            changed
        });
        if changed == Some(true) {
            self.violation(format!("{instance}: committed history changed between two turns (S3)"));
        }
    }

    pub(crate) fn instances(&self) -> BTreeMap<String, Record> {
        self.instances.lock().clone()
    }

    pub(crate) fn summary(&self) -> Summary {
        let instances = self.instances.lock();
        let attempts = || instances.values().flat_map(|record| record.tasks.values());
        let (payments, transfers) = self.books.count();
        Summary {
            purged: instances.values().filter(|record| record.purged).count() as u64,
            payments: payments as u64,
            transfers: transfers as u64,
            starts: self.acknowledged_starts(),
            events: instances.values().map(|record| record.events.len() as u64).sum(),
            attempts: attempts().map(|attempts| attempts.len() as u64).sum(),
            repeated: attempts().filter(|attempts| attempts.len() > 1).count() as u64,
        }
    }

    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn with<T>(&self, instance: &str, change: impl FnOnce(&mut Record) -> T) -> Option<T> {
        let changed = self.instances.lock().get_mut(instance).map(change);
        if changed.is_none() {
            self.violation(format!("{instance}: nobody started it"));
        }
        changed
    }
}

/// Whether this is the id of an instance, or of a child of it.
fn is_of(id: &str, instance: &str) -> bool {
    id.strip_prefix(instance).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// How much happened.
pub(crate) struct Summary {
    pub(crate) starts: u64,
    pub(crate) purged: u64,
    pub(crate) payments: u64,
    pub(crate) transfers: u64,
    pub(crate) events: u64,
    pub(crate) attempts: u64,
    /// Activities that were handed out more than once.
    pub(crate) repeated: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { starts, purged, payments, transfers, events, attempts, repeated } = self;
        write!(
            f,
            "{starts} starts, {purged} purged, {events} events, {attempts} activity attempts ({repeated} activities \
             repeated), {payments} payments, {transfers} transfers"
        )
    }
}
