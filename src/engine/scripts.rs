//! Runs the scripts in `testscripts/`: commands to one partition, and what they did, as text.
//!
//! `UPDATE_GOLDENFILES=1 cargo test engine` records new output; read it in review. After each script the
//! log is replayed from every prefix: the rows must be the same.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};
use goldenscript::{Argument, Context};
use prost::Message as _;

use super::command::{self, TurnId};
use super::script_entities::{
    brief_entity_event, entity_action, show_entity_event, show_entity_message,
};
use super::state::message::Body;
use super::state::{Address, ChildRecord, HubRecord, Item, MessageRecord};
use super::{Answer, Command, Effect, Event, Stamp, View, apply, decode_answer, read, time};

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

pub(super) fn seconds(text: &str) -> Result<prost_types::Timestamp, Box<dyn Error>> {
    Ok(time::timestamp((text.parse::<f64>()? * SECOND as f64) as i64))
}

/// `running.failed` lists statuses; `ignore-` or `terminate-` in front is the legacy action.
fn policy(list: &str) -> wire::OrchestrationIdReusePolicy {
    let (legacy_action, list) = match list.split_once('-') {
        Some(("ignore", list)) => (1, list),
        Some(("terminate", list)) => (2, list),
        _ => (0, list),
    };
    let statuses = list.split('.').filter(|name| !name.is_empty()).map(|name| {
        let name = format!("ORCHESTRATION_STATUS_{}", name.to_uppercase());
        OrchestrationStatus::from_str_name(&name).expect("a status") as i32
    });
    wire::OrchestrationIdReusePolicy { replaceable_status: statuses.collect(), legacy_action }
}

/// A worker's response: `task=1/SayHi/input timer=2/5 complete=3/result failed=3/message
/// terminated=3/result can=3/input carry=event status=text processed=1`.
fn response(args: &[Argument]) -> Result<command::CompleteTurn, Box<dyn Error>> {
    let mut response = command::CompleteTurn::default();
    let mut carried = Vec::new();
    for arg in args {
        let Argument::KeyValue(key, value) = arg else { continue };
        let mut parts = value.split('/').map(str::to_owned);
        let mut next = || parts.next();
        match key.as_str() {
            "status" => {
                response.custom_status = Some(value.clone().into());
                continue;
            }
            "carry" => {
                let raised = wire::EventRaisedEvent { name: value.clone(), input: None };
                carried.push(super::event::history(-1, 0, EventType::EventRaised(raised)));
                continue;
            }
            "processed" => {
                response.processed = Some(value.parse()?);
                continue;
            }
            _ => {}
        }
        let id = next().ok_or("no id")?.parse()?;
        let complete = |status: OrchestrationStatus, result: Option<String>| {
            wire::CompleteOrchestrationAction {
                orchestration_status: status.into(),
                result: result.map(Into::into),
                ..Default::default()
            }
        };
        let action = match key.as_str() {
            "task" => Action::ScheduleTask(wire::ScheduleTaskAction {
                name: next().ok_or("no name")?,
                input: next().map(Into::into),
                ..Default::default()
            }),
            "timer" => Action::CreateTimer(wire::CreateTimerAction {
                fire_at: Some(seconds(&next().ok_or("no time")?)?),
            }),
            "complete" => {
                Action::CompleteOrchestration(complete(OrchestrationStatus::Completed, next()))
            }
            "terminated" => {
                Action::CompleteOrchestration(complete(OrchestrationStatus::Terminated, next()))
            }
            "failed" => Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                failure_details: Some(super::event::failure("Oops", next().unwrap_or_default())),
                ..complete(OrchestrationStatus::Failed, None)
            }),
            "can" => Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                carryover_events: std::mem::take(&mut carried),
                ..complete(OrchestrationStatus::ContinuedAsNew, next())
            }),
            "child" => Action::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
                name: next().ok_or("no name")?,
                instance_id: next().unwrap_or_default(),
                input: next().map(Into::into),
                version: next().map(Into::into),
                ..Default::default()
            }),
            "send" => Action::SendEvent(wire::SendEventAction {
                instance: Some(wire::OrchestrationInstance {
                    instance_id: next().ok_or("to whom?")?,
                    execution_id: None,
                }),
                name: next().ok_or("which event?")?,
                data: next().map(Into::into),
            }),
            "stop" => Action::TerminateOrchestration(wire::TerminateOrchestrationAction {
                instance_id: next().ok_or("whom?")?,
                reason: next().map(Into::into),
                recurse: next().is_some(),
            }),
            "rewritten" => Action::RewindOrchestration(wire::RewindOrchestrationAction::default()),
            other => entity_action(other, &mut next)?,
        };
        response
            .actions
            .push(wire::OrchestratorAction { id, orchestrator_action_type: Some(action) });
    }
    Ok(response)
}

