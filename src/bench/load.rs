//! The generator: keeps a number of instances in flight, checks their results, takes the time.
//!
//! `concurrency` slots each run one instance after the other; a tally takes their outcomes, prints a
//! line each second and listens for Ctrl-C, which ends the run with what was measured so far.
//!
//! A call that meets a passing failure (a leader changes, a connection breaks) is repeated until the
//! instance's time is up. Starting twice is harmless, since ids are unique to the run: the
//! second attempt's "already exists" is a success.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context;
use durahub_proto::wire;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use wire::OrchestrationStatus;

use super::connect::{Rpc, Target, is_passing};
use super::workload::{self, EVENT, Plan};
use super::{BenchArgs, backoff, report};

/// Distinct reasons kept; a broken server could otherwise fill the report.
const MAX_REASONS: usize = 10;

/// What was measured.
pub(super) struct Tally {
    /// Start to completion, in microseconds, of the instances that completed as they should.
    pub(super) latency: Histogram<u64>,
    /// Completed with the right result.
    pub(super) completed: u64,
    /// Ended otherwise, with a wrong result, or refused by the server.
    pub(super) failed: u64,
    /// Not finished in time, or unknown to the server after it had accepted them.
    pub(super) lost: u64,
    /// Why, and how often.
    pub(super) reasons: BTreeMap<String, u64>,
    /// Calls repeated after a passing failure.
    pub(super) retries: u64,
    /// From the first start to the last completion.
    pub(super) elapsed: Duration,
    /// Whether Ctrl-C ended the run.
    pub(super) interrupted: bool,
}

/// How one instance ended.
enum Outcome {
    Completed(Duration),
    Failed(String),
    Lost(String),
}

/// Runs the whole load.
///
/// # Errors
/// Only when this process cannot measure; what the server does wrong is in the tally.
pub(super) async fn run(target: &Target, plan: Plan, args: &BenchArgs) -> anyhow::Result<Tally> {
    let shared = Arc::new(Shared {
        plan,
        // Seeds start anywhere, so that results of another run cannot pass for this one's.
        first_seed: fastrand::u64(1..1_000_000),
        run: format!("{:08x}", fastrand::u32(..)),
        instances: args.instances,
        timeout: Duration::from_secs(args.timeout),
        next: AtomicU64::new(0),
        retries: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    });
    let clients = target.clients(args.concurrency);
    let (outcomes, mut arrivals) = mpsc::unbounded_channel();
    let mut slots = JoinSet::new();
    let began = Instant::now();
    for slot in 0..u64::from(args.concurrency).min(args.instances) {
        let rpc = clients[slot as usize % clients.len()].clone();
        slots.spawn(shared.clone().slot(rpc, outcomes.clone()));
    }
    // The slots hold the rest: the channel closes with the last of them.
    drop(outcomes);

    let mut tally = Tally::new()?;
    let mut ticker =
        tokio::time::interval_at((began + Duration::from_secs(1)).into(), Duration::from_secs(1));
    let mut done_before = 0;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            outcome = arrivals.recv() => match outcome {
                Some(outcome) => {
                    tally.take(outcome)?;
                    tally.elapsed = began.elapsed();
                }
                None => break,
            },
            _ = ticker.tick() => {
                let done = tally.done();
                report::progress(began.elapsed(), done, done - done_before, &tally, args);
                done_before = done;
            }
            pressed = &mut interrupt => {
                pressed.context("listen for Ctrl-C")?;
                shared.stop.store(true, Relaxed);
                tally.interrupted = true;
                break;
            }
        }
    }
    slots.shutdown().await;
    tally.retries = shared.retries.load(Relaxed);
    Ok(tally)
}

impl Tally {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            latency: Histogram::new(3).context("make a histogram")?,
            completed: 0,
            failed: 0,
            lost: 0,
            reasons: BTreeMap::new(),
            retries: 0,
            elapsed: Duration::ZERO,
            interrupted: false,
        })
    }

    /// Instances that came to an end, a good or a bad one.
    pub(super) fn done(&self) -> u64 {
        self.completed + self.failed + self.lost
    }

    fn take(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        let reason = match outcome {
            Outcome::Completed(latency) => {
                self.completed += 1;
                self.latency.record(u64::try_from(latency.as_micros())?)?;
                return Ok(());
            }
            Outcome::Failed(reason) => {
                self.failed += 1;
                reason
            }
            Outcome::Lost(reason) => {
                self.lost += 1;
                reason
            }
        };
        let known = self.reasons.contains_key(&reason) || self.reasons.len() < MAX_REASONS;
        *self.reasons.entry(if known { reason } else { "other".into() }).or_default() += 1;
        Ok(())
    }
}

