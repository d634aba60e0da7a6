//! Several partitions and a courier that repeats, delays and forgets: each message arrives once, in order.
//!
//! A seed decides everything. *Talkers* send each other numbered events and begin anew now and then; *parents*
//! start children, fail and are rewound. Between turns the courier delivers some messages, loses answers,
//! repeats old deliveries and truncations, or starts again from the rows as a new leader would. In the end
//! all work drains. Then every event has come once, in the order of its sender (S7), every child has answered
//! once (S9), nothing waits, and the log of every partition gives the same rows again (S13).
//!
//! `DURAHUB_MESH_SEED` runs one seed alone, `DURAHUB_MESH_CASES` another number of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use prost::Message as _;

use super::command::{self, Deliver, Delivery, TruncateOutbox};
use super::state::{Address, Place};
use super::{Answer, Command, Reject, Stamp, apply, decode_answer, read};

const HUB: u32 = 1;
const ROOM: read::Room = read::Room { bytes: u64::MAX, past: None };
const PARTITIONS: u32 = 3;
const TALKERS: u64 = 4;
const PARENTS: u64 = 3;
const STEPS: u64 = 150;

#[test]
#[allow(clippy::disallowed_methods, reason = "what to run is told from outside; it is no replica")]
fn every_message_arrives_once_and_in_order() {
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse().unwrap());
    if let Some(seed) = setting("DURAHUB_MESH_SEED") {
        return Mesh::new(seed).run();
    }
    let mut seen = Seen::default();
    for seed in 0..setting("DURAHUB_MESH_CASES").unwrap_or(500) {
        let outcome = std::panic::catch_unwind(|| {
            let mut mesh = Mesh::new(seed);
            mesh.run();
            mesh.seen
        });
        match outcome {
            Ok(case) => seen.add(&case),
            Err(_) => panic!("to repeat: DURAHUB_MESH_SEED={seed} cargo test --lib mesh"),
        }
    }
    // A run in which nothing went wrong on the way would show nothing.
    assert!(seen.events > 1000 && seen.answers > 1000, "{seen:?}");
    assert!(seen.repeats > 1000 && seen.lost > 1000 && seen.crashes > 1000, "{seen:?}");
    assert!(seen.rewinds > 100 && seen.begun_anew > 100, "{seen:?}");
}

/// How much happened.
#[derive(Debug, Default)]
struct Seen {
    events: u64,
    answers: u64,
    repeats: u64,
    lost: u64,
    crashes: u64,
    rewinds: u64,
    begun_anew: u64,
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.events += other.events;
        self.answers += other.answers;
        self.repeats += other.repeats;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.rewinds += other.rewinds;
        self.begun_anew += other.begun_anew;
    }
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Vec<u8>, Bytes>,
    log: Vec<(Stamp, Bytes)>,
    /// What the courier of this partition knows to be delivered.
    delivered: BTreeSet<Place>,
    /// Everything that any courier of this partition ever sent, and to whom.
    past: Vec<(u32, Command)>,
}

struct Mesh {
    random: Random,
    partitions: Vec<Partition>,
    now: i64,
    next_action: i32,
    children: Vec<String>,
    /// Numbers of the events that were sent, and that came, per sender and receiver.
    sent: BTreeMap<(String, String), u64>,
    came: BTreeMap<(String, String), u64>,
    draining: bool,
    seen: Seen,
}

impl Mesh {
    fn new(seed: u64) -> Mesh {
        Mesh {
            random: Random(seed),
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            now: 0,
            next_action: 1,
            children: Vec::new(),
            sent: BTreeMap::new(),
            came: BTreeMap::new(),
            draining: false,
            seen: Seen::default(),
        }
    }

    fn run(&mut self) {
        for instance in self.roots() {
            let request = wire::CreateInstanceRequest {
                instance_id: instance.clone(),
                name: "Root".into(),
                ..Default::default()
            };
            let start = Command::Start(command::Start { hub: HUB, request });
            self.apply(home(&instance), start).expect("starts");
        }
        for _ in 0..STEPS {
            match self.random.below(10) {
                0..5 => self.some_turn(),
                5..9 => self.some_errand(),
                _ => self.nudge(),
            }
        }
        self.drain();
        self.check();
    }

    fn roots(&self) -> Vec<String> {
        let talkers = (0..TALKERS).map(|n| format!("talker{n}"));
        talkers.chain((0..PARENTS).map(|n| format!("parent{n}"))).collect()
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
        decode_answer(applied.reply).expect("an answer")
    }

