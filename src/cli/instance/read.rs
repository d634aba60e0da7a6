//! Commands that show instances, and those that wait for one.

use std::time::Duration;

use durahub_proto::wire::{self, OrchestrationState, OrchestrationStatus};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{ListArgs, Until, statuses};
use crate::cli::connect::{Output, Rpc};
use crate::cli::failure::{Failure, Reason};
use crate::cli::show;

/// Time between two looks of a watch. The protocol has no call that tells of every change.
const LOOK: Duration = Duration::from_millis(250);
/// Most instances that a page may have.
const PAGE_MAX: usize = 1000;

pub(super) async fn get(
    mut rpc: Rpc,
    output: Output,
    id: &str,
    payloads: bool,
) -> anyhow::Result<()> {
    let state = state(&mut rpc, id, payloads).await?;
    one(output, &state)
}

fn one(output: Output, state: &OrchestrationState) -> anyhow::Result<()> {
    match output {
        Output::Table => show::print(&show::instance(state)),
        Output::Json => show::print_json(&show::instance_json(state)),
    }
}

async fn state(rpc: &mut Rpc, id: &str, payloads: bool) -> Result<OrchestrationState, Failure> {
    let answer = rpc.get_instance(ask(id, payloads)).await?.into_inner();
    found(id, answer)
}

/// The instance must be there. Some calls take an unknown one in silence (R2.36, R2.49, R2.93), which helps programs
/// that race; a person has mistyped its id.
pub(super) async fn known(rpc: &mut Rpc, id: &str) -> Result<(), Failure> {
    state(rpc, id, false).await.map(drop)
}

fn ask(id: &str, payloads: bool) -> wire::GetInstanceRequest {
    wire::GetInstanceRequest { instance_id: id.to_owned(), get_inputs_and_outputs: payloads }
}

fn found(id: &str, answer: wire::GetInstanceResponse) -> Result<OrchestrationState, Failure> {
    answer.orchestration_state.filter(|_| answer.exists).ok_or_else(|| {
        Failure::new(Reason::NotFound, format!("there is no instance {}", show::safe(id)))
    })
}

pub(super) async fn list(mut rpc: Rpc, output: Output, args: ListArgs) -> anyhow::Result<()> {
    let mut left = if args.all { usize::MAX } else { args.limit };
    let (mut token, mut more) = (None, false);
    let mut states: Vec<OrchestrationState> = Vec::new();
    while left > 0 {
        let query = wire::InstanceQuery {
            runtime_status: statuses(&args.filter.status),
            created_time_from: args.filter.created_from,
            created_time_to: args.filter.created_to,
            max_instance_count: left.min(PAGE_MAX) as i32,
            continuation_token: token,
            instance_id_prefix: args.prefix.as_deref().map(Into::into),
            fetch_inputs_and_outputs: args.payloads && output == Output::Json,
            ..Default::default()
        };
        let request = wire::QueryInstancesRequest { query: Some(query) };
        let page = rpc.query_instances(request).await.map_err(Failure::from)?.into_inner();
        left = left.saturating_sub(page.orchestration_state.len());
        states.extend(page.orchestration_state);
        token = page.continuation_token.filter(|token| !token.is_empty());
        more = token.is_some();
        if !more {
            break;
        }
    }
    match output {
        Output::Table => {
            let rest = if more { "there are more; see --limit and --all\n" } else { "" };
            show::print(&(show::instances(&states) + rest))
        }
        Output::Json => {
            let instances: Vec<Value> = states.iter().map(show::instance_json).collect();
            show::print_json(&json!({ "instances": instances, "hasMore": more }))
        }
    }
}

/// Waits by one call of the server; only what was awaited is shown.
pub(super) async fn wait(
    mut rpc: Rpc,
    output: Output,
    id: &str,
    until: Until,
    timeout: Option<Duration>,
) -> anyhow::Result<()> {
    known(&mut rpc, id).await?;
    let request = ask(id, true);
    let call = async {
        match until {
            Until::Start => rpc.wait_for_instance_start(request).await,
            Until::End => rpc.wait_for_instance_completion(request).await,
        }
    };
    let answer = match timeout {
        None => call.await,
        Some(time) => tokio::time::timeout(time, call).await.map_err(|_| late(id, time))?,
    };
    let state = found(id, answer.map_err(Failure::from)?.into_inner())?;
    one(output, &state)?;
    verdict(&state, until)
}

/// Shows the instance whenever it has changed: a line for people, a JSON object on a line for programs.
pub(super) async fn watch(
    mut rpc: Rpc,
    output: Output,
    id: &str,
    until: Until,
    payloads: bool,
    timeout: Option<Duration>,
) -> anyhow::Result<()> {
    let end = timeout.and_then(|time| Instant::now().checked_add(time));
    let mut shown: Option<OrchestrationState> = None;
    loop {
        let state = state(&mut rpc, id, payloads).await?;
        let there = match until {
            Until::Start => state.orchestration_status() != OrchestrationStatus::Pending,
            Until::End => has_ended(&state),
        };
        if shown.as_ref() != Some(&state) {
            match output {
                Output::Table => show::print(&line(&state))?,
                Output::Json => show::print(&format!("{}\n", show::instance_json(&state)))?,
            }
        }
        if there {
            return verdict(&state, until);
        }
        shown = Some(state);
        if let Some(time) = timeout.filter(|_| end.is_some_and(|end| Instant::now() >= end)) {
            return Err(late(id, time).into());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An instance on one line: when it changed, its status, and what it says or leaves.
fn line(state: &OrchestrationState) -> String {
    let at = show::time(state.last_updated_timestamp.as_ref());
    let status = show::status_name(state.orchestration_status());
    let failure = state.failure_details.as_ref().map(|it| it.error_message.clone());
    let text = |text: &Option<durahub_proto::Text>| text.as_ref().map(|it| it.as_str().to_owned());
    let said = failure.or_else(|| text(&state.output)).or_else(|| text(&state.custom_status));
    let line = format!("{at}  {status:11}  {}", show::safe(&said.unwrap_or_default()));
    format!("{}\n", line.trim_end())
}

fn has_ended(state: &OrchestrationState) -> bool {
    use OrchestrationStatus::{Canceled, Completed, Failed, Terminated};
    matches!(state.orchestration_status(), Canceled | Completed | Failed | Terminated)
}

fn late(id: &str, time: Duration) -> Failure {
    let time = humantime::format_duration(time);
    Failure::new(Reason::TimedOut, format!("{}: not there after {time}", show::safe(id)))
}

/// A script wants to know whether it went well.
fn verdict(state: &OrchestrationState, until: Until) -> anyhow::Result<()> {
    let status = state.orchestration_status();
    if until == Until::Start || status == OrchestrationStatus::Completed {
        return Ok(());
    }
    let text =
        format!("{} has ended as {}", show::safe(&state.instance_id), show::status_name(status));
    Err(Failure::new(Reason::NotCompleted, text).into())
}
