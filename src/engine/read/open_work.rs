//! Everything that waits for a worker: what a new leader rebuilds its queues from.
//!
//! Costs what is open, not what is stored: inbox and task rows exist only while something waits. Read in
//! steps, so that writers never wait for long.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::entity::{entity, first_operation};
use super::inbox::first_event;
use super::instance::head;
use crate::engine::Effect;
use crate::engine::effect::Class;
use crate::engine::event::time_of;
use crate::engine::state::{EntityRecord, TaskRecord, decode, entity_keys, entity_name, keys};
use crate::engine::view::{View, after_prefix};

/// Something that waits.
#[derive(Debug)]
pub struct Open {
    /// Since when, in nanoseconds since the Unix epoch.
    pub since: i64,
    /// What was told when it became open.
    pub effect: Effect,
}

/// A reading of all that waits for a worker. Rows may change between its steps: what becomes open meanwhile is
/// told by effects, and what no longer is open is dropped when it is handed out. Timers: see `next_due`.
#[derive(Debug, Default)]
pub struct OpenWork {
    kind: Kind,
    /// First key of that kind that is not read yet; empty before the first.
    from: Vec<u8>,
    found: Vec<Open>,
}

/// What is read, in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Turns,
    Batches,
    Activities,
    Nothing,
}

impl OpenWork {
    /// Reads on, over at most so many instances, entities or tasks. Says whether there is more to read.
    pub fn read_on(&mut self, view: &dyn View, at_most: usize) -> bool {
        let mut left = at_most;
        while left > 0 && self.kind != Kind::Nothing {
            let (all, next) = match self.kind {
                Kind::Turns => (keys::all_inboxes(), Kind::Batches),
                Kind::Batches => (entity_keys::all_queues(), Kind::Activities),
                Kind::Activities | Kind::Nothing => (keys::all_tasks(), Kind::Nothing),
            };
            if self.from.is_empty() {
                self.from.clone_from(&all);
            }
            let end = after_prefix(&all);
            let more = match self.kind {
                Kind::Turns => self.read_turn(view, &end),
                Kind::Batches => self.read_batch(view, &end),
                Kind::Activities | Kind::Nothing => self.read_activities(view, &end, &mut left),
            };
            left = left.saturating_sub(1);
            if !more {
                self.kind = next;
                self.from.clear();
            }
        }
        self.kind != Kind::Nothing
    }

    /// What was found, oldest first; what began at one time keeps its order.
    pub fn oldest_first(mut self) -> Vec<Open> {
        self.found.sort_by_key(|open| open.since);
        self.found
    }

    /// The next inbox; false if there is none.
    fn read_turn(&mut self, view: &dyn View, end: &[u8]) -> bool {
        let Some(key) = first_key(view, &self.from, end) else { return false };
        let (at, _) = keys::parse_inbox(&key).expect("stored key reads back");
        self.from = after_prefix(&keys::inbox_of(&at));
        if let Some(record) = head(view, &at).filter(|record| record.is_dispatchable()) {
            let class =
                Class { name: record.name.clone(), version: record.filter_version().to_owned() };
            let since = first_event(view, &at).map_or(0, |event| time_of(&event));
            self.found.push(Open { since, effect: Effect::TurnReady { at, class } });
        }
        true
    }

    /// The next queue of an entity; false if there is none.
    fn read_batch(&mut self, view: &dyn View, end: &[u8]) -> bool {
        let Some(key) = first_key(view, &self.from, end) else { return false };
        let at = entity_keys::parse_queue_of(&key).expect("stored key reads back");
        self.from = after_prefix(&entity_keys::queue_of(&at));
        if let Some(record) = entity(view, &at).filter(EntityRecord::is_runnable) {
            let since = first_operation(view, &at, &record).map_or(0, |event| time_of(&event));
            let name = entity_name(&at.instance).unwrap_or_default().to_owned();
            let class = Class { name, version: String::new() };
            self.found.push(Open { since, effect: Effect::EntityReady { at, class } });
        }
        true
    }

    /// As many tasks as are left to read; false if these were all.
    fn read_activities(&mut self, view: &dyn View, end: &[u8], left: &mut usize) -> bool {
        let mut last = None;
        view.scan(&self.from, end, &mut |key, value| {
            let task: TaskRecord = decode(Bytes::copy_from_slice(value));
            let class = Class { name: task.name, version: task.filter_version };
            let since = task.scheduled;
            let item = keys::parse_task(key).expect("stored key reads back");
            self.found.push(Open { since, effect: Effect::ActivityReady { item, class } });
            *left -= 1;
            if *left > 0 {
                return ControlFlow::Continue(());
            }
            last = Some(key.to_vec());
            ControlFlow::Break(())
        });
        let Some(mut from) = last else { return false };
        from.push(0);
        self.from = from;
        true
    }
}

fn first_key(view: &dyn View, from: &[u8], end: &[u8]) -> Option<Vec<u8>> {
    let mut first = None;
    view.scan(from, end, &mut |key, _| {
        first = Some(key.to_vec());
        ControlFlow::Break(())
    });
    first
}

/// All that waits for a worker at one moment, oldest first.
pub fn open_work(view: &dyn View) -> Vec<Open> {
    let mut work = OpenWork::default();
    while work.read_on(view, usize::MAX) {}
    work.oldest_first()
}

#[cfg(test)]
mod tests {
    use durahub_proto::wire;
    use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;

    use super::*;
    use crate::engine::rig::Partition;

    /// Three orchestrations with a turn each, one of them with many events, and one with tasks.
    fn busy() -> Partition {
        let mut partition = Partition::default();
        for id in ["a", "b", "c", "d"] {
            partition.start(id);
        }
        let task = wire::ScheduleTaskAction { name: "T".into(), ..Default::default() };
        partition.turn("c", (0..7).map(|_| Action::ScheduleTask(task.clone())).collect());
        (0..1_000).for_each(|_| partition.raise("b"));
        partition
    }

    fn told(open: Vec<Open>) -> Vec<String> {
        open.iter().map(|open| format!("{open:?}")).collect()
    }

    #[test]
    fn steps_of_any_length_find_the_same() {
        let partition = busy();
        let all = told(open_work(&partition));
        assert_eq!(all.len(), 3 + 7, "{all:#?}");
        for at_most in 1..=12 {
            let mut work = OpenWork::default();
            while work.read_on(&partition, at_most) {}
            assert_eq!(told(work.oldest_first()), all, "steps of {at_most}");
        }
    }

    #[test]
    fn a_step_reads_no_more_than_it_was_told() {
        let partition = busy();
        let (mut work, mut more) = (OpenWork::default(), true);
        while more {
            partition.read.set(0);
            more = work.read_on(&partition, 2);
            // A key, the head and the first event of an instance, or a task; and a look for the next kind.
            assert!(partition.read.get() <= 2 * 3 + 3, "{} rows", partition.read.get());
        }
    }

    #[test]
    fn what_ends_between_two_steps_is_no_stumbling_block() {
        let mut partition = busy();
        let mut work = OpenWork::default();
        // Two turns are read, then all that was open of these two and the next goes away.
        assert!(work.read_on(&partition, 2));
        partition.rows.retain(|key, _| keys::parse_inbox(key).is_none());
        while work.read_on(&partition, 2) {}
        assert_eq!(work.oldest_first().len(), 2 + 7);
    }
}