fn status_name(status: OrchestrationStatus) -> &'static str {
    status.as_str_name().trim_start_matches("ORCHESTRATION_STATUS_")
}

/// A history event as `TaskCompleted#-1(1) "result"`.
pub(super) fn brief(event: &Bytes) -> String {
    let event = wire::HistoryEvent::decode(event.clone()).expect("an event");
    let text = |text: &Option<durahub_proto::Text>| match text {
        Some(text) => format!(" {:?}", text.as_str()),
        None => String::new(),
    };
    let (name, rest) = match event.event_type.expect("a type") {
        EventType::OrchestratorStarted(_) => ("OrchestratorStarted", String::new()),
        EventType::ExecutionStarted(e) => {
            let parent = e.parent_instance.map(|parent| {
                let of = parent.orchestration_instance.map(|of| of.instance_id).unwrap_or_default();
                format!(" of {of}({})", parent.task_scheduled_id)
            });
            let rest = format!(" {}{}{}", e.name, text(&e.input), parent.unwrap_or_default());
            ("ExecutionStarted", rest)
        }
        EventType::TaskScheduled(e) => ("TaskScheduled", format!(" {}{}", e.name, text(&e.input))),
        EventType::TaskCompleted(e) => {
            ("TaskCompleted", format!("({}){}", e.task_scheduled_id, text(&e.result)))
        }
        EventType::TaskFailed(e) => {
            let failure = e.failure_details.expect("details");
            ("TaskFailed", format!("({}) {:?}", e.task_scheduled_id, failure.error_message))
        }
        EventType::TimerCreated(_) => ("TimerCreated", String::new()),
        EventType::TimerFired(e) => ("TimerFired", format!("({})", e.timer_id)),
        EventType::EventRaised(e) => ("EventRaised", format!(" {}{}", e.name, text(&e.input))),
        EventType::ExecutionTerminated(e) => ("ExecutionTerminated", text(&e.input)),
        EventType::ExecutionSuspended(e) => ("ExecutionSuspended", text(&e.input)),
        EventType::ExecutionResumed(e) => ("ExecutionResumed", text(&e.input)),
        EventType::ExecutionCompleted(e) => {
            let failure = e.failure_details.as_ref().map(|f| format!(" {:?}", f.error_message));
            let rest = format!(
                " {}{}{}",
                status_name(e.orchestration_status()),
                text(&e.result),
                failure.unwrap_or_default()
            );
            ("ExecutionCompleted", rest)
        }
        EventType::SubOrchestrationInstanceCreated(e) => {
            ("SubCreated", format!(" {} {}{}", e.instance_id, e.name, text(&e.input)))
        }
        EventType::SubOrchestrationInstanceCompleted(e) => {
            ("SubCompleted", format!("({}){}", e.task_scheduled_id, text(&e.result)))
        }
        EventType::SubOrchestrationInstanceFailed(e) => {
            let failure = e.failure_details.expect("details (R4.39)");
            ("SubFailed", format!("({}) {:?}", e.task_scheduled_id, failure.error_message))
        }
        EventType::EventSent(e) => {
            ("EventSent", format!(" {} {}{}", e.instance_id, e.name, text(&e.input)))
        }
        EventType::ExecutionRewound(e) => ("ExecutionRewound", text(&e.reason)),
        other => brief_entity_event(other),
    };
    format!("{name}#{}{rest}", event.event_id)
}

/// How long ended instances of a hub stay.
fn kept(hub: &HubRecord) -> String {
    let retention = hub.retention.unwrap_or_default();
    let time = |what: &str, time: Option<u64>| {
        let time = time.map_or_else(|| "default".to_owned(), |ms| ms.to_string());
        format!("{what}={time}")
    };
    [
        time("completed", retention.completed),
        time("failed", retention.failed),
        time("terminated", retention.terminated),
    ]
    .join(" ")
}