    /// Something from outside, so that instances which wait have a turn to take.
    fn nudge(&mut self) {
        let instance = self.random.pick(&self.roots()).clone();
        let request = wire::RaiseEventRequest {
            instance_id: instance.clone(),
            name: "nudge".into(),
            input: None,
        };
        let raise = Command::RaiseEvent(command::RaiseEvent { hub: HUB, request });
        self.apply(home(&instance), raise).expect("is accepted");
        self.rewind(&instance);
        // A child that is rewound by hand ends a second time, and must not answer a second time.
        if !self.children.is_empty() {
            let child = self.random.pick(&self.children).clone();
            self.rewind(&child);
        }
    }

    fn rewind(&mut self, instance: &str) -> bool {
        let request = wire::RewindInstanceRequest { instance_id: instance.into(), reason: None };
        let rewind = Command::Rewind(command::Rewind { hub: HUB, request });
        let done = match self.apply(home(instance), rewind) {
            Ok(_) => true,
            Err(Reject::NotFailed { .. } | Reject::NotFound { .. }) => false,
            other => panic!("{other:?}"),
        };
        self.seen.rewinds += u64::from(done);
        done
    }

    fn some_turn(&mut self) {
        let mut all = self.roots();
        all.extend(self.children.iter().cloned());
        let instance = self.random.pick(&all).clone();
        self.turn(&instance);
    }

    /// Hands out a turn and commits what its orchestrator wants; false if there is none.
    fn turn(&mut self, instance: &str) -> bool {
        let (partition, at) = (home(instance), Address::new(HUB, instance));
        let rows = &self.partitions[partition as usize].rows;
        let Some(turn) = read::turn(rows, &at, self.now, ROOM, None) else { return false };
        let turn = turn.expect("fits");
        let new: Vec<EventType> = turn.new.iter().map(event).collect();
        for raised in &new {
            if let EventType::EventRaised(raised) = raised {
                self.hear(instance, raised);
            }
        }
        let past: Vec<EventType> = turn.past.iter().map(event).collect();
        let all: Vec<EventType> = past.into_iter().chain(new).collect();
        let starts = |it: &&EventType| matches!(it, EventType::ExecutionStarted(_));
        assert_eq!(all.iter().filter(starts).count(), 1, "R3.25");
        let actions = match instance {
            _ if instance.starts_with("talker") => self.talk(instance),
            _ if instance.starts_with("parent") => self.raise_children(&all),
            _ => self.grow_up(&all),
        };
        let complete = command::CompleteTurn { turn: turn.id, actions, ..Default::default() };
        self.apply(partition, Command::CompleteTurn(complete)).expect("the turn is current");
        true
    }

    fn hear(&mut self, receiver: &str, raised: &wire::EventRaisedEvent) {
        let Some(number) = &raised.input else { return };
        let number: u64 = number.as_str().parse().unwrap();
        let came = self.came.entry((raised.name.clone(), receiver.into())).or_default();
        assert_eq!(
            number,
            *came + 1,
            "event of {} for {receiver}: twice or out of order (S7)",
            raised.name
        );
        *came = number;
        self.seen.events += 1;
    }

    /// A talker sends events to others and to itself, and begins anew at times.
    fn talk(&mut self, sender: &str) -> Vec<wire::OrchestratorAction> {
        let mut actions = Vec::new();
        let count = if self.draining { 0 } else { self.random.below(4) };
        for _ in 0..count {
            let receiver = format!("talker{}", self.random.below(TALKERS));
            let sent = self.sent.entry((sender.into(), receiver.clone())).or_default();
            *sent += 1;
            let data = Some(sent.to_string().into());
            actions.push(self.action(send_event(&receiver, sender, data)));
        }
        if self.random.below(8) == 0 {
            actions.push(self.action(send_event("nobody", sender, None)));
        }
        if self.random.below(5) == 0 {
            self.seen.begun_anew += 1;
            actions.push(self.action(complete(OrchestrationStatus::ContinuedAsNew)));
        }
        actions
    }

