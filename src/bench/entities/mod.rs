//! `durahub bench entities`: five loads on entities, one after the other.
//!
//! | Part | What counts |
//! | --- | --- |
//! | signals to one entity | signals, from the first call until the entity has carried out all |
//! | signals over 1,000 entities | the same, spread evenly |
//! | calls | calls by orchestrations that wait for each answer |
//! | lock pairs of 20 | critical sections over two of 20 entities, with a call to each |
//! | lock pairs of 1,000 | the same over two of 1,000 |
//!
//! Nobody waits for the effect of a signal, so many more signals than orchestrations are in flight. Pairs of few
//! entities measure waiting, not working: whoever holds the first of a pair waits for the second, whose holder
//! waits for another one, so most of the entities stand still and the last orchestration in line waits for all
//! before it. Pairs of many measure what a critical section costs.
//!
//! An entity adds one per operation. In the end the sum of all must be the number of operations, so a lost or
//! repeated one fails the run.

#![allow(clippy::print_stdout)] // a report is for the standard output

mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use durahub_proto::wire;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;

use super::connect::{Rpc, Target, is_passing};
use super::{BenchArgs, Output, backoff};

/// Entities of the parts that spread their load.
const MANY: u64 = 1_000;
/// Entities that pairs are taken from where they are few.
const FEW: u64 = 20;
/// Signals in flight for each orchestration that would be.
const SIGNALS: u32 = 5;
/// Pause between two looks at what entities have done.
const LOOK: Duration = Duration::from_millis(20);

/// What one part measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Part {
    /// Its name.
    part: &'static str,
    /// What is counted.
    unit: &'static str,
    /// How many there were.
    count: u64,
    /// How long they took until the last one had its effect, in seconds.
    seconds: f64,
    /// How many per second.
    per_second: f64,
    /// Middle of the times of single calls, or of whole orchestrations, in milliseconds.
    p50_ms: f64,
    /// All but one of a hundred took no longer.
    p99_ms: f64,
}

/// Runs the four parts and prints what they measured.
///
/// # Errors
/// When the server cannot be reached, refuses a call, or has lost or repeated an operation.
pub(super) async fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let parts = measure(args).await?;
    print(args.output, &parts)
}

/// Runs the four parts.
///
/// # Errors
/// As [`run`].
pub(super) async fn measure(args: &BenchArgs) -> anyhow::Result<Vec<Part>> {
    ensure!(
        !args.no_worker,
        "entities: this workload has no worker but its own; leave out --no-worker"
    );
    let target = Target::new(&args.endpoint, &args.task_hub, &args.dial)?;
    target.check().await?;
    let run = format!("{:08x}", fastrand::u32(..));
    // Dropping the set ends the streams.
    let mut workers = JoinSet::new();
    for number in 0..args.workers {
        workers.spawn(worker::run(target.worker(number)?, args.concurrency));
    }
    let load = Load { target, args, run };
    let calls = u64::from(args.activities.unwrap_or(5));
    let orchestrations = (args.instances / 10).max(1);
    let parts = vec![
        load.signals("signals to one entity", 1).await?,
        load.signals("signals over 1,000", MANY).await?,
        load.calls("calls", orchestrations, calls).await?,
        load.pairs("lock pairs of 20", orchestrations, FEW).await?,
        load.pairs("lock pairs of 1,000", orchestrations, MANY).await?,
    ];
    Ok(parts)
}

fn print(output: Output, parts: &[Part]) -> anyhow::Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(parts).context("write the report")?);
        return Ok(());
    }
    for part in parts {
        println!(
            "{:<22} {:>9.1} {}/s   {} in {:.2} s, p50 {:.2} ms, p99 {:.2} ms",
            part.part,
            part.per_second,
            part.unit,
            part.count,
            part.seconds,
            part.p50_ms,
            part.p99_ms
        );
    }
    Ok(())
}

struct Load<'a> {
    target: Target,
    args: &'a BenchArgs,
    /// Names the entities of this run.
    run: String,
}

