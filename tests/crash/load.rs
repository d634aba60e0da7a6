//! The client: starts orchestrations and raises their events until the load is over.
//!
//! Every call is repeated until it is answered, however often the server dies in between. A start is
//! repeated under a policy that replaces nothing, so a repeat of one that had worked is told so (R2.17).
//! An event cannot be told from its repeat (R2.46); the ledger notes how often it was sent.

use std::sync::Arc;
use std::time::Duration;

use durahub_proto::wire::task_hub_sidecar_service_client::TaskHubSidecarServiceClient;
use durahub_proto::wire::{CreateInstanceRequest, OrchestrationIdReusePolicy, RaiseEventRequest};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::ledger::{EVENT, Kind, Ledger};

pub(crate) type Client = TaskHubSidecarServiceClient<Channel>;

/// How many customers start instances at the same time.
const CUSTOMERS: usize = 6;

/// How many instances may be open, so that the work of a life fits into a life.
const OPEN: usize = 48;

/// Runs until the ledger says that the load is over and every start and event has been acknowledged.
pub(crate) async fn run(
    channel: Channel,
    ledger: Arc<Ledger>,
    mut random: fastrand::Rng,
) -> anyhow::Result<()> {
    let open = Arc::new(Semaphore::new(OPEN));
    let mut customers = JoinSet::new();
    for customer in 0..CUSTOMERS {
        customers.spawn(serve(
            customer,
            Client::new(channel.clone()),
            Arc::clone(&ledger),
            Arc::clone(&open),
            random.fork(),
        ));
    }
    while let Some(ended) = customers.join_next().await {
        ended?;
    }
    Ok(())
}

async fn serve(
    customer: usize,
    client: Client,
    ledger: Arc<Ledger>,
    open: Arc<Semaphore>,
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
        start(client.clone(), &ledger, &instance, kind, input).await;

        let (client, ledger) = (client.clone(), Arc::clone(&ledger));
        orders.spawn(async move {
            for event in 0..kind.events() {
                raise(client.clone(), &ledger, &instance, format!("\"{instance} event {event}\""))
                    .await;
                tokio::time::sleep(pause).await;
            }
            // It has all it needs, and is open until it ends.
            await_end(client, &ledger, &instance).await;
            drop(permit);
        });
        while orders.try_join_next().is_some() {}
    }
    orders.join_all().await;
}

async fn start(mut client: Client, ledger: &Ledger, instance: &str, kind: Kind, input: String) {
    ledger.starting(instance, kind, &input);
    loop {
        let request = CreateInstanceRequest {
            instance_id: instance.to_owned(),
            name: kind.name().to_owned(),
            input: Some(input.as_str().into()),
            orchestration_id_reuse_policy: Some(OrchestrationIdReusePolicy::default()),
            ..Default::default()
        };
        match client.start_instance(within(10, request)).await {
            Ok(answer) if answer.get_ref().instance_id == instance => break,
            Ok(answer) => ledger
                .violation(format!("started {instance}, the answer names {:?}", answer.get_ref())),
            // The answer to an earlier send was lost, the start was not.
            Err(status) if status.code() == Code::AlreadyExists => break,
            Err(status) if again(ledger, &format!("start {instance}"), &status).await => {}
            Err(_) => break,
        }
    }
    ledger.started();
}

async fn raise(mut client: Client, ledger: &Ledger, instance: &str, payload: String) {
    for sends in 1.. {
        let request = RaiseEventRequest {
            instance_id: instance.to_owned(),
            name: EVENT.to_owned(),
            input: Some(payload.as_str().into()),
        };
        match client.raise_event(within(10, request)).await {
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

/// Waits for the end as a client would (R2.34); what it ended with is checked when all is over.
async fn await_end(mut client: Client, ledger: &Ledger, instance: &str) {
    loop {
        let request = durahub_proto::wire::GetInstanceRequest {
            instance_id: instance.to_owned(),
            ..Default::default()
        };
        match client.wait_for_instance_completion(within(5, request)).await {
            Ok(answer) if answer.get_ref().exists => return,
            Ok(_) => {
                return ledger.violation(format!(
                    "{instance}: acknowledged, and then it does not exist (S1)"
                ));
            }
            // Once the load is over the check waits for what is open, and says which.
            Err(_) if ledger.is_over() => return,
            Err(status) if again(ledger, &format!("wait for {instance}"), &status).await => {}
            Err(_) => return,
        }
    }
}

/// A request with a deadline: a call that hangs is a call that failed.
pub(crate) fn within<T>(seconds: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_secs(seconds));
    request
}

/// Whether a failed call may be repeated, after a pause. A dead server shows as a broken connection; any
/// other refusal is a violation, `NOT_FOUND` for an instance whose start was acknowledged first of all (S1).
async fn again(ledger: &Ledger, what: &str, status: &Status) -> bool {
    if is_broken(status) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        return true;
    }
    ledger.violation(format!("{what}: {status}"));
    false
}

/// Whether this is how a call ends when the server dies.
pub(crate) fn is_broken(status: &Status) -> bool {
    use Code::{Cancelled, DeadlineExceeded, Internal, Unavailable, Unknown};
    matches!(status.code(), Unavailable | Unknown | Cancelled | DeadlineExceeded | Internal)
}
