//! `durahub hub`: task hubs come, go and are listed, and say how long ended instances stay.

use std::time::Duration;

use clap::{Args, Subcommand};
use durahub_proto::{own, wire};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::connect::{Output, ServerArgs};
use super::failure::{EXIT_CODES, Failure, Reason};
use super::show;

/// Creates, lists and deletes task hubs, and says how long their ended instances stay.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(super) struct HubArgs {
    #[command(subcommand)]
    command: HubCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Create a task hub; one that exists stays as it is.
    Create {
        /// Its name: 1 to 64 letters, digits, '-' or '_'
        name: String,
        /// Delete the hub of that name first, with all that it holds (needs --yes)
        #[arg(long)]
        recreate: bool,
        /// Confirm that data goes
        #[arg(long)]
        yes: bool,
    },
    /// List the task hubs by name, with the time that ended instances stay; in brackets what is configured.
    List,
    /// Show or set how long ended instances stay; what is not given stays as it is.
    ///
    /// A time is counted from the end of an instance, from 1s to 10years, such as 12h or 30d. off: for ever;
    /// default: as the server is configured (retention.*). An instance with anything that still runs below it
    /// stays until that has ended. Entities always stay.
    Retention {
        /// Name of the task hub
        name: String,
        /// Instances that completed
        #[arg(long, value_name = "TIME", value_parser = keep_for)]
        completed: Option<own::KeepFor>,
        /// Instances that failed
        #[arg(long, value_name = "TIME", value_parser = keep_for)]
        failed: Option<own::KeepFor>,
        /// Instances that were terminated
        #[arg(long, value_name = "TIME", value_parser = keep_for)]
        terminated: Option<own::KeepFor>,
    },
    /// Delete a task hub with all its instances.
    Delete {
        /// Its name
        name: String,
        /// Confirm that data goes
        #[arg(long)]
        yes: bool,
    },
}

/// Runs one command.
pub(super) async fn run(args: HubArgs) -> anyhow::Result<()> {
    match args.command {
        HubCommand::Create { name, recreate, yes } => {
            confirm(!recreate || yes, &name)?;
            let request = wire::CreateTaskHubRequest { recreate_if_exists: recreate };
            let mut rpc = args.server.hub(&name).await?;
            rpc.create_task_hub(request).await.map_err(Failure::from)?;
            done(args.server.output, &name, "is there")
        }
        HubCommand::Delete { name, yes } => {
            confirm(yes, &name)?;
            let mut rpc = args.server.hub(&name).await?;
            rpc.delete_task_hub(wire::DeleteTaskHubRequest {}).await.map_err(Failure::from)?;
            done(args.server.output, &name, "is deleted; its instances go in the background")
        }
        HubCommand::List => {
            let hubs = hubs(&args.server).await?;
            show_hubs(args.server.output, &hubs)
        }
        HubCommand::Retention { name, completed, failed, terminated } => {
            let request = own::SetRetentionRequest { completed, failed, terminated };
            let hub = retention(&args.server, &name, request).await?;
            match args.server.output {
                Output::Table => show_hubs(Output::Table, &[hub]),
                Output::Json => show::print_json(&json_of(&hub)),
            }
        }
    }
}

fn confirm(confirmed: bool, name: &str) -> Result<(), Failure> {
    if confirmed {
        return Ok(());
    }
    let text = format!("this deletes every instance of the task hub {name}; confirm with --yes");
    Err(Failure::new(Reason::Usage, text))
}

fn done(output: Output, name: &str, what: &str) -> anyhow::Result<()> {
    match output {
        Output::Table => show::print(&format!("task hub {name} {what}\n")),
        Output::Json => show::print_json(&json!({ "name": name })),
    }
}

/// Reads a time that instances stay.
fn keep_for(text: &str) -> Result<own::KeepFor, String> {
    let milliseconds = match text {
        "default" => None,
        "off" => Some(0),
        time => {
            let time = humantime::parse_duration(time).map_err(|_| TIMES.to_owned())?;
            let time = u64::try_from(time.as_millis()).ok().filter(|time| *time > 0);
            Some(time.ok_or_else(|| TIMES.to_owned())?)
        }
    };
    Ok(own::KeepFor { milliseconds })
}

const TIMES: &str = "allowed is default, off, or a time such as 12h or 30d";

/// Sets what is given, if anything is, and returns the hub as it is then.
async fn retention(
    server: &ServerArgs,
    name: &str,
    request: own::SetRetentionRequest,
) -> anyhow::Result<own::TaskHub> {
    if request == own::SetRetentionRequest::default() {
        let known = hubs(server).await?.into_iter().find(|hub| hub.name == name);
        let unknown = || Failure::new(Reason::NotFound, format!("there is no task hub {name}"));
        return Ok(known.ok_or_else(unknown)?);
    }
    let mut rpc = server.hubs_in(name).await?;
    let answer = rpc.set_retention(request).await.map_err(Failure::from)?.into_inner();
    Ok(answer.task_hub.unwrap_or_default())
}

async fn hubs(server: &ServerArgs) -> anyhow::Result<Vec<own::TaskHub>> {
    let mut rpc = server.hubs().await?;
    let (mut hubs, mut after) = (Vec::new(), String::new());
    loop {
        let request = own::ListTaskHubsRequest { after, page_size: 0 };
        let page = rpc.list_task_hubs(request).await.map_err(Failure::from)?.into_inner();
        hubs.extend(page.task_hubs);
        after = page.next_after;
        if after.is_empty() {
            return Ok(hubs);
        }
    }
}

fn created(hub: &own::TaskHub) -> String {
    let (seconds, nanos) =
        (hub.created.div_euclid(1_000_000_000), hub.created.rem_euclid(1_000_000_000));
    Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() }.to_string()
}

/// A time in words, or `off`.
fn kept(time: &own::Retention) -> String {
    match time.milliseconds {
        0 => "off".to_owned(),
        time => humantime::format_duration(Duration::from_millis(time)).to_string(),
    }
}

fn times(hub: &own::TaskHub) -> [own::Retention; 3] {
    // A server of before keeps everything.
    let usual = own::Retention { milliseconds: 0, configured: true };
    [&hub.completed, &hub.failed, &hub.terminated].map(|time| time.unwrap_or(usual))
}

fn show_hubs(output: Output, hubs: &[own::TaskHub]) -> anyhow::Result<()> {
    if matches!(output, Output::Json) {
        let hubs = hubs.iter().map(json_of);
        return show::print_json(&json!({ "taskHubs": hubs.collect::<Vec<_>>() }));
    }
    let head = ["TASK HUB", "CREATED", "COMPLETED STAY", "FAILED STAY", "TERMINATED STAY"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(hubs.iter().map(|hub| {
        let times = times(hub).map(|time| match time.configured {
            true => format!("({})", kept(&time)),
            false => kept(&time),
        });
        [hub.name.clone(), created(hub)].into_iter().chain(times).collect()
    }));
    show::print(&show::table(&rows))
}

fn json_of(hub: &own::TaskHub) -> Value {
    let [completed, failed, terminated] =
        times(hub).map(|time| json!({ "staysFor": kept(&time), "configured": time.configured }));
    json!({
        "name": hub.name,
        "createdAt": created(hub),
        "retention": { "completed": completed, "failed": failed, "terminated": terminated },
    })
}
