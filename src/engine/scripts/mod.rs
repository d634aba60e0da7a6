//! Runs the scripts in `testscripts/`: commands to one partition, and what they did, as text.
//!
//! `UPDATE_GOLDENFILES=1 cargo test engine` records new output; read it in review. After each script the
//! log is replayed from every prefix: the rows must be the same.

mod entities;
mod given;
mod show;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use durahub_proto::wire;
use goldenscript::{Argument, Context};

use self::given::{policy, response, seconds};
use self::show::{brief, is_for_counting, show_effect, show_event, status_name};
use super::command::{self, TurnId};
use super::state::{Address, ChildRecord, Item};
use super::{Answer, Command, Effect, Stamp, View, apply, decode_answer, read, time};

pub(super) const SECOND: i64 = 1_000_000_000;
pub(super) const HUB: u32 = 1;

pub(super) type Rows = BTreeMap<Vec<u8>, Bytes>;

#[derive(Default)]
pub(super) struct Partition {
    pub(super) rows: Rows,
    log: Vec<(Stamp, Bytes)>,
    pub(super) now: i64,
    taken: BTreeMap<String, TurnId>,
    pub(super) batches: BTreeMap<String, command::BatchId>,
    counted: Vec<Effect>,
    /// The last delivery, for a courier that repeats itself.
    delivery: command::Deliver,
}

#[test]
fn scripts() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/testscripts");
    let mut paths: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 10, "the scripts are there");
    for path in paths {
        goldenscript::run(&mut Partition::default(), &path)
            .unwrap_or_else(|e| panic!("{path:?}: {e}"));
    }
}

