//! The crash test: the real process, under load, killed with `kill -9` again and again.
//!
//! A client starts orchestrations and raises events, a worker runs them, both over gRPC as an SDK would. The
//! server is killed at a random moment and started again on the same folder and addresses. Everything that
//! was sent and everything that was acknowledged is written down. After the last cycle the load ends, all work
//! drains, and the ledger is held against what the server then says (`support/record/`). What must hold, by
//! architecture.md §5:
//!
//! - S1: every acknowledged start completes, with the right output; every acknowledged event and activity
//!   result is there;
//! - S3: what a worker has seen of a history stays as it was;
//! - S5: each scheduled task has one terminal event, and no result comes without a task;
//! - S6: timers fire once, not early;
//! - S7: events arrive in the order of their sender, and once unless the client had to send them twice;
//! - S10, S11: locks exclude and none is left; nothing is left of what was purged;
//! - L1, L3: once the crashes end, everything finishes, work lost with the server included.
//!
//! A killed process leaves its written pages to the kernel, so this shows what is acknowledged before it is
//! written, not what is acknowledged before it is flushed: a power cut is beyond it.
//!
//! `DURAHUB_CRASH_CYCLES` is the number of kills (default 30). `DURAHUB_CRASH_SEED` fixes what is started
//! and when the kills fall; it cannot fix how the processes interleave, so repeat a failing seed some times.

#![allow(clippy::print_stderr)] // what a run did is worth a line

#[path = "support/ports.rs"]
#[allow(unreachable_pub)]
mod ports;
#[path = "crash/process.rs"]
mod process;
#[path = "support/record/mod.rs"]
mod record;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::process::Server;
use crate::record::calls::Gateways;
use crate::record::customers::Pace;
use crate::record::ledger::Ledger;
use crate::record::{check, customers, worker};

/// How long a life of the server lasts under load, in milliseconds.
const LIFE: std::ops::Range<u64> = 50..600;

/// How long all open work may take once the crashes have ended: L1 with a margin for a debug build.
const DRAIN: Duration = Duration::from_secs(60);

#[test]
fn acknowledged_work_survives_kill_9() {
    let cycles: u64 = setting("DURAHUB_CRASH_CYCLES").unwrap_or(30);
    let seed: u64 = setting("DURAHUB_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Err(failure) = runtime.block_on(crash(cycles, seed)) {
        panic!(
            "{failure:#}\n\nto repeat:\n  \
             DURAHUB_CRASH_SEED={seed} DURAHUB_CRASH_CYCLES={cycles} cargo test --test crash acknowledged\n"
        );
    }
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

async fn crash(cycles: u64, seed: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut server = Server::prepare()?;
    let ledger = Arc::new(Ledger::default());
    let outcome = cycles_of_load(&mut server, &ledger, cycles, seed).await;

    let summary = ledger.summary();
    eprintln!("seed {seed}: {cycles} kills, {summary} in {:.1} s", began.elapsed().as_secs_f64());
    let violations = match outcome {
        Ok(found) => found,
        Err(failure) => [ledger.violations(), vec![format!("{failure:#}")]].concat(),
    };
    if !violations.is_empty() {
        let shown: Vec<_> =
            violations.iter().take(20).map(|violation| format!("- {violation}")).collect();
        bail!(
            "{} violations:\n{}\n{summary}\ndata folder and log: {}",
            violations.len(),
            shown.join("\n"),
            server.keep().display()
        );
    }
    // A load that was never interrupted in the middle of anything would prove nothing.
    ensure!(
        summary.starts >= cycles && summary.attempts >= summary.starts,
        "hardly any load: {summary}"
    );
    ensure!(cycles < 10 || summary.repeated > 0, "no kill ever hit an activity at work: {summary}");
    Ok(())
}

/// Kills and restarts under load, then what the check finds. Stops early once something was seen to be wrong.
async fn cycles_of_load(
    server: &mut Server,
    ledger: &Arc<Ledger>,
    cycles: u64,
    seed: u64,
) -> anyhow::Result<Vec<String>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let channel = server.channel()?;
    let gateways = Arc::new(Gateways::default());
    gateways.add(1, channel.clone());
    let pace = Pace { customers: 6, open: 48, pause: 0, tellers: (2, 100) };
    let customers = customers::run(Arc::clone(&gateways), Arc::clone(ledger), pace, random.fork());
    let load = tokio::spawn(customers);
    let worker = tokio::spawn(worker::run(channel, Arc::clone(ledger), random.fork()));

    for cycle in 1..=cycles {
        server.start().await.with_context(|| format!("start number {cycle}"))?;
        // A life counts from the moment at which it takes load.
        let before = ledger.acknowledged_starts();
        server
            .while_alive(ledger.progress_beyond(before))
            .await
            .with_context(|| format!("life {cycle}"))?;
        tokio::time::sleep(Duration::from_millis(random.u64(LIFE))).await;
        server.kill().with_context(|| format!("kill number {cycle}"))?;
        ledger.begin_next_life();
        ensure!(ledger.violations().is_empty(), "stopped after kill number {cycle}");
    }
    server.start().await.context("the last start")?;
    ledger.end_load();
    server.while_alive(load).await.context("the load ends")???;
    ensure!(ledger.violations().is_empty(), "stopped when the load had ended");
    let found = check::everything(&gateways, ledger, DRAIN).await;
    worker.abort();
    Ok(found)
}
