//! The result of a run, as a table or as JSON. Nothing else in this room prints, but `entities`, whose
//! result is of another form.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::disk::Probe;
use super::load::Tally;
use super::worker::Counters;
use super::workload::{Kind, Plan};
use super::{BenchArgs, Output};

/// Below this a "flush" did not reach a disk.
const NO_DISK_MICROS: u64 = 10;

/// Everything that a run measured. Its field names are the JSON output's and stay as they are.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of the generator.
    pub version: &'static str,
    /// What each instance did.
    pub workload: Kind,
    /// The server under test.
    pub endpoint: String,
    /// The task hub.
    pub task_hub: String,
    /// Instances asked for.
    pub instances: u64,
    /// Instances in flight.
    pub concurrency: u32,
    /// Activities per instance; for `events`, events per instance.
    pub activities: u32,
    /// Bytes of each activity's input and output, and of each event's.
    pub payload_bytes: u32,
    /// Streams of the built-in worker; 0 with `--no-worker`.
    pub workers: u32,
    /// Threads of the generator.
    pub threads: u32,
    /// CPU that the generator and its worker used for each completed instance, in microseconds. Close to
    /// a million divided by the rate, the generator is the limit: give it more `--threads`.
    /// Absent with more than one thread, and where the system does not tell.
    pub generator_cpu_us: Option<f64>,
    /// Whether Ctrl-C ended the run early.
    pub interrupted: bool,
    /// From the first start to the last outcome.
    pub seconds: f64,
    /// Instances that completed with the right result.
    pub completed: u64,
    /// Instances that ended otherwise, with a wrong result, or were refused.
    pub failed: u64,
    /// Instances not finished in time, or unknown to the server after it had accepted them.
    pub lost: u64,
    /// Instances not started or still running when the run was interrupted.
    pub unfinished: u64,
    /// Completed instances per second.
    pub orchestrations_per_second: f64,
    /// DTS actions per second of completed instances: a start is 1, an activity 2, an event 1.
    pub actions_per_second: f64,
    /// Start to completion; absent when nothing completed.
    pub latency_ms: Option<Latency>,
    /// The disk of the folder that was probed; absent when it could not be.
    pub fdatasync_us: Option<Fdatasync>,
    /// Client calls and completions repeated after a passing failure, such as a leader change.
    pub retries: u64,
    /// Worker streams opened anew.
    pub reconnects: u64,
    /// Turns that the built-in worker answered.
    pub turns: u64,
    /// Activities that the built-in worker answered, repeated deliveries included.
    pub activities_run: u64,
    /// Completions that the server refused for good.
    pub completions_refused: u64,
    /// Why instances failed or were lost.
    pub errors: Vec<Reason>,
}

/// Start-to-completion latency in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// Time of one 4 KiB overwrite with `fdatasync`, in microseconds.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Fdatasync {
    pub directory: String,
    pub samples: u64,
    pub p50: u64,
    pub p99: u64,
}

/// One kind of failure and how often it was seen.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Reason {
    pub reason: String,
    pub count: u64,
}

impl Report {
    pub(super) fn new(
        args: &BenchArgs,
        plan: Plan,
        tally: &Tally,
        counters: &Counters,
        cpu: Option<Duration>,
        probe: anyhow::Result<Probe>,
    ) -> Self {
        let seconds = tally.elapsed.as_secs_f64();
        let rate = |n: u64| if seconds > 0.0 { round(n as f64 / seconds) } else { 0.0 };
        Self {
            version: env!("CARGO_PKG_VERSION"),
            workload: plan.kind,
            endpoint: args.endpoint.clone(),
            task_hub: args.task_hub.clone(),
            instances: args.instances,
            concurrency: args.concurrency,
            activities: plan.count,
            payload_bytes: plan.payload,
            workers: if args.no_worker { 0 } else { args.workers },
            threads: args.threads,
            generator_cpu_us: cpu
                .filter(|_| tally.completed > 0)
                .map(|cpu| round(cpu.as_secs_f64() * 1e6 / tally.completed as f64)),
            interrupted: tally.interrupted,
            seconds: round(seconds),
            completed: tally.completed,
            failed: tally.failed,
            lost: tally.lost,
            unfinished: args.instances - tally.done(),
            orchestrations_per_second: rate(tally.completed),
            actions_per_second: rate(tally.completed * plan.actions()),
            latency_ms: latency(tally),
            fdatasync_us: fdatasync(probe),
            retries: tally.retries + counters.retries.load(Relaxed),
            reconnects: counters.reconnects.load(Relaxed),
            turns: counters.turns.load(Relaxed),
            activities_run: counters.activities.load(Relaxed),
            completions_refused: counters.refused.load(Relaxed),
            errors: tally
                .reasons
                .iter()
                .map(|(reason, count)| Reason { reason: reason.clone(), count: *count })
                .collect(),
        }
    }

