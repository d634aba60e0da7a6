//! What a message alone can tell of its size: payloads, names, tags, custom status.
//!
//! Judged before a command is made, on whichever node the message arrives. A client's call is refused; a
//! worker's completion fails its one instance, or its one activity, with the reason: the worker itself is
//! never told, since an error would make some drop their stream (R3.55). Texts are measured, never read.

use std::collections::BTreeMap;

use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::{Text, wire};
use prost::Message as _;

use crate::engine;

/// How large one instance and what belongs to it may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// What only the instance's rows can tell; replicated with the commands that it judges.
    pub engine: engine::Limits,
    /// Longest payload, in bytes (R1.26).
    pub payload_bytes: usize,
    /// Longest custom status, in bytes.
    pub custom_status_bytes: usize,
    /// Longest name or version, in characters.
    pub name_length: usize,
    /// Longest keys and values of all tags of an instance or a task, in bytes.
    pub tags_bytes: usize,
    /// Largest completion of a turn, in bytes, all its parts together (R3.66).
    pub completion_bytes: usize,
}

impl Limits {
    /// Checks a name or a version.
    ///
    /// # Errors
    /// Names the field, the limit, and what to do.
    pub fn check_name(&self, field: &str, name: &str) -> Result<(), String> {
        // Bytes bound characters: most names need no count.
        let (length, limit) = (name.len(), self.name_length);
        if length <= limit || name.chars().count() <= limit {
            return Ok(());
        }
        Err(format!(
            "{field}: its length is {} characters, the limit is {limit} (limits.max_name_length); \
             choose a shorter one",
            name.chars().count()
        ))
    }

    /// Checks a payload.
    ///
    /// # Errors
    /// Names the field, the limit, and what to do.
    pub fn check_payload(&self, field: &str, payload: Option<&Text>) -> Result<(), String> {
        check_bytes(
            field,
            payload.map_or(0, Text::len),
            self.payload_bytes,
            "limits.max_payload_bytes",
        )
    }

    /// Checks tags.
    ///
    /// # Errors
    /// Names the field, the limit, and what to do.
    pub fn check_tags(&self, field: &str, tags: &BTreeMap<String, String>) -> Result<(), String> {
        let bytes = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
        check_bytes(field, bytes, self.tags_bytes, "limits.max_tags_bytes")
    }

    /// Checks a request to start an orchestration.
    ///
    /// # Errors
    /// Names the field, the limit, and what to do.
    pub fn check_start(&self, request: &wire::CreateInstanceRequest) -> Result<(), String> {
        self.check_name("name", &request.name)?;
        self.check_name("version", text(&request.version))?;
        self.check_name("executionId", text(&request.execution_id))?;
        self.check_payload("input", request.input.as_ref())?;
        self.check_tags("tags", &request.tags)
    }

    /// Checks the completion of a turn.
    pub(crate) fn check_turn(&self, response: &wire::OrchestratorResponse) -> Result<(), String> {
        let status = response.custom_status.as_ref().map_or(0, Text::len);
        let limit = self.custom_status_bytes;
        check_bytes("customStatus", status, limit, "limits.max_custom_status_bytes")?;
        response.actions.iter().try_for_each(|action| self.check_action(action))
    }

    fn check_action(&self, action: &wire::OrchestratorAction) -> Result<(), String> {
        let field = |name: &str| format!("action {}, {name}", action.id);
        match &action.orchestrator_action_type {
            Some(Action::ScheduleTask(it)) => {
                self.check_name(&field("name"), &it.name)?;
                self.check_name(&field("version"), text(&it.version))?;
                self.check_payload(&field("input"), it.input.as_ref())?;
                self.check_tags(&field("tags"), &it.tags)
            }
            Some(Action::CreateSubOrchestration(it)) => {
                self.check_name(&field("name"), &it.name)?;
                self.check_name(&field("version"), text(&it.version))?;
                self.check_payload(&field("input"), it.input.as_ref())?;
                self.check_tags(&field("tags"), &it.tags)
            }
            Some(Action::SendEvent(it)) => {
                self.check_name(&field("name"), &it.name)?;
                self.check_payload(&field("data"), it.data.as_ref())
            }
            Some(Action::CompleteOrchestration(it)) => {
                self.check_name(&field("newVersion"), text(&it.new_version))?;
                self.check_payload(&field("result"), it.result.as_ref())?;
                self.check_failure(&field("failureDetails"), it.failure_details.as_ref())?;
                self.check_tags(&field("tags"), &it.tags)
            }
            Some(Action::TerminateOrchestration(it)) => {
                self.check_payload(&field("reason"), it.reason.as_ref())
            }
            Some(Action::SendEntityMessage(it)) => {
                self.check_message(&field("message"), it.encoded_len())
            }
            Some(Action::CreateTimer(_) | Action::RewindOrchestration(_)) | None => Ok(()),
        }
    }

    /// The result of an activity as it may be stored: one that is too large becomes a failure that says so.
    pub(crate) fn admit_result(
        &self,
        result: Option<Text>,
        failure: Option<wire::TaskFailureDetails>,
    ) -> (Option<Text>, Option<wire::TaskFailureDetails>) {
        let checked = self
            .check_payload("result", result.as_ref())
            .and_then(|()| self.check_failure("failureDetails", failure.as_ref()));
        match checked {
            Ok(()) => (result, failure),
            Err(problem) => (None, Some(too_large(problem))),
        }
    }

