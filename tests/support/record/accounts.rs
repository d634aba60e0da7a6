//! Accounts: entities that remember their balance and every operation that changed it.

use std::collections::BTreeMap;

use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::operation_result::ResultType;
use prost::Message as _;

use super::ledger::Ledger;

/// What an account remembers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) balance: i64,
    pub(crate) done: BTreeMap<String, i64>,
}

impl Account {
    /// Reads a state; `None` for an account that does not exist.
    pub(crate) fn read(state: &str) -> Option<Account> {
        let mut parts = state.split(' ').filter(|part| !part.is_empty());
        let balance = parts.next()?.parse().expect("a balance");
        let operation = |part: &str| {
            let (id, amount) = part.split_once('=').expect("an operation");
            (id.to_owned(), amount.parse().expect("an amount"))
        };
        Some(Account { balance, done: parts.map(operation).collect() })
    }

    fn write(&self) -> String {
        let done: String = self.done.iter().map(|(id, amount)| format!(" {id}={amount}")).collect();
        format!("{}{done}", self.balance)
    }
}

/// What the worker of an account answers to a batch.
pub(crate) fn carry_out(
    ledger: &Ledger,
    request: &wire::EntityRequest,
    completion_token: String,
) -> wire::EntityBatchResult {
    let state = request.entity_state.as_ref().map_or("", |state| state.as_str());
    let mut account = Account::read(state).unwrap_or_default();
    let mut results = Vec::new();
    for event in &request.operation_requests {
        let event = wire::HistoryEvent::decode(event.clone()).expect("an event");
        let (operation, input) = match event.event_type {
            Some(EventType::EntityOperationSignaled(it)) => (it.operation, it.input),
            Some(EventType::EntityOperationCalled(it)) => (it.operation, it.input),
            other => {
                ledger.violation(format!("not an operation (R3.38): {other:?}"));
                continue;
            }
        };
        let input = input.map(String::from).unwrap_or_default();
        if operation == "add" {
            let (id, amount) = input.split_once(' ').expect("an input");
            let amount: i64 = amount.parse().expect("an amount");
            account.balance += amount;
            if account.done.insert(id.to_owned(), amount).is_some() {
                ledger.violation(format!("{id} was carried out before (S7)"));
            }
        }
        let success = wire::OperationResultSuccess {
            result: Some(account.balance.to_string().into()),
            ..Default::default()
        };
        results.push(wire::OperationResult { result_type: Some(ResultType::Success(success)) });
    }
    wire::EntityBatchResult {
        results,
        entity_state: Some(account.write().into()),
        completion_token,
        ..Default::default()
    }
}
