//! The client: starts orchestrations, raises their events and purges some that have ended, until the load is over.
//! Tellers beside them keep the bank busy ([`books`]).
//!
//! Every call is repeated until it is answered, however often the server dies in between. A start is
//! repeated under a policy that replaces nothing, so a repeat of one that had worked is told so (R2.17).
//! An event cannot be told from its repeat (R2.46); the ledger notes how often it was sent.

use std::sync::Arc;
use std::time::Duration;

use durahub_proto::wire::{
    CreateInstanceRequest, GetInstanceRequest, OrchestrationIdReusePolicy, PurgeInstancesRequest,
    RaiseEventRequest, purge_instances_request,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::books;
use super::calls::{Client, Gateways, is_broken, within};
use super::ledger::{EVENT, Kind, Ledger, Step};

/// How long a client waits for an end, in seconds: longer than anything here takes, so a wait that is over is one that
/// was forgotten (S8).
const WAIT: u64 = 50;

/// How much they ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Customers that start instances at the same time.
    pub(crate) customers: usize,
    /// Instances that may be open: what is in hand when a server dies should be done soon after it is back.
    pub(crate) open: usize,
    /// Pause of a customer between two starts, in milliseconds.
    pub(crate) pause: u64,
    /// Tellers of the bank, and the longest pause of each, in milliseconds.
    pub(crate) tellers: (usize, u64),
}

/// Runs until the ledger says that the load is over and every start and event has been acknowledged.
pub(crate) async fn run(
    gateways: Arc<Gateways>,
    ledger: Arc<Ledger>,
    pace: Pace,
    mut random: fastrand::Rng,
) -> anyhow::Result<()> {
    let open = Arc::new(Semaphore::new(pace.open));
    let mut customers = JoinSet::new();
    for customer in 0..pace.customers {
        customers.spawn(serve(
            customer,
            Arc::clone(&gateways),
            Arc::clone(&ledger),
            Arc::clone(&open),
            pace,
            random.fork(),
        ));
    }
    let (tellers, pause) = pace.tellers;
    for teller in 0..tellers {
        let (gateways, ledger, random) =
            (Arc::clone(&gateways), Arc::clone(&ledger), random.fork());
        customers.spawn(async move {
            books::serve(&gateways, &ledger, random, (teller, pause)).await;
        });
    }
    while let Some(ended) = customers.join_next().await {
        ended?;
    }
    Ok(())
}

async fn serve(
    customer: usize,
    gateways: Arc<Gateways>,
    ledger: Arc<Ledger>,
    open: Arc<Semaphore>,
    pace: Pace,
    mut random: fastrand::Rng,
) {
    let mut orders = JoinSet::new();
    for number in 0.. {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { break };
        if ledger.is_over() {
            break;
        }
        let kind = Kind::ALL[random.usize(..Kind::ALL.len())];
        let instance = format!("{customer}-{number}");
        let padding = "x".repeat(random.usize(..200));
        let input = format!("\"{instance} {padding}\"");
        let pause = Duration::from_millis(random.u64(..20));
        let is_purged = random.u8(..5) == 0;
        start(&gateways, &ledger, &instance, kind, input).await;

        let (gateways, ledger) = (Arc::clone(&gateways), Arc::clone(&ledger));
        orders.spawn(async move {
            for event in 0..kind.events() {
                raise(&gateways, &ledger, &instance, format!("\"{instance} event {event}\"")).await;
                tokio::time::sleep(pause).await;
            }
            // It has all it needs, and is open until it ends.
            let has_ended = await_end(&gateways, &ledger, &instance).await;
            drop(permit);
            if has_ended && is_purged {
                purge(&gateways, &ledger, &instance, kind).await;
            }
        });
        while orders.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(pace.pause)).await;
    }
    orders.join_all().await;
}

/// Starts an instance and gives it all it needs.
pub(crate) async fn order(gateways: &Gateways, ledger: &Ledger, instance: &str, kind: Kind) {
    start(gateways, ledger, instance, kind, format!("\"{instance} once more\"")).await;
    for event in 0..kind.events() {
        raise(gateways, ledger, instance, format!("\"{instance} new event {event}\"")).await;
    }
}