fn show_event(event: &Event) -> Option<String> {
    let item = |item: &Item| format!("{}/{}", item.at.instance, item.number);
    Some(match event {
        Event::HubCreated { name, hub } => format!("hub {name} is {}", hub.id),
        Event::RetentionSet { name, hub } => format!("hub {name} keeps {}", kept(hub)),
        Event::GenerationDiscarded { at, later, .. } => {
            format!(
                "{} discards its generation{}",
                at.instance,
                if *later { ", swept later" } else { "" }
            )
        }
        Event::InstanceRemoved { at, later, .. } => {
            format!("{} is gone{}", at.instance, if *later { ", swept later" } else { "" })
        }
        Event::LeftoverSwept { leftover, keys, done } => format!(
            "{} rows of {} swept{}",
            keys.len(),
            leftover.at.instance,
            if *done { ", the last" } else { "" }
        ),
        Event::HubDeleted { hub } => format!("hub {} was {}", hub.name, hub.id),
        Event::HubClosed { hub } => format!("hub {hub} is closed"),
        Event::HubForgotten { id } => format!("hub {id} is forgotten"),
        Event::InstanceWritten { at, record } => {
            format!("{} is {}", at.instance, status_name(record.status()))
        }
        Event::EventReceived { at, event, .. } => format!("{} ← {}", at.instance, brief(event)),
        Event::EventTaken { .. } => return None,
        Event::HistoryAppended { at, events, .. } => events
            .iter()
            .map(|event| format!("{} + {}", at.instance, brief(event)))
            .collect::<Vec<_>>()
            .join("\n"),
        Event::TaskOpened { item: i, task } => format!("task {} {} opened", item(i), task.name),
        Event::TaskClosed { item: i } => format!("task {} closed", item(i)),
        Event::TimerArmed { item: i, timer } => {
            format!("timer {} armed for {}", item(i), timer.due as f64 / SECOND as f64)
        }
        Event::TimerCleared { item: i, .. } => format!("timer {} cleared", item(i)),
        Event::ChildWritten { item: i, child } => {
            let state = if child.answered { "has answered" } else { "is to answer" };
            format!("child {} {} {state}", item(i), child.instance)
        }
        Event::MessageSent { message, .. } => format!("✉ {}", show_message(message)),
        // Places are of no interest to a reader.
        Event::MessageDelivered { .. } | Event::MessagesTaken { .. } => return None,
        other => return show_entity_event(other),
    })
}

fn is_for_counting(effect: &Effect) -> bool {
    matches!(effect, Effect::InstanceStarted { .. } | Effect::InstanceEnded { .. })
}

fn show_message(message: &MessageRecord) -> String {
    let what = match message.body.as_ref().expect("a body") {
        Body::Start(it) => format!("start {}", it.request.name),
        Body::ChildEnded(it) => match &it.failure {
            Some(failure) => format!("child failed {:?}", failure.error_message),
            None => format!("child completed {:?}", it.result.as_ref().map(|text| text.as_str())),
        },
        Body::Raise(it) => format!("event {}", it.name),
        Body::Terminate(it) => format!("terminate{}", if it.recurse { " recursively" } else { "" }),
        Body::Rewind(_) => "rewind".into(),
        other => show_entity_message(other),
    };
    format!("to {}: {what}", message.instance)
}

fn show_effect(effect: &Effect) -> String {
    match effect {
        Effect::TurnReady { at, class } => format!("turn ready: {} {}", at.instance, class.name),
        Effect::ActivityReady { item, class } => {
            format!("activity ready: {}/{} {}", item.at.instance, item.number, class.name)
        }
        Effect::EntityReady { at, class } => {
            format!("entity ready: {} {}", at.instance, class.name)
        }
        Effect::MessageSent => "message sent".into(),
        Effect::InstanceGone { at } => format!("gone: {}", at.instance),
        Effect::SweepDue => "sweep due".to_owned(),
        Effect::HubGone { hub } => format!("hub gone: {hub}"),
        Effect::RetentionSet => "retention set".to_owned(),
        Effect::TimerSet { due } => format!("timer set: {}", *due as f64 / SECOND as f64),
        Effect::InstanceChanged { at, status } => {
            format!("changed: {} {}", at.instance, status_name(*status))
        }
        Effect::InstanceStarted { .. } => "started".to_owned(),
        Effect::InstanceEnded { status, nanos, .. } => {
            format!("ended: {} after {}", status_name(*status), *nanos as f64 / SECOND as f64)
        }
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
