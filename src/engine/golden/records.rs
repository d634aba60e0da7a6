//! Records as they are stored, and answers as they travel.

use std::collections::BTreeMap;

use durahub_proto::wire;
use prost_types::Timestamp;

use super::commands::{delivery, failure, keep_for, target, task, turn};
use super::{Entry, entities, record};
use crate::engine::command::{Command, Sweep};
use crate::engine::limits::Limits;
use crate::engine::reply::{Answer, Reject, Reply, decode, encode};
use crate::engine::state::message::{
    Body, ChildEnded, FromParent, Link, Parent, RewindMessage, StartMessage, TerminateMessage,
};
use crate::engine::state::{
    ChildRecord, Chunk, DeletedHubRecord, DeliveredRecord, HubRecord, InstanceRecord,
    MessageRecord, Recursion, RetentionRecord, Suspension, TaskRecord, TimerKind, TimerRecord,
};

const TIME: i64 = 1_700_000_000_123_456_789;

fn timestamp() -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_700_000_000, nanos: 5 })
}

fn retention() -> RetentionRecord {
    RetentionRecord {
        completed: Some(1),
        failed: Some(300),
        terminated: Some(0),
        ..Default::default()
    }
}

fn tags() -> BTreeMap<String, String> {
    [("b".into(), "2".into()), ("a".into(), "1".into())].into()
}

fn trace() -> Option<wire::TraceContext> {
    Some(wire::TraceContext { trace_parent: "tp".into(), ..Default::default() })
}

fn suspension() -> Suspension {
    Suspension { sequence: 9, sub: 1, recorded: true, event: "event".into(), ..Default::default() }
}

fn recursion() -> Recursion {
    Recursion { output: Some("out".into()), ..Default::default() }
}

fn limits() -> Limits {
    Limits {
        history_events: 1,
        history_bytes: 2,
        waiting_events: 3,
        pending: 4,
        ..Default::default()
    }
}

fn link() -> Link {
    Link { generation: 1 << 40, number: 6, ..Default::default() }
}

fn parent() -> Parent {
    Parent {
        info: wire::ParentInstanceInfo { task_scheduled_id: 4, ..Default::default() },
        link: link(),
        ..Default::default()
    }
}

fn from_parent() -> FromParent {
    FromParent { instance: "o1".into(), link: link(), ..Default::default() }
}

fn start_message() -> StartMessage {
    let request = wire::CreateInstanceRequest {
        instance_id: "o2".into(),
        name: "Child".into(),
        ..Default::default()
    };
    StartMessage { request, parent: Some(parent()), ..Default::default() }
}

fn child_ended() -> ChildEnded {
    ChildEnded {
        link: link(),
        result: Some("out".into()),
        failure: Some(failure()),
        ..Default::default()
    }
}

fn terminate_message() -> TerminateMessage {
    TerminateMessage {
        output: Some("out".into()),
        recurse: true,
        from: Some(from_parent()),
        ..Default::default()
    }
}

fn rewind_message() -> RewindMessage {
    RewindMessage {
        start: start_message(),
        before: link(),
        reason: Some("why".into()),
        ..Default::default()
    }
}

fn message(body: Body) -> MessageRecord {
    MessageRecord {
        format: 1,
        hub: 7,
        instance: "o2".into(),
        body: Some(body),
        ..Default::default()
    }
}