impl Load<'_> {
    async fn signals(&self, part: &'static str, entities: u64) -> anyhow::Result<Part> {
        let prefix = format!("@{}@{}-{entities}-", worker::ENTITY, self.run);
        let target = prefix.clone();
        let (began, times) = self
            .slots(self.args.instances, self.args.concurrency * SIGNALS, move |rpc, index| {
                let request = wire::SignalEntityRequest {
                    instance_id: format!("{target}{}", index % entities),
                    name: "add".into(),
                    // Sent again, it is the same signal.
                    request_id: format!("{:032x}", fastrand::u128(..)),
                    ..Default::default()
                };
                async move { repeat(|| signal(rpc.clone(), request.clone())).await }
            })
            .await?;
        self.wait_for_sum(&prefix, self.args.instances).await?;
        let count = self.args.instances;
        Ok(part_of(part, "signals", count, began.elapsed(), &times))
    }

    async fn calls(
        &self,
        part: &'static str,
        orchestrations: u64,
        each: u64,
    ) -> anyhow::Result<Part> {
        let prefix = format!("@{}@{}-calls-", worker::ENTITY, self.run);
        let target = prefix.clone();
        let input = move |index| format!("{each} {target}{}", index % MANY);
        let done = self.orchestrations("calls", worker::CALLS, orchestrations, input).await?;
        self.wait_for_sum(&prefix, orchestrations * each).await?;
        Ok(part_of(part, "calls", orchestrations * each, done.0, &done.1))
    }

    async fn pairs(
        &self,
        part: &'static str,
        orchestrations: u64,
        among: u64,
    ) -> anyhow::Result<Part> {
        let prefix = format!("@{}@{}-pairs{among}-", worker::ENTITY, self.run);
        let target = prefix.clone();
        let input = move |index| {
            let (first, second) = pair(index, among);
            format!("{target}{first} {target}{second}")
        };
        let kind = format!("pairs{among}");
        let done = self.orchestrations(&kind, worker::LOCKS, orchestrations, input).await?;
        self.wait_for_sum(&prefix, orchestrations * 2).await?;
        Ok(part_of(part, "pairs", orchestrations, done.0, &done.1))
    }

    /// How long so many orchestrations took together, and each of them.
    async fn orchestrations(
        &self,
        kind: &str,
        name: &'static str,
        count: u64,
        input: impl Fn(u64) -> String + Send + Sync + 'static,
    ) -> anyhow::Result<(Duration, Histogram<u64>)> {
        let ids = format!("bench-{}-{kind}", self.run);
        let (began, times) = self
            .slots(count, self.args.concurrency, move |rpc, index| {
                let (id, input) = (format!("{ids}-{index}"), input(index));
                async move { complete(rpc, id, name, input).await }
            })
            .await?;
        Ok((began.elapsed(), times))
    }

    /// Keeps so many calls in flight until all are answered; the times are in microseconds.
    async fn slots<F: Future<Output = anyhow::Result<()>> + Send + 'static>(
        &self,
        count: u64,
        in_flight: u32,
        call: impl Fn(Rpc, u64) -> F + Send + Sync + 'static,
    ) -> anyhow::Result<(Instant, Histogram<u64>)> {
        let clients = self.target.clients(in_flight);
        let (next, call) = (Arc::new(AtomicU64::new(0)), Arc::new(call));
        let mut slots = JoinSet::new();
        let began = Instant::now();
        for slot in 0..u64::from(in_flight).min(count) {
            let rpc = clients[slot as usize % clients.len()].clone();
            let (next, call) = (Arc::clone(&next), Arc::clone(&call));
            slots.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let index = next.fetch_add(1, Relaxed);
                    if index >= count {
                        return Ok::<_, anyhow::Error>(times);
                    }
                    let began = Instant::now();
                    call(rpc.clone(), index).await?;
                    times.push(began.elapsed());
                }
            });
        }
        let mut times = Histogram::new(3).context("a histogram")?;
        let timeout = Duration::from_secs(self.args.timeout);
        let all = async {
            while let Some(slot) = slots.join_next().await {
                for time in slot.context("a slot")?? {
                    times.record(u64::try_from(time.as_micros())?)?;
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(timeout, all).await.context("not finished in time")??;
        Ok((began, times))
    }

    /// Waits until the entities have carried out all of it, and not more.
    async fn wait_for_sum(&self, prefix: &str, wanted: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.args.timeout);
        let rpc = self.target.worker(u32::MAX)?;
        loop {
            let sum = sum(&rpc, prefix).await?;
            if sum == wanted {
                return Ok(());
            }
            if sum > wanted || Instant::now() > deadline {
                bail!("{prefix}: {wanted} operations were sent, {sum} were carried out");
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Two different entities, spread by the index: neighbours where they are few.
fn pair(index: u64, among: u64) -> (u64, u64) {
    let first = if among == FEW { index % among } else { index.wrapping_mul(389) % among };
    (first, (first + 1 + index / among % (among - 1)) % among)
}

fn part_of(
    part: &'static str,
    unit: &'static str,
    count: u64,
    elapsed: Duration,
    times: &Histogram<u64>,
) -> Part {
    let round = |value: f64| (value * 1000.0).round() / 1000.0;
    let ms = |quantile| round(times.value_at_quantile(quantile) as f64 / 1000.0);
    let seconds = round(elapsed.as_secs_f64());
    let per_second = round(count as f64 / elapsed.as_secs_f64());
    Part { part, unit, count, seconds, per_second, p50_ms: ms(0.5), p99_ms: ms(0.99) }
}

async fn signal(mut rpc: Rpc, request: wire::SignalEntityRequest) -> Result<(), tonic::Status> {
    rpc.signal_entity(request).await.map(drop)
}

/// Starts an orchestration and waits for its end.
async fn complete(rpc: Rpc, id: String, name: &str, input: String) -> anyhow::Result<()> {
    let request = wire::CreateInstanceRequest {
        instance_id: id.clone(),
        name: name.into(),
        input: Some(input.into()),
        ..Default::default()
    };
    let start = || {
        let (mut rpc, request) = (rpc.clone(), request.clone());
        async move {
            match rpc.start_instance(request).await {
                Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(()),
                other => other.map(drop),
            }
        }
    };
    repeat(start).await?;
    let get = wire::GetInstanceRequest { instance_id: id.clone(), get_inputs_and_outputs: false };
    let mut attempt = 0;
    loop {
        match rpc.clone().wait_for_instance_completion(get.clone()).await {
            Ok(answer) => {
                let state = answer.into_inner().orchestration_state.context("is gone")?;
                let status = state.orchestration_status();
                ensure!(status == wire::OrchestrationStatus::Completed, "{id} is {status:?}");
                return Ok(());
            }
            Err(status) if is_passing(&status) => {
                attempt += 1;
                tokio::time::sleep(backoff(attempt)).await;
            }
            Err(status) => return Err(status).context("wait"),
        }
    }
}

/// Calls until there is an answer that does not pass.
async fn repeat<F: Future<Output = Result<(), tonic::Status>>>(
    call: impl Fn() -> F,
) -> anyhow::Result<()> {
    let mut attempt = 0;
    while let Err(status) = call().await {
        if !is_passing(&status) {
            return Err(status).context("a call was refused");
        }
        attempt += 1;
        tokio::time::sleep(backoff(attempt)).await;
    }
    Ok(())
}

/// What all entities with such ids have counted.
async fn sum(rpc: &Rpc, prefix: &str) -> anyhow::Result<u64> {
    let mut query = wire::EntityQuery {
        instance_id_starts_with: Some(prefix.into()),
        include_state: true,
        page_size: Some(1000),
        ..Default::default()
    };
    let mut sum = 0;
    loop {
        let request = wire::QueryEntitiesRequest { query: Some(query.clone()) };
        let page =
            rpc.clone().query_entities(request).await.context("query entities")?.into_inner();
        for entity in page.entities {
            let state =
                entity.serialized_state.map_or(Ok(0), |state| state.as_str().parse::<u64>());
            sum += state.context("a count")?;
        }
        query.continuation_token = page.continuation_token;
        if query.continuation_token.is_none() {
            return Ok(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_of_two_different_entities_and_all_occur() {
        for among in [FEW, 100] {
            let all = among * (among - 1);
            let pairs: std::collections::BTreeSet<_> = (0..all).map(|n| pair(n, among)).collect();
            assert_eq!(pairs.len() as u64, all);
            assert!(pairs.iter().all(|(first, second)| first != second && *second < among));
        }
    }
}
