//! What integration tests stand on: a real server process, a plain client, a scripted worker.
//!
//! Use it with `mod support;` and then:
//! - [`server::TestServer`] runs the real binary on a folder of its own, kills and restarts it;
//! - [`client::Client`] makes the calls that an application makes, in one line each;
//! - [`ports`] finds addresses that stay a server's own;
//! - [`worker::Worker`] is a worker under the test's control, one item at a time;
//! - [`program::Program`] is a worker that runs by itself, from closures;
//! - [`habits`] run a program as each public SDK would, with its habits;
//! - [`security`] makes certificates and tokens;
//! - [`scaler`] asks how many workers a task hub needs, as KEDA does;
//! - [`actions`] builds the actions of a turn, [`history::History`] reads what a turn is given.
//!
//! Everything panics with the reason when something is not as it should be: this is test code.
//! `tests/support/main.rs` tests this folder against a fake server (`cargo test --test support`).
#![allow(dead_code, unreachable_pub, unused_imports, clippy::unwrap_used, clippy::print_stderr)]

pub mod actions;
pub mod client;
pub mod habits;
pub mod history;
pub mod ports;
pub mod program;
pub mod scaler;
pub mod security;
pub mod server;
pub mod worker;

pub use client::Client;
pub use history::History;
pub use program::Program;
pub use server::TestServer;
pub use worker::{Activity, Worker, WorkerOptions};
