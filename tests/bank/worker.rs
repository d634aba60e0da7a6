//! A worker of the bank, and the accounts that it keeps.
//!
//! It forgets like an SDK: a completion that fails is not sent again, so work that was lost must come back by
//! itself (R3.49, L3). Aborting its task is what the end of its process is.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::operation_result::ResultType;
use durahub_proto::wire::work_item::Request as Item;
use prost::Message as _;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::Client;
use crate::{Ledger, is_broken, teller};

/// What an account remembers: its balance, and each operation that changed it.
#[derive(Default)]
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

/// Begins a worker with a connection of its own.
pub(crate) fn spawn(address: SocketAddr, ledger: &Arc<Ledger>) -> JoinHandle<()> {
    tokio::spawn(run(Client::new(address), Arc::clone(ledger)))
}

async fn run(client: Client, ledger: Arc<Ledger>) {
    // Ends with this task: a process that is gone completes nothing.
    let mut work = JoinSet::new();
    loop {
        let request = wire::GetWorkItemsRequest::default();
        if let Ok(stream) = client.rpc().get_work_items(request).await {
            let mut stream = stream.into_inner();
            loop {
                tokio::select! {
                    item = stream.message() => match item {
                        Ok(Some(item)) => {
                            work.spawn(take(client.clone(), Arc::clone(&ledger), item));
                        }
                        Ok(None) | Err(_) => break,
                    },
                    Some(done) = work.join_next() => done.expect("no item panics"),
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn take(client: Client, ledger: Arc<Ledger>, item: wire::WorkItem) {
    let completion_token = item.completion_token;
    let answer = match item.request {
        Some(Item::OrchestratorRequest(request)) => {
            let actions = match teller::next(&request) {
                Ok(actions) => actions,
                Err(wrong) => {
                    return ledger.violation(format!("{}: {wrong}", request.instance_id));
                }
            };
            let instance_id = request.instance_id;
            let response = wire::OrchestratorResponse {
                instance_id,
                actions,
                completion_token,
                ..Default::default()
            };
            client.rpc().complete_orchestrator_task(response).await
        }
        Some(Item::EntityRequestV2(request)) => {
            // Work of some length, so that kills fall into it.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(..10))).await;
            let result = carry_out(&ledger, &request, completion_token);
            client.rpc().complete_entity_task(result).await
        }
        Some(Item::HealthPing(_)) => return,
        other => return ledger.violation(format!("a work item of an unknown kind: {other:?}")),
    };
    // A completion that did not arrive is nothing to a worker; one that was refused is (R3.55).
    if let Err(status) = answer.map(drop)
        && !is_broken(&status)
    {
        ledger.violation(format!("a completion was refused: {status}"));
    }
}

fn carry_out(
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
