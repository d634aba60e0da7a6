//! The lock protocol over several partitions, with messages that are delayed, repeated and lost on the way.
//!
//! A seed decides everything. *Tellers* lock accounts, move money between them, and end in every way there is:
//! well, badly, terminated, begun anew, replaced by another of the same id, before the lock is theirs, in the
//! middle, with and without giving anything back. Clients send signals, some twice, some for later. Workers
//! commit batches in part, late, twice, or fail. Couriers lose answers, repeat themselves, and start again.
//!
//! All the time: a teller that was granted a set holds every entity of it until it leaves (S10); only the
//! holder's operations run meanwhile; operations run once, in the order of their sender (S7); a call has one
//! answer. In the end nothing is locked, nothing waits, the sum is what was paid in, and every log gives the
//! same rows again.
//!
//! `DURAHUB_LOCKS_SEED` runs one seed alone, `DURAHUB_LOCKS_CASES` another number of them.

mod actions;
mod ends;
mod till;
mod workers;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use prost::Message as _;

use self::till::{Random, Till};
use super::command::{self, BatchId, CompleteBatch, Deliver, Delivery, TruncateOutbox};
use super::read;
use super::state::{Address, Line, Place, Sender, Waiting};
use super::{Answer, Command, Reject, Reply, Stamp, apply, decode_answer, time};

const ROOM: read::Room = read::Room { bytes: u64::MAX, past: None };
const HUB: u32 = 1;
const PARTITIONS: u32 = 4;
const ACCOUNTS: u64 = 5;
const TELLERS: u64 = 6;
const STEPS: u64 = 500;

#[test]
#[allow(clippy::disallowed_methods, reason = "what to run is told from outside; it is no replica")]
fn locks_exclude_and_no_lock_outlives_its_holder() {
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    if let Some(seed) = setting("DURAHUB_LOCKS_SEED") {
        return Bank::new(seed).run();
    }
    let mut seen = BTreeMap::new();
    for seed in 0..setting("DURAHUB_LOCKS_CASES").unwrap_or(300) {
        let outcome = std::panic::catch_unwind(|| {
            let mut bank = Bank::new(seed);
            bank.run();
            bank.seen
        });
        match outcome {
            Ok(case) => case.into_iter().for_each(|(what, n)| *seen.entry(what).or_insert(0) += n),
            Err(_) => panic!("to repeat: DURAHUB_LOCKS_SEED={seed} cargo test --lib mesh_locks"),
        }
    }
    // A run in which nothing went wrong on the way would show nothing.
    for what in [
        "grant",
        "transfer",
        "ended holding",
        "ended waiting",
        "left waiting",
        "asked again",
        "begun anew holding",
        "terminated",
        "replaced",
        "deleted",
        "repeat",
        "lost",
        "crash",
        "stale batch",
        "partial batch",
        "broken batch",
        "same request",
        "delayed",
        "ran while locked",
    ] {
        assert!(seen.get(what).is_some_and(|n| *n >= 50), "{what}: {seen:?}");
    }
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Vec<u8>, Bytes>,
    log: Vec<(Stamp, Bytes)>,
    delivered: BTreeSet<Place>,
    past: Vec<(u32, Command)>,
}

struct Bank {
    random: Random,
    partitions: Vec<Partition>,
    now: i64,
    next: i32,
    /// Batches that were handed out, to be committed at some time, or twice.
    batches: Vec<BatchId>,
    /// Per sender and entity: the number of the last operation that was sent, and of the last that ran.
    sent: BTreeMap<(String, String), u64>,
    ran: BTreeMap<(String, String), u64>,
    /// What delayed operations are to add; they have no order.
    delayed: BTreeSet<String>,
    paid_in: i64,
    requests: Vec<wire::SignalEntityRequest>,
    draining: bool,
    deleting: bool,
    seen: BTreeMap<&'static str, u64>,
}

