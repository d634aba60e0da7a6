//! Commands, records and messages of entities.

use durahub_proto::wire;

use super::commands::command;
use super::{Entry, record};
use crate::engine::Command;
use crate::engine::command::{BatchId, CompleteBatch, FailBatch, PurgeEntities, SignalEntity};
use crate::engine::state::message::{OperationEnded, OperationMessage, ReleaseMessage};
use crate::engine::state::{
    EntityRecord, Holder, Lock, LockRequest, Operation, Section, Sender, TimerKind, TimerRecord,
    Waiting, WaitingRecord,
};

const HUB: u32 = 7;
const TIME: i64 = 1_700_000_000_123_456_789;

fn entity() -> String {
    "@a@1".to_owned()
}

fn failure() -> wire::TaskFailureDetails {
    wire::TaskFailureDetails {
        error_type: "Oops".into(),
        error_message: "no".into(),
        ..Default::default()
    }
}

fn batch() -> BatchId {
    BatchId {
        hub: HUB,
        instance: entity(),
        version: 1 << 40,
        count: 3,
        through_sequence: 1 << 41,
        through_sub: 2,
        ..Default::default()
    }
}

pub(super) fn sender() -> Sender {
    Sender { instance: "o1".into(), generation: 1 << 40, ..Default::default() }
}

pub(super) fn holder() -> Holder {
    Holder { owner: sender(), section: "s1".into(), request: 9, ..Default::default() }
}

fn operation() -> Operation {
    Operation {
        event: "event".into(),
        request_id: "r1".into(),
        sender: Some(sender()),
        is_call: true,
        ..Default::default()
    }
}

pub(super) fn operation_message() -> OperationMessage {
    OperationMessage { operation: operation(), due: Some(TIME), ..Default::default() }
}

pub(super) fn operation_ended() -> OperationEnded {
    OperationEnded {
        generation: 1 << 40,
        request_id: "r1".into(),
        output: Some("out".into()),
        failure: Some(failure()),
        ..Default::default()
    }
}

pub(super) fn lock_request() -> LockRequest {
    LockRequest {
        holder: holder(),
        set: vec![entity(), "@b@1".into()],
        position: 1,
        since: TIME,
        ..Default::default()
    }
}

pub(super) fn release() -> ReleaseMessage {
    ReleaseMessage {
        holder: holder(),
        set: vec![entity(), "@b@1".into()],
        position: 1,
        ..Default::default()
    }
}

pub(super) fn section() -> Section {
    Section {
        id: "s1".into(),
        set: vec![entity(), "@b@1".into()],
        granted: true,
        request: 9,
        ..Default::default()
    }
}

fn lock() -> Lock {
    Lock { holder: holder(), since: TIME, ..Default::default() }
}

fn waiting(waiting: Waiting) -> WaitingRecord {
    WaitingRecord { format: 1, waiting: Some(waiting), ..Default::default() }
}

/// Commands.
#[rustfmt::skip]
pub(super) fn commands() -> Vec<Entry> {
    let results = vec![wire::OperationResult::default()];
    let actions = vec![wire::OperationAction { id: 4, ..Default::default() }];
    vec![
        command(Command::SignalEntity, SignalEntity {
            hub: HUB,
            request: wire::SignalEntityRequest { instance_id: entity(), name: "add".into(), ..Default::default() },
            ..Default::default()
        }, &["0801c2020f 0807 120b0a04406140311203616464"]),
        command(Command::CompleteBatch, CompleteBatch {
            batch: batch(),
            results,
            actions,
            state: Some("state".into()),
            failure: Some(failure()),
            id_length: 100,
            ..Default::default()
        }, &["0801ca0239 0a1a0807120440614031188080808080202003288080808080403002 1200 1a020804 22070a057374617465 2a0a0a044f6f707312026e6f 3064"]),
        command(Command::FailBatch, FailBatch { batch: batch(), reason: "why".into(), ..Default::default() }, &["0801d20221 0a1a0807120440614031188080808080202003288080808080403002 1203776879"]),
        command(Command::PurgeEntities, PurgeEntities { hub: HUB, instances: vec![entity()], ..Default::default() }, &["0801da0208 0807 120440614031"]),
    ]
}

/// Stored records, and the messages that they and commands consist of.
#[rustfmt::skip]
pub(super) fn records() -> Vec<Entry> {
    vec![
        record(batch(), &["0807 120440614031 18808080808020 2003 28808080808040 3002"]),
        record(sender(), &["0a026f31 10808080808020"]),
        record(holder(), &["0a0b0a026f3110808080808020 12027331", "0a0b0a026f3110808080808020 12027331 1809"]),
        record(lock(), &["0a110a0b0a026f311080808080802012027331 10959a97ece39fe7cb17", "0a130a0b0a026f3110808080808020120273311809 10959a97ece39fe7cb17"]),
        record(section(), &["0a027331 120440614031 120440624031 1801", "0a027331 120440614031 120440624031 1801 2009"]),
        record(operation(), &["0a056576656e74 12027231 1a0b0a026f3110808080808020 2001"]),
        record(operation_message(), &["0a1a0a056576656e74120272311a0b0a026f31108080808080202001 10959a97ece39fe7cb17"]),
        record(operation_ended(), &["08808080808020 12027231 1a050a036f7574 220a0a044f6f707312026e6f"]),
        record(lock_request(), &["0a110a0b0a026f311080808080802012027331 120440614031 120440624031 1801", "0a130a0b0a026f3110808080808020120273311809 120440614031 120440624031 1801 20959a97ece39fe7cb17"]),
        record(release(), &["0a110a0b0a026f311080808080802012027331 120440614031 120440624031 1801", "0a130a0b0a026f3110808080808020120273311809 120440614031 120440624031 1801"]),
        record(waiting(Waiting::Operation(operation())), &["0801 121a0a056576656e74120272311a0b0a026f31108080808080202001"]),
        record(waiting(Waiting::Lock(lock_request())), &["0801 1a210a110a0b0a026f3110808080808020120273311204406140311204406240311801", "0801 1a2d0a130a0b0a026f3110808080808020120273311809120440614031120440624031180120959a97ece39fe7cb17"]),
        record(EntityRecord {
            format: 1,
            version: 1 << 40,
            has_state: true,
            modified: TIME,
            lock: Some(lock()),
            front: 2,
            main: 300,
            lock_requests: 4,
            failures: 5,
            listed: Some(-6),
            contended: true,
            ..Default::default()
        }, &["0801 10808080808020 1801 20959a97ece39fe7cb17 2a1d0a110a0b0a026f31108080808080201202733110959a97ece39fe7cb17 3002 38ac02 4004 4805", "0801 10808080808020 1801 20959a97ece39fe7cb17 2a1f0a130a0b0a026f311080808080802012027331180910959a97ece39fe7cb17 3002 38ac02 4004 4805 50faffffffffffffffff01 5801"]),
        record(TimerRecord {
            format: 1,
            kind: TimerKind::Signal.into(),
            due: TIME,
            operation: Some(operation()),
            ..Default::default()
        }, &["0801 100a 18959a97ece39fe7cb17 a2011a0a056576656e74120272311a0b0a026f31108080808080202001"]),
    ]
}
