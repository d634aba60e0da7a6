//! What scripts say of entities: the commands, and what they did, as text.

use std::error::Error;
use std::fmt::Write as _;

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::operation_action::OperationActionType;
use durahub_proto::wire::operation_result::ResultType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;
use durahub_proto::{Text, wire};
use goldenscript::Argument;

use super::super::command::{self, CompleteBatch, FailBatch};
use super::super::event::failure;
use super::super::read::{self, BatchRoom};
use super::super::state::message::Body;
use super::super::state::{Address, Line, Operation, Waiting};
use super::super::{Command, Event};
use super::given::seconds;
use super::show::brief;
use super::{HUB, Partition, SECOND};

type Outcome<T> = Result<T, Box<dyn Error>>;

const ROOM: BatchRoom = BatchRoom { operations: 3, operation_bytes: 1 << 20, bytes: 4 << 20 };

impl Partition {
    /// Commands that only entities have.
    pub(super) fn entity_command(&mut self, command: &goldenscript::Command) -> Outcome<String> {
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
            "signal" => {
                let request = wire::SignalEntityRequest {
                    instance_id: instance,
                    name: next().ok_or("which operation?")?,
                    input: text("input").map(Into::into),
                    request_id: text("request").unwrap_or_default(),
                    scheduled_time: text("at").map(|at| seconds(&at)).transpose()?,
                    ..Default::default()
                };
                let signal = command::SignalEntity { hub: HUB, request };
                Ok(self.propose(Command::SignalEntity(signal)))
            }
            "take-batch" => self.take_batch(&at, text("bytes")),
            "commit-batch" => self.commit_batch(&at, &command.args),
            "batch" => Ok(self.take_batch(&at, None)? + &self.commit_batch(&at, &command.args)?),
            "fail-batch" => {
                let batch = self.batches.get(&instance).ok_or("no batch was taken")?.clone();
                let reason = text("reason").unwrap_or_default();
                Ok(self.propose(Command::FailBatch(FailBatch { batch, reason })))
            }
            "entity" => Ok(self.entity(&at)),
            other => Err(format!("unknown command {other}").into()),
        }
    }

    fn take_batch(&mut self, at: &Address, bytes: Option<String>) -> Outcome<String> {
        let bytes = bytes.map_or(Ok(ROOM.bytes), |bytes| bytes.parse())?;
        let shown = match read::batch(&self.rows, at, BatchRoom { bytes, ..ROOM }) {
            None => return Ok("nothing to hand out\n".into()),
            Some(Err(too_large)) => {
                self.batches.insert(at.instance.clone(), too_large.id);
                return Ok("too large to hand out\n".into());
            }
            Some(Ok(batch)) => {
                self.batches.insert(at.instance.clone(), batch.id);
                let operations: Vec<String> = batch.operations.iter().map(brief).collect();
                format!("{} | {}\n", show_text(&batch.state), operations.join(", "))
            }
        };
        Ok(shown)
    }

    /// `ok=result fail=message` per operation, `none` for a result that is unset; `state=text`; actions
    /// `signal=@id/operation/input/time start=name/id/input/time`; `broken=why` fails the batch.
    fn commit_batch(&mut self, at: &Address, args: &[Argument]) -> Outcome<String> {
        let batch = self.batches.get(&at.instance).ok_or("no batch was taken")?.clone();
        let mut done = CompleteBatch { batch, id_length: 100, ..Default::default() };
        for arg in args {
            let Argument::KeyValue(key, value) = arg else { continue };
            let set = |text: &str| (text != "none").then(|| Text::from(text));
            let mut parts = value.split('/').map(str::to_owned);
            let mut next = || parts.next().filter(|part| !part.is_empty());
            match key.as_str() {
                "ok" => {
                    done.results.push(result(ResultType::Success(wire::OperationResultSuccess {
                        result: set(value),
                        ..Default::default()
                    })))
                }
                "fail" => {
                    done.results.push(result(ResultType::Failure(wire::OperationResultFailure {
                        failure_details: Some(failure("Oops", value.clone())),
                        ..Default::default()
                    })));
                }
                "state" => done.state = set(value),
                "broken" => done.failure = Some(failure("Oops", value.clone())),
                "signal" => {
                    let signal = wire::SendSignalAction {
                        instance_id: next().unwrap_or_default(),
                        name: next().unwrap_or_default(),
                        input: next().map(Into::into),
                        scheduled_time: next().map(|at| seconds(&at)).transpose()?,
                        ..Default::default()
                    };
                    done.actions.push(action(OperationActionType::SendSignal(signal)));
                }
                "start" => {
                    let start = wire::StartNewOrchestrationAction {
                        name: next().unwrap_or_default(),
                        instance_id: next().unwrap_or_default(),
                        input: next().map(Into::into),
                        scheduled_time: next().map(|at| seconds(&at)).transpose()?,
                        ..Default::default()
                    };
                    done.actions.push(action(OperationActionType::StartNewOrchestration(start)));
                }
                other => return Err(format!("unknown argument {other}").into()),
            }
        }
        Ok(self.propose(Command::CompleteBatch(done)))
    }

    fn entity(&self, at: &Address) -> String {
        let Some(record) = read::entity(&self.rows, at) else { return "none\n".into() };
        let mut out = show_text(&read::entity_state(&self.rows, at));
        write!(out, " modified={:?}", record.modified as f64 / SECOND as f64).unwrap();
        write!(out, " front={} main={}", record.front, record.main).unwrap();
        write!(out, " lock requests={}", record.lock_requests).unwrap();
        if record.failures > 0 {
            write!(out, " failures={}", record.failures).unwrap();
        }
        if let Some(lock) = record.lock {
            let (holder, since) = (lock.holder, lock.since as f64 / SECOND as f64);
            write!(
                out,
                " locked by {} in {} since {since:?}",
                holder.owner.instance, holder.section
            )
            .unwrap();
        }
        out + "\n"
    }
}