    /// A parent starts children, and fails at times when one of them has.
    fn raise_children(&mut self, history: &[EventType]) -> Vec<wire::OrchestratorAction> {
        check_answers(history);
        let failed = |it: &EventType| matches!(it, EventType::SubOrchestrationInstanceFailed(_));
        let fail = match history.iter().any(failed) {
            true => self.draining || self.random.below(2) == 0,
            false => !self.draining && self.random.below(20) == 0,
        };
        let mut actions = Vec::new();
        let count = if self.draining { 0 } else { self.random.below(3) };
        for _ in 0..count {
            let child = format!("child{}", self.children.len());
            self.children.push(child.clone());
            let create = wire::CreateSubOrchestrationAction {
                instance_id: child,
                name: "Child".into(),
                ..Default::default()
            };
            actions.push(self.action(Action::CreateSubOrchestration(create)));
        }
        if fail {
            actions.push(self.action(complete(OrchestrationStatus::Failed)));
        }
        actions
    }

    /// A child begins anew once at times, then ends, well or not.
    fn grow_up(&mut self, history: &[EventType]) -> Vec<wire::OrchestratorAction> {
        check_answers(history);
        let status = match self.random.below(6) {
            0 => OrchestrationStatus::ContinuedAsNew,
            1 | 2 if !self.draining => OrchestrationStatus::Failed,
            _ => OrchestrationStatus::Completed,
        };
        vec![self.action(complete(status))]
    }

    fn action(&mut self, of: Action) -> wire::OrchestratorAction {
        let id = self.next_action;
        self.next_action += 1;
        wire::OrchestratorAction { id, orchestrator_action_type: Some(of) }
    }

    /// One thing that couriers do, well or not.
    fn some_errand(&mut self) {
        let from = self.random.below(PARTITIONS.into()) as u32;
        match self.random.below(10) {
            0..5 => {
                let to = self.random.below(PARTITIONS.into()) as u32;
                let count = 1 + self.random.below(4) as usize;
                let is_answered = self.random.below(3) > 0;
                self.deliver(from, to, count, is_answered);
            }
            // An old command comes late, or again.
            5..7 => {
                let past = &self.partitions[from as usize].past;
                if !past.is_empty() {
                    let (to, command) = self.random.pick(past).clone();
                    self.seen.repeats += 1;
                    self.apply(to, command).expect("is accepted");
                }
            }
            7..9 => self.truncate(from),
            _ => {
                self.seen.crashes += 1;
                self.partitions[from as usize].delivered.clear();
            }
        }
    }

    /// Sends the first messages of a lane, and may never hear of it.
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
        let this = &mut self.partitions[from as usize];
        this.past.push((to, command));
        match is_answered {
            true => this.delivered.extend(places),
            false => self.seen.lost += 1,
        }
        true
    }

    fn truncate(&mut self, from: u32) {
        let this = &mut self.partitions[from as usize];
        let command = TruncateOutbox::new(std::mem::take(&mut this.delivered));
        let command = Command::TruncateOutbox(command);
        this.past.push((from, command.clone()));
        self.apply(from, command).expect("is accepted");
    }

    /// Lets everything come to its end.
    fn drain(&mut self) {
        self.draining = true;
        for round in 0.. {
            assert!(round < 1000, "it never ends (L1)");
            let mut busy = false;
            for from in 0..PARTITIONS {
                for to in 0..PARTITIONS {
                    while self.deliver(from, to, 7, true) {
                        busy = true;
                    }
                }
                self.truncate(from);
            }
            let children = self.children.clone();
            for instance in self.roots().iter().chain(&children) {
                while self.turn(instance) {
                    busy = true;
                }
            }
            for parent in self.roots().iter().filter(|root| root.starts_with("parent")) {
                busy |= self.rewind(parent);
            }
            if !busy {
                return;
            }
        }
    }

    fn check(&mut self) {
        assert_eq!(self.sent, self.came, "events that were sent, and that came (S7)");
        for parent in self.roots().iter().filter(|root| root.starts_with("parent")) {
            let partition = &self.partitions[home(parent) as usize];
            let history = read::history(&partition.rows, &Address::new(HUB, parent.clone()), None);
            let history: Vec<EventType> = history.iter().map(event).collect();
            let (asked, answered) = check_answers(&history);
            assert_eq!(asked, answered, "children of {parent}, and their answers (S9)");
            self.seen.answers += answered.len() as u64;
        }
        for (number, partition) in self.partitions.iter().enumerate() {
            assert!(read::open_work(&partition.rows).is_empty(), "work of partition {number}");
            assert_eq!(read::outbox_after(&partition.rows, None, 1), [], "outbox {number}");
            let mut replayed = BTreeMap::new();
            for (stamp, command) in &partition.log {
                let applied = apply(&replayed, *stamp, command);
                absorb(&mut replayed, applied.changes);
            }
            super::rig::check_index(&partition.rows);
            assert!(replayed == partition.rows, "partition {number}: replay equals live (S13)");
        }
    }
}

