//! The orchestration: locks two accounts, reads them, moves money, and ends in one of several ways.

use durahub_proto::wire;
use durahub_proto::wire::OrchestrationStatus as Status;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::send_entity_message_action::EntityMessageType as Message;
use prost::Message as _;

/// How a transfer ends: as it should, forgetting its locks, failing with them, beginning anew with them.
pub(crate) const WAYS: [&str; 5] = ["well", "well", "forgets", "fails", "anew"];

/// What a transfer does next, as its history tells.
///
/// # Errors
/// Says what is wrong with the history.
pub(crate) fn next(
    request: &wire::OrchestratorRequest,
) -> Result<Vec<wire::OrchestratorAction>, String> {
    let mut seen = Seen::default();
    for event in request.past_events.iter().chain(&request.new_events) {
        let event = wire::HistoryEvent::decode(event.clone()).map_err(|error| error.to_string())?;
        seen.take(event.event_type.ok_or("an event without a type")?)?;
    }
    let parts: Vec<&str> = seen.input.split(' ').collect();
    let [instance, from, to, amount, way] = parts.as_slice() else {
        // The second generation: all is done.
        return Ok(numbered(vec![complete(Status::Completed, "done")]));
    };
    let amount: i64 = amount.parse().map_err(|_| "an amount")?;
    if seen.terminated {
        return Ok(numbered(vec![complete(Status::Terminated, "")]));
    }
    let mut actions = Vec::new();
    let calls = |operation: &str, inputs: [String; 2]| {
        let [first, second] = inputs;
        vec![call(from, operation, instance, first), call(to, operation, instance, second)]
    };
    match (seen.asked, seen.granted, seen.called.len(), seen.answers.len()) {
        (false, ..) => {
            let request = wire::EntityLockRequestedEvent {
                critical_section_id: format!("section-{instance}"),
                lock_set: vec![(*to).to_owned(), (*from).to_owned()],
                ..Default::default()
            };
            actions.push(message(Message::EntityLockRequested(request)));
        }
        (true, true, 0, 0) => actions = calls("get", [String::new(), String::new()]),
        (true, true, 2, 2) => {
            actions = calls(
                "add",
                [format!("{instance}-from {}", -amount), format!("{instance}-to {amount}")],
            );
        }
        (true, true, 4, 4) => {
            seen.check_balances([from, to], [-amount, amount])?;
            match *way {
                "forgets" => actions.push(complete(Status::Completed, "forgot")),
                "fails" => actions.push(complete(Status::Failed, "")),
                "anew" => actions.push(complete(Status::ContinuedAsNew, "anew")),
                _ => {
                    actions.extend([from, to].map(|account| unlock(instance, account)));
                    actions.push(complete(Status::Completed, "well"));
                }
            }
        }
        _ => {}
    }
    Ok(numbered(actions))
}

#[derive(Default)]
struct Seen {
    input: String,
    asked: bool,
    granted: bool,
    terminated: bool,
    /// Request ids of calls, in order: operation and account.
    called: Vec<String>,
    answers: Vec<(String, i64)>,
}

impl Seen {
    fn take(&mut self, event: EventType) -> Result<(), String> {
        match event {
            EventType::ExecutionStarted(it) => {
                self.input = it.input.map(String::from).unwrap_or_default();
            }
            EventType::ExecutionTerminated(_) => self.terminated = true,
            EventType::EntityLockRequested(_) => self.asked = true,
            EventType::EntityLockGranted(_) if self.granted => {
                return Err("a lock was granted twice".to_owned());
            }
            EventType::EntityLockGranted(_) => self.granted = true,
            EventType::EntityOperationCalled(it) => self.called.push(it.request_id),
            EventType::EntityOperationCompleted(it) => {
                let known = self.called.contains(&it.request_id);
                if !known || self.answers.iter().any(|(id, _)| *id == it.request_id) {
                    return Err(format!(
                        "{}: answered twice, or never asked (R5.13)",
                        it.request_id
                    ));
                }
                let output = it.output.map(String::from).unwrap_or_default();
                self.answers.push((it.request_id, output.parse().map_err(|_| "a balance")?));
            }
            EventType::EntityOperationFailed(it) => {
                return Err(format!("{} failed: {:?}", it.request_id, it.failure_details));
            }
            _ => {}
        }
        Ok(())
    }

    /// S10: nobody wrote between what was read and what was written.
    fn check_balances(&self, accounts: [&&str; 2], amounts: [i64; 2]) -> Result<(), String> {
        for (account, amount) in accounts.into_iter().zip(amounts) {
            let of = |operation: &str| {
                let found = self
                    .answers
                    .iter()
                    .find(|(id, _)| id.starts_with(operation) && id.ends_with(account));
                found
                    .map(|(_, balance)| *balance)
                    .ok_or_else(|| format!("no {operation} of {account}"))
            };
            let (before, after) = (of("get")?, of("add")?);
            if after != before + amount {
                return Err(format!(
                    "{account}: read {before}, added {amount}, found {after} (S10)"
                ));
            }
        }
        Ok(())
    }
}

fn call(account: &str, operation: &str, instance: &str, input: String) -> Action {
    message(Message::EntityOperationCalled(wire::EntityOperationCalledEvent {
        request_id: format!("{operation}-{instance}-{account}"),
        operation: operation.to_owned(),
        input: Some(input.into()),
        target_instance_id: Some(account.into()),
        ..Default::default()
    }))
}

fn unlock(instance: &str, account: &str) -> Action {
    message(Message::EntityUnlockSent(wire::EntityUnlockSentEvent {
        critical_section_id: format!("section-{instance}"),
        target_instance_id: Some(account.into()),
        ..Default::default()
    }))
}

fn message(message: Message) -> Action {
    let entity_message_type = Some(message);
    Action::SendEntityMessage(wire::SendEntityMessageAction { entity_message_type })
}

fn complete(status: Status, result: &str) -> Action {
    Action::CompleteOrchestration(wire::CompleteOrchestrationAction {
        orchestration_status: status.into(),
        result: Some(result.into()),
        ..Default::default()
    })
}

/// Ids only need to differ within a turn here: nothing above looks at them.
fn numbered(actions: Vec<Action>) -> Vec<wire::OrchestratorAction> {
    let number =
        |(id, action)| wire::OrchestratorAction { id, orchestrator_action_type: Some(action) };
    (1..).zip(actions).map(number).collect()
}
