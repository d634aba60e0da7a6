//! A history as people and programs read it.
//!
//! Events are shown by their descriptors, in the JSON form of protobuf, so every kind is there, the newest too.

use anyhow::Context as _;
use durahub_proto::wire;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};
use serde_json::{Value, json};

use super::read;
use crate::cli::connect::{Output, Rpc};
use crate::cli::failure::Failure;
use crate::cli::show;

/// Fields that say most about an event, in the order in which the table shows them.
const TELLING: &[&str] = &[
    "name",
    "taskScheduledId",
    "timerId",
    "fireAt",
    "instanceId",
    "requestId",
    "orchestrationStatus",
    "input",
    "result",
    "output",
    "reason",
];
/// Characters of a payload that a line shows.
const SHOWN: usize = 60;

pub(super) async fn show(
    mut rpc: Rpc,
    output: Output,
    id: &str,
    execution: Option<String>,
) -> anyhow::Result<()> {
    read::known(&mut rpc, id).await?;
    let pool = DescriptorPool::decode(durahub_proto::DESCRIPTORS).context("read the protocol")?;
    let kind = pool.get_message_by_name("HistoryEvent").context("read the protocol")?;
    let request = wire::StreamInstanceHistoryRequest {
        instance_id: id.to_owned(),
        execution_id: execution.map(Into::into),
        ..Default::default()
    };
    let mut chunks =
        rpc.stream_instance_history(request).await.map_err(Failure::from)?.into_inner();
    let mut events = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(Failure::from)? {
        for event in chunk.events {
            events.push(as_json(&kind, event)?);
        }
    }
    match output {
        Output::Table => {
            let head = ["#", "TIME", "ID", "EVENT", "DETAILS"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(events.iter().enumerate().map(|(at, event)| row(at, event)));
            show::print(&show::table(&rows))
        }
        Output::Json => show::print_json(&json!({ "instanceId": id, "events": events })),
    }
}

fn as_json(kind: &MessageDescriptor, event: bytes::Bytes) -> anyhow::Result<Value> {
    let event = DynamicMessage::decode(kind.clone(), event).context("read an event")?;
    serde_json::to_value(&event).context("show an event")
}

fn row(at: usize, event: &Value) -> Vec<String> {
    let (name, body) = event
        .as_object()
        .and_then(|fields| fields.iter().find(|(_, value)| value.is_object()))
        .map_or(("?", &Value::Null), |(name, body)| (name.as_str(), body));
    let mut details: Vec<_> = TELLING
        .iter()
        .filter_map(|field| Some(format!("{field}={}", short(body.get(field)?))))
        .collect();
    if let Some(failure) = body.get("failureDetails").and_then(|it| it.get("errorMessage")) {
        details.push(format!("failure={}", short(failure)));
    }
    vec![
        (at + 1).to_string(),
        event["timestamp"].as_str().unwrap_or("-").to_owned(),
        event["eventId"].as_i64().unwrap_or(0).to_string(),
        name.to_owned(),
        details.join(" "),
    ]
}

/// A value on a line: no longer than a glance.
fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    show::safe(&short)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn an_event_becomes_a_line() {
        let pool = DescriptorPool::decode(durahub_proto::DESCRIPTORS).unwrap();
        let kind = pool.get_message_by_name("HistoryEvent").unwrap();
        let scheduled = wire::TaskScheduledEvent {
            name: "Hel\u{7}lo".into(),
            input: Some("x".repeat(100).into()),
            ..Default::default()
        };
        let event = wire::HistoryEvent {
            event_id: 3,
            timestamp: Some("2030-01-31T08:00:00Z".parse().unwrap()),
            event_type: Some(wire::history_event::EventType::TaskScheduled(scheduled)),
        };
        let json = as_json(&kind, event.encode_to_vec().into()).unwrap();
        let line = row(0, &json);
        assert_eq!(line[..4], ["1", "2030-01-31T08:00:00Z", "3", "taskScheduled"]);
        assert_eq!(line[4], format!("name=Hel\\u{{7}}lo input={}…", "x".repeat(SHOWN)));
    }
}
