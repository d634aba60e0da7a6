//! The programs of `tests/sdk.rs`, unchanged, against a cluster of three nodes behind a load balancer: every
//! connection goes to another gateway, so workers and clients of one program are at different ones.

#![allow(clippy::print_stderr)] // that a test was skipped must be seen

/// Nodes of the server.
const NODES: usize = 3;

#[path = "support/ports.rs"]
#[allow(unreachable_pub)]
mod ports;
#[path = "sdk/suite.rs"]
mod suite;
