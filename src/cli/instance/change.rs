//! Commands that change an instance.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use durahub_proto::{Text, wire};
use serde_json::json;
use wire::purge_instances_request::Request as Which;

use super::{Input, PurgeArgs, StartArgs, Until, read, statuses};
use crate::cli::connect::{Output, Rpc};
use crate::cli::failure::{Failure, Reason};
use crate::cli::show;

impl Input {
    /// The payload; `None` when none was given.
    fn payload(self) -> anyhow::Result<Option<Text>> {
        let Some(path) = self.input_file else { return Ok(self.input.map(Text::from)) };
        let text = if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text).context("read standard input")?;
            text
        } else {
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?
        };
        Ok(Some(text.into()))
    }
}

pub(super) async fn start(mut rpc: Rpc, output: Output, args: StartArgs) -> anyhow::Result<()> {
    let policy = (!args.replace.is_empty()).then(|| wire::OrchestrationIdReusePolicy {
        replaceable_status: statuses(&args.replace),
        ..Default::default()
    });
    let request = wire::CreateInstanceRequest {
        instance_id: args.id.unwrap_or_default(),
        name: args.name,
        version: args.version_name.map(Text::from),
        input: args.input.payload()?,
        scheduled_start_timestamp: args.at,
        orchestration_id_reuse_policy: policy,
        tags: args.tags.into_iter().collect(),
        ..Default::default()
    };
    let answer = rpc.start_instance(request).await.map_err(Failure::from)?.into_inner();
    let id = answer.instance_id;
    if args.watch {
        return read::watch(rpc, output, &id, Until::End, true, args.wait.timeout).await;
    }
    created(output, &id)
}

/// The id alone, so that a script can take it: `id=$(durahub instance start Hello)`.
fn created(output: Output, id: &str) -> anyhow::Result<()> {
    match output {
        Output::Table => show::print(&format!("{}\n", show::safe(id))),
        Output::Json => show::print_json(&json!({ "instanceId": id })),
    }
}

fn done(output: Output, id: &str, what: &str) -> anyhow::Result<()> {
    match output {
        Output::Table => show::print(&format!("{}: {what}\n", show::safe(id))),
        Output::Json => show::print_json(&json!({ "instanceId": id })),
    }
}

pub(super) async fn raise(
    mut rpc: Rpc,
    output: Output,
    id: String,
    name: String,
    data: Input,
) -> anyhow::Result<()> {
    let request = wire::RaiseEventRequest { instance_id: id.clone(), name, input: data.payload()? };
    rpc.raise_event(request).await.map_err(Failure::from)?;
    done(output, &id, "the event is stored")
}

pub(super) async fn terminate(
    mut rpc: Rpc,
    output: Output,
    id: String,
    payload: Option<String>,
    recursive: bool,
) -> anyhow::Result<()> {
    let payload = payload.map(Text::from);
    let request = wire::TerminateRequest { instance_id: id.clone(), output: payload, recursive };
    read::known(&mut rpc, &id).await?;
    rpc.terminate_instance(request).await.map_err(Failure::from)?;
    done(output, &id, "its end is requested")
}

pub(super) async fn suspend(
    mut rpc: Rpc,
    output: Output,
    id: String,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let reason = reason.map(Text::from);
    let request = wire::SuspendRequest { instance_id: id.clone(), reason };
    rpc.suspend_instance(request).await.map_err(Failure::from)?;
    done(output, &id, "its suspension is requested")
}

pub(super) async fn resume(
    mut rpc: Rpc,
    output: Output,
    id: String,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let reason = reason.map(Text::from);
    let request = wire::ResumeRequest { instance_id: id.clone(), reason };
    rpc.resume_instance(request).await.map_err(Failure::from)?;
    done(output, &id, "it may go on")
}

pub(super) async fn restart(
    mut rpc: Rpc,
    output: Output,
    id: String,
    new_id: bool,
) -> anyhow::Result<()> {
    let request =
        wire::RestartInstanceRequest { instance_id: id, restart_with_new_instance_id: new_id };
    let answer = rpc.restart_instance(request).await.map_err(Failure::from)?;
    created(output, &answer.into_inner().instance_id)
}

pub(super) async fn rewind(
    mut rpc: Rpc,
    output: Output,
    id: String,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let reason = reason.map(Text::from);
    let request = wire::RewindInstanceRequest { instance_id: id.clone(), reason };
    rpc.rewind_instance(request).await.map_err(Failure::from)?;
    done(output, &id, "it tries again")
}

pub(super) async fn purge(mut rpc: Rpc, output: Output, args: PurgeArgs) -> anyhow::Result<()> {
    let filter = args.filter;
    let filtered =
        !filter.status.is_empty() || filter.created_from.is_some() || filter.created_to.is_some();
    if args.ids.is_empty() && !filtered && !args.all {
        let text =
            "name the instances to purge, or give --status, --created-from, --created-to or --all";
        return Err(Failure::new(Reason::Usage, text).into());
    }
    let which = if args.ids.is_empty() {
        let timeout = args.timeout.map(|time| {
            prost_types::Duration::try_from(time).map_err(|_| {
                Failure::new(Reason::Usage, "--timeout is longer than a message can say")
            })
        });
        Which::PurgeInstanceFilter(wire::PurgeInstanceFilter {
            created_time_from: filter.created_from,
            created_time_to: filter.created_to,
            runtime_status: statuses(&filter.status),
            timeout: timeout.transpose()?,
        })
    } else {
        Which::InstanceBatch(wire::InstanceBatch { instance_ids: args.ids })
    };
    let request = wire::PurgeInstancesRequest {
        request: Some(which),
        recursive: args.recursive,
        ..Default::default()
    };
    let answer = rpc.purge_instances(request).await.map_err(Failure::from)?.into_inner();
    let (count, complete) = (answer.deleted_instance_count, answer.is_complete.unwrap_or(true));
    match output {
        Output::Table => {
            let rest =
                if complete { "" } else { "; the time was over before the end, run it again" };
            show::print(&format!("{count} instances purged{rest}\n"))
        }
        Output::Json => {
            show::print_json(&json!({ "deletedInstanceCount": count, "isComplete": complete }))
        }
    }
}