    /// Checks the completion of a batch. A state that leaves no room for an operation in a message of
    /// `item_bytes` could never be handed out again.
    pub(crate) fn check_batch(
        &self,
        result: &wire::EntityBatchResult,
        item_bytes: usize,
    ) -> Result<(), String> {
        const FOR_OPERATIONS: usize = 256 << 10;
        let state = result.entity_state.as_ref().map_or(0, Text::len);
        let limit = self.payload_bytes.min(item_bytes.saturating_sub(FOR_OPERATIONS));
        check_bytes("entityState", state, limit, "limits.max_payload_bytes")?;
        for (index, result) in result.results.iter().enumerate() {
            self.check_message(&format!("result {index}"), result.encoded_len())?;
        }
        for (index, action) in result.actions.iter().enumerate() {
            self.check_message(&format!("action {index}"), action.encoded_len())?;
        }
        self.check_failure("failureDetails", result.failure_details.as_ref())
    }

    fn check_failure(
        &self,
        field: &str,
        failure: Option<&wire::TaskFailureDetails>,
    ) -> Result<(), String> {
        self.check_message(field, failure.map_or(0, prost::Message::encoded_len))
    }

    /// A message that holds a payload takes a little more than it.
    fn check_message(&self, field: &str, bytes: usize) -> Result<(), String> {
        const AROUND: usize = 4 << 10;
        check_bytes(
            field,
            bytes.saturating_sub(AROUND),
            self.payload_bytes,
            "limits.max_payload_bytes",
        )
    }
}

/// The failure of an activity whose input or result is too large.
pub(crate) fn too_large(error_message: String) -> wire::TaskFailureDetails {
    wire::TaskFailureDetails {
        error_type: "DurahubTooLarge".to_owned(),
        error_message,
        is_non_retriable: true,
        ..Default::default()
    }
}

fn check_bytes(field: &str, bytes: usize, limit: usize, key: &str) -> Result<(), String> {
    if bytes <= limit {
        return Ok(());
    }
    Err(format!(
        "{field}: takes {bytes} bytes, the limit is {limit} ({key}); send less, or keep the data elsewhere \
         and send a reference"
    ))
}

fn text(text: &Option<Text>) -> &str {
    text.as_ref().map_or("", Text::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            engine: engine::Limits::USUAL,
            payload_bytes: 8,
            custom_status_bytes: 4,
            name_length: 5,
            tags_bytes: 6,
            completion_bytes: 100,
        }
    }

    fn response(action: Action) -> wire::OrchestratorResponse {
        let orchestrator_action_type = Some(action);
        wire::OrchestratorResponse {
            actions: vec![wire::OrchestratorAction { id: 3, orchestrator_action_type }],
            ..Default::default()
        }
    }

    #[test]
    fn names_are_counted_in_characters_and_payloads_in_bytes() {
        let limits = limits();
        assert!(limits.check_name("name", "übers").is_ok());
        let refused = limits.check_name("name", "übersx").expect_err("6 characters");
        assert!(refused.starts_with("name: its length is 6") && refused.contains("limit is 5"));
        assert!(limits.check_payload("input", Some(&"12345678".into())).is_ok());
        assert!(limits.check_payload("input", Some(&"123456ü8".into())).is_err());
        let tags = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
        assert!(limits.check_tags("tags", &tags("val")).is_ok());
        assert!(limits.check_tags("tags", &tags("valu")).is_err());
    }

    #[test]
    fn every_action_that_carries_a_payload_is_measured() {
        let large = || Some(Text::from("123456789"));
        let actions = [
            Action::ScheduleTask(wire::ScheduleTaskAction { input: large(), ..Default::default() }),
            Action::CreateSubOrchestration(wire::CreateSubOrchestrationAction {
                input: large(),
                ..Default::default()
            }),
            Action::SendEvent(wire::SendEventAction { data: large(), ..Default::default() }),
            Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
                result: large(),
                ..Default::default()
            }),
            Action::TerminateOrchestration(wire::TerminateOrchestrationAction {
                reason: large(),
                ..Default::default()
            }),
        ];
        for action in actions {
            let refused = limits().check_turn(&response(action.clone())).expect_err("too large");
            assert!(refused.starts_with("action 3, "), "{refused}: {action:?}");
        }
        let timer = Action::CreateTimer(wire::CreateTimerAction::default());
        assert_eq!(limits().check_turn(&response(timer.clone())), Ok(()));
        let custom_status = Some("12345".into());
        let status = wire::OrchestratorResponse { custom_status, ..response(timer) };
        assert!(limits().check_turn(&status).is_err_and(|text| text.starts_with("customStatus")));
    }

    #[test]
    fn a_result_that_is_too_large_becomes_a_failure() {
        let (result, failure) = limits().admit_result(Some("123456789".into()), None);
        assert_eq!(result, None);
        assert!(
            failure.is_some_and(|it| it.is_non_retriable && it.error_message.contains("result"))
        );
        let (result, failure) = limits().admit_result(Some("".into()), None);
        assert_eq!((result, failure), (Some("".into()), None), "R3.59");
    }
}
