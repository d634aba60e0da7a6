//! Removals of any size, in commands of a bounded size, after which nothing is left (S11).

use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};

use crate::engine::command::{ClearHub, Purge, Start, Sweep, Target};
use crate::engine::rig::Partition;
use crate::engine::{Address, Command, Reply, read};

/// Most rows that one command may change here.
const BOUND: usize = 2500;

fn purge(ids: impl IntoIterator<Item = String>) -> Command {
    let target = |instance| Target { instance, generation: 0 };
    let targets = ids.into_iter().map(target).collect();
    Command::Purge(Purge { hub: 1, targets, ..Default::default() })
}

fn task() -> Action {
    Action::ScheduleTask(wire::ScheduleTaskAction { name: "T".to_owned(), ..Default::default() })
}

fn timer() -> Action {
    Action::CreateTimer(wire::CreateTimerAction {
        fire_at: Some(crate::engine::time::timestamp(1 << 60)),
    })
}

fn child(n: i32) -> Action {
    Action::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
        instance_id: format!("child{n}"),
        name: "C".to_owned(),
        ..Default::default()
    })
}

/// An instance of `turns` turns, so of as many history rows.
fn long(partition: &mut Partition, id: &str, turns: usize) {
    partition.start(id);
    partition.turn(id, Vec::new());
    for _ in 0..turns {
        partition.raise(id);
        partition.turn(id, Vec::new());
    }
}

/// Sweeps until nothing is left to be swept; every command is small.
fn sweep(partition: &mut Partition) -> usize {
    let mut sweeps = 0;
    while read::sweep_due(&partition.rows) {
        let (answer, changed) = partition.apply(Command::Sweep(Sweep {}));
        assert_eq!(answer, Ok(Reply::Done));
        assert!(changed > 0 && changed <= BOUND, "a sweep changed {changed} rows");
        sweeps += 1;
    }
    sweeps
}

#[test]
fn a_long_history_goes_in_small_commands() {
    let mut partition = Partition::default();
    long(&mut partition, "long", 3000);
    partition.raise("long");
    partition.end("long", OrchestrationStatus::Completed);
    let (answer, changed) = partition.apply(purge(["long".to_owned()]));
    assert_eq!(answer, Ok(Reply::Purged { count: 1 }));
    assert!(changed < 10, "the head and its index rows, {changed}");
    assert!(read::state(&partition.rows, &Address::new(1, "long"), true).is_none());

    // The id is free at once, and its new instance loses nothing to the sweeper.
    long(&mut partition, "long", 2);
    assert!(sweep(&mut partition) >= 3001 / super::ROWS as usize);
    let history = read::history(&partition.rows, &Address::new(1, "long"), None);
    assert_eq!(history.len(), 2 + 2 * 2);
    partition.raise("long");
    partition.end("long", OrchestrationStatus::Completed);
    partition.apply(purge(["long".to_owned()])).0.expect("purged");
    assert_eq!(partition.count(), 0, "nothing is left");
}

#[test]
fn many_instances_share_the_budget_of_a_command() {
    let mut partition = Partition::default();
    let ids: Vec<String> = (0..64).map(|n| format!("i{n}")).collect();
    for id in &ids {
        long(&mut partition, id, 20);
        partition.raise(id);
        partition.end(id, OrchestrationStatus::Failed);
    }
    let (answer, changed) = partition.apply(purge(ids));
    assert_eq!(answer, Ok(Reply::Purged { count: 64 }));
    assert!(changed <= BOUND, "{changed} rows");
    assert!(read::sweep_due(&partition.rows), "not all of them go at once");
    sweep(&mut partition);
    assert_eq!(partition.count(), 0, "nothing is left");
}

/// Started again in place of the old run, or as a new generation: its long history is swept later.
#[test]
fn a_long_generation_that_another_follows_goes_in_small_commands() {
    let mut partition = Partition::default();
    long(&mut partition, "o1", 2000);
    partition.raise("o1");
    let anew = wire::CompleteOrchestrationAction {
        orchestration_status: OrchestrationStatus::ContinuedAsNew.into(),
        ..Default::default()
    };
    // This task outlives its generation (R4.26).
    partition.turn("o1", vec![task(), Action::CompleteOrchestration(anew)]);
    assert!(read::sweep_due(&partition.rows));
    assert!(read::history(&partition.rows, &Address::new(1, "o1"), None).is_empty());
    sweep(&mut partition);
    let kept = |kind: u8| partition.rows.keys().filter(|key| key[0] == kind).count();
    assert_eq!((kept(0x12), kept(0x13)), (0, 1), "no history, one task");
    partition.end("o1", OrchestrationStatus::Completed);
    partition.apply(purge(["o1".to_owned()])).0.expect("purged");
    assert_eq!(partition.count(), 0, "the task of the generation before goes too");
}

/// R2.97: whatever its instances are doing, a hub goes in small commands, and nothing comes back.
#[test]
fn a_hub_is_cleared_in_small_commands() {
    let mut partition = Partition::default();
    long(&mut partition, "history", 1500);
    partition.start("inbox");
    (0..5000).for_each(|_| partition.raise("inbox"));
    partition.start("items");
    let items = (0..700).flat_map(|n| [task(), timer(), child(n)]);
    partition.turn("items", items.collect());
    (0..300).for_each(|n| partition.start(&format!("i{n}")));
    // What waits for other partitions is theirs.
    partition.rows.retain(|key, _| key[0] != 0x16);

    let mut steps = 0;
    loop {
        let (answer, changed) = partition.apply(Command::ClearHub(ClearHub { hub: 1 }));
        assert!(changed <= BOUND, "a step changed {changed} rows");
        steps += 1;
        assert!(steps < 100, "it comes to an end");
        sweep(&mut partition);
        match answer {
            Ok(Reply::Step { done: true }) => break,
            Ok(Reply::Step { done: false }) => {}
            other => panic!("{other:?}"),
        }
        let request =
            wire::CreateInstanceRequest { instance_id: "new".into(), ..Default::default() };
        let (answer, _) = partition.apply(Command::Start(Start { hub: 1, request }));
        assert!(answer.is_err(), "nothing new in a deleted hub");
    }
    assert!(steps > 300 / 64, "{steps}");
    assert_eq!(partition.count(), 0, "nothing is left");
}
