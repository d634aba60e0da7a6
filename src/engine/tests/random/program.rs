//! Random steps, and what each must do.

use durahub_proto::wire::OrchestrationStatus as Status;

use super::super::*;
use super::draw::{Draw, Seen};
use super::model::{Instance, raised};
use crate::engine::Reject;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// One random program while it runs.
pub(super) struct Program {
    world: World,
    draw: Draw,
    instances: BTreeMap<&'static str, Instance>,
    /// Turns in the hands of workers, some of them out of date.
    turns: Vec<read::Turn>,
    /// Every activity that was made ready, and whether it may still be answered.
    tasks: Vec<(Item, bool)>,
    /// Every completion that was accepted: a second one must change nothing.
    accepted: Vec<Command>,
    labels: u32,
    pub(super) seen: Seen,
}

impl Program {
    pub(super) fn new(seed: u64) -> Program {
        Program {
            world: World::new(),
            draw: Draw(seed),
            instances: BTreeMap::new(),
            turns: Vec::new(),
            tasks: Vec::new(),
            accepted: Vec::new(),
            labels: 0,
            seen: Seen::default(),
        }
    }

    /// One step, and a look at everything.
    pub(super) fn step(&mut self) {
        // Often no time passes at all.
        self.world.now += [0, 0, 1, SECOND / 10, SECOND][self.draw.below(5)];
        let name = NAMES[self.draw.below(NAMES.len())];
        match self.draw.below(16) {
            0 | 1 => self.start(name),
            2..=4 => self.raise(name),
            5 => self.control(name),
            6 | 7 => self.take(name),
            8..=11 => {
                self.take(name);
                let newest = self.turns.len();
                let turn = if self.draw.one_in(4) {
                    self.draw.below(newest.max(1))
                } else {
                    newest.saturating_sub(1)
                };
                self.commit(turn);
            }
            12 | 13 => self.answer(),
            14 => self.fire(),
            _ => self.repeat(),
        }
        self.look();
    }

    fn look(&mut self) {
        for (name, instance) in &mut self.instances {
            instance.check(&self.world, name);
        }
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("{}", self.labels)
    }

    /// Notes what a command announced.
    fn hear(&mut self, done: &Done) {
        for effect in &done.effects {
            match effect {
                Effect::TurnReady { at, .. } => {
                    if let Some(instance) = self.instances.get_mut(at.instance.as_str()) {
                        instance.told = true;
                    }
                }
                Effect::ActivityReady { item, .. } => self.tasks.push((item.clone(), true)),
                _ => {}
            }
        }
        if !done.is_ok() {
            assert!(!done.changed, "what is refused changes nothing");
        }
    }

    /// The generation of an instance as its turns name it.
    fn generation(&self, name: &str) -> u64 {
        read::head(&self.world.rows, &at(name)).map_or(0, |record| record.generation)
    }

    /// Activities of a generation are no longer wanted, but those that the last command opened.
    fn close_tasks(&mut self, name: &str, generation: u64, but: usize) {
        let older = self.tasks.len() - but;
        for (item, open) in &mut self.tasks[..older] {
            *open &= item.at.instance != name || item.generation != generation;
        }
    }

    fn start(&mut self, name: &'static str) {
        use Status::{Completed, Failed, Pending, Running, Suspended, Terminated};
        let terminal = [Completed, Failed, Terminated];
        let all = [Completed, Failed, Terminated, Pending, Running, Suspended];
        let listed: Option<&[Status]> =
            [None, None, Some(&all[..]), Some(&terminal[..]), Some(&[])][self.draw.below(5)];
        let mut request = request(name);
        request.orchestration_id_reuse_policy =
            listed.map(|listed| wire::OrchestrationIdReusePolicy {
                replaceable_status: listed.iter().map(|status| (*status).into()).collect(),
                ..Default::default()
            });
        if self.draw.one_in(4) {
            let due = self.world.now + SECOND / 2;
            request.scheduled_start_timestamp = Some(crate::engine::time::timestamp(due));
        }
        let known = self.instances.contains_key(name);
        let ended = self.instances.get(name).is_some_and(Instance::has_ended);
        let replaces = !known
            || listed.map_or(ended, |listed| {
                let status = self.world.state(name).orchestration_status();
                listed.contains(&status)
            });
        let old = self.generation(name);
        self.instances.entry(name).or_default();
        if replaces {
            self.close_tasks(name, old, 0);
            if let Some(instance) = self.instances.get_mut(name) {
                instance.restart();
            }
        }
        let done = self.world.start(request);
        self.hear(&done);
        assert_eq!(done.is_ok(), replaces, "S2: {:?}", done.answer);
    }

