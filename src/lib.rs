//! Durahub: a self-hosted, Raft-replicated scheduler for durable orchestrations.

pub mod engine;