impl Bank {
    fn new(seed: u64) -> Bank {
        Bank {
            random: Random(seed),
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            now: 0,
            next: 1,
            batches: Vec::new(),
            sent: BTreeMap::new(),
            ran: BTreeMap::new(),
            delayed: BTreeSet::new(),
            paid_in: 0,
            requests: Vec::new(),
            draining: false,
            deleting: false,
            seen: BTreeMap::new(),
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(16) {
                0..4 => {
                    let teller = self.some_teller();
                    self.turn(&teller);
                }
                4..6 => {
                    let account = self.some_account();
                    self.hand_out(&account);
                    self.commit_some();
                }
                6..10 => (0..4).for_each(|_| self.some_errand()),
                10 => self.client(),
                _ => self.disturb(),
            }
        }
        match self.random.below(4) {
            0 => self.delete_hub(),
            _ => {
                self.drain();
                self.check();
            }
        }
    }

    fn saw(&mut self, what: &'static str) {
        *self.seen.entry(what).or_insert(0) += 1;
    }

    fn some_teller(&mut self) -> String {
        format!("teller{}", self.random.below(TELLERS))
    }

    fn some_account(&mut self) -> String {
        format!("@account@{}", self.random.below(ACCOUNTS))
    }

    fn apply(&mut self, partition: u32, command: Command) -> Answer {
        self.now += 1_000_000;
        let this = &mut self.partitions[partition as usize];
        let sequence = (this.log.len() as u64 + 1) << 16;
        let stamp = Stamp { now: self.now, seed: self.random.next(), sequence };
        let bytes = command.into_bytes();
        let applied = apply(&this.rows, stamp, &bytes);
        this.log.push((stamp, bytes));
        absorb(&mut this.rows, applied.changes);
        self.must_be_settled(partition);
        decode_answer(applied.reply).expect("an answer")
    }

    fn rows(&self, of: &str) -> &BTreeMap<Vec<u8>, Bytes> {
        &self.partitions[home(of) as usize].rows
    }

    // --- clients ---

    fn start(&mut self, teller: &str, replace: bool) {
        use OrchestrationStatus::{Completed, Failed, Pending, Running, Terminated};
        let statuses = [Pending, Running, Completed, Failed, Terminated];
        let policy = wire::OrchestrationIdReusePolicy {
            replaceable_status: statuses.iter().map(|status| *status as i32).collect(),
            ..Default::default()
        };
        let request = wire::CreateInstanceRequest {
            instance_id: teller.into(),
            name: "Teller".into(),
            orchestration_id_reuse_policy: replace.then_some(policy),
            ..Default::default()
        };
        let start = Command::Start(command::Start { hub: HUB, request });
        match self.apply(home(teller), start) {
            Ok(_) if replace => self.saw("replaced"),
            Ok(_) | Err(Reject::AlreadyExists { .. }) => {}
            other => panic!("{other:?}"),
        }
    }

    /// A payment, sometimes for later, sometimes sent twice.
    fn client(&mut self) {
        if self.random.below(3) == 0 && !self.requests.is_empty() {
            let request = self.random.pick(&self.requests).clone();
            self.saw("same request");
            return self.signal(request);
        }
        let account = self.some_account();
        let is_delayed = self.random.below(3) == 0;
        let amount = self.random.below(100) as i64;
        self.paid_in += amount;
        let input = match is_delayed {
            true => {
                let id = format!("later{}", self.next);
                self.delayed.insert(id.clone());
                self.saw("delayed");
                format!("{id} 0 {amount}")
            }
            false => self.numbered("client", &account, amount),
        };
        self.next += 1;
        let due = self.now + self.random.below(100) as i64 * 1_000_000;
        let request = wire::SignalEntityRequest {
            instance_id: account,
            name: "add".into(),
            input: Some(input.into()),
            request_id: format!("request{}", self.next),
            scheduled_time: is_delayed.then(|| time::timestamp(due)),
            ..Default::default()
        };
        self.requests.push(request.clone());
        self.signal(request);
    }

