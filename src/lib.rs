//! Durahub.

pub mod bench;
