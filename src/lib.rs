//! Durahub: a self-hosted, Raft-replicated scheduler for durable orchestrations.
//!
//! A library with a thin binary. The modules below are the rooms of the program, in reading order; who may
//! name whom is written in `tests/architecture/rooms.rs` and checked by `tests/architecture.rs`.

pub mod engine;

pub mod machine;

pub mod dispatch;

pub mod gateway;

pub mod config;

pub mod access;
pub mod pressure;
pub mod throttle;
pub mod tls;

pub mod clock;
pub mod health;
pub mod spans;
pub mod telemetry;

pub mod banner;
mod connections;
pub mod http;
pub mod listen;
pub mod panics;
mod reload;
mod reloading;
mod security;
pub mod server;
pub mod shutdown;

pub mod bench;
pub mod cli;
pub mod dial;
