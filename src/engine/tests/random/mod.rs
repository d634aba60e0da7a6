//! Random programs against a small reference model.
//!
//! A case is a seed: it draws a few dozen steps (starts, turns, results, events, timers, suspensions, time),
//! tells the engine, and holds what can be seen against the [`model`], which knows nothing of rows: only what
//! was accepted, and what must follow from that. Every case ends by letting all that is open finish, by
//! sending everything that was accepted a second time, and by running its log again.
//!
//! A failing case prints its seed; `DURAHUB_CASE=<seed> cargo test --lib engine::tests::random` runs it alone.

mod draw;
mod model;
mod program;

use std::panic::{AssertUnwindSafe, catch_unwind};

use self::program::Program;

/// Cases of a normal test run.
const CASES: u64 = 12_000;
/// Steps of a case, before it is brought to an end.
const STEPS: u64 = 40;

/// Shows S2 to S8 of architecture.md and, of the contract, R2.31, R2.40, R2.43, R3.17 to R3.19, R3.24 to R3.27,
/// R3.54, R3.57, R3.58, R3.60, R4.1, R4.3, R4.5, R4.6, R4.9, R4.10, R4.16 to R4.20, R4.26, R4.29, R4.46, R4.48,
/// R4.52, R4.56, R4.64, R4.67.
#[test]
#[allow(clippy::disallowed_methods, reason = "a test may be told which case to run")]
fn random_programs_agree_with_the_model() {
    let only = std::env::var("DURAHUB_CASE").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..CASES, |seed: u64| seed..seed + 1);
    let mut seen = draw::Seen::default();
    for seed in seeds {
        let case = AssertUnwindSafe(|| run(seed));
        match catch_unwind(case) {
            Ok(case) => seen.add(&case),
            Err(panic) => {
                eprintln!("DURAHUB_CASE={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // A generator that never gets anywhere shows nothing.
    if only.is_none() {
        seen.check(CASES);
    }
}

fn run(seed: u64) -> draw::Seen {
    let mut program = Program::new(seed);
    for _ in 0..STEPS {
        program.step();
    }
    program.finish();
    program.seen
}
