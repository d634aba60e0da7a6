//! A partition in memory for tests that scripts cannot express: it counts what is read and changed.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use prost::Message as _;

use super::command::{CompleteTurn, Deliver, Delivery, RaiseEvent, Start};
use super::state::message::Body;
use super::state::{
    EntityRecord, FORMAT, MessageRecord, Place, decode, entity_keys, keys, listing,
};
use super::{Address, Answer, Command, Stamp, View, apply, decode_answer, read};

/// A partition that counts the rows that are read from it.
#[derive(Default)]
pub(crate) struct Partition {
    pub(crate) rows: BTreeMap<Vec<u8>, Bytes>,
    sequence: u64,
    pub(crate) read: Cell<usize>,
}

impl View for Partition {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.read.set(self.read.get() + 1);
        View::get(&self.rows, key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        View::scan(&self.rows, from, to, &mut |key, value| {
            self.read.set(self.read.get() + 1);
            visit(key, value)
        });
    }
}

impl Partition {
    /// Applies a command; returns its answer and how many rows it changed.
    pub(crate) fn apply(&mut self, command: Command) -> (Answer, usize) {
        self.sequence += 1 << 16;
        let now = (self.sequence >> 16) as i64;
        let stamp = Stamp { now, seed: self.sequence, sequence: self.sequence };
        let applied = apply(&self.rows, stamp, &command.into_bytes());
        let changed = applied.changes.len();
        for (key, value) in applied.changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
        (decode_answer(applied.reply).expect("an answer"), changed)
    }

    pub(crate) fn start(&mut self, id: &str) {
        let request = wire::CreateInstanceRequest {
            instance_id: id.to_owned(),
            name: "A".to_owned(),
            input: Some("in".into()),
            ..Default::default()
        };
        self.apply(Command::Start(Start { hub: 1, request })).0.expect("started");
    }

    pub(crate) fn end(&mut self, id: &str, status: OrchestrationStatus) {
        let action = wire::CompleteOrchestrationAction {
            orchestration_status: status.into(),
            result: Some("out".into()),
            ..Default::default()
        };
        self.turn(id, vec![Action::CompleteOrchestration(action)]);
    }

    /// Commits the next turn of an instance.
    pub(crate) fn turn(&mut self, id: &str, actions: Vec<Action>) {
        let at = Address::new(1, id);
        let turn = read::turn(&self.rows, &at, 0, read::Room { bytes: 1 << 30, past: None }, None)
            .expect("a turn")
            .expect("it fits")
            .id;
        let action =
            |(id, action)| wire::OrchestratorAction { id, orchestrator_action_type: Some(action) };
        let actions = (1..).zip(actions).map(action).collect();
        let turn = CompleteTurn { turn, actions, ..Default::default() };
        self.apply(Command::CompleteTurn(turn)).0.expect("accepted");
    }

    /// Raises an event.
    pub(crate) fn raise(&mut self, id: &str) {
        let request = wire::RaiseEventRequest {
            instance_id: id.to_owned(),
            name: "e".to_owned(),
            input: None,
        };
        self.apply(Command::RaiseEvent(RaiseEvent { hub: 1, request })).0.expect("accepted");
    }

    /// How many rows there are, besides those that tell what was delivered or closed.
    pub(crate) fn count(&self) -> usize {
        self.rows.keys().filter(|key| !matches!(key[0], 0x17 | 0x1a)).count()
    }
}

pub(crate) const SECOND: i64 = 1_000_000_000;

/// Brings a message to an instance of hub 1, in the second of its number. Numbers go up.
pub(crate) fn bring(rows: &mut BTreeMap<Vec<u8>, Bytes>, number: u64, to: &str, body: Body) {
    let (hub, instance) = (1, to.to_owned());
    let message = MessageRecord { format: FORMAT, hub, instance, body: Some(body) };
    let place = Place { sequence: number, sub: 0 };
    let message = Delivery::new(place, message.encode_to_vec().into());
    let deliver = Command::Deliver(Deliver { from: 9, messages: vec![message] });
    let stamp = Stamp { now: number as i64 * SECOND, seed: number, sequence: number << 16 };
    for (key, value) in apply(rows, stamp, &deliver.into_bytes()).changes {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

/// The index rows are always those that the heads ask for: none too few, none too many.
pub(crate) fn check_index(rows: &BTreeMap<Vec<u8>, Bytes>) {
    let heads = rows.range(vec![0x10]..vec![0x11]).map(|(key, value)| {
        let at = keys::parse_instance(key).expect("an instance");
        (at, decode(value.clone()))
    });
    let expected: BTreeSet<_> =
        heads.flat_map(|(at, record)| listing::rows(&at, &record)).collect();
    let stored = rows.range(vec![0x18]..vec![0x1a]).map(|(key, _)| key.clone());
    assert_eq!(stored.collect::<BTreeSet<_>>(), expected, "index rows");
    check_index_of_entities(rows);
}

/// Each entity stands under the second of its last change, and among those with locks if it is one.
pub(crate) fn check_index_of_entities(rows: &BTreeMap<Vec<u8>, Bytes>) {
    let heads = rows.range(vec![0x1d]..vec![0x1e]).map(|(key, value)| {
        let at = entity_keys::parse_entity(key).expect("an entity");
        (at, decode::<EntityRecord>(value.clone()))
    });
    let expected: BTreeSet<_> = heads
        .flat_map(|(at, record)| {
            let changed = entity_keys::changed(&at, entity_keys::second(record.modified));
            let is_locked = record.lock.is_some() || record.lock_requests > 0;
            [Some(changed), is_locked.then(|| entity_keys::locked(&at))]
        })
        .flatten()
        .collect();
    let kinds = [[0x1e, 2], [0x1e, 4]];
    let stored = kinds.iter().flat_map(|kind| rows.range(kind.to_vec()..vec![0x1e, kind[1] + 1]));
    let stored: BTreeSet<_> = stored.map(|(key, _)| key.clone()).collect();
    assert_eq!(stored, expected, "index rows of entities");
}
