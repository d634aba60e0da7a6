//! Whole nodes of a small machine: alone and in threes, killed, cut off, coming and going.
//!
//! One target for all of them: each one would compile the replication of that machine anew.

#![allow(clippy::unwrap_used)]

mod crash;
mod divergence;
mod membership;
mod network;
mod parts;
mod program;
mod routing;
mod single;
mod support;
mod three;
