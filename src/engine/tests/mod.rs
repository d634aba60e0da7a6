//! Tests of the engine that are no scripts: [`random`] programs against a model, what is [`passing`]
//! through unchanged, and [`growth`] with its limits.

mod growth;
mod passing;
mod random;

use std::collections::BTreeMap;

use bytes::Bytes;
use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use prost::Message as _;

use super::command::{self, TurnId};
use super::{
    Address, Answer, Changes, Command, Effect, Item, Limits, Stamp, apply, decode_answer, read,
};

const HUB: u32 = 1;
const SECOND: i64 = 1_000_000_000;

/// A partition in memory, with the log that made it.
struct World {
    rows: BTreeMap<Vec<u8>, Bytes>,
    log: Vec<(Stamp, Bytes, Changes)>,
    now: i64,
    limits: Limits,
}

/// What a command did.
struct Done {
    answer: Answer,
    effects: Vec<Effect>,
    /// Whether any row changed.
    changed: bool,
}

impl Done {
    fn is_ok(&self) -> bool {
        self.answer.is_ok()
    }
}

impl World {
    fn new() -> World {
        World { rows: BTreeMap::new(), log: Vec::new(), now: SECOND, limits: Limits::USUAL }
    }

    fn propose(&mut self, command: Command) -> Done {
        let sequence = (self.log.len() as u64 + 1) << 16;
        let stamp = Stamp { now: self.now, seed: sequence, sequence };
        let bytes = command.within(&self.limits);
        let applied = apply(&self.rows, stamp, &bytes);
        absorb(&mut self.rows, &applied.changes);
        let changed = !applied.changes.is_empty();
        self.log.push((stamp, bytes, applied.changes));
        let answer = decode_answer(applied.reply).expect("an answer");
        Done { answer, effects: applied.effects, changed }
    }

    /// Runs the log again, on nothing: after every command the rows are what they were.
    fn check_replay(&self) {
        let mut rows = BTreeMap::new();
        for (stamp, command, changes) in &self.log {
            let applied = apply(&rows, *stamp, command);
            assert_eq!(applied.changes, *changes, "replay equals live");
            absorb(&mut rows, &applied.changes);
        }
        assert_eq!(rows, self.rows, "replay equals live");
    }

    fn start(&mut self, request: wire::CreateInstanceRequest) -> Done {
        self.propose(Command::Start(command::Start { hub: HUB, request }))
    }

    fn raise(&mut self, instance: &str, name: &str) -> Done {
        let request = wire::RaiseEventRequest {
            instance_id: instance.into(),
            name: name.into(),
            input: None,
        };
        self.propose(Command::RaiseEvent(command::RaiseEvent { hub: HUB, request }))
    }

    fn turn(&self, instance: &str) -> Option<read::Turn> {
        let room = read::Room { bytes: 4 << 20, past: None };
        let turn = read::turn(&self.rows, &at(instance), self.now, room, None)?;
        Some(turn.expect("it fits"))
    }

    fn commit(&mut self, turn: &TurnId, actions: Vec<wire::OrchestratorAction>) -> Done {
        self.complete(command::CompleteTurn { turn: turn.clone(), actions, ..Default::default() })
    }

    fn complete(&mut self, turn: command::CompleteTurn) -> Done {
        self.propose(Command::CompleteTurn(turn))
    }

    fn answer(&mut self, item: &Item, result: &str) -> Done {
        let task = command::TaskId {
            hub: HUB,
            instance: item.at.instance.clone(),
            generation: item.generation,
            number: item.number,
        };
        let result = Some(result.into());
        let answer = command::CompleteActivity { task, result, failure: None };
        self.propose(Command::CompleteActivity(answer))
    }

    fn fire(&mut self) -> Done {
        self.propose(Command::FireTimers(command::FireTimers { up_to: self.now }))
    }

    fn history(&self, instance: &str) -> Vec<wire::HistoryEvent> {
        read::history(&self.rows, &at(instance), None).iter().map(decode).collect()
    }

    fn state(&self, instance: &str) -> wire::OrchestrationState {
        read::state(&self.rows, &at(instance), true).expect("it exists")
    }
}

fn at(instance: &str) -> Address {
    Address::new(HUB, instance)
}

fn absorb(rows: &mut BTreeMap<Vec<u8>, Bytes>, changes: &Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
    }
}

fn decode(event: &Bytes) -> wire::HistoryEvent {
    wire::HistoryEvent::decode(event.clone()).expect("a history event")
}

fn content(event: &Bytes) -> EventType {
    decode(event).event_type.expect("of some type")
}

fn request(instance: &str) -> wire::CreateInstanceRequest {
    wire::CreateInstanceRequest {
        instance_id: instance.into(),
        name: "N".into(),
        ..Default::default()
    }
}

fn action(id: i32, action: Action) -> wire::OrchestratorAction {
    wire::OrchestratorAction { id, orchestrator_action_type: Some(action) }
}

fn task(id: i32) -> wire::OrchestratorAction {
    action(
        id,
        Action::ScheduleTask(wire::ScheduleTaskAction { name: "A".into(), ..Default::default() }),
    )
}

fn end(
    status: wire::OrchestrationStatus,
    result: Option<&str>,
) -> wire::CompleteOrchestrationAction {
    wire::CompleteOrchestrationAction {
        orchestration_status: status.into(),
        result: result.map(Into::into),
        ..Default::default()
    }
}

fn complete(id: i32, result: Option<&str>) -> wire::OrchestratorAction {
    action(id, Action::CompleteOrchestration(end(wire::OrchestrationStatus::Completed, result)))
}

/// The activities that a command made ready.
fn activities(done: &Done) -> Vec<Item> {
    let items = done.effects.iter().filter_map(|effect| match effect {
        Effect::ActivityReady { item, .. } => Some(item.clone()),
        _ => None,
    });
    items.collect()
}