fn result(result: ResultType) -> wire::OperationResult {
    wire::OperationResult { result_type: Some(result) }
}

fn action(action: OperationActionType) -> wire::OperationAction {
    wire::OperationAction { id: 0, operation_action_type: Some(action) }
}

fn show_text(text: &Option<Text>) -> String {
    text.as_ref().map_or_else(|| "no state".into(), |text| format!("state {:?}", text.as_str()))
}

/// `call=1/@id/operation/request/input signal=1/@id/operation/input/time lock=1/section/@id/@id
/// unlock=1/section/@id`.
pub(super) fn entity_action(
    name: &str,
    next: &mut dyn FnMut() -> Option<String>,
) -> Outcome<Action> {
    let message = match name {
        "entity" => return Ok(Action::SendEntityMessage(wire::SendEntityMessageAction::default())),
        "call" => Message::EntityOperationCalled(wire::EntityOperationCalledEvent {
            target_instance_id: next().map(Into::into),
            operation: next().ok_or("which operation?")?,
            request_id: next().ok_or("which request?")?,
            input: next().map(Into::into),
            ..Default::default()
        }),
        "signal" => Message::EntityOperationSignaled(wire::EntityOperationSignaledEvent {
            target_instance_id: next().map(Into::into),
            operation: next().ok_or("which operation?")?,
            input: next().map(Into::into),
            scheduled_time: next().map(|at| seconds(&at)).transpose()?,
            request_id: "00000000-0000-4000-8000-000000000001".into(),
        }),
        "lock" => Message::EntityLockRequested(wire::EntityLockRequestedEvent {
            critical_section_id: next().ok_or("which section?")?,
            lock_set: std::iter::from_fn(next).collect(),
            ..Default::default()
        }),
        "unlock" => Message::EntityUnlockSent(wire::EntityUnlockSentEvent {
            critical_section_id: next().ok_or("which section?")?,
            target_instance_id: next().map(Into::into),
            parent_instance_id: None,
        }),
        other => return Err(format!("unknown action {other}").into()),
    };
    let entity_message_type = Some(message);
    Ok(Action::SendEntityMessage(wire::SendEntityMessageAction { entity_message_type }))
}

