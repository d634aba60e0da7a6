//! Holds the ledger against what each server says when all is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use durahub_proto::wire::{
    GetInstanceRequest, InstanceQuery, OrchestrationState, OrchestrationStatus,
    QueryInstancesRequest, StreamInstanceHistoryRequest,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::calls::{Client, Gateways, within};
use super::ledger::{Kind, Ledger, Record, child};
use super::told::examine;
use super::{books, customers};

/// Instances that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;
/// Purged instances that are started once more under their ids.
const BORN_AGAIN: usize = 12;
/// Instances on one page of a list.
const PAGE: u32 = 500;

/// Waits until all work is done, and says everything that is wrong. Workers must be there until this ends.
pub(crate) async fn everything(
    gateways: &Gateways,
    ledger: &Ledger,
    limit: Duration,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let looked = async {
        drain(gateways, ledger, limit).await?;
        wrong.extend(gone(gateways, ledger).await?);
        born_again(gateways, ledger, limit).await?;
        wrong.extend(all(gateways, ledger).await?);
        anyhow::Ok(())
    };
    if let Err(error) = looked.await {
        wrong.push(format!("{error:#}"));
    }
    wrong.extend(books::settle(gateways, ledger, limit).await);
    wrong.extend(ledger.violations());
    wrong
}

/// Of what was purged no server knows anything (S11), and every server lists all the rest.
async fn gone(gateways: &Gateways, ledger: &Ledger) -> anyhow::Result<Vec<String>> {
    let instances = ledger.instances();
    let mut wrong = Vec::new();
    for (server, client) in gateways.all() {
        let listed = listed(client.clone()).await?;
        for (instance, record) in &instances {
            if record.purged == listed.contains(instance) {
                let purged = if record.purged { "was purged" } else { "was not purged" };
                wrong.push(format!(
                    "{instance} {purged}, says the list of server {server} otherwise (S11, S12)"
                ));
            }
        }
        let purged = instances.iter().filter(|(_, record)| record.purged);
        let looks = stream::iter(purged).map(|(instance, _)| {
            let client = client.clone();
            async move {
                let state = get(client.clone(), instance).await?.into_inner();
                let events = history(client, instance).await?;
                Ok::<_, Status>((instance, state.is_some() || !events.is_empty()))
            }
        });
        let looked: Vec<_> = looks.buffer_unordered(SIDE_BY_SIDE).try_collect().await?;
        let found = looked.into_iter().filter(|(_, is_there)| *is_there);
        wrong.extend(found.map(|(instance, _)| {
            format!("{instance} was purged, and server {server} tells of it (S11)")
        }));
    }
    Ok(wrong)
}

/// Starts some purged instances once more, and waits until they have ended: their ids are free, and nothing of before
/// comes back (S11); that their histories are sound is seen with all others.
async fn born_again(gateways: &Gateways, ledger: &Ledger, limit: Duration) -> anyhow::Result<()> {
    let instances = ledger.instances();
    let purged = instances.iter().filter(|(id, record)| record.purged && !id.contains('.'));
    for (instance, record) in purged.take(BORN_AGAIN) {
        customers::order(gateways, ledger, instance, record.kind).await;
    }
    drain(gateways, ledger, limit).await
}

/// The ids of all orchestrations that a server lists.
async fn listed(mut client: Client) -> Result<BTreeSet<String>, Status> {
    let mut ids = BTreeSet::new();
    let mut continuation_token = None;
    loop {
        let query = InstanceQuery {
            max_instance_count: PAGE as i32,
            continuation_token: continuation_token.take(),
            ..Default::default()
        };
        let request = QueryInstancesRequest { query: Some(query) };
        let page = client.query_instances(within(10, request)).await?.into_inner();
        ids.extend(page.orchestration_state.into_iter().map(|state| state.instance_id));
        continuation_token = page.continuation_token.filter(|token| !token.is_empty());
        if continuation_token.is_none() {
            return Ok(ids);
        }
    }
}