/// Every stored record, and the messages that they and commands consist of.
#[rustfmt::skip]
pub(super) fn table() -> Vec<Entry> {
    vec![
        record(turn(), &[
            "0807 12026f31 18808080808020 20ac02 28808080808040 3002 38959a97ece39fe7cb17 4003",
        ]),
        record(target(), &["0a026f31 10808080808020"]),
        record(delivery(), &["08808080808040 1002 1a076d657373616765"]),
        record(limits(), &["0801 1002 1803 2004"]),
        record(task(), &["0807 12026f31 18808080808020 2005"]),
        record(keep_for(), &["08e8a705"]),
        record(retention(), &["0801 10ac02 1800"]),
        record(HubRecord { format: 1, id: 7, created: TIME, retention: Some(retention()), ..Default::default() }, &[
            "0801 1007 18959a97ece39fe7cb17",
            "0801 1007 18959a97ece39fe7cb17 2207080110ac021800",
        ]),
        record(InstanceRecord {
            format: 1,
            name: "Hello".into(),
            version: Some("v1".into()),
            status: wire::OrchestrationStatus::Terminated.into(),
            created: TIME,
            updated: TIME + 1,
            completed: Some(TIME + 2),
            execution_id: "e1".into(),
            generation: 1 << 40,
            scheduled_start: timestamp(),
            start_timer: Some(0),
            tags: tags(),
            parent: Some(wire::ParentInstanceInfo { task_scheduled_id: 4, ..Default::default() }),
            history_events: 300,
            history_bytes: 70_000,
            last_chunk: 290,
            custom_status: Some("half".into()),
            span: Some(wire::OrchestrationTraceContext { span_id: Some("span".into()), ..Default::default() }),
            parent_trace: trace(),
            suspension: Some(suspension()),
            terminating: true,
            clock: TIME + 3,
            next_number: 6,
            has_run: true,
            link: Some(link()),
            recursion: Some(recursion()),
            hidden: vec![2, 300],
            rewinding: true,
            raised_events: 7,
            pending: 8,
            listed: Some(wire::OrchestrationStatus::Failed.into()),
            section: Some(entities::section()),
            ..Default::default()
        }, &[
            "0801 120548656c6c6f 1a040a027631 2005 28959a97ece39fe7cb17 30969a97ece39fe7cb17 \
             38979a97ece39fe7cb17 42026531 48808080808020 52080880e2cfaa061005 5800 62060a0161120131 \
             62060a0162120132 6a020804 70ac02 78f0a204 8001a202 8a01060a0468616c66 \
             9201080a060a047370616e 9a01040a027470 a2010d08091001180122056576656e74 a80101 \
             b001989a97ece39fe7cb17 b80106 c00101",
            "0801 120548656c6c6f 1a040a027631 2005 28959a97ece39fe7cb17 30969a97ece39fe7cb17 \
             38979a97ece39fe7cb17 42026531 48808080808020 52080880e2cfaa061005 5800 62060a0161120131 \
             62060a0162120132 6a020804 70ac02 78f0a204 8001a202 8a01060a0468616c66 \
             9201080a060a047370616e 9a01040a027470 a2010d08091001180122056576656e74 a80101 \
             b001989a97ece39fe7cb17 b80106 c00101 f20109088080808080201006 fa01070a050a036f7574 \
             82020302ac02 880201 c00203 900307 980308",
            "0801 120548656c6c6f 1a040a027631 2005 28959a97ece39fe7cb17 30969a97ece39fe7cb17 38979a97ece39fe7cb17 42026531 48808080808020 52080880e2cfaa061005 5800 62060a0161120131 62060a0162120132 6a020804 70ac02 78f0a204 8001a202 8a01060a0468616c66 9201080a060a047370616e 9a01040a027470 a2010d08091001180122056576656e74 a80101 b001989a97ece39fe7cb17 b80106 c00101 f20109088080808080201006 fa01070a050a036f7574 82020302ac02 880201 c00203 900307 980308 e203120a0273311204406140311204406240311801",
            "0801 120548656c6c6f 1a040a027631 2005 28959a97ece39fe7cb17 30969a97ece39fe7cb17 38979a97ece39fe7cb17 42026531 48808080808020 52080880e2cfaa061005 5800 62060a0161120131 62060a0162120132 6a020804 70ac02 78f0a204 8001a202 8a01060a0468616c66 9201080a060a047370616e 9a01040a027470 a2010d08091001180122056576656e74 a80101 b001989a97ece39fe7cb17 b80106 c00101 f20109088080808080201006 fa01070a050a036f7574 82020302ac02 880201 c00203 900307 980308 e203140a02733112044061403112044062403118012009",
        ]),
        record(recursion(), &["0a050a036f7574"]),
        record(DeletedHubRecord { format: 1, id: 7, name: "orders".into(), deleted: TIME, ..Default::default() }, &["0801 1007 1a066f7264657273 20959a97ece39fe7cb17"]),
        record(ChildRecord {
            format: 1,
            instance: "o2".into(),
            task_id: -4,
            answered: true,
            moved_from: Some(link()),
            ..Default::default()
        }, &["0801 12026f32 18fcffffffffffffffff01 2001 2a09088080808080201006"]),
        record(link(), &["08808080808020 1006"]),
        record(parent(), &["0a020804 1209088080808080201006"]),
        record(from_parent(), &["0a026f31 1209088080808080201006"]),
        record(start_message(), &["0a0b0a026f3212054368696c64 120f0a0208041209088080808080201006"]),
        record(child_ended(), &["0a09088080808080201006 12050a036f7574 1a0a0a044f6f707312026e6f"]),
        record(terminate_message(), &["0a050a036f7574 1001 1a0f0a026f311209088080808080201006"]),
        record(rewind_message(), &["0a1e0a0b0a026f3212054368696c64120f0a0208041209088080808080201006 1209088080808080201006 \
             1a050a03776879"]),
        record(message(Body::Start(start_message())), &["0801 1007 1a026f32 221e0a0b0a026f3212054368696c64120f0a0208041209088080808080201006"]),
        record(message(Body::ChildEnded(child_ended())), &["0801 1007 1a026f32 2a1e0a0908808080808020100612050a036f75741a0a0a044f6f707312026e6f"]),
        record(message(Body::Raise(wire::EventRaisedEvent { name: "Go".into(), input: Some("in".into()) })), &["0801 1007 1a026f32 320a0a02476f12040a02696e"]),
        record(message(Body::Terminate(terminate_message())), &["0801 1007 1a026f32 3a1a0a050a036f757410011a0f0a026f311209088080808080201006"]),
        record(message(Body::Rewind(rewind_message())), &["0801 1007 1a026f32 42320a1e0a0b0a026f3212054368696c64120f0a0208041209088080808080201006120 \
             90880808080802010061a050a03776879"]),
        record(message(Body::Operation(entities::operation_message())), &["0801 1007 1a026f32 52260a1a0a056576656e74120272311a0b0a026f3110808080808020200110959a97ece39fe7cb17"]),
        record(message(Body::OperationEnded(entities::operation_ended())), &["0801 1007 1a026f32 5a1e08808080808020120272311a050a036f7574220a0a044f6f707312026e6f"]),
        record(message(Body::Lock(entities::lock_request())), &["0801 1007 1a026f32 62210a110a0b0a026f3110808080808020120273311204406140311204406240311801", "0801 1007 1a026f32 622d0a130a0b0a026f3110808080808020120273311809120440614031120440624031180120959a97ece39fe7cb17"]),
        record(message(Body::LockGranted(entities::holder())), &["0801 1007 1a026f32 6a110a0b0a026f311080808080802012027331", "0801 1007 1a026f32 6a130a0b0a026f3110808080808020120273311809"]),
        record(message(Body::Release(entities::release())), &["0801 1007 1a026f32 72210a110a0b0a026f3110808080808020120273311204406140311204406240311801", "0801 1007 1a026f32 72230a130a0b0a026f31108080808080201202733118091204406140311204406240311801"]),
        record(DeliveredRecord { format: 1, sequence: 1 << 41, sub: 2, ..Default::default() }, &["0801 10808080808040 1802"]),
        record(suspension(), &["0809 1001 1801 22056576656e74"]),
        record(TaskRecord {
            format: 1,
            task_id: -4,
            name: "SayHi".into(),
            version: Some("v1".into()),
            input: Some("in".into()),
            trace: trace(),
            tags: tags(),
            execution_id: "e1".into(),
            filter_version: "v2".into(),
            scheduled: TIME,
            ..Default::default()
        }, &[
            "0801 10fcffffffffffffffff01 1a055361794869 22040a027631 2a040a02696e 32040a027470 \
             3a060a0161120131 3a060a0162120132 42026531 4a027632 50959a97ece39fe7cb17",
        ]),
        record(TimerRecord {
            format: 1,
            kind: TimerKind::Start.into(),
            due: TIME,
            timer_id: -4,
            fire_at: timestamp(),
            ..Default::default()
        }, &[
            "0801 1001 18959a97ece39fe7cb17 20fcffffffffffffffff01 2a080880e2cfaa061005",
        ]),
    ]
}

