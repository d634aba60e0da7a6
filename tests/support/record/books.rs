//! A bank: payments into accounts, and orchestrations that lock two of them and move money ([`teller`](super::teller)).
//!
//! What was asked for stands in the books; what the accounts say when all is over is held against them. Payments are
//! sent until they are acknowledged, so some are sent twice; some transfers are terminated at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use durahub_proto::wire;
use parking_lot::Mutex;
use tonic::{Code, Response, Status};

use super::accounts::Account;
use super::calls::{Client, Gateways, within};
use super::customers::again;
use super::ledger::{Ledger, TRANSFER};
use super::teller;

/// Accounts of the bank: few, so that transfers meet.
const ACCOUNTS: usize = 20;

/// What was asked for, and acknowledged.
#[derive(Default)]
pub(crate) struct Books {
    /// Amount of each payment, by the id of its operation, and the account.
    payments: Mutex<BTreeMap<String, (String, i64)>>,
    /// Transfers, by their instance.
    transfers: Mutex<BTreeMap<String, Transfer>>,
}

/// A transfer, as its input tells.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) amount: i64,
    pub(crate) terminated: bool,
}

fn account(number: usize) -> String {
    format!("@account@{number:02}")
}

impl Books {
    /// How many payments and transfers there are.
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.payments.lock().len(), self.transfers.lock().len())
    }

    pub(crate) fn paid(&self, operation: String, account: String, amount: i64) {
        self.payments.lock().insert(operation, (account, amount));
    }

    pub(crate) fn transferred(&self, instance: String, transfer: Transfer) {
        self.transfers.lock().insert(instance, transfer);
    }
}

/// Pays in, starts transfers, and terminates some, until the load is over. `pause` is the longest between two, in
/// milliseconds.
pub(crate) async fn serve(
    gateways: &Gateways,
    ledger: &Ledger,
    mut random: fastrand::Rng,
    (number, pause): (usize, u64),
) {
    for count in 0.. {
        if ledger.is_over() {
            return;
        }
        let id = format!("{number}-{count}");
        if random.u8(..3) == 0 {
            pay_in(gateways, ledger, &mut random, id).await;
        } else {
            transfer(gateways, ledger, &mut random, id).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..pause))).await;
    }
}

async fn pay_in(gateways: &Gateways, ledger: &Ledger, random: &mut fastrand::Rng, id: String) {
    let (account, amount) = (account(random.usize(..ACCOUNTS)), random.i64(1..1000));
    let operation = format!("p{id}");
    let request = wire::SignalEntityRequest {
        instance_id: account.clone(),
        name: "add".into(),
        input: Some(format!("{operation} {amount}").into()),
        request_id: format!("payment-{id}"),
        // Some wait a little.
        scheduled_time: (random.u8(..5) == 0)
            .then(|| (SystemTime::now() + Duration::from_millis(300)).into()),
        ..Default::default()
    };
    let send = |mut client: Client| {
        let request = within(10, request.clone());
        async move { client.signal_entity(request).await }
    };
    if acknowledged(gateways, ledger, &format!("payment {id}"), send).await {
        ledger.books.paid(operation, account, amount);
    }
}

async fn transfer(gateways: &Gateways, ledger: &Ledger, random: &mut fastrand::Rng, id: String) {
    let from = random.usize(..ACCOUNTS);
    let to = (from + random.usize(1..ACCOUNTS)) % ACCOUNTS;
    let amount = random.i64(1..100);
    let (instance, way) =
        (format!("{TRANSFER}-{id}"), teller::WAYS[random.usize(..teller::WAYS.len())]);
    let request = wire::CreateInstanceRequest {
        instance_id: instance.clone(),
        name: TRANSFER.into(),
        input: Some(format!("{instance} {} {} {amount} {way}", account(from), account(to)).into()),
        ..Default::default()
    };
    let start = |mut client: Client| {
        let request = within(10, request.clone());
        async move { client.start_instance(request).await }
    };
    if !acknowledged(gateways, ledger, &instance, start).await {
        return;
    }
    let terminated = random.u8(..6) == 0;
    let made = Transfer { from: account(from), to: account(to), amount, terminated };
    ledger.books.transferred(instance.clone(), made);
    if terminated {
        tokio::time::sleep(Duration::from_millis(random.u64(..60))).await;
        let terminate = |mut client: Client| {
            let instance_id = instance.clone();
            let request = wire::TerminateRequest { instance_id, ..Default::default() };
            async move { client.terminate_instance(within(10, request)).await }
        };
        acknowledged(gateways, ledger, &format!("terminate {instance}"), terminate).await;
    }
}