/// Waits until every instance has ended (L1), or says which have not.
async fn drain(gateways: &Gateways, ledger: &Ledger, limit: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let kept = || {
        let instances = ledger.instances().into_iter().filter(|(_, record)| !record.purged);
        instances.map(|(id, _)| id).collect::<Vec<String>>()
    };
    let mut open = kept();
    loop {
        let looks = stream::iter(open).map(|instance| async move {
            let state = gateways.call(|client| get(client, &instance)).await?;
            let ended = state.is_some_and(|state| is_terminal(state.orchestration_status));
            anyhow::Ok((!ended).then_some(instance))
        });
        let looked: Vec<_> = looks.buffer_unordered(SIDE_BY_SIDE).collect().await;
        // Once faults have ended a server answers, at least in the end.
        let mut still = Vec::new();
        let mut problem = None;
        for look in looked {
            match look {
                Ok(instance) => still.extend(instance),
                Err(error) => problem = Some(error),
            }
        }
        if still.is_empty() && problem.is_none() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let shown = &still[..still.len().min(10)];
            anyhow::bail!(
                "{} instances did not end within {limit:?} (L1), such as {shown:?}; {problem:?}",
                still.len()
            );
        }
        open = if problem.is_some() { kept() } else { still };
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What one server says of one instance.
#[derive(PartialEq)]
struct Seen {
    state: Option<OrchestrationState>,
    events: Vec<Bytes>,
}

/// Everything that is wrong with any instance, as any server tells it.
async fn all(gateways: &Gateways, ledger: &Ledger) -> anyhow::Result<Vec<String>> {
    let mut instances = ledger.instances();
    instances.retain(|_, record| !record.purged);
    let looks = stream::iter(&instances).map(|(instance, record)| async move {
        let mut seen = Vec::new();
        for (server, client) in gateways.all() {
            let state = get(client.clone(), instance).await?.into_inner();
            let events =
                if state.is_some() { history(client, instance).await? } else { Vec::new() };
            seen.push((server, Seen { state, events }));
        }
        Ok::<_, Status>((instance.clone(), record, seen))
    });
    let looked: Vec<_> = looks.buffer_unordered(SIDE_BY_SIDE).try_collect().await?;
    let mut violations = Vec::new();
    let mut outputs = BTreeMap::new();
    for (instance, record, seen) in looked {
        let mut wrong = Vec::new();
        let (server, first) = &seen[0];
        wrong.extend(seen.iter().skip(1).filter(|(_, other)| other != first).map(|(other, _)| {
            format!("server {other} tells it otherwise than server {server} (S3, S13)")
        }));
        match &first.state {
            None => wrong.push("acknowledged, and now it does not exist (S1)".to_owned()),
            Some(state) => {
                wrong.extend(examine(&instance, record, state, &first.events));
                let output = state.output.clone().map(String::from).unwrap_or_default();
                outputs.insert(instance.clone(), output);
            }
        }
        violations.extend(
            wrong.into_iter().map(|what| format!("{instance} ({}): {what}", record.kind.name())),
        );
    }
    violations.extend(answers(&instances, &outputs));
    Ok(violations)
}

/// What a parent was told must be what its child ended with (S9).
fn answers(
    instances: &BTreeMap<String, Record>,
    outputs: &BTreeMap<String, String>,
) -> Vec<String> {
    let parents = instances.iter().filter(|(_, record)| record.kind == Kind::Family);
    let wrong = parents.filter_map(|(parent, record)| {
        let (child, _) = child(parent, record.kind.steps().len() as i32);
        let (told, ended) = (outputs.get(parent)?, outputs.get(&child));
        let same = ended.is_some_and(|ended| told.ends_with(&format!(",{ended}]")));
        (!same).then(|| format!("{parent}: was told {told}, its child ended with {ended:?} (S9)"))
    });
    wrong.collect()
}

async fn get(
    mut client: Client,
    instance: &str,
) -> Result<tonic::Response<Option<OrchestrationState>>, Status> {
    let request =
        GetInstanceRequest { instance_id: instance.to_owned(), get_inputs_and_outputs: true };
    let answer = client.get_instance(within(10, request)).await?;
    Ok(answer.map(|answer| answer.orchestration_state))
}

async fn history(mut client: Client, instance: &str) -> Result<Vec<Bytes>, Status> {
    let request =
        StreamInstanceHistoryRequest { instance_id: instance.to_owned(), ..Default::default() };
    let mut chunks = client.stream_instance_history(within(10, request)).await?.into_inner();
    let mut events = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        events.extend(chunk.events);
    }
    Ok(events)
}

pub(crate) fn is_terminal(status: i32) -> bool {
    use OrchestrationStatus::{Completed, Failed, Terminated};
    [Completed, Failed, Terminated].into_iter().any(|terminal| terminal as i32 == status)
}
