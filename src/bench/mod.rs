//! `durahub bench`: a load generator with its own worker, for any server that speaks the protocol.
//!
//! One run is: connect, start a built-in worker (unless `--no-worker`), keep `--concurrency` instances
//! in flight until `--instances` have finished, check every result, and print a report.
//!
//! - `workload` says what an instance does, what its result must be, and plays the orchestrator. Pure.
//! - `worker` serves the work item stream and answers it.
//! - `load` starts instances, raises their events, waits for them and takes the time.
//! - `disk` measures what one `fdatasync` costs, so that figures of two machines can be compared.
//! - `report` is the result, as a table or as JSON; the file that prints.
//! - `entities` is another kind of load: signals, calls and locks, with a worker of its own.
//! - `connect` holds what all calls share: channels, headers, what is worth a retry.
//!
//! The generator competes with the server for the same cores when both run on one machine. So it runs
//! on one thread of its own by default (`--threads`), opens a handful of connections once, and decodes
//! of a history only what its orchestrators read.
//!
//! It knows nothing of the server but the public protocol: this room may name `durahub_proto`, outside
//! crates, and what opens the connections of every command. What it leaves out: timers and child
//! orchestrations.

mod connect;
mod disk;
mod entities;
#[cfg(test)]
mod fake;
mod load;
mod report;
#[cfg(test)]
mod tests;
mod worker;
mod workload;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

pub use report::{Fdatasync, Latency, Reason, Report};
pub use workload::Kind;

use crate::dial::DialArgs;

/// Measures a server: starts instances, works on them, checks their results, reports rates and latency.
///
/// Latency is measured from the call that starts an instance to the answer that it has completed.
/// `--concurrency 1` measures idle latency: one instance at a time, nothing else going on.
/// A failed or lost instance makes the exit code 1.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// What each instance does
    #[arg(value_enum)]
    pub workload: Kind,

    /// Server to measure: any one that speaks the Durable Task protocol
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub endpoint: String,

    /// How the server is reached
    #[command(flatten)]
    pub dial: DialArgs,

    /// Task hub, which must exist
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub task_hub: String,

    /// Instances to run (`entities`: signals; a tenth as many orchestrations)
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pub instances: u64,

    /// Instances in flight; 1 measures idle latency
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub concurrency: u32,

    /// Activities per instance (`events`: external events, `entities`: calls per instance) [default: 5; fanout: 20]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub activities: Option<u32>,

    /// Size of each activity's input and output, and of each event's, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 100)]
    pub payload: u32,

    /// Streams of work items that the built-in worker opens, each on its own connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub workers: u32,

    /// Threads that the generator and its worker may use
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub threads: u32,

    /// Only generate load; another process serves BenchSequence, BenchFanout, BenchEvents and BenchStep
    #[arg(long)]
    pub no_worker: bool,

    /// Seconds after which an instance that has not finished counts as lost
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,

    /// Folder in which fdatasync is timed; give one on the server's disk
    /// [default: the system's folder for temporary files, often a RAM disk]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Form of the report on standard output; progress goes to standard error
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Form of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned text for people.
    Table,
    /// One JSON object, see [`Report`].
    Json,
}

/// Runs the benchmark, prints its report, and says whether everything went well.
///
/// # Errors
/// When the server cannot be reached or does not know the task hub (nothing is printed then), and when
/// an instance failed or was lost (after the report is printed).
pub async fn run(args: BenchArgs) -> anyhow::Result<()> {
    if args.workload == Kind::Entities {
        return on_threads(args.threads, async move { entities::run(&args).await }).await;
    }
    let output = args.output;
    let report = measure(args).await?;
    report.print(output)?;
    report.verdict()
}

/// Runs the benchmark on threads of its own, whatever runtime the caller has.
async fn measure(args: BenchArgs) -> anyhow::Result<Report> {
    on_threads(args.threads, Box::pin(drive(args))).await
}

/// Runs a load on so many threads of its own.
async fn on_threads<T: Send + 'static>(
    threads: u32,
    load: impl Future<Output = anyhow::Result<T>> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("bench".into())
        .spawn(move || {
            let outcome = runtime(threads).and_then(|it| it.block_on(load));
            // Nobody listens when the caller gave up: then there is nobody to tell.
            let _ = done.send(outcome);
        })
        .context("start the benchmark's thread")?;
    result.await.context("the benchmark stopped without a result")?
}

fn runtime(threads: u32) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if threads > 1 {
        builder.worker_threads(threads as usize);
    }
    builder.enable_all().build().context("start the benchmark's runtime")
}

async fn drive(args: BenchArgs) -> anyhow::Result<Report> {
    let plan = workload::Plan {
        kind: args.workload,
        count: args.activities.unwrap_or_else(|| args.workload.default_count()),
        payload: args.payload,
    };
    let target = connect::Target::new(&args.endpoint, &args.task_hub, &args.dial)?;
    target.check().await?;

    let counters = Arc::new(worker::Counters::default());
    // Dropping the set at the end of this function ends the streams.
    let mut workers = tokio::task::JoinSet::new();
    if !args.no_worker {
        for number in 0..args.workers {
            let rpc = target.worker(number)?;
            workers.spawn(worker::run(rpc, args.concurrency, counters.clone()));
        }
    }
    let tally = load::run(&target, plan, &args).await?;
    drop(workers);
    let cpu = (args.threads == 1).then(thread_cpu).flatten();

    let folder = args.data_dir.clone().unwrap_or_else(std::env::temp_dir);
    let probe = tokio::task::spawn_blocking(move || disk::probe(&folder)).await?;
    Ok(Report::new(&args, plan, &tally, &counters, cpu, probe))
}

/// What this thread has used of the CPU so far; `None` where the system does not tell.
fn thread_cpu() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))
}

/// How long to pause before attempt number `attempt` (from 1): 50 ms, doubling to 2 s.
fn backoff(attempt: u32) -> Duration {
    Duration::from_millis(50 << attempt.saturating_sub(1).min(6)).min(Duration::from_secs(2))
}