/// Every answer.
#[rustfmt::skip]
pub(super) fn answers() -> Vec<Entry> {
    let instance = || "o1".to_owned();
    vec![
        answer(Ok(Reply::Done), &[""]),
        answer(Ok(Reply::Started { instance: instance() }), &["0801 12026f31"]),
        answer(Ok(Reply::Hub { id: 7 }), &["0802 1807"]),
        answer(Err(Reject::UnknownCommand), &["0803"]),
        answer(Err(Reject::NotFound { instance: instance() }), &["0804 12026f31"]),
        answer(Err(Reject::AlreadyExists { instance: instance() }), &["0805 12026f31"]),
        answer(Err(Reject::InvalidReusePolicy), &["0806"]),
        answer(Err(Reject::StaleTurn), &["0807"]),
        answer(Err(Reject::TaskNotOpen), &["0808"]),
        answer(Ok(Reply::Purged { count: 3 }), &["0828 c00203"]),
        answer(Ok(Reply::Unterminated { instances: vec!["o1".into(), "o2".into()] }), &["0829 ca02026f31 ca02026f32"]),
        answer(Ok(Reply::Step { done: true }), &["082a d00201"]),
        answer(Err(Reject::NotFailed { instance: instance() }), &["081e 12026f31"]),
        answer(Err(Reject::NotEnded { instance: instance() }), &["081f 12026f31"]),
        answer(Err(Reject::HubDeleted), &["082b"]),
        answer(Ok(Reply::TriedInVain), &["083e"]),
        answer(Err(Reject::StaleBatch), &["083c"]),
        answer(Err(Reject::LocksLost { instance: instance() }), &["083d 12026f31"]),
        answer(Err(Reject::QueueFull { instance: instance(), limit: 9 }), &["083f 12026f31 900309"]),
        answer(Err(Reject::InboxFull { instance: instance(), limit: 9 }), &["0832 12026f31 900309"]),
    ]
}