async fn start(gateways: &Gateways, ledger: &Ledger, instance: &str, kind: Kind, input: String) {
    ledger.starting(instance, kind, &input);
    let mut sends = 0;
    loop {
        let request = CreateInstanceRequest {
            instance_id: instance.to_owned(),
            name: kind.name().to_owned(),
            input: Some(input.as_str().into()),
            orchestration_id_reuse_policy: Some(OrchestrationIdReusePolicy::default()),
            ..Default::default()
        };
        let send = |mut client: Client| {
            sends += 1;
            let request = within(10, request.clone());
            async move { client.start_instance(request).await }
        };
        match gateways.call(send).await {
            Ok(answer) if answer.instance_id == instance => break,
            Ok(answer) => {
                ledger.violation(format!("started {instance}, the answer names {answer:?}"))
            }
            // The answer to an earlier send was lost, the start was not.
            Err(status) if status.code() == Code::AlreadyExists && sends > 1 => break,
            Err(status) if again(ledger, &format!("start {instance}"), &status).await => {}
            Err(_) => break,
        }
    }
    ledger.started(instance);
}

async fn raise(gateways: &Gateways, ledger: &Ledger, instance: &str, payload: String) {
    let mut sends = 0;
    loop {
        let request = RaiseEventRequest {
            instance_id: instance.to_owned(),
            name: EVENT.to_owned(),
            input: Some(payload.as_str().into()),
        };
        let send = |mut client: Client| {
            sends += 1;
            let request = within(10, request.clone());
            async move { client.raise_event(request).await }
        };
        match gateways.call(send).await {
            Ok(_) => {
                ledger.raised(instance, payload, sends);
                return;
            }
            Err(status)
                if again(ledger, &format!("raise an event for {instance}"), &status).await => {}
            Err(_) => return,
        }
    }
}

/// Purges an instance that has ended, with its children. From then on nobody finds anything of it (S11).
async fn purge(gateways: &Gateways, ledger: &Ledger, instance: &str, kind: Kind) {
    let mut sends = 0;
    let count = loop {
        let request = PurgeInstancesRequest {
            request: Some(purge_instances_request::Request::InstanceId(instance.to_owned())),
            recursive: true,
            ..Default::default()
        };
        let send = |mut client: Client| {
            sends += 1;
            let request = within(10, request.clone());
            async move { client.purge_instances(request).await }
        };
        match gateways.call(send).await {
            Ok(answer) => break answer.deleted_instance_count,
            Err(status) if again(ledger, &format!("purge {instance}"), &status).await => {}
            Err(_) => return,
        }
    };
    let children = kind.steps().iter().filter(|step| **step == Step::Child).count();
    if sends == 1 && count as usize != 1 + children {
        ledger
            .violation(format!("{instance}: {count} purged with {children} children (S11, R2.89)"));
    }
    ledger.purged(instance);
    let send = |mut client: Client| {
        let request = GetInstanceRequest { instance_id: instance.to_owned(), ..Default::default() };
        async move { client.get_instance(within(10, request)).await }
    };
    if gateways.call(send).await.is_ok_and(|answer| answer.exists) {
        ledger.violation(format!("{instance}: was purged, and is found (S11, S12)"));
    }
}

/// Waits for the end as a client would (R2.34), and says whether it was told; what it ended with is checked when all
/// is over.
async fn await_end(gateways: &Gateways, ledger: &Ledger, instance: &str) -> bool {
    loop {
        let request = GetInstanceRequest { instance_id: instance.to_owned(), ..Default::default() };
        let send = |mut client: Client| {
            let request = within(WAIT, request.clone());
            async move { client.wait_for_instance_completion(request).await }
        };
        match gateways.call(send).await {
            Ok(answer) if answer.exists => {
                ledger.ended(instance);
                return true;
            }
            Ok(_) => {
                ledger.violation(format!(
                    "{instance}: acknowledged, and then it does not exist (S1)"
                ));
                return false;
            }
            Err(status) if is_over(&status) => {
                ledger.violation(format!(
                    "{instance}: nobody told of its end within {WAIT} s (S8, L1)"
                ));
                return false;
            }
            Err(status) if again(ledger, &format!("wait for {instance}"), &status).await => {}
            Err(_) => return false,
        }
    }
}

/// Whether a failed call may be repeated, after a pause. A dead server shows as a broken connection; any
/// other refusal is a violation, `NOT_FOUND` for an instance whose start was acknowledged first of all (S1).
pub(crate) async fn again(ledger: &Ledger, what: &str, status: &Status) -> bool {
    if is_broken(status) {
        ledger.call_failed(format!("{what}: {status}"));
        tokio::time::sleep(Duration::from_millis(10)).await;
        return true;
    }
    ledger.violation(format!("{what}: {status}"));
    false
}

/// Whether this is how a call ends whose time is over, by the clock of either side (R1.35, R1.36).
fn is_over(status: &Status) -> bool {
    matches!(status.code(), Code::DeadlineExceeded)
        || (status.code() == Code::Cancelled && status.message() == "Timeout expired")
}
