//! A cluster of real processes on loopback, under load, and everything that can happen to it.
//!
//! - [`kills`]: `kill -9` of any node and of leaders, pauses, a lost majority;
//! - [`cuts`]: links between nodes that deliver nothing, in one direction or both;
//! - [`changes`]: restarts one by one, nodes that come, go and are replaced;
//! - [`feeds`]: work of all leaders at any gateway;
//! - [`moves`]: leaders that move as planned, with work in hand;
//! - [`parts`]: five nodes of which three hold each partition;
//! - [`refusals`]: who is not let in;
//! - [`retention`]: ended instances go, whoever leads;
//! - [`idle`]: what a cluster costs that does nothing (by hand).
//!
//! All of them record the calls of their load and end with the one checker of `tests/support/record/`, which
//! lists what must hold. Beside it no node may log an error, and no two may lead in one term. Figures go to
//! standard error; limits in seconds are asserted only when `DURAHUB_CLUSTER_MEASURE` is set, since a test
//! machine may be busy with something else. The rolling restart then also tells latencies before, during and after.
//!
//! `DURAHUB_CLUSTER_KILLS`: kills of the first test (default 4); `DURAHUB_CLUSTER_ROUNDS`: rounds of cuts and
//! restarts (default 1); `DURAHUB_TEST_BINARY`: a server to test in place of the debug build.

#![allow(clippy::unwrap_used)]

mod changes;
mod cuts;
mod feeds;
mod idle;
mod kills;
mod links;
mod load;
mod moves;
mod nodes;
mod parts;
#[path = "../support/record/mod.rs"]
mod record;
mod refusals;
mod retention;
#[path = "../support/mod.rs"]
mod support;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number"))
}

/// Whether limits in seconds are held against what is measured.
fn measures() -> bool {
    std::env::var_os("DURAHUB_CLUSTER_MEASURE").is_some()
}
