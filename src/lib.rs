//! Durahub: a self-hosted scheduler for durable orchestrations.
//!
//! A library with a thin binary. The modules below are the rooms of the program, in reading order; who may
//! name whom is written in `tests/architecture/rooms.rs` and checked by `tests/architecture.rs`.

pub mod config;

pub mod clock;
pub mod health;
pub mod telemetry;

pub mod banner;
pub mod http;
pub mod listen;
pub mod panics;
pub mod server;
pub mod shutdown;

pub mod cli;
