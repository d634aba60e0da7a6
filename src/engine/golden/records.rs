//! Records as they are stored, and answers as they travel.

use std::collections::BTreeMap;

use durahub_proto::wire;
use prost_types::Timestamp;

use super::commands::{task, turn};
use super::{Entry, record};
use crate::engine::reply::{Answer, Reject, Reply, decode, encode};
use crate::engine::state::{
    Chunk, HubRecord, InstanceRecord, Suspension, TaskRecord, TimerKind, TimerRecord,
};

const TIME: i64 = 1_700_000_000_123_456_789;

fn timestamp() -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_700_000_000, nanos: 5 })
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

/// Every stored record, and the messages that they and commands consist of.
#[rustfmt::skip]
pub(super) fn table() -> Vec<Entry> {
    vec![
        record(turn(), &[
            "0807 12026f31 18808080808020 20ac02 28808080808040 3002 38959a97ece39fe7cb17 4003",
        ]),
        record(task(), &["0807 12026f31 18808080808020 2005"]),
        record(HubRecord { format: 1, id: 7, created: TIME, ..Default::default() }, &["0801 1007 18959a97ece39fe7cb17"]),
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
            ..Default::default()
        }, &[
            "0801 120548656c6c6f 1a040a027631 2005 28959a97ece39fe7cb17 30969a97ece39fe7cb17 \
             38979a97ece39fe7cb17 42026531 48808080808020 52080880e2cfaa061005 5800 62060a0161120131 \
             62060a0162120132 6a020804 70ac02 78f0a204 8001a202 8a01060a0468616c66 \
             9201080a060a047370616e 9a01040a027470 a2010d08091001180122056576656e74 a80101 \
             b001989a97ece39fe7cb17 b80106 c00101",
        ]),
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
}
