//! Telemetry: what an operator sees of a running node. Logs in [`logs`], metrics in [`metrics`].
//!
//! One vocabulary of span and event fields, in every room and in no other spelling:
//!
//! | Field | Meaning |
//! | --- | --- |
//! | `hub` | name of the task hub |
//! | `partition` | number of the Raft group; 0 is the metadata group |
//! | `instance` | id of the orchestration or entity |
//! | `term`, `index` | place in a group's log |
//! | `request` | name of the call, and its trace id when it carries one |
//!
//! An event is logged where it is handled, once. ERROR means that a person must look; WARN that something
//! was refused or lost and the node carries on; INFO tells the life of a node, not of an instance; DEBUG
//! tells the life of a partition or stream; TRACE may be as loud as it likes. Payloads are never logged.
//!
//! Spans for a collector of traces are a room of their own ([`spans`](crate::spans)); the SDK's own trace context
//! travels as data.

pub mod logs;
pub mod metrics;