    fn signal(&mut self, request: wire::SignalEntityRequest) {
        let partition = home(&request.instance_id);
        let signal = command::SignalEntity { hub: HUB, request };
        self.apply(partition, Command::SignalEntity(signal)).expect("is accepted");
    }

    /// The input of an operation: who sent it, the how-many-th to that entity, what it adds.
    fn numbered(&mut self, sender: &str, account: &str, amount: i64) -> String {
        let sent = self.sent.entry((sender.into(), account.into())).or_default();
        *sent += 1;
        format!("{sender} {sent} {amount}")
    }

    fn disturb(&mut self) {
        let teller = self.some_teller();
        match self.random.below(12) {
            0 if self.random.below(2) == 0 => {
                let request =
                    wire::TerminateRequest { instance_id: teller.clone(), ..Default::default() };
                let terminate = Command::Terminate(command::Terminate { hub: HUB, request });
                self.apply(home(&teller), terminate).expect("is accepted");
            }
            1 if self.random.below(2) == 0 => self.start(&teller, true),
            2 => {
                let request =
                    wire::RewindInstanceRequest { instance_id: teller.clone(), reason: None };
                let rewind = Command::Rewind(command::Rewind { hub: HUB, request });
                // Most are not in a state for it.
                let _ = self.apply(home(&teller), rewind);
            }
            3 => self.fire(),
            _ => {
                self.start(&teller, false);
                self.nudge(&teller);
            }
        }
    }

    fn nudge(&mut self, teller: &str) {
        let request = wire::RaiseEventRequest {
            instance_id: teller.into(),
            name: "nudge".into(),
            input: None,
        };
        let raise = Command::RaiseEvent(command::RaiseEvent { hub: HUB, request });
        let _ = self.apply(home(teller), raise);
    }

    fn fire(&mut self) {
        for partition in 0..PARTITIONS {
            let fire = command::FireTimers { up_to: i64::MAX };
            self.apply(partition, Command::FireTimers(fire)).expect("is accepted");
        }
    }

    // --- tellers ---

    fn turn(&mut self, teller: &str) -> bool {
        let at = Address::new(HUB, teller);
        let Some(turn) = read::turn(self.rows(teller), &at, self.now, ROOM, None) else {
            return false;
        };
        let turn = turn.expect("fits");
        let all: Vec<EventType> = turn.past.iter().chain(&turn.new).map(event).collect();
        let view = Till::read(&all);
        let sender = format!("{teller}/{}", turn.id.generation);
        // The entities of a hub that is going may be gone before their holder.
        if view.granted && !self.deleting {
            self.saw("grant");
            self.must_hold(&at, turn.id.generation, &view);
        }
        let actions = match view.terminated {
            true => {
                self.saw("terminated");
                vec![self.action(complete(OrchestrationStatus::Terminated))]
            }
            false => self.act(&sender, &view),
        };
        let complete = command::CompleteTurn { turn: turn.id, actions, ..Default::default() };
        self.apply(home(teller), Command::CompleteTurn(complete)).expect("the turn is current");
        true
    }

    /// S10: who was granted a set holds all of it.
    fn must_hold(&self, at: &Address, generation: u64, till: &Till) {
        let owner = Sender { instance: at.instance.clone(), generation };
        let head = read::head(self.rows(&at.instance), at).expect("is there");
        let section = head.section.expect("is inside");
        assert_eq!(section.id, till.section);
        for account in &till.set {
            let entity = read::entity(self.rows(account), &Address::new(HUB, account.clone()));
            let lock = entity.and_then(|entity| entity.lock).expect("is locked");
            assert_eq!(lock.holder, section.holder(owner.clone()), "{account}");
        }
    }