    fn raise(&mut self, name: &'static str) {
        let label = self.label();
        let done = self.world.raise(name, &label);
        self.hear(&done);
        match self.instances.get_mut(name) {
            None => assert!(matches!(done.answer, Err(Reject::NotFound { .. })), "R2.44"),
            Some(instance) if instance.has_ended() => {
                assert!(done.is_ok() && !done.changed, "R2.43");
            }
            Some(instance) => instance.raised.push_back(label),
        }
    }

    fn control(&mut self, name: &'static str) {
        let instance_id = name.to_owned();
        let command = match self.draw.below(5) {
            0 => {
                let request =
                    wire::TerminateRequest { instance_id, output: None, recursive: false };
                if let Some(instance) = self.instances.get_mut(name) {
                    instance.terminating = !instance.has_ended();
                }
                Command::Terminate(command::Terminate { hub: HUB, request })
            }
            1 | 2 => {
                let request = wire::SuspendRequest { instance_id, reason: None };
                Command::Suspend(command::Suspend { hub: HUB, request })
            }
            _ => {
                let request = wire::ResumeRequest { instance_id, reason: None };
                Command::Resume(command::Resume { hub: HUB, request })
            }
        };
        let done = self.world.propose(command);
        self.hear(&done);
    }

    fn take(&mut self, name: &'static str) {
        self.turns.extend(self.world.turn(name));
    }

    /// A worker hands in a turn, perhaps one that is out of date.
    fn commit(&mut self, index: usize) {
        if index >= self.turns.len() {
            return;
        }
        let turn = if self.draw.one_in(3) {
            let read::Turn { id, past, new, .. } = &self.turns[index];
            let (id, past, new) = (id.clone(), past.clone(), new.clone());
            Taken { id, past, new }
        } else {
            let read::Turn { id, past, new, .. } = self.turns.remove(index);
            Taken { id, past, new }
        };
        let name = NAMES.into_iter().find(|name| *name == turn.id.instance).expect("one of ours");
        let waiting = turn.new.len() - 1;
        let processed = self.draw.one_in(5).then(|| 1 + self.draw.below(waiting));
        let consumed = &turn.new[..=processed.unwrap_or(waiting)];
        let (actions, asked) = self.actions(consumed);
        let command = Command::CompleteTurn(command::CompleteTurn {
            turn: turn.id.clone(),
            actions,
            processed: processed.map(|count| count as u32),
            ..Default::default()
        });
        let before = read::history(&self.world.rows, &at(name), None);
        let current = self.generation(name) == turn.id.generation
            && before == turn.past
            && !self.instances[name].has_ended();
        let instance = self.instances.get_mut(name).expect("it was started");
        let told = std::mem::take(&mut instance.told);
        let done = self.world.propose(command.clone());
        if !done.is_ok() {
            self.seen.stale += 1;
            instance.told = told;
            self.hear(&done);
            let same =
                self.world.turn(name).is_some_and(|now| now.new[1..].starts_with(&turn.new[1..]));
            assert!(!current || !same, "a turn on the current history is accepted");
            return;
        }
        assert!(current, "S4: no two turns commit from one history");
        self.seen.turns += 1;
        self.accepted.push(command);
        let opened = activities(&done).len();
        self.hear(&done);
        self.committed(name, &turn, consumed, &asked, opened);
    }

