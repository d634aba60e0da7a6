//! Real programs of the public SDKs, run unmodified against the real server.
//!
//! The programs stand in `tests/sdk/python` and `tests/sdk/javascript`, the list of them in `tests/sdk/suite.rs`.
//! The SDKs are installed from PyPI and npm into `target/sdk`, at the versions that `requirements.txt` and
//! `package-lock.json` pin, and installed again only when those change.
//!
//! A machine without python3 or node fails these tests, unless `DURAHUB_SKIP_SDK=1` says to skip them.
//!
//! Some programs run a second time, over TLS and with a token that a credential of the SDK hands out.
//!
//! One program alone: `cargo test --test sdk python::chain`.

#![allow(clippy::print_stderr)] // that a test was skipped must be seen

/// Nodes of the server.
const NODES: usize = 1;

#[path = "support/ports.rs"]
#[allow(dead_code, unreachable_pub)]
mod ports;
#[path = "sdk/secured.rs"]
mod secured;
#[path = "support/security.rs"]
#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
mod security;
#[path = "sdk/suite.rs"]
mod suite;