fn answer(answer: Answer, forms: &'static [&'static str]) -> Entry {
    Entry {
        name: "Answer",
        head: Box::new(|_| Vec::new()),
        body: encode(&answer).to_vec(),
        rewrite: Box::new(|form| Some(encode(&decode(form.to_vec().into())?).to_vec())),
        is_value: Box::new(move |form| decode(form.to_vec().into()).as_ref() == Some(&answer)),
        forms,
    }
}

/// A history row is no message but events, each behind its length; the number of a timer's kind is stored.
#[test]
fn what_is_not_a_message_keeps_its_form_too() {
    let mut chunk = Chunk::default();
    chunk.push(b"one");
    chunk.push(&[7; 200]);
    let row = chunk.freeze();
    assert_eq!(row[..6], [3, b'o', b'n', b'e', 0xc8, 1]);
    assert_eq!(row.len(), 6 + 200);
    assert_eq!([TimerKind::Timer, TimerKind::Start].map(|kind| kind as i32), [0, 1]);

    // The envelope of a command that is judged by limits of its own; and what a log without them means.
    let command = Command::Sweep(Sweep {}).within(&limits());
    assert_eq!(command[..], [8, 1, 0xaa, 1, 0, 0xf2, 1, 8, 8, 1, 16, 2, 24, 3, 32, 4]);
    assert_eq!(Command::from_bytes(&command), Some((Command::Sweep(Sweep {}), limits())));
    let usual = Limits {
        history_events: 100_000,
        history_bytes: 64 << 20,
        waiting_events: 100_000,
        pending: 100_000,
    };
    assert_eq!(Limits::USUAL, usual);
}
