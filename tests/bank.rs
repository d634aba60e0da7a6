//! The bank: 20 accounts, orchestrations that lock two of them and move money, and `kill -9` again and again.
//!
//! Tellers pay in, start transfers, and terminate some of them (`support/record/books.rs`). Workers are torn away with
//! all they hold; the server is killed at random moments and started again on its folder. Transfers end in every way:
//! with and without giving back, failed, begun anew, terminated. An account remembers every operation that it carried
//! out. What must hold (architecture.md §5):
//!
//! - S7: no operation is lost, none is carried out twice; a transfer takes from one account exactly when it
//!   gives to the other;
//! - S10: between a balance that a transfer reads under its locks and what it writes, nobody else writes; when
//!   all is done, no account is locked and nothing waits;
//! - L1, L3: once the crashes end, every transfer ends, whatever was lost with workers and server.
//!
//! `DURAHUB_BANK_CYCLES` is the number of kills (default 20), `DURAHUB_BANK_SEED` fixes what is started and when
//! the kills fall; it cannot fix how the processes interleave.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // what a run did is worth a line

#[path = "support/record/mod.rs"]
mod record;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use support::TestServer;
use tokio::task::JoinSet;

use crate::record::calls::{Gateways, channel};
use crate::record::ledger::Ledger;
use crate::record::{books, worker};

const TELLERS: usize = 3;
/// Longest pause of a teller, in milliseconds.
const PAUSE: u64 = 30;
const WORKERS: usize = 3;
/// How long a life of the server lasts under load, in milliseconds.
const LIFE: std::ops::Range<u64> = 100..900;
/// How long all open work may take once the crashes have ended: the grace after a lost stream, with a margin.
const DRAIN: Duration = Duration::from_secs(90);

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sum_stays_and_no_lock_is_left() {
    let cycles = setting("DURAHUB_BANK_CYCLES").unwrap_or(20);
    let seed = setting("DURAHUB_BANK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let repeat =
        format!("DURAHUB_BANK_SEED={seed} DURAHUB_BANK_CYCLES={cycles} cargo test --test bank");
    let began = Instant::now();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut server = TestServer::start().await;
    let address = server.addresses.grpc.to_string();
    let (gateways, ledger) = (Arc::<Gateways>::default(), Arc::<Ledger>::default());
    gateways.add(1, channel(&address));

    let mut tellers = JoinSet::new();
    for number in 0..TELLERS {
        let (gateways, ledger, random) =
            (Arc::clone(&gateways), Arc::clone(&ledger), random.fork());
        tellers.spawn(async move {
            books::serve(&gateways, &ledger, random, (number, PAUSE)).await;
        });
    }
    // Each with a connection of its own.
    let worker = |random: &mut fastrand::Rng| {
        tokio::spawn(worker::run(channel(&address), Arc::clone(&ledger), random.fork()))
    };
    let mut workers: Vec<_> = (0..WORKERS).map(|_| worker(&mut random)).collect();
    for _ in 0..cycles {
        let life = Instant::now() + Duration::from_millis(random.u64(LIFE));
        while Instant::now() < life {
            tokio::time::sleep(Duration::from_millis(random.u64(20..200))).await;
            // Its process is gone, with all that it had in hand.
            let number = random.usize(..WORKERS);
            workers[number].abort();
            workers[number] = worker(&mut random);
        }
        server.restart_same_ports().await;
        assert_eq!(ledger.violations(), [""; 0], "to repeat: {repeat}");
    }
    ledger.end_load();
    while tellers.join_next().await.transpose().expect("a teller panicked").is_some() {}

    let problems = books::settle(&gateways, &ledger, DRAIN).await;
    let (payments, transfers) = ledger.books.count();
    eprintln!(
        "seed {seed}: {cycles} kills, {payments} payments, {transfers} transfers in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    let problems: Vec<_> = ledger.violations().into_iter().chain(problems).take(20).collect();
    assert!(problems.is_empty(), "{}\nto repeat: {repeat}", problems.join("\n"));
    assert!(transfers as u64 > cycles && payments as u64 > cycles, "hardly any load");
    workers.iter().for_each(|worker| worker.abort());
}