    /// Prints the report to standard output.
    ///
    /// # Errors
    /// Never in practice: the report is plain data.
    pub fn print(&self, output: Output) -> anyhow::Result<()> {
        match output {
            Output::Table => print!("{}", self.table()),
            Output::Json => {
                println!("{}", serde_json::to_string_pretty(self).context("write the report")?);
            }
        }
        Ok(())
    }

    /// Whether the server kept its promises.
    ///
    /// # Errors
    /// When an instance failed or was lost.
    pub fn verdict(&self) -> anyhow::Result<()> {
        if self.failed + self.lost > 0 {
            bail!("{} instances failed, {} were lost", self.failed, self.lost);
        }
        Ok(())
    }

    /// The report as aligned lines.
    fn table(&self) -> String {
        let unit = if self.workload == Kind::Events { "events" } else { "activities" };
        let workload = self.workload.orchestration();
        let mut table = Table::default();
        table.line(
            "workload",
            format!(
                "{workload}, {} {unit} of {} bytes, {} in flight",
                self.activities, self.payload_bytes, self.concurrency
            ),
        );
        table.line("server", format!("{}, task hub {}", self.endpoint, self.task_hub));
        let mut generator = format!("{} threads, {} worker streams", self.threads, self.workers);
        if let Some(us) = self.generator_cpu_us {
            generator.push_str(&format!(", {us:.0} us of CPU per instance"));
        }
        table.line("generator", generator);
        let cut = if self.interrupted { ", interrupted" } else { "" };
        table.line(
            "instances",
            format!(
                "{} of {} completed in {:.2} s{cut}",
                self.completed, self.instances, self.seconds
            ),
        );
        table.line("orchestrations/s", format!("{:.1}", self.orchestrations_per_second));
        table.line("DTS actions/s", format!("{:.1}", self.actions_per_second));
        if let Some(ms) = self.latency_ms {
            table.line(
                "start to completion",
                format!(
                    "p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
                    ms.p50, ms.p90, ms.p99, ms.max
                ),
            );
        }
        if let Some(us) = &self.fdatasync_us {
            let note = if us.p50 < NO_DISK_MICROS { " (not a disk: see --data-dir)" } else { "" };
            table.line(
                "fdatasync",
                format!("p50 {} us, p99 {} us in {}{note}", us.p50, us.p99, us.directory),
            );
        }
        table.line(
            "disturbances",
            format!(
                "{} retries, {} reconnects, {} completions refused",
                self.retries, self.reconnects, self.completions_refused
            ),
        );
        table.line("errors", format!("{} failed, {} lost", self.failed, self.lost));
        for Reason { reason, count } in &self.errors {
            table.line("", format!("{count} x {reason}"));
        }
        table.0
    }
}

#[derive(Default)]
struct Table(String);

impl Table {
    fn line(&mut self, name: &str, value: String) {
        self.0.push_str(&format!("{name:<21}{value}\n"));
    }
}

/// The line of each second, on standard error.
pub(super) fn progress(elapsed: Duration, done: u64, rate: u64, tally: &Tally, args: &BenchArgs) {
    let errors = tally.failed + tally.lost;
    let in_flight = u64::from(args.concurrency).min(args.instances - done);
    eprintln!(
        "{:>5} s  {done} of {} done  {rate}/s  {in_flight} in flight  {errors} errors",
        elapsed.as_secs(),
        args.instances
    );
}

fn latency(tally: &Tally) -> Option<Latency> {
    let histogram = &tally.latency;
    let ms = |micros: u64| micros as f64 / 1000.0;
    (!histogram.is_empty()).then(|| Latency {
        mean: round(histogram.mean() / 1000.0),
        p50: ms(histogram.value_at_quantile(0.5)),
        p90: ms(histogram.value_at_quantile(0.9)),
        p99: ms(histogram.value_at_quantile(0.99)),
        max: ms(histogram.max()),
    })
}

fn fdatasync(probe: anyhow::Result<Probe>) -> Option<Fdatasync> {
    match probe {
        Ok(Probe { folder, micros }) => Some(Fdatasync {
            directory: folder.display().to_string(),
            samples: micros.len(),
            p50: micros.value_at_quantile(0.5),
            p99: micros.value_at_quantile(0.99),
        }),
        Err(error) => {
            // The load was measured all the same.
            eprintln!("no figure for the disk: {error:#}");
            None
        }
    }
}

/// Six digits are enough for any figure here, and small ones need them as much as large ones.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(5 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}