    /// Holds what an accepted turn did against what it should have done.
    fn committed(
        &mut self,
        name: &'static str,
        turn: &Taken,
        consumed: &[Bytes],
        asked: &Asked,
        opened: usize,
    ) {
        let taken = raised(&consumed.iter().map(decode).collect::<Vec<_>>());
        let instance = self.instances.get_mut(name).expect("it was started");
        for name in taken {
            assert_eq!(instance.raised.pop_front(), Some(name), "S7: in order, once");
        }
        let asked_tasks = asked.events.iter().filter(|(_, task)| *task).count();
        assert_eq!(opened, asked_tasks, "R4.16, R4.26");
        if let Some(carried) = &asked.carried {
            self.seen.generations += 1;
            carried.iter().rev().for_each(|name| instance.raised.push_front(name.clone()));
            instance.renew();
            assert!(read::history(&self.world.rows, &at(name), None).is_empty(), "R4.10");
            self.close_tasks(name, turn.id.generation, opened);
            return;
        }
        let after = read::history(&self.world.rows, &at(name), None);
        let whole: Vec<_> = turn.past.iter().chain(consumed).cloned().collect();
        assert!(after.starts_with(&whole), "R3.24, R4.9");
        let ids: Vec<i32> =
            after[whole.len()..].iter().map(|event| decode(event).event_id).collect();
        let expected: Vec<i32> = asked.events.iter().map(|(id, _)| *id).chain(asked.end).collect();
        assert!(ids.starts_with(&expected), "R4.5, R4.17: {ids:?} for {expected:?}");
        // Nothing may follow but a suspension that waited for this (R4.67).
        assert!(ids[expected.len()..].iter().all(|id| *id == -1), "{ids:?}");
        if asked.end.is_some() {
            self.seen.ended += 1;
            self.close_tasks(name, turn.id.generation, opened);
        } else {
            instance.timers.extend(&asked.timers);
        }
    }

    /// Random actions in random order, and what they ask for.
    fn actions(&mut self, consumed: &[Bytes]) -> (Vec<wire::OrchestratorAction>, Asked) {
        let (mut actions, mut asked) = (Vec::new(), Asked::default());
        for _ in 0..self.draw.below(4) {
            // Ids repeat, within a turn and across turns (R4.18, R4.19).
            let id = 1 + self.draw.below(6) as i32;
            if self.draw.one_in(3) {
                let due = self.world.now + [-1, 0, SECOND / 4, SECOND][self.draw.below(4)];
                let fire_at = Some(crate::engine::time::timestamp(due));
                actions.push(action(id, Action::CreateTimer(wire::CreateTimerAction { fire_at })));
                asked.timers.push((id, due));
                asked.events.push((id, false));
            } else {
                actions.push(task(id));
                asked.events.push((id, true));
            }
        }
        asked.events.sort_by_key(|(id, _)| *id);
        let ends = self.draw.below(8);
        if ends < 2 {
            let status = [Status::Completed, Status::Failed][self.draw.below(2)];
            let id = 10 + self.draw.below(3) as i32;
            actions.push(action(id, Action::CompleteOrchestration(end(status, None))));
            asked.end = Some(id);
        }
        if (1..=3).contains(&ends) {
            let mut again = end(Status::ContinuedAsNew, None);
            let events: Vec<_> = consumed.iter().map(decode).collect();
            let names = raised(&events);
            let keep = self.draw.below(names.len() + 1);
            let carried = names[names.len() - keep..].to_vec();
            again.carryover_events = consumed
                .iter()
                .filter(|event| {
                    matches!(content(event), EventType::EventRaised(it) if carried.contains(&it.name))
                })
                .cloned()
                .collect();
            // Terminal beats it (R4.20), whichever comes first.
            actions.insert(0, action(9, Action::CompleteOrchestration(again)));
            asked.carried = asked.end.is_none().then_some(carried);
        }
        // One client sends its actions in random order, equal ids in theirs (R4.17).
        let mut shuffled: Vec<wire::OrchestratorAction> = Vec::new();
        for action in actions {
            let after = shuffled.iter().rposition(|it| it.id == action.id).map_or(0, |at| at + 1);
            let place = after + self.draw.below(shuffled.len() - after + 1);
            shuffled.insert(place, action);
        }
        (shuffled, asked)
    }

