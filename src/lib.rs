//! Durahub.
