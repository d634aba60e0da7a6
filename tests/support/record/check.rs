//! Holds the ledger against what each server says when all is over.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use durahub_proto::wire::{
    GetInstanceRequest, OrchestrationState, OrchestrationStatus, StreamInstanceHistoryRequest,
};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::calls::{Client, Gateways, within};
use super::ledger::{Kind, Ledger, Record, child};
use super::told::examine;

/// Instances that are looked at side by side.
const SIDE_BY_SIDE: usize = 16;

/// Waits until every instance has ended (L1), or says which have not.
pub(crate) async fn drain(
    gateways: &Gateways,
    ledger: &Ledger,
    limit: Duration,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + limit;
    let mut open: Vec<String> = ledger.instances().into_keys().collect();
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
        open = if problem.is_some() { ledger.instances().into_keys().collect() } else { still };
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
pub(crate) async fn all(gateways: &Gateways, ledger: &Ledger) -> anyhow::Result<Vec<String>> {
    let instances = ledger.instances();
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

fn is_terminal(status: i32) -> bool {
    use OrchestrationStatus::{Completed, Failed, Terminated};
    [Completed, Failed, Terminated].into_iter().any(|terminal| terminal as i32 == status)
}