/// An entity event of a history.
pub(super) fn brief_entity_event(event: EventType) -> (&'static str, String) {
    let text = |text: &Option<Text>| match text {
        Some(text) => format!(" {:?}", text.as_str()),
        None => String::new(),
    };
    let plain = |text: &Option<Text>| text.as_ref().map_or(String::new(), |it| it.as_str().into());
    match event {
        EventType::EntityOperationSignaled(e) => {
            let target = plain(&e.target_instance_id);
            ("EntitySignaled", format!(" {target}.{}{}", e.operation, text(&e.input)))
        }
        EventType::EntityOperationCalled(e) => {
            let (target, parent) = (plain(&e.target_instance_id), plain(&e.parent_instance_id));
            let parent = if parent.is_empty() { parent } else { format!(" by {parent}") };
            let rest =
                format!("({}) {target}.{}{}{parent}", e.request_id, e.operation, text(&e.input));
            ("EntityCalled", rest)
        }
        EventType::EntityOperationCompleted(e) => {
            ("EntityCompleted", format!("({}){}", e.request_id, text(&e.output)))
        }
        EventType::EntityOperationFailed(e) => {
            let failure = e.failure_details.expect("details");
            ("EntityFailed", format!("({}) {:?}", e.request_id, failure.error_message))
        }
        EventType::EntityLockRequested(e) => {
            ("LockRequested", format!("({}) {}", e.critical_section_id, e.lock_set.join(" ")))
        }
        EventType::EntityLockGranted(e) => ("LockGranted", format!("({})", e.critical_section_id)),
        EventType::EntityUnlockSent(e) => {
            ("UnlockSent", format!("({}) {}", e.critical_section_id, plain(&e.target_instance_id)))
        }
        other => panic!("unexpected event {other:?}"),
    }
}

/// An engine event that only entities have; `None` for those that are of no interest to a reader.
pub(super) fn show_entity_event(event: &Event) -> Option<String> {
    Some(match event {
        Event::EntityRemoved { at } => format!("{} is gone", at.instance),
        Event::EntityStateWritten { at, state } => format!("{}: {}", at.instance, show_text(state)),
        Event::WaitBegan { at, spot, waiting } => {
            let line = if spot.0 == Line::Front { "(front)" } else { "" };
            let what = match waiting.as_ref() {
                Waiting::Operation(Operation { event, .. }) => brief(event),
                Waiting::Lock(request) => {
                    format!("lock request of {}", request.holder.owner.instance)
                }
            };
            format!("{} ←{line} {what}", at.instance)
        }
        Event::WaitEnded { at, holder: Some(holder), .. } => {
            format!("{}: lock request of {} leaves the queue", at.instance, holder.owner.instance)
        }
        Event::EntityWritten { at, record } => {
            let holder = record.lock.as_ref().map(|lock| &lock.holder.owner.instance);
            let holder = holder.map_or(String::new(), |holder| format!(", locked by {holder}"));
            format!("{} has {}+{} waiting{holder}", at.instance, record.front, record.main)
        }
        _ => return None,
    })
}

/// A message that only entities send or get.
pub(super) fn show_entity_message(body: &Body) -> String {
    match body {
        Body::Operation(it) => brief(&it.operation.event),
        Body::OperationEnded(it) => match &it.failure {
            Some(failure) => {
                format!("operation {} failed {:?}", it.request_id, failure.error_message)
            }
            None => {
                let output = it.output.as_ref().map(|text: &Text| text.as_str());
                format!("operation {} completed {output:?}", it.request_id)
            }
        },
        Body::Lock(it) => format!("lock {} of {}", it.position + 1, it.set.len()),
        Body::LockGranted(it) => format!("section {} granted", it.section),
        Body::Release(it) if it.set.is_empty() => format!("release {}", it.holder.section),
        Body::Release(it) => format!("release {} and go on", it.holder.section),
        other => panic!("unexpected message {other:?}"),
    }
}

/// That an event is one: what a worker would do with it.
#[test]
fn operations_are_shown_as_events() {
    let signal =
        wire::EntityOperationSignaledEvent { operation: "add".into(), ..Default::default() };
    let event: Bytes =
        super::super::event::history(-1, 0, EventType::EntityOperationSignaled(signal));
    assert_eq!(brief(&event), "EntitySignaled#-1 .add");
}
