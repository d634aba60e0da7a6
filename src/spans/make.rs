//! From what happened to the message that a collector takes.

use bytes::Bytes;
use durahub_proto::otlp::any_value::Value;
use durahub_proto::otlp::{AnyValue, KeyValue, Span, SpanKind, Status, StatusCode};

use super::context::{Context, SpanId};
use crate::clock::Clock;

/// The W3C flag of a recorded trace, and "whether the parent is another program's is known".
const RECORDED: u32 = 0x101;
/// The parent is another program's.
const REMOTE: u32 = 0x200;

/// Longest text in a span, in bytes: names come from callers, and the queue counts spans and not bytes.
const TEXT_BYTES: usize = 512;

/// As much of a text as a span takes.
pub(super) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES)]
}

/// A span that began, below a context.
pub(super) fn span(
    clock: &Clock,
    below: Context,
    name: String,
    kind: SpanKind,
    begin: i64,
) -> Span {
    let Context { trace, parent, state, .. } = below;
    Span {
        trace_id: Bytes::copy_from_slice(&trace),
        span_id: id(clock),
        trace_state: state,
        parent_span_id: parent.map_or_else(Bytes::new, |id: SpanId| Bytes::copy_from_slice(&id)),
        name: cut(&name).to_owned(),
        kind: kind.into(),
        start_time_unix_nano: time(begin),
        flags: RECORDED | if parent.is_some() { REMOTE } else { 0 },
        ..Default::default()
    }
}

/// A part of a span.
pub(super) fn part(clock: &Clock, of: &Span, name: &str, begin: i64, end: i64) -> Span {
    Span {
        trace_id: of.trace_id.clone(),
        span_id: id(clock),
        trace_state: of.trace_state.clone(),
        parent_span_id: of.span_id.clone(),
        name: name.to_owned(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: time(begin),
        end_time_unix_nano: time(end.max(begin)),
        flags: RECORDED,
        ..Default::default()
    }
}

/// An attribute with a text.
pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(cut(value).to_owned()))
}

/// An attribute with a number.
pub(super) fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }) }
}

/// What a span that went wrong says.
pub(super) fn wrong(message: &str) -> Status {
    Status { message: cut(message).to_owned(), code: StatusCode::Error.into() }
}

/// A time as collectors count it; before 1970 there is none.
pub(super) fn time(nanos: i64) -> u64 {
    u64::try_from(nanos).unwrap_or(0)
}

fn id(clock: &Clock) -> Bytes {
    // Zero means "no span".
    Bytes::copy_from_slice(&clock.entropy().max(1).to_be_bytes())
}
