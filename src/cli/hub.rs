//! `durahub hub`: task hubs come, go and are listed.

use clap::{Args, Subcommand};
use durahub_proto::{own, wire};
use prost_types::Timestamp;
use serde_json::json;

use super::connect::{Output, ServerArgs};
use super::failure::{EXIT_CODES, Failure, Reason};
use super::show;

/// Creates, lists and deletes task hubs.
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
    /// List the task hubs by name.
    List,
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
        HubCommand::List => list(&args.server).await,
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

async fn list(server: &ServerArgs) -> anyhow::Result<()> {
    let mut rpc = server.hubs().await?;
    let (mut hubs, mut after) = (Vec::new(), String::new());
    loop {
        let request = own::ListTaskHubsRequest { after, page_size: 0 };
        let page = rpc.list_task_hubs(request).await.map_err(Failure::from)?.into_inner();
        hubs.extend(page.task_hubs.iter().map(|hub| {
            let (seconds, nanos) =
                (hub.created.div_euclid(1_000_000_000), hub.created.rem_euclid(1_000_000_000));
            let created = Timestamp { seconds, nanos: i32::try_from(nanos).unwrap_or_default() };
            [hub.name.clone(), created.to_string()]
        }));
        after = page.next_after;
        if after.is_empty() {
            break;
        }
    }
    match server.output {
        Output::Table => {
            let mut rows = vec![["TASK HUB", "CREATED"].map(str::to_owned).to_vec()];
            rows.extend(hubs.into_iter().map(Vec::from));
            show::print(&show::table(&rows))
        }
        Output::Json => {
            let hubs =
                hubs.iter().map(|[name, created]| json!({ "name": name, "createdAt": created }));
            show::print_json(&json!({ "taskHubs": hubs.collect::<Vec<_>>() }))
        }
    }
}
