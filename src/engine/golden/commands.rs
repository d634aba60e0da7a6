//! Commands as they stand in the log.

use ::bytes::Bytes;
use durahub_proto::wire;
use prost::Message;
use prost::encoding::encode_varint;

use super::{Entry, bytes, entities, name_of};
use crate::engine::Command;
use crate::engine::command::{
    ClearHub, CompleteActivity, CompleteTurn, CreateHub, DeleteHub, Deliver, Delivery, FailTurn,
    FireTimers, ForceTerminate, ForgetHub, KeepFor, Purge, RaiseEvent, Restart, Resume, Rewind,
    SetRetention, Start, Suspend, Sweep, Target, TaskId, Terminate, TruncateOutbox, TurnId,
};

const HUB: u32 = 7;

fn instance() -> String {
    "o1".to_owned()
}

/// A turn.
pub(super) fn turn() -> TurnId {
    TurnId {
        hub: HUB,
        instance: instance(),
        generation: 1 << 40,
        history_events: 300,
        through_sequence: 1 << 41,
        through_sub: 2,
        clock: 1_700_000_000_123_456_789,
        inbox_events: 3,
        ..Default::default()
    }
}

/// A task.
pub(super) fn task() -> TaskId {
    TaskId { hub: HUB, instance: instance(), generation: 1 << 40, number: 5, ..Default::default() }
}

/// An instance to purge.
pub(super) fn target() -> Target {
    Target { instance: instance(), generation: 1 << 40, ..Default::default() }
}

/// How long instances stay.
pub(super) fn keep_for() -> KeepFor {
    KeepFor { milliseconds: Some(87_016), ..Default::default() }
}

/// A message under way.
pub(super) fn delivery() -> Delivery {
    Delivery { sequence: 1 << 41, sub: 2, message: "message".into(), ..Default::default() }
}

/// Failure details.
pub(super) fn failure() -> wire::TaskFailureDetails {
    wire::TaskFailureDetails {
        error_type: "Oops".into(),
        error_message: "no".into(),
        ..Default::default()
    }
}

