//! Reading and removing over gRPC against the real binary: lists, histories, purges, task hubs.

#[path = "reading/hubs.rs"]
mod hubs;
#[path = "reading/lists.rs"]
mod lists;
#[path = "reading/one.rs"]
mod one;
#[path = "reading/removal.rs"]
mod removal;
#[path = "reading/retention.rs"]
mod retention;
#[path = "reading/scale.rs"]
mod scale;
#[path = "reading/scaler.rs"]
mod scaler;
mod support;