    /// No wake-up is lost: whatever a command did, no lock is free for a request that stands first, and the head
    /// of an entity, which says what may run, counts what is in its queue (R5.42).
    fn must_be_settled(&self, partition: u32) {
        let rows = &self.partitions[partition as usize].rows;
        super::rig::check_index_of_entities(rows);
        for account in (0..ACCOUNTS).map(|n| format!("@account@{n}")) {
            if home(&account) != partition {
                continue;
            }
            let at = Address::new(HUB, account);
            let record = read::entity(rows, &at).unwrap_or_default();
            let (mut front, mut main, mut requests) = (0, 0, 0);
            let mut first = true;
            for (line, waiting) in read::queue(rows, &at) {
                match (line, waiting) {
                    (Line::Front, _) => front += 1,
                    (Line::Main, Waiting::Operation(_)) => main += 1,
                    (Line::Main, Waiting::Lock(_)) => {
                        let is_free = record.lock.is_none() && record.front == 0;
                        assert!(!(first && is_free), "{at:?}: a request waits for nobody");
                        requests += 1;
                    }
                }
                first &= line == Line::Front;
            }
            let counted = (record.front, record.main, record.lock_requests);
            assert_eq!(counted, (front, main, requests), "{at:?}");
        }
    }

    fn some_errand(&mut self) {
        let from = self.random.below(PARTITIONS.into()) as u32;
        match self.random.below(12) {
            0..7 => {
                let to = self.random.below(PARTITIONS.into()) as u32;
                let count = 1 + self.random.below(4) as usize;
                let is_answered = self.random.below(3) > 0;
                self.deliver(from, to, count, is_answered);
            }
            // An old command comes late, or again.
            7..9 => {
                let past = &self.partitions[from as usize].past;
                if !past.is_empty() {
                    let (to, command) = self.random.pick(past).clone();
                    self.saw("repeat");
                    self.apply(to, command).expect("is accepted");
                }
            }
            9..11 => self.truncate(from),
            _ => {
                self.saw("crash");
                self.partitions[from as usize].delivered.clear();
            }
        }
    }

    fn deliver(&mut self, from: u32, to: u32, count: usize, is_answered: bool) -> bool {
        let this = &self.partitions[from as usize];
        let waiting = read::outbox_after(&this.rows, None, usize::MAX);
        let lane = waiting.into_iter().filter(|(place, receiver)| {
            home(&receiver.instance) == to && !this.delivered.contains(place)
        });
        let places: Vec<Place> = lane.map(|(place, _)| place).take(count).collect();
        if places.is_empty() {
            return false;
        }
        let message = |place| read::message(&this.rows, place).expect("it waits");
        let messages = places.iter().map(|place| Delivery::new(*place, message(*place))).collect();
        let command = Command::Deliver(Deliver { from, messages });
        self.apply(to, command.clone()).expect("is accepted");
        self.partitions[from as usize].past.push((to, command));
        match is_answered {
            true => self.partitions[from as usize].delivered.extend(places),
            false => self.saw("lost"),
        }
        true
    }

    fn truncate(&mut self, from: u32) {
        let this = &mut self.partitions[from as usize];
        let places = std::mem::take(&mut this.delivered);
        let command = Command::TruncateOutbox(TruncateOutbox::new(places));
        this.past.push((from, command.clone()));
        self.apply(from, command).expect("is accepted");
    }
}

fn complete(status: OrchestrationStatus) -> Action {
    Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
        orchestration_status: status.into(),
        ..Default::default()
    })
}

fn event(encoded: &Bytes) -> EventType {
    wire::HistoryEvent::decode(encoded.clone()).unwrap().event_type.unwrap()
}

/// The partition of an instance: any fixed rule will do.
fn home(instance: &str) -> u32 {
    instance.bytes().map(u32::from).sum::<u32>() % PARTITIONS
}

fn absorb(rows: &mut BTreeMap<Vec<u8>, Bytes>, changes: super::Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}
