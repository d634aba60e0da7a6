//! Open activities: a row exists from the turn that scheduled it until its result is in.

use std::collections::BTreeMap;

use durahub_proto::{Text, wire};

/// An activity that nobody has answered yet.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TaskRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The id that the worker gave the action; repeats within an instance (R3.34).
    #[prost(int32, tag = "2")]
    pub task_id: i32,
    /// Name of the activity.
    #[prost(string, tag = "3")]
    pub name: String,
    /// Version of the action, unset and empty kept apart.
    #[prost(message, optional, tag = "4")]
    pub version: Option<Text>,
    /// The payload.
    #[prost(message, optional, tag = "5")]
    pub input: Option<Text>,
    /// Trace context of the action, or that of the generation (R6.3, R6.15).
    #[prost(message, optional, tag = "6")]
    pub trace: Option<wire::TraceContext>,
    /// Tags of the action.
    #[prost(btree_map = "string, string", tag = "7")]
    pub tags: BTreeMap<String, String>,
    /// Execution id of the generation that scheduled it.
    #[prost(string, tag = "8")]
    pub execution_id: String,
    /// Version that worker filters compare: the action's if set, else the orchestration's (R3.13).
    #[prost(string, tag = "9")]
    pub filter_version: String,
    /// When it was scheduled, in nanoseconds since the Unix epoch.
    #[prost(int64, tag = "10")]
    pub scheduled: i64,
}