impl goldenscript::Runner for Partition {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &Self::Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut next = || args.next_pos().map(str::to_owned);
        let instance = next().unwrap_or_default();
        let at = Address::new(HUB, instance.clone());
        let text = |key: &str| {
            command.args.iter().find_map(|arg| match arg {
                Argument::KeyValue(k, value) if k == key => Some(value.clone()),
                _ => None,
            })
        };
        match command.name.as_str() {
            "start" => {
                let request = wire::CreateInstanceRequest {
                    instance_id: instance,
                    name: text("name").unwrap_or_else(|| "Hello".into()),
                    version: text("version").map(Into::into),
                    input: text("input").map(Into::into),
                    execution_id: text("execution").map(Into::into),
                    scheduled_start_timestamp: text("at").map(|at| seconds(&at)).transpose()?,
                    orchestration_id_reuse_policy: text("reuse").map(|list| policy(&list)),
                    tags: text("tag").map(|tag| (tag.clone(), tag)).into_iter().collect(),
                    ..Default::default()
                };
                Ok(self.propose(Command::Start(command::Start { hub: HUB, request })))
            }
            "take" => self.take(&at),
            "commit" => self.commit(&at, &command.args),
            "turn" => Ok(self.take(&at)? + &self.commit(&at, &command.args)?),
            "fail-turn" => {
                let turn = self.taken.get(&instance).ok_or("no turn was taken")?.clone();
                let reason = text("reason").unwrap_or_default();
                Ok(self.propose(Command::FailTurn(command::FailTurn { turn, reason })))
            }
            "result" | "fail" => {
                let record = read::head(&self.rows, &at).ok_or("no such instance")?;
                let generation = text("generation").map(|g| g.parse()).transpose()?;
                let task = command::TaskId {
                    hub: HUB,
                    instance,
                    generation: generation.unwrap_or(record.generation),
                    number: next().ok_or("which task?")?.parse()?,
                };
                let failure = (command.name == "fail")
                    .then(|| super::event::failure("Oops", text("message").unwrap_or_default()));
                let result = text("result").map(Into::into);
                let result = command::CompleteActivity { task, result, failure };
                Ok(self.propose(Command::CompleteActivity(result)))
            }
            "raise" => {
                let name = next().ok_or("which event?")?;
                let request = wire::RaiseEventRequest {
                    instance_id: instance,
                    name,
                    input: text("input").map(Into::into),
                };
                Ok(self.propose(Command::RaiseEvent(command::RaiseEvent { hub: HUB, request })))
            }
            "terminate" => {
                let output = text("output").map(Into::into);
                let recursive = text("recursive").is_some();
                let request = wire::TerminateRequest { instance_id: instance, output, recursive };
                Ok(self.propose(Command::Terminate(command::Terminate { hub: HUB, request })))
            }
            "suspend" => {
                let request = wire::SuspendRequest {
                    instance_id: instance,
                    reason: text("reason").map(Into::into),
                };
                Ok(self.propose(Command::Suspend(command::Suspend { hub: HUB, request })))
            }
            "resume" => {
                let request = wire::ResumeRequest {
                    instance_id: instance,
                    reason: text("reason").map(Into::into),
                };
                Ok(self.propose(Command::Resume(command::Resume { hub: HUB, request })))
            }
            "wait" => {
                let wait: f64 = instance.parse()?;
                self.now += (wait * SECOND as f64) as i64;
                Ok(self.propose(Command::FireTimers(command::FireTimers { up_to: i64::MAX })))
            }
            "deliver" => Ok(self.deliver()),
            "deliver-again" => Ok(self.propose(Command::Deliver(self.delivery.clone()))),
            "truncate" => Ok(self.truncate()),
            "courier" => {
                let mut out = String::new();
                while !read::outbox_after(&self.rows, None, 1).is_empty() {
                    out += &self.deliver();
                    out += &self.truncate();
                }
                Ok(out)
            }
            "rewind" => {
                let reason = text("reason").map(Into::into);
                let request = wire::RewindInstanceRequest { instance_id: instance, reason };
                Ok(self.propose(Command::Rewind(command::Rewind { hub: HUB, request })))
            }
            "restart" => {
                Ok(self.propose(Command::Restart(command::Restart { hub: HUB, instance })))
            }
            "children" => Ok(self.children(&at)),
            "hub" => {
                let recreate = text("recreate").is_some();
                let create = command::CreateHub { name: instance, recreate };
                Ok(self.propose(Command::CreateHub(create)))
            }
            "retention" => {
                let keep = |key| match text(key).as_deref() {
                    None => Ok(None),
                    Some("default") => Ok(Some(command::KeepFor { milliseconds: None })),
                    Some(ms) => {
                        ms.parse().map(|ms| Some(command::KeepFor { milliseconds: Some(ms) }))
                    }
                };
                Ok(self.propose(Command::SetRetention(command::SetRetention {
                    name: instance,
                    completed: keep("completed")?,
                    failed: keep("failed")?,
                    terminated: keep("terminated")?,
                })))
            }
            "delete-hub" => {
                Ok(self.propose(Command::DeleteHub(command::DeleteHub { name: instance })))
            }
            "clear-hub" => Ok(self.propose(Command::ClearHub(command::ClearHub { hub: HUB }))),
            "forget-hub" => {
                let forget = command::ForgetHub { id: instance.parse()? };
                Ok(self.propose(Command::ForgetHub(forget)))
            }
            "deleted-hubs" => Ok(read::deleted_hubs(&self.rows)
                .iter()
                .map(|hub| format!("{} {}\n", hub.id, hub.name))
                .collect()),
            "purge" => {
                let targets = std::iter::once(instance).chain(std::iter::from_fn(next));
                let target = |id: String| match id.split_once('@') {
                    Some((id, generation)) => Ok(command::Target {
                        instance: id.to_owned(),
                        generation: generation.parse()?,
                    }),
                    None => Ok(command::Target { instance: id, generation: 0 }),
                };
                let targets: Result<_, std::num::ParseIntError> = targets.map(target).collect();
                let time = |key| text(key).map(|at| seconds(&at)).transpose();
                Ok(self.propose(Command::Purge(command::Purge {
                    hub: HUB,
                    targets: targets?,
                    statuses: text("status")
                        .map_or(Vec::new(), |list| policy(&list).replaceable_status),
                    created_from: time("from")?.as_ref().map(time::nanos),
                    created_before: time("before")?.as_ref().map(time::nanos),
                    ended_before: time("ended-before")?.as_ref().map(time::nanos),
                })))
            }
            "sweep" => Ok(self.propose(Command::Sweep(command::Sweep {}))),
            "force" => {
                let instances = std::iter::once(instance).chain(std::iter::from_fn(next)).collect();
                let reason = text("reason").map(Into::into);
                let force = command::ForceTerminate { hub: HUB, instances, reason };
                Ok(self.propose(Command::ForceTerminate(force)))
            }
            "garbage" => Ok(self.apply(Bytes::from_static(b"\x08\x63garbage"))),
            "history" => Ok(read::history(&self.rows, &at, None)
                .iter()
                .map(|event| brief(event) + "\n")
                .collect()),
            "state" => Ok(self.state(&at)),
            "open" => Ok(read::open_work(&self.rows)
                .iter()
                .map(|open| show_effect(&open.effect) + "\n")
                .collect()),
            "rows" => Ok(self.count_rows()),
            "counts" => {
                Ok(self.counted.drain(..).map(|effect| show_effect(&effect) + "\n").collect())
            }
            _ => self.entity_command(command),
        }
    }

    /// Replays every prefix of the log: the rows must be what they were, byte by byte.
    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        let mut replayed = Rows::new();
        for (stamp, command) in &self.log {
            let first = apply(&replayed, *stamp, command);
            let again = apply(&replayed, *stamp, command);
            assert_eq!(first.changes, again.changes, "apply is deterministic");
            absorb(&mut replayed, first.changes);
        }
        assert_eq!(replayed, self.rows, "replay equals live");
        Ok(())
    }
}

