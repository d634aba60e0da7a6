//! The bank: 20 accounts, orchestrations that lock two of them and move money, and `kill -9` again and again.
//!
//! Clients pay in (each payment sent until it is acknowledged, so some are sent twice), start transfers, and
//! terminate some of them. Workers are torn away with all they hold; the server is killed at random moments and
//! started again on its folder. Transfers end in every way: with and without giving back, failed, begun anew,
//! terminated. An account remembers every operation that it carried out. What must hold (architecture.md §5):
//!
//! - S7: no operation is lost, none is carried out twice; a transfer takes from one account exactly when it
//!   gives to the other;
//! - S10: between a balance that a transfer reads under its locks and what it writes, nobody else writes; when
//!   all is done, no account is locked and nothing waits;
//! - L1, L3: once the crashes end, every transfer ends, whatever was lost with workers and server.
//!
//! `DURAHUB_BANK_CYCLES` is the number of kills (default 20), `DURAHUB_BANK_SEED` fixes what is started and when
//! the kills fall; it cannot fix how the processes interleave.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // what a run did is worth a line

#[path = "bank/teller.rs"]
mod teller;
#[path = "bank/worker.rs"]
mod worker;

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use durahub_proto::wire;
use durahub_proto::wire::OrchestrationStatus;
use parking_lot::Mutex;
use support::{Client, TestServer};
use tokio::task::JoinSet;
use tonic::Code;

const ACCOUNTS: usize = 20;
const WORKERS: usize = 3;
/// How long a life of the server lasts under load, in milliseconds.
const LIFE: std::ops::Range<u64> = 100..900;
/// How long all open work may take once the crashes have ended: the grace after a lost stream, with a margin.
const DRAIN: Duration = Duration::from_secs(90);

/// What was asked for, and what was seen to be wrong.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Amount of each acknowledged payment, by the id of its operation, and the account.
    payments: Mutex<BTreeMap<String, (String, i64)>>,
    /// Acknowledged transfers.
    transfers: Mutex<BTreeMap<String, Transfer>>,
    violations: Mutex<Vec<String>>,
    ended: AtomicBool,
}

/// A transfer, as its id tells.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) amount: i64,
    pub(crate) terminated: bool,
}

impl Ledger {
    pub(crate) fn violation(&self, what: String) {
        self.violations.lock().push(what);
    }
}