/// What the slots share.
struct Shared {
    plan: Plan,
    first_seed: u64,
    run: String,
    instances: u64,
    timeout: Duration,
    next: AtomicU64,
    retries: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    async fn slot(self: Arc<Self>, rpc: Rpc, outcomes: mpsc::UnboundedSender<Outcome>) {
        while !self.stop.load(Relaxed) {
            let index = self.next.fetch_add(1, Relaxed);
            if index >= self.instances {
                return;
            }
            let began = Instant::now();
            let id = format!("bench-{}-{index}", self.run);
            let ended = tokio::time::timeout(self.timeout, self.instance(&rpc, &id, index)).await;
            let outcome = match ended {
                Ok(Ok(())) => Outcome::Completed(began.elapsed()),
                Ok(Err(outcome)) => outcome,
                Err(_) => {
                    tracing::warn!(instance = id, "not finished in time");
                    Outcome::Lost(format!("not finished in {} s", self.timeout.as_secs()))
                }
            };
            if outcomes.send(outcome).is_err() {
                return;
            }
        }
    }

    /// One instance from start to a checked result.
    async fn instance(&self, rpc: &Rpc, id: &str, index: u64) -> Result<(), Outcome> {
        let seed = self.first_seed + index;
        self.start(rpc, id, seed).await?;
        for k in 1..=u64::from(self.plan.events()) {
            self.raise(rpc, id, seed + k).await?;
        }
        let state = self.completion(rpc, id).await?;
        self.check(&state, seed).map_err(|reason| {
            tracing::warn!(instance = id, reason, "failed");
            Outcome::Failed(reason)
        })
    }

    async fn start(&self, rpc: &Rpc, id: &str, seed: u64) -> Result<(), Outcome> {
        let request = wire::CreateInstanceRequest {
            instance_id: id.into(),
            name: self.plan.kind.orchestration().into(),
            input: Some(self.plan.input(seed)),
            ..Default::default()
        };
        let mut attempt = 0;
        while let Err(status) = rpc.clone().start_instance(request.clone()).await {
            if attempt > 0 && status.code() == Code::AlreadyExists {
                break;
            }
            attempt += 1;
            self.pause("start", status, attempt).await?;
        }
        Ok(())
    }

    async fn raise(&self, rpc: &Rpc, id: &str, value: u64) -> Result<(), Outcome> {
        let mut attempt = 0;
        loop {
            let data = workload::payload(value, attempt > 0, self.plan.payload as usize);
            let request = wire::RaiseEventRequest {
                instance_id: id.into(),
                name: EVENT.into(),
                input: Some(data),
            };
            let Err(status) = rpc.clone().raise_event(request).await else { return Ok(()) };
            attempt += 1;
            self.pause("raise", status, attempt).await?;
        }
    }

    /// Waits until the instance is terminal.
    async fn completion(&self, rpc: &Rpc, id: &str) -> Result<wire::OrchestrationState, Outcome> {
        let request =
            wire::GetInstanceRequest { instance_id: id.into(), get_inputs_and_outputs: true };
        let mut attempt = 0;
        loop {
            let status = match rpc.clone().wait_for_instance_completion(request.clone()).await {
                Ok(answer) => match answer.into_inner().orchestration_state {
                    Some(state) if is_terminal(state.orchestration_status()) => return Ok(state),
                    // The server cut the wait short: a failure that passes.
                    Some(_) => Status::deadline_exceeded("still running"),
                    None => return Err(Outcome::Lost("unknown to the server".into())),
                },
                Err(status) => status,
            };
            attempt += 1;
            self.pause("wait", status, attempt).await?;
        }
    }

    fn check(&self, state: &wire::OrchestrationState, seed: u64) -> Result<(), String> {
        let status = state.orchestration_status();
        if status != OrchestrationStatus::Completed {
            let details = state.failure_details.as_ref();
            let why = details.map_or("no details", |details| details.error_message.as_str());
            return Err(format!("{}: {why}", status.as_str_name()));
        }
        match &state.output {
            Some(output) if output.as_str() == self.plan.expected(seed) => Ok(()),
            Some(_) => Err("completed with a wrong result".into()),
            None => Err("completed without a result".into()),
        }
    }

    /// Pauses before the next attempt of a call, unless the failure is final.
    async fn pause(&self, call: &str, status: Status, attempt: u32) -> Result<(), Outcome> {
        if !is_passing(&status) {
            let reason = format!("{call} refused: {:?}: {}", status.code(), status.message());
            return Err(Outcome::Failed(reason));
        }
        self.retries.fetch_add(1, Relaxed);
        tokio::time::sleep(backoff(attempt)).await;
        Ok(())
    }
}

fn is_terminal(status: OrchestrationStatus) -> bool {
    matches!(
        status,
        OrchestrationStatus::Completed
            | OrchestrationStatus::Failed
            | OrchestrationStatus::Terminated
            | OrchestrationStatus::Canceled
    )
}