impl Partition {
    pub(super) fn propose(&mut self, command: Command) -> String {
        self.apply(command.into_bytes())
    }

    fn apply(&mut self, command: Bytes) -> String {
        self.now += SECOND / 1000;
        let sequence = (self.log.len() as u64 + 1) << 16;
        let stamp = Stamp { now: self.now, seed: sequence, sequence };
        let applied = apply(&self.rows, stamp, &command);
        self.log.push((stamp, command));
        absorb(&mut self.rows, applied.changes);
        super::rig::check_index(&self.rows);

        let mut out = String::new();
        for line in applied.events.iter().filter_map(show_event) {
            writeln!(out, "{line}").unwrap();
        }
        // What is told for counting only would be noise in every script; `counts` shows it.
        let (counted, effects): (Vec<_>, Vec<_>) =
            applied.effects.into_iter().partition(is_for_counting);
        self.counted.extend(counted);
        for effect in &effects {
            writeln!(out, "⇒ {}", show_effect(effect)).unwrap();
        }
        let answer: Answer = decode_answer(applied.reply).expect("the answer decodes");
        match answer {
            Ok(reply) if out.is_empty() => writeln!(out, "{reply:?}").unwrap(),
            Ok(_) => {}
            Err(reject) => writeln!(out, "rejected: {reject}").unwrap(),
        }
        out
    }

    /// What a courier does: the whole outbox in one delivery, here from the partition to itself.
    fn deliver(&mut self) -> String {
        let waiting = read::outbox_after(&self.rows, None, usize::MAX);
        let message = |place| read::message(&self.rows, place).expect("it waits");
        let messages =
            waiting.iter().map(|(place, _)| command::Delivery::new(*place, message(*place)));
        self.delivery = command::Deliver { from: 1, messages: messages.collect() };
        self.propose(Command::Deliver(self.delivery.clone()))
    }

    fn truncate(&mut self) -> String {
        let places = self.delivery.messages.iter().map(command::Delivery::place);
        let command = command::TruncateOutbox::new(places);
        self.propose(Command::TruncateOutbox(command))
    }

    fn children(&self, at: &Address) -> String {
        let generation = read::head(&self.rows, at).map_or(0, |record| record.generation);
        let show = |(item, child): &(Item, ChildRecord)| {
            let answered = if child.answered { " answered" } else { "" };
            format!("{}: {} of action {}{answered}\n", item.number, child.instance, child.task_id)
        };
        read::children(&self.rows, at, generation).iter().map(show).collect()
    }

