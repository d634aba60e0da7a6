//! What the engine itself costs: commands applied to rows in memory, no disk and no network.
//!
//! `cargo bench --bench apply`

use std::collections::BTreeMap;

use bytes::Bytes;
use divan::Bencher;
use durahub::engine::command::{CompleteActivity, CompleteTurn, Start, TaskId};
use durahub::engine::{Address, Command, Stamp, apply, read};
use durahub_proto::wire;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;

const ROOM: read::Room = read::Room { bytes: u64::MAX, past: None };

fn main() {
    divan::main();
}

/// One sequential step: the turn that schedules an activity, and the activity's result.
#[divan::bench(args = [0, 100, 1000])]
fn sequential_step(bencher: Bencher<'_, '_>, steps_before: i32) {
    let mut partition = Partition::default();
    partition.apply(Command::Start(Start {
        hub: 1,
        request: wire::CreateInstanceRequest {
            instance_id: "a".into(),
            name: "Bench".into(),
            ..Default::default()
        },
    }));
    for step in 0..steps_before {
        partition.step(step);
    }
    let mut step = steps_before;
    bencher.bench_local(|| {
        partition.step(step);
        step += 1;
    });
}

#[derive(Default)]
struct Partition {
    rows: BTreeMap<Vec<u8>, Bytes>,
    sequence: u64,
}

impl Partition {
    fn apply(&mut self, command: Command) {
        self.sequence += 1 << 16;
        let stamp =
            Stamp { now: self.sequence as i64, seed: self.sequence, sequence: self.sequence };
        let applied = apply(&self.rows, stamp, &command.into_bytes());
        for (key, value) in applied.changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    fn step(&mut self, id: i32) {
        let at = Address::new(1, "a");
        let turn = read::turn(&self.rows, &at, self.sequence as i64, ROOM, None);
        let Some(Ok(turn)) = turn else { return };
        let generation = turn.id.generation;
        let schedule = wire::ScheduleTaskAction {
            name: "Step".into(),
            input: Some("x".repeat(100).into()),
            ..Default::default()
        };
        self.apply(Command::CompleteTurn(CompleteTurn {
            turn: turn.id,
            actions: vec![wire::OrchestratorAction {
                id,
                orchestrator_action_type: Some(Action::ScheduleTask(schedule)),
            }],
            ..Default::default()
        }));
        self.apply(Command::CompleteActivity(CompleteActivity {
            task: TaskId { hub: 1, instance: "a".into(), generation, number: id as u64 },
            result: Some("x".repeat(100).into()),
            failure: None,
        }));
    }
}
