//! `durahub instance`: what an application can ask for, from the command line, over the same calls.
//!
//! - this file: the words of the command line;
//! - [`change`]: start, raise, terminate, suspend, resume, restart, rewind, purge;
//! - [`read`]: get, list, wait;
//! - [`history`]: what happened, event by event.
//!
//! Payloads go through as they are: `--input '"Ann"'` is the JSON text `"Ann"`, and `--input Ann` is what no SDK
//! can read as JSON. Nothing is checked, because only the worker knows what it wants.

mod change;
mod history;
mod read;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use durahub_proto::wire::OrchestrationStatus;
use prost_types::Timestamp;

use super::connect::ServerArgs;
use super::failure::EXIT_CODES;

/// Starts, reads and steers instances.
#[derive(Args, Debug)]
#[command(after_help = EXIT_CODES)]
pub(super) struct InstanceArgs {
    #[command(subcommand)]
    command: InstanceCommand,
    #[command(flatten)]
    server: ServerArgs,
    /// Task hub of the instances
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "DURAHUB_TASK_HUB",
        default_value = "default",
        help_heading = "Server"
    )]
    task_hub: String,
}

#[derive(Debug, Subcommand)]
enum InstanceCommand {
    /// Start an orchestration; prints its id.
    Start(StartArgs),
    /// Show one instance.
    Get {
        /// Id of the instance
        id: String,
        /// Leave out inputs and outputs
        #[arg(long)]
        no_payloads: bool,
        /// Show it again at every change, until it ends
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        wait: Timeout,
    },
    /// List instances, the oldest first; with a prefix, by id.
    List(ListArgs),
    /// Wait until an instance has ended, and show it.
    Wait {
        /// Id of the instance
        id: String,
        /// What to wait for
        #[arg(long = "for", value_enum, default_value_t = Until::End)]
        until: Until,
        /// Show every change on the way
        #[arg(long)]
        watch: bool,
        #[command(flatten)]
        wait: Timeout,
    },
    /// Show what happened to an instance, event by event.
    History {
        /// Id of the instance
        id: String,
        /// Execution id; without it, the present one
        #[arg(long, value_name = "ID")]
        execution: Option<String>,
    },
    /// Raise an event for an instance.
    Raise {
        /// Id of the instance
        id: String,
        /// Name of the event
        name: String,
        #[command(flatten)]
        data: Input,
    },
    /// End an instance now.
    Terminate {
        /// Id of the instance
        id: String,
        /// Output that it is to have, as a worker's JSON
        #[arg(long, value_name = "JSON")]
        output_payload: Option<String>,
        /// End its child orchestrations, too
        #[arg(long)]
        recursive: bool,
    },
    /// Hold an instance until it is resumed.
    Suspend {
        /// Id of the instance
        id: String,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Let a suspended instance go on.
    Resume {
        /// Id of the instance
        id: String,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Start an instance that has ended anew, with the input that it had; prints the id.
    Restart {
        /// Id of the instance
        id: String,
        /// Give the new one an id of its own and keep the old
        #[arg(long)]
        new_id: bool,
    },
    /// Let a failed instance try again what failed.
    Rewind {
        /// Id of the instance
        id: String,
        /// Why, for its history
        #[arg(long)]
        reason: Option<String>,
    },
    /// Remove instances that have ended; prints how many.
    Purge(PurgeArgs),
}

/// A payload.
#[derive(Args, Clone, Debug)]
struct Input {
    /// Payload, as the worker's JSON
    #[arg(long, value_name = "JSON")]
    input: Option<String>,
    /// File that holds the payload; '-' is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    input_file: Option<PathBuf>,
}

/// How long a wait may take.
#[derive(Args, Clone, Debug)]
struct Timeout {
    /// Longest wait, such as 30s or 5m; without it, for ever
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

#[derive(Args, Debug)]
struct StartArgs {
    /// Name of the orchestrator
    name: String,
    /// Id of the instance; without it the server chooses one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    #[command(flatten)]
    input: Input,
    /// Version of the orchestrator
    #[arg(long, value_name = "TEXT")]
    version_name: Option<String>,
    /// Time of the start in UTC, such as 2030-01-31T08:00:00Z; without it, now
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<Timestamp>,
    /// Tag; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// Take the place of an instance of the same id that has one of these statuses
    #[arg(long, value_enum, value_name = "STATUS", value_delimiter = ',')]
    replace: Vec<StatusName>,
    /// Show every change, until it ends
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    wait: Timeout,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    filter: Filter,
    /// Only ids that begin so
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Most instances to show
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Show all of them
    #[arg(long, conflicts_with = "limit")]
    all: bool,
    /// Show inputs and outputs, too (JSON only)
    #[arg(long)]
    payloads: bool,
}

#[derive(Args, Debug)]
struct PurgeArgs {
    /// Ids of the instances
    #[arg(conflicts_with_all = ["status", "created_from", "created_to"])]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Their child orchestrations, too
    #[arg(long)]
    recursive: bool,
    /// Purge every instance that has ended; needed where nothing else says which
    #[arg(long, conflicts_with_all = ["ids", "status", "created_from", "created_to"])]
    all: bool,
    /// Longest time of a purge by filter; what is left then is told
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, conflicts_with = "ids")]
    timeout: Option<Duration>,
}

/// Which instances.
#[derive(Args, Debug)]
struct Filter {
    /// Only instances of these statuses
    #[arg(long, value_enum, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<StatusName>,
    /// Only instances created then or later, such as 2030-01-31T08:00:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    created_from: Option<Timestamp>,
    /// Only instances created then or earlier
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    created_to: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Until {
    /// It is no longer pending
    Start,
    /// It has ended
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatusName {
    Pending,
    Running,
    Suspended,
    Completed,
    Failed,
    Terminated,
}

impl From<StatusName> for OrchestrationStatus {
    fn from(name: StatusName) -> Self {
        match name {
            StatusName::Pending => OrchestrationStatus::Pending,
            StatusName::Running => OrchestrationStatus::Running,
            StatusName::Suspended => OrchestrationStatus::Suspended,
            StatusName::Completed => OrchestrationStatus::Completed,
            StatusName::Failed => OrchestrationStatus::Failed,
            StatusName::Terminated => OrchestrationStatus::Terminated,
        }
    }
}

/// Statuses as the wire has them.
fn statuses(names: &[StatusName]) -> Vec<i32> {
    names.iter().map(|&name| OrchestrationStatus::from(name).into()).collect()
}

pub(super) fn parse_time(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "not a time such as 2030-01-31T08:00:00Z".to_owned())
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not KEY=VALUE".to_owned()),
    }
}

/// Runs one command.
pub(super) async fn run(args: InstanceArgs) -> anyhow::Result<()> {
    let rpc = args.server.hub(&args.task_hub).await?;
    let output = args.server.output;
    match args.command {
        InstanceCommand::Start(start) => change::start(rpc, output, start).await,
        InstanceCommand::Get { id, no_payloads, watch: false, wait: _ } => {
            read::get(rpc, output, &id, !no_payloads).await
        }
        InstanceCommand::Get { id, no_payloads, watch: true, wait } => {
            read::watch(rpc, output, &id, Until::End, !no_payloads, wait.timeout).await
        }
        InstanceCommand::List(list) => read::list(rpc, output, list).await,
        InstanceCommand::Wait { id, until, watch: false, wait } => {
            read::wait(rpc, output, &id, until, wait.timeout).await
        }
        InstanceCommand::Wait { id, until, watch: true, wait } => {
            read::watch(rpc, output, &id, until, true, wait.timeout).await
        }
        InstanceCommand::History { id, execution } => {
            history::show(rpc, output, &id, execution).await
        }
        InstanceCommand::Raise { id, name, data } => {
            change::raise(rpc, output, id, name, data).await
        }
        InstanceCommand::Terminate { id, output_payload, recursive } => {
            change::terminate(rpc, output, id, output_payload, recursive).await
        }
        InstanceCommand::Suspend { id, reason } => change::suspend(rpc, output, id, reason).await,
        InstanceCommand::Resume { id, reason } => change::resume(rpc, output, id, reason).await,
        InstanceCommand::Restart { id, new_id } => change::restart(rpc, output, id, new_id).await,
        InstanceCommand::Rewind { id, reason } => change::rewind(rpc, output, id, reason).await,
        InstanceCommand::Purge(purge) => change::purge(rpc, output, purge).await,
    }
}
