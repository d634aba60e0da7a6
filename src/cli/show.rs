//! Answers as text: columns for people, JSON for programs.
//!
//! What comes from a client or a worker may hold anything, so on a terminal every control character is shown
//! as an escape: an instance cannot repaint the screen of who looks at it. Payloads are never parsed: in JSON
//! they are texts.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Context as _;
use durahub_proto::wire::{OrchestrationState, OrchestrationStatus, TaskFailureDetails};
use prost_types::Timestamp;
use serde_json::{Value, json};

/// Writes to standard output. That the reader has gone (`| head`) is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

/// JSON over several lines.
pub(super) fn print_json(value: &Value) -> anyhow::Result<()> {
    print(&format!("{value:#}\n"))
}

/// Rows as columns; the first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let length = |cell: &String| cell.chars().count();
    let width = |column: usize| rows.iter().map(|row| length(&row[column])).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Names and values, one pair on a line.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let rows: Vec<_> =
        pairs.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect();
    table(&rows)
}

/// Text that cannot command a terminal.
pub(super) fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        // Marks that turn the direction of writing hide what they stand in.
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || turns { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

/// The name of a status, as users of the SDKs know it.
pub(super) fn status_name(status: OrchestrationStatus) -> &'static str {
    match status {
        OrchestrationStatus::Running => "Running",
        OrchestrationStatus::Completed => "Completed",
        OrchestrationStatus::ContinuedAsNew => "ContinuedAsNew",
        OrchestrationStatus::Failed => "Failed",
        OrchestrationStatus::Canceled => "Canceled",
        OrchestrationStatus::Terminated => "Terminated",
        OrchestrationStatus::Pending => "Pending",
        OrchestrationStatus::Suspended => "Suspended",
    }
}

/// The time in UTC, or a dash.
pub(super) fn time(time: Option<&Timestamp>) -> String {
    time.map_or_else(|| "-".to_owned(), Timestamp::to_string)
}

/// The columns of a list of instances.
pub(super) fn instances(states: &[OrchestrationState]) -> String {
    let head = ["INSTANCE", "NAME", "STATUS", "CREATED", "UPDATED"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(states.iter().map(|state| {
        vec![
            safe(&state.instance_id),
            safe(&state.name),
            status_name(state.orchestration_status()).to_owned(),
            time(state.created_timestamp.as_ref()),
            time(state.last_updated_timestamp.as_ref()),
        ]
    }));
    table(&rows)
}

/// Everything about one instance, for people.
pub(super) fn instance(state: &OrchestrationState) -> String {
    let mut rows = vec![
        ("Instance", safe(&state.instance_id)),
        ("Name", safe(&state.name)),
        ("Status", status_name(state.orchestration_status()).to_owned()),
    ];
    let mut text = |name, value: Option<&durahub_proto::Text>| {
        rows.extend(value.map(|value| (name, safe(value.as_str()))));
    };
    text("Version", state.version.as_ref());
    text("Execution", state.execution_id.as_ref());
    text("Parent", state.parent_instance_id.as_ref());
    let times = [
        ("Scheduled", &state.scheduled_start_timestamp),
        ("Created", &state.created_timestamp),
        ("Updated", &state.last_updated_timestamp),
        ("Ended", &state.completed_timestamp),
    ];
    rows.extend(times.iter().filter(|(_, at)| at.is_some()).map(|(n, at)| (*n, time(at.as_ref()))));
    rows.extend(
        state.tags.iter().map(|(key, value)| ("Tag", format!("{}={}", safe(key), safe(value)))),
    );
    let mut text = |name, value: Option<&durahub_proto::Text>| {
        rows.extend(value.map(|value| (name, safe(value.as_str()))));
    };
    text("Input", state.input.as_ref());
    text("Custom status", state.custom_status.as_ref());
    text("Output", state.output.as_ref());
    if let Some(failure) = &state.failure_details {
        rows.push(("Failure", safe(&format!("{}: {}", failure.error_type, failure.error_message))));
    }
    pairs(&rows)
}

/// Everything about one instance, for programs. What is unset is left out.
pub(super) fn instance_json(state: &OrchestrationState) -> Value {
    let mut json = json!({
        "instanceId": state.instance_id,
        "name": state.name,
        "status": status_name(state.orchestration_status()),
    });
    let texts = [
        ("version", &state.version),
        ("executionId", &state.execution_id),
        ("parentInstanceId", &state.parent_instance_id),
        ("input", &state.input),
        ("customStatus", &state.custom_status),
        ("output", &state.output),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            json[name] = text.as_str().into();
        }
    }
    let times = [
        ("scheduledStartAt", &state.scheduled_start_timestamp),
        ("createdAt", &state.created_timestamp),
        ("lastUpdatedAt", &state.last_updated_timestamp),
        ("completedAt", &state.completed_timestamp),
    ];
    for (name, at) in times {
        if let Some(at) = at {
            json[name] = at.to_string().into();
        }
    }
    if let Some(failure) = &state.failure_details {
        json["failure"] = failure_json(failure);
    }
    if !state.tags.is_empty() {
        json["tags"] = json!(state.tags);
    }
    json
}

fn failure_json(failure: &TaskFailureDetails) -> Value {
    let mut json = json!({
        "errorType": failure.error_type,
        "errorMessage": failure.error_message,
        "isNonRetriable": failure.is_non_retriable,
    });
    if let Some(trace) = &failure.stack_trace {
        json["stackTrace"] = trace.as_str().into();
    }
    if let Some(inner) = &failure.inner_failure {
        json["innerFailure"] = failure_json(inner);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["grün", "x"], ["y", ""]];
        let rows: Vec<_> = rows.map(|row| row.map(str::to_owned).to_vec()).to_vec();
        assert_eq!(table(&rows), "A     B\ngrün  x\ny\n");
    }

    #[test]
    fn nothing_that_an_instance_holds_commands_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\nc\u{9b}d"), "a\\u{1b}[2Jb\\nc\\u{9b}d");
        assert_eq!(safe("\u{202e}txt"), "\\u{202e}txt");
        assert_eq!(safe("{\"grüß\":1}"), "{\"grüß\":1}");
    }

    #[test]
    fn json_keeps_unset_apart_from_empty() {
        let state = OrchestrationState { input: Some("".into()), ..Default::default() };
        let json = instance_json(&state);
        assert_eq!(json["input"], "");
        assert!(json.get("output").is_none(), "{json}");
    }
}