/// R2.64: a child that is gone when its parent is rewound is started anew, under its id and with its input.
#[test]
fn a_child_that_is_gone_is_started_anew_by_a_rewind() {
    let mut mesh = Mesh::new(1);
    let run = |mesh: &mut Mesh, instance: &str, actions: Vec<wire::OrchestratorAction>| {
        let rows = &mesh.partitions[home(instance) as usize].rows;
        let turn = read::turn(rows, &Address::new(HUB, instance), mesh.now, ROOM, None);
        let turn = turn.expect("is due").expect("fits").id;
        let complete = command::CompleteTurn { turn, actions, ..Default::default() };
        mesh.apply(home(instance), Command::CompleteTurn(complete)).expect("the turn is current");
    };
    let carry = |mesh: &mut Mesh| {
        for (from, to) in (0..PARTITIONS).flat_map(|from| (0..PARTITIONS).map(move |to| (from, to)))
        {
            while mesh.deliver(from, to, 9, true) {}
        }
    };
    let request = wire::CreateInstanceRequest { instance_id: "p".into(), ..Default::default() };
    let start = Command::Start(command::Start { hub: HUB, request });
    mesh.apply(home("p"), start).expect("starts");
    let create = Action::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
        instance_id: "c".into(),
        name: "Child".into(),
        input: Some("in".into()),
        ..Default::default()
    });
    let (create, fail) = (mesh.action(create), mesh.action(complete(OrchestrationStatus::Failed)));
    run(&mut mesh, "p", vec![create]);
    carry(&mut mesh);
    run(&mut mesh, "c", vec![fail.clone()]);
    carry(&mut mesh);
    run(&mut mesh, "p", vec![fail]);

    // As a purge would leave it.
    let child = Address::new(HUB, "c");
    let rows = &mut mesh.partitions[home("c") as usize].rows;
    rows.retain(|key, _| *key != super::state::keys::instance(&child));
    assert!(mesh.rewind("p"));
    carry(&mut mesh);
    let state = read::state(&mesh.partitions[home("c") as usize].rows, &child, true).unwrap();
    assert_eq!((state.name.as_str(), state.input), ("Child", Some("in".into())));
    assert_eq!(state.orchestration_status, i32::from(OrchestrationStatus::Pending));
    let end = mesh.action(complete(OrchestrationStatus::Completed));
    run(&mut mesh, "c", vec![end]);
    carry(&mut mesh);
    let history = read::inbox(&mesh.partitions[home("p") as usize].rows, &Address::new(HUB, "p"));
    let answers: Vec<EventType> = history.iter().map(|(_, encoded)| event(encoded)).collect();
    assert!(
        matches!(answers.as_slice(), [EventType::SubOrchestrationInstanceCompleted(_)]),
        "{answers:?}"
    );
}

/// Which children a history asked for, and which answered: none twice, none without being asked (S9).
fn check_answers(history: &[EventType]) -> (BTreeSet<i32>, BTreeSet<i32>) {
    let count = |it: &&EventType| matches!(it, EventType::SubOrchestrationInstanceCreated(_));
    let asked = history.iter().filter(count).count();
    let mut answered = BTreeSet::new();
    for it in history {
        let task = match it {
            EventType::SubOrchestrationInstanceCompleted(it) => it.task_scheduled_id,
            EventType::SubOrchestrationInstanceFailed(it) => it.task_scheduled_id,
            _ => continue,
        };
        assert!(answered.insert(task), "task {task} was answered twice (S9)");
    }
    assert!(answered.len() <= asked, "an answer that nobody asked for (S9)");
    // Ids of actions do not stand in the events; what counts is how many there are.
    ((0..asked as i32).collect(), (0..answered.len() as i32).collect())
}

fn send_event(to: &str, name: &str, data: Option<durahub_proto::Text>) -> Action {
    let instance = Some(wire::OrchestrationInstance { instance_id: to.into(), execution_id: None });
    Action::SendEvent(wire::SendEventAction { instance, name: name.into(), data })
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

/// The same numbers for the same seed, for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len() as u64) as usize]
    }
}