/// Makes a call until it is acknowledged; false if it was refused.
async fn acknowledged<T, F: Future<Output = Result<Response<T>, Status>>>(
    gateways: &Gateways,
    ledger: &Ledger,
    what: &str,
    mut send: impl FnMut(Client) -> F,
) -> bool {
    loop {
        match gateways.call(&mut send).await {
            Ok(_) => return true,
            // An earlier try has done it; its answer was lost.
            Err(status) if status.code() == Code::AlreadyExists => return true,
            Err(status) if again(ledger, what, &status).await => {}
            Err(_) => return false,
        }
    }
}

/// Waits until the accounts of every server agree with the books, and says what does not.
pub(crate) async fn settle(gateways: &Gateways, ledger: &Ledger, limit: Duration) -> Vec<String> {
    let deadline = Instant::now() + limit;
    loop {
        let mut wrong = open_transfers(gateways, ledger).await;
        for (server, client) in gateways.all() {
            match accounts(client).await {
                Ok(accounts) => {
                    let found = compare(&ledger.books, &accounts);
                    wrong.extend(found.into_iter().map(|it| format!("server {server}: {it}")));
                }
                Err(status) => wrong.push(format!("accounts of server {server}: {status}")),
            }
        }
        if wrong.is_empty() || Instant::now() > deadline {
            return wrong;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Transfers that have not ended (L1).
async fn open_transfers(gateways: &Gateways, ledger: &Ledger) -> Vec<String> {
    let transfers: Vec<String> = ledger.books.transfers.lock().keys().cloned().collect();
    let mut open = Vec::new();
    for instance in transfers {
        let request =
            wire::GetInstanceRequest { instance_id: instance.clone(), ..Default::default() };
        let send = |mut client: Client| {
            let request = within(10, request.clone());
            async move { client.get_instance(request).await }
        };
        match gateways.call(send).await.map(|answer| answer.orchestration_state) {
            Ok(Some(state)) if super::check::is_terminal(state.orchestration_status) => {}
            Ok(Some(_)) => open.push(format!("{instance} has not ended (L1)")),
            Ok(None) => open.push(format!("{instance} was acknowledged and is gone (S1)")),
            Err(status) => open.push(format!("{instance}: {status}")),
        }
    }
    open
}

async fn accounts(mut client: Client) -> Result<Vec<wire::EntityMetadata>, Status> {
    let query = wire::EntityQuery {
        include_state: true,
        include_transient: true,
        page_size: Some(1000),
        ..Default::default()
    };
    let request = wire::QueryEntitiesRequest { query: Some(query) };
    Ok(client.query_entities(within(10, request)).await?.into_inner().entities)
}

/// Holds what the accounts remember against what was asked for.
pub(crate) fn compare(books: &Books, accounts: &[wire::EntityMetadata]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut sum = 0;
    // Which account carried out which operation, with what amount.
    let mut done: BTreeMap<String, (String, i64)> = BTreeMap::new();
    for entity in accounts {
        let id = &entity.instance_id;
        if entity.locked_by.is_some() || entity.backlog_queue_size != 0 {
            wrong.push(format!(
                "{id}: locked by {:?}, {} wait (S10)",
                entity.locked_by, entity.backlog_queue_size
            ));
        }
        let state = entity.serialized_state.as_ref().map_or("", |state| state.as_str());
        let Some(account) = Account::read(state) else { continue };
        sum += account.balance;
        for (operation, amount) in account.done {
            if let Some((other, _)) = done.insert(operation.clone(), (id.clone(), amount)) {
                wrong.push(format!("{operation}: at {other} and at {id} (S7)"));
            }
        }
    }
    let payments = books.payments.lock().clone();
    for (operation, payment) in &payments {
        match done.remove(operation) {
            Some(found) if found == *payment => {}
            found => wrong.push(format!("payment {operation} {payment:?}: {found:?} (S7)")),
        }
    }
    for (instance, transfer) in books.transfers.lock().iter() {
        let taken = done.remove(&format!("{instance}-from"));
        let given = done.remove(&format!("{instance}-to"));
        let Transfer { from, to, amount, terminated } = transfer;
        let is_whole =
            taken == Some((from.clone(), -amount)) && given == Some((to.clone(), *amount));
        let is_nothing = taken.is_none() && given.is_none();
        if !(is_whole || *terminated && is_nothing) {
            wrong.push(format!("{instance} {transfer:?}: took {taken:?}, gave {given:?} (S7)"));
        }
    }
    let rest: BTreeSet<_> = done.keys().collect();
    if !rest.is_empty() {
        wrong.push(format!("operations that nobody asked for: {rest:?}"));
    }
    let paid: i64 = payments.values().map(|(_, amount)| amount).sum();
    if sum != paid {
        wrong.push(format!("{paid} was paid in, {sum} is there (S10)"));
    }
    wrong
}