pub(crate) fn account(number: usize) -> String {
    format!("@account@{number:02}")
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sum_stays_and_no_lock_is_left() {
    let cycles = setting("DURAHUB_BANK_CYCLES").unwrap_or(20);
    let seed = setting("DURAHUB_BANK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let repeat =
        format!("DURAHUB_BANK_SEED={seed} DURAHUB_BANK_CYCLES={cycles} cargo test --test bank");
    let began = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = TestServer::start().await;
    let (address, ledger) = (server.addresses.grpc, Arc::new(Ledger::default()));

    let mut clients = JoinSet::new();
    for number in 0..3 {
        let (client, ledger, random) = (Client::new(address), Arc::clone(&ledger), random.fork());
        clients.spawn(load(client, ledger, random, number));
    }
    let mut workers: Vec<_> = (0..WORKERS).map(|_| worker::spawn(address, &ledger)).collect();
    for _ in 0..cycles {
        let life = Instant::now() + Duration::from_millis(random.u64(LIFE));
        while Instant::now() < life {
            tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
            // Its process is gone, with all that it had in hand.
            let number = random.usize(..WORKERS);
            workers[number].abort();
            workers[number] = worker::spawn(address, &ledger);
        }
        server.restart_same_ports().await;
        assert_eq!(*ledger.violations.lock(), [""; 0], "to repeat: {repeat}");
    }
    ledger.ended.store(true, Ordering::Release);
    while clients.join_next().await.transpose().expect("a client panicked").is_some() {}

    let client = Client::new(address);
    let problems = match tokio::time::timeout(DRAIN, drain(&client, &ledger)).await {
        Ok(()) => check(&client, &ledger).await,
        Err(_) => vec![format!(
            "not all transfers ended within {DRAIN:?} (L1): {}",
            open(&client, &ledger).await
        )],
    };
    let (payments, transfers) = (ledger.payments.lock().len(), ledger.transfers.lock().len());
    eprintln!(
        "seed {seed}: {cycles} kills, {payments} payments, {transfers} transfers in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let problems: Vec<_> =
        ledger.violations.lock().iter().cloned().chain(problems).take(20).collect();
    assert!(problems.is_empty(), "{}\nto repeat: {repeat}", problems.join("\n"));
    assert!(transfers as u64 > cycles && payments as u64 > cycles, "hardly any load");
    workers.iter().for_each(|worker| worker.abort());
}

/// Pays in, starts transfers, and terminates some, until the load ends.
async fn load(client: Client, ledger: Arc<Ledger>, mut random: fastrand::Rng, number: usize) {
    for count in 0.. {
        if ledger.ended.load(Ordering::Acquire) {
            return;
        }
        let id = format!("{number}-{count}");
        if random.u8(..3) == 0 {
            pay_in(&client, &ledger, &mut random, id).await;
        } else {
            transfer(&client, &ledger, &mut random, id).await;
        }
        tokio::time::sleep(Duration::from_millis(random.u64(..30))).await;
    }
}

async fn pay_in(client: &Client, ledger: &Ledger, random: &mut fastrand::Rng, id: String) {
    let (account, amount) = (account(random.usize(..ACCOUNTS)), random.i64(1..1000));
    let operation = format!("p{id}");
    let request = wire::SignalEntityRequest {
        instance_id: account.clone(),
        name: "add".into(),
        input: Some(format!("{operation} {amount}").into()),
        request_id: format!("payment-{id}"),
        // Some wait a little.
        scheduled_time: (random.u8(..5) == 0)
            .then(|| (std::time::SystemTime::now() + Duration::from_millis(300)).into()),
        ..Default::default()
    };
    let what = format!("payment {id}");
    let call = || {
        let (mut rpc, request) = (client.rpc(), request.clone());
        async move { rpc.signal_entity(request).await.map(drop) }
    };
    until_acknowledged(ledger, &what, call).await;
    ledger.payments.lock().insert(operation, (account, amount));
}

async fn transfer(client: &Client, ledger: &Ledger, random: &mut fastrand::Rng, id: String) {
    let from = random.usize(..ACCOUNTS);
    let to = (from + random.usize(1..ACCOUNTS)) % ACCOUNTS;
    let amount = random.i64(1..100);
    let (instance, way) = (format!("t{id}"), teller::WAYS[random.usize(..teller::WAYS.len())]);
    let request = wire::CreateInstanceRequest {
        instance_id: instance.clone(),
        name: "Transfer".into(),
        input: Some(format!("{instance} {} {} {amount} {way}", account(from), account(to)).into()),
        ..Default::default()
    };
    let call = || {
        let (mut rpc, request) = (client.rpc(), request.clone());
        async move {
            match rpc.start_instance(request).await {
                // An earlier try has done it; its answer was lost.
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                other => other.map(drop),
            }
        }
    };
    until_acknowledged(ledger, &instance, call).await;
    let terminated = random.u8(..6) == 0;
    let made = Transfer { from: account(from), to: account(to), amount, terminated };
    ledger.transfers.lock().insert(instance.clone(), made);
    if terminated {
        tokio::time::sleep(Duration::from_millis(random.u64(..60))).await;
        let call = || {
            let (mut rpc, instance_id) = (client.rpc(), instance.clone());
            let request = wire::TerminateRequest { instance_id, ..Default::default() };
            async move { rpc.terminate_instance(request).await.map(drop) }
        };
        until_acknowledged(ledger, &instance, call).await;
    }
}

async fn until_acknowledged<F: Future<Output = Result<(), tonic::Status>> + Send>(
    ledger: &Ledger,
    what: &str,
    call: impl Fn() -> F,
) {
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(10), call()).await;
        match answer {
            Ok(Ok(())) => return,
            // A server that is not there, or that went away meanwhile: nobody knows, so once more.
            Ok(Err(status)) if is_broken(&status) => {}
            Ok(Err(status)) => return ledger.violation(format!("{what}: {status}")),
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn is_broken(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
    )
}

/// Waits until every transfer has ended and nothing waits for an account.
async fn drain(client: &Client, ledger: &Ledger) {
    let instances: Vec<String> = ledger.transfers.lock().keys().cloned().collect();
    for instance in instances {
        let get = wire::GetInstanceRequest { instance_id: instance, ..Default::default() };
        while client.rpc().wait_for_instance_completion(get.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    while !accounts(client)
        .await
        .iter()
        .all(|it| it.backlog_queue_size == 0 && it.locked_by.is_none())
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What is in flight to or from a worker counts as gone from the queue: one more look, a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// What keeps a run from its end, for a reader.
async fn open(client: &Client, ledger: &Ledger) -> String {
    let mut open = Vec::new();
    let instances: Vec<String> = ledger.transfers.lock().keys().cloned().collect();
    for instance in instances {
        let status = client.status(&instance).await;
        if matches!(status, OrchestrationStatus::Pending | OrchestrationStatus::Running) {
            open.push(instance);
        }
    }
    let accounts = accounts(client).await;
    let held = accounts.iter().filter(|it| it.backlog_queue_size > 0 || it.locked_by.is_some());
    let held: Vec<_> =
        held.map(|it| (&it.instance_id, it.backlog_queue_size, &it.locked_by)).collect();
    format!("{open:?}; {held:?}")
}

async fn accounts(client: &Client) -> Vec<wire::EntityMetadata> {
    let query = wire::EntityQuery {
        include_state: true,
        include_transient: true,
        page_size: Some(1000),
        ..Default::default()
    };
    let answer =
        client.rpc().query_entities(wire::QueryEntitiesRequest { query: Some(query) }).await;
    answer.expect("the server answers").into_inner().entities
}

/// Holds what the accounts remember against what was asked for.
async fn check(client: &Client, ledger: &Ledger) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut sum = 0;
    // Which account carried out which operation, with what amount.
    let mut done: BTreeMap<String, (String, i64)> = BTreeMap::new();
    for entity in accounts(client).await {
        let id = &entity.instance_id;
        if entity.locked_by.is_some() || entity.backlog_queue_size != 0 {
            wrong.push(format!(
                "{id}: locked by {:?}, {} wait (S10)",
                entity.locked_by, entity.backlog_queue_size
            ));
        }
        let state = entity.serialized_state.as_ref().map_or("", |state| state.as_str());
        let Some(account) = worker::Account::read(state) else { continue };
        sum += account.balance;
        for (operation, amount) in account.done {
            if let Some((other, _)) = done.insert(operation.clone(), (id.clone(), amount)) {
                wrong.push(format!("{operation}: at {other} and at {id} (S7)"));
            }
        }
    }
    let payments = ledger.payments.lock().clone();
    for (operation, payment) in &payments {
        match done.remove(operation) {
            Some(found) if found == *payment => {}
            found => wrong.push(format!("payment {operation} {payment:?}: {found:?} (S7)")),
        }
    }
    for (instance, transfer) in ledger.transfers.lock().iter() {
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
        wrong.push(format!("{paid} was paid in, {sum} is there"));
    }
    wrong
}