/// Every command.
#[rustfmt::skip]
pub(super) fn table() -> Vec<Entry> {
    let mut entries = vec![
        command(Command::Start, Start {
            hub: HUB,
            request: wire::CreateInstanceRequest { instance_id: instance(), name: "Hello".into(), input: Some("in".into()), ..Default::default() },
            ..Default::default()
        }, &["08011215 0807 12110a026f31120548656c6c6f22040a02696e"]),
        command(Command::CompleteTurn, CompleteTurn {
            turn: turn(),
            actions: vec![wire::OrchestratorAction { id: 1, ..Default::default() }],
            custom_status: Some("half".into()),
            span: Some(wire::OrchestrationTraceContext { span_id: Some("span".into()), ..Default::default() }),
            processed: Some(2),
            id_length: 100,
            ..Default::default()
        }, &[
            "08011a3f 0a25080712026f311880808080802020ac0228808080808040300238959a97ece39fe7cb174003 \
             12020801 1a060a0468616c66 22080a060a047370616e 2802",
            "08011a41 0a25080712026f311880808080802020ac0228808080808040300238959a97ece39fe7cb174003 \
             12020801 1a060a0468616c66 22080a060a047370616e 2802 6064",
        ]),
        command(Command::FailTurn, FailTurn { turn: turn(), reason: "too large".into(), ..Default::default() }, &[
            "08012232 0a25080712026f311880808080802020ac0228808080808040300238959a97ece39fe7cb174003 \
             1209746f6f206c61726765",
        ]),
        command(Command::CompleteActivity, CompleteActivity {
            task: task(),
            result: Some("out".into()),
            failure: Some(failure()),
            ..Default::default()
        }, &[
            "08012a24 0a0f080712026f31188080808080202005 12050a036f7574 1a0a0a044f6f707312026e6f",
        ]),
        command(Command::FireTimers, FireTimers { up_to: -2, ..Default::default() }, &["0801320b 08feffffffffffffffff01"]),
        command(Command::RaiseEvent, RaiseEvent {
            hub: HUB,
            request: wire::RaiseEventRequest { instance_id: instance(), name: "Go".into(), input: Some("in".into()) },
            ..Default::default()
        }, &["08013a12 0807 120e0a026f311202476f1a040a02696e"]),
        command(Command::Terminate, Terminate {
            hub: HUB,
            request: wire::TerminateRequest { instance_id: instance(), output: Some("out".into()), recursive: true },
            ..Default::default()
        }, &["08014211 0807 120d0a026f3112050a036f75741801"]),
        command(Command::Suspend, Suspend {
            hub: HUB,
            request: wire::SuspendRequest { instance_id: instance(), reason: Some("why".into()) },
            ..Default::default()
        }, &["08014a0f 0807 120b0a026f3112050a03776879"]),
        command(Command::Resume, Resume {
            hub: HUB,
            request: wire::ResumeRequest { instance_id: instance(), reason: Some("why".into()) },
            ..Default::default()
        }, &["0801520f 0807 120b0a026f3112050a03776879"]),
        command(Command::CreateHub, CreateHub { name: "default".into(), recreate: true, ..Default::default() }, &[
            "08015a09 0a0764656661756c74",
            "08015a0c 0a0764656661756c74 a00101",
        ]),
        command(Command::Deliver, Deliver {
            from: 3,
            messages: vec![delivery()],
            ..Default::default()
        }, &["08016216 0803 12120880808080804010021a076d657373616765"]),
        command(Command::TruncateOutbox, TruncateOutbox { sequences: vec![1 << 41, 9], subs: vec![2, 0], ..Default::default() }, &["08016a0d 0a0780808080804009 12020200"]),
        command(Command::Rewind, Rewind {
            hub: HUB,
            request: wire::RewindInstanceRequest { instance_id: instance(), reason: Some("why".into()) },
            ..Default::default()
        }, &["0801720f 0807 120b0a026f3112050a03776879"]),
        command(Command::Restart, Restart { hub: HUB, instance: instance(), ..Default::default() }, &["08017a06 0807 12026f31"]),
        command(Command::Purge, Purge {
            hub: HUB,
            targets: vec![target()],
            statuses: vec![wire::OrchestrationStatus::Failed.into(), wire::OrchestrationStatus::Terminated.into()],
            created_from: Some(-5),
            created_before: Some(1_700_000_000_123_456_789),
            ended_before: Some(-3),
            ..Default::default()
        }, &[
            "0801a20128 0807 120b0a026f3110808080808020 1a020305 20fbffffffffffffffff01 \
             28959a97ece39fe7cb17",
            "0801a20133 0807 120b0a026f3110808080808020 1a020305 20fbffffffffffffffff01 \
             28959a97ece39fe7cb17 30fdffffffffffffffff01",
        ]),
        command(Command::Sweep, Sweep {}, &["0801aa0100"]),
        command(Command::ForceTerminate, ForceTerminate {
            hub: HUB,
            instances: vec![instance(), "o2".into()],
            reason: Some("why".into()),
            ..Default::default()
        }, &["0801b20111 0807 12026f31 12026f32 1a050a03776879"]),
        command(Command::DeleteHub, DeleteHub { name: "default".into(), ..Default::default() }, &["0801ba0109 0a0764656661756c74"]),
        command(Command::ClearHub, ClearHub { hub: HUB, ..Default::default() }, &["0801c20102 0807"]),
        command(Command::ForgetHub, ForgetHub { id: HUB, ..Default::default() }, &["0801ca0102 0807"]),
        command(Command::SetRetention, SetRetention {
            name: "default".into(),
            completed: Some(keep_for()),
            failed: Some(keep_for()),
            terminated: Some(keep_for()),
            ..Default::default()
        }, &["0801d2011b 0a0764656661756c74 120408e8a705 1a0408e8a705 220408e8a705"]),
    ];
    entries.extend(entities::commands());
    entries
}

/// An entry for a command.
pub(super) fn command<C>(
    variant: fn(C) -> Command,
    value: C,
    forms: &'static [&'static str],
) -> Entry
where
    C: Message + Clone + 'static,
{
    let body = value.encode_to_vec();
    let written = variant(value.clone()).into_bytes();
    let tag = bytes::fields(&written)[1].tag;
    Entry {
        name: name_of::<C>(),
        head: Box::new(move |body| {
            let mut head = vec![0x08, 1];
            encode_varint(u64::from(tag << 3 | 2), &mut head);
            encode_varint(body.len() as u64, &mut head);
            head
        }),
        body,
        rewrite: Box::new(|form| Some(read(form)?.into_bytes().to_vec())),
        is_value: Box::new(move |form| read(form) == Some(variant(value.clone()))),
        forms,
    }
}

fn read(form: &[u8]) -> Option<Command> {
    Some(Command::from_bytes(&Bytes::copy_from_slice(form))?.0)
}

/// The tag that a command has in its envelope.
pub(super) fn tag(entry: &Entry) -> u32 {
    bytes::fields(&entry.whole(&entry.body))[1].tag
}