    fn answer(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let index = self.draw.below(self.tasks.len());
        self.answer_task(index);
    }

    fn answer_task(&mut self, index: usize) {
        let (label, (item, open)) = (self.label(), self.tasks[index].clone());
        let done = self.world.answer(&item, &label);
        self.hear(&done);
        assert_eq!(done.is_ok(), open, "S5: {item:?} {:?}", done.answer);
        self.tasks[index].1 = false;
        if !open {
            self.seen.late += 1;
            return;
        }
        self.seen.results += 1;
        let id = command::TaskId {
            hub: HUB,
            instance: item.at.instance.clone(),
            generation: item.generation,
            number: item.number,
        };
        let again = command::CompleteActivity { task: id, result: None, failure: None };
        self.accepted.push(Command::CompleteActivity(again));
        let current = self.generation(&item.at.instance) == item.generation;
        let instance = self.instances.get_mut(item.at.instance.as_str()).expect("it was started");
        if current && !instance.has_ended() {
            instance.results.push(label);
        }
    }

    fn fire(&mut self) {
        let done = self.world.fire();
        self.seen.fired += u64::from(done.changed);
        self.hear(&done);
        let again = self.world.fire();
        assert!(!again.changed, "S6: what has fired does not fire again");
    }

    /// Something that was accepted comes a second time.
    fn repeat(&mut self) {
        if self.accepted.is_empty() {
            return;
        }
        let index = self.draw.below(self.accepted.len());
        let done = self.world.propose(self.accepted[index].clone());
        assert!(!done.is_ok() && !done.changed, "R3.54: a repeated message changes nothing");
    }

    /// Lets everything finish, then sends everything again.
    pub(super) fn finish(&mut self) {
        self.world.now += 3_600 * SECOND;
        for _ in 0..3 {
            self.fire();
            for index in 0..self.tasks.len() {
                if self.tasks[index].1 {
                    self.answer_task(index);
                }
            }
            for name in self.instances.keys().copied().collect::<Vec<_>>() {
                let request = wire::ResumeRequest { instance_id: name.into(), reason: None };
                let resume = Command::Resume(command::Resume { hub: HUB, request });
                let done = self.world.propose(resume);
                self.hear(&done);
                if let Some(turn) = self.world.turn(name) {
                    let read::Turn { id, past, new, .. } = turn;
                    let instance = self.instances.get_mut(name).expect("it was started");
                    instance.told = false;
                    let done = self.world.commit(&id, Vec::new());
                    assert!(done.is_ok(), "nothing came in between");
                    self.hear(&done);
                    let taken = Taken { id, past, new: new.clone() };
                    self.committed(name, &taken, &new, &Asked::default(), 0);
                }
            }
            self.look();
        }
        for (name, instance) in &self.instances {
            instance.check_finished(&self.world, name);
            assert!(self.world.turn(name).is_none(), "L1: nothing is left to do");
        }
        let rows = self.world.rows.clone();
        for command in self.accepted.clone() {
            let done = self.world.propose(command);
            assert!(!done.is_ok() && !done.changed, "R3.54: a late message changes nothing");
        }
        assert_eq!(rows, self.world.rows);
        assert_eq!(read::open_work(&self.world.rows).len(), 0, "L1: nothing is left to do");
        self.world.check_replay();
    }
}

/// A turn in the hands of a worker.
struct Taken {
    id: TurnId,
    past: Vec<Bytes>,
    new: Vec<Bytes>,
}

/// What the actions of a turn ask for.
#[derive(Default)]
struct Asked {
    /// Events that they become, by id, and whether each opens an activity.
    events: Vec<(i32, bool)>,
    timers: Vec<(i32, i64)>,
    /// Id of the action that ends the instance.
    end: Option<i32>,
    /// External events carried into a new generation.
    carried: Option<Vec<String>>,
}