    fn commit(&mut self, at: &Address, args: &[Argument]) -> Result<String, Box<dyn Error>> {
        let turn = self.taken.get(&at.instance).ok_or("no turn was taken")?.clone();
        let mut response = response(args)?;
        response.turn = turn;
        response.id_length = 100;
        Ok(self.propose(Command::CompleteTurn(response)))
    }

    fn take(&mut self, at: &Address) -> Result<String, Box<dyn Error>> {
        let room = read::Room { bytes: 4 << 20, past: None };
        let Some(turn) = read::turn(&self.rows, at, self.now, room, None) else {
            return Ok("nothing to hand out\n".into());
        };
        let turn = turn.map_err(|too_large| format!("{too_large:?}"))?;
        let list = |events: &[Bytes]| events.iter().map(brief).collect::<Vec<_>>().join(", ");
        let shown = format!("[{}] | {}\n", list(&turn.past), list(&turn.new));
        self.taken.insert(at.instance.clone(), turn.id);
        Ok(shown)
    }

    fn state(&self, at: &Address) -> String {
        let Some(state) = read::state(&self.rows, at, true) else { return "none\n".into() };
        let mut out = format!("{} v{:?}", state.name, state.version.as_ref().map(|v| v.as_str()));
        write!(out, " {}", status_name(state.orchestration_status())).unwrap();
        for (label, text) in
            [("input", &state.input), ("output", &state.output), ("custom", &state.custom_status)]
        {
            if let Some(text) = text {
                write!(out, " {label}={:?}", text.as_str()).unwrap();
            }
        }
        if let Some(parent) = &state.parent_instance_id {
            write!(out, " parent={}", parent.as_str()).unwrap();
        }
        if let Some(failure) = &state.failure_details {
            write!(out, " failure={:?}", failure.error_message).unwrap();
        }
        if !state.tags.is_empty() {
            write!(out, " tags={:?}", state.tags).unwrap();
        }
        let at = |time: Option<prost_types::Timestamp>| {
            time.map(|t| time::nanos(&t) as f64 / SECOND as f64)
        };
        write!(out, " created={:?}", at(state.created_timestamp).unwrap()).unwrap();
        write!(out, " updated={:?}", at(state.last_updated_timestamp).unwrap()).unwrap();
        if let Some(completed) = at(state.completed_timestamp) {
            write!(out, " completed={completed:?}").unwrap();
        }
        out + "\n"
    }

    fn count_rows(&self) -> String {
        let names = [
            (0x10, "instance"),
            (0x11, "inbox"),
            (0x12, "history"),
            (0x13, "task"),
            (0x14, "timer"),
            (0x15, "due"),
            (0x16, "outbox"),
            (0x1a, "closed hub"),
            (0x1b, "leftover"),
            (0x1c, "child"),
            (0x1d, "entity"),
            (0x1e, "entity state, index and requests"),
            (0x1f, "entity queue"),
        ];
        let count = |kind: u8| self.rows.keys().filter(|key| key[0] == kind).count();
        // Those behind the sixth are told where there are any.
        let told = names.iter().enumerate().filter(|(n, (kind, _))| *n < 6 || count(*kind) > 0);
        let told = told.map(|(_, (kind, name))| format!("{name} {}", count(*kind)));
        told.collect::<Vec<_>>().join(", ") + "\n"
    }
}

fn absorb(rows: &mut Rows, changes: super::Changes) {
    for (key, value) in changes {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

/// A scan in rows in memory sees what a get sees: the base that scripts stand on.
#[test]
fn rows_in_memory_scan_in_order() {
    let rows: Rows =
        [(vec![1], Bytes::from_static(b"a")), (vec![2], Bytes::from_static(b"b"))].into();
    let mut seen = Vec::new();
    View::scan(&rows, &[1], &[2], &mut |key, _| {
        seen.push(key.to_vec());
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!(seen, [vec![1]]);
}
