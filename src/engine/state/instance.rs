//! The head of an instance: all that is known of it but its payloads.

use std::collections::BTreeMap;

use durahub_proto::Text;
use durahub_proto::wire::{self, OrchestrationStatus};

use super::message::{Link, Parent};
use super::{Place, Section};

/// The head of an instance, rewritten by every turn.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InstanceRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Name of the orchestration.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its version, unset and empty kept apart (R2.8).
    #[prost(message, optional, tag = "3")]
    pub version: Option<Text>,
    /// As clients see it; never `CONTINUED_AS_NEW` or `CANCELED` (R2.31).
    #[prost(enumeration = "OrchestrationStatus", tag = "4")]
    pub status: i32,
    /// When the create request was accepted, in nanoseconds since the Unix epoch (R4.15).
    #[prost(int64, tag = "5")]
    pub created: i64,
    /// When the last turn was committed; frozen once terminal (R2.29).
    #[prost(int64, tag = "6")]
    pub updated: i64,
    /// When it became terminal.
    #[prost(int64, optional, tag = "7")]
    pub completed: Option<i64>,
    /// The generation as clients know it: 32 hex digits unless a client chose it (R2.12).
    #[prost(string, tag = "8")]
    pub execution_id: String,
    /// The generation as keys know it: sequence of the command that began it.
    #[prost(uint64, tag = "9")]
    pub generation: u64,
    /// The requested start, if one was (R2.6).
    #[prost(message, optional, tag = "10")]
    pub scheduled_start: Option<prost_types::Timestamp>,
    /// Number of the timer that will start it, while it waits for that.
    #[prost(uint64, optional, tag = "11")]
    pub start_timer: Option<u64>,
    /// Tags of the start request (R2.9).
    #[prost(btree_map = "string, string", tag = "12")]
    pub tags: BTreeMap<String, String>,
    /// Who started it, if an orchestration did.
    #[prost(message, optional, tag = "13")]
    pub parent: Option<wire::ParentInstanceInfo>,
    /// Events in the history of this generation.
    #[prost(uint32, tag = "14")]
    pub history_events: u32,
    /// Their size in bytes.
    #[prost(uint64, tag = "15")]
    pub history_bytes: u64,
    /// Index of the first event of the last history row.
    #[prost(uint32, tag = "16")]
    pub last_chunk: u32,
    /// What the last turn reported (R4.86).
    #[prost(message, optional, tag = "17")]
    pub custom_status: Option<Text>,
    /// The orchestration's own span, carried from turn to turn (R6.5).
    #[prost(message, optional, tag = "18")]
    pub span: Option<wire::OrchestrationTraceContext>,
    /// Trace context of the start request (R6.2).
    #[prost(message, optional, tag = "19")]
    pub parent_trace: Option<wire::TraceContext>,
    /// Set while suspended.
    #[prost(message, optional, tag = "20")]
    pub suspension: Option<Suspension>,
    /// A termination waits in the inbox, so it is dispatched even while suspended (R4.70).
    #[prost(bool, tag = "21")]
    pub terminating: bool,
    /// Time of the last `orchestratorStarted`: the next one is later (R3.27).
    #[prost(int64, tag = "22")]
    pub clock: i64,
    /// Number for the next task or timer of this generation.
    #[prost(uint64, tag = "23")]
    pub next_number: u64,
    /// Whether any turn was committed since the instance was started: it is no longer pending (R2.33).
    #[prost(bool, tag = "24")]
    pub has_run: bool,
    /// Which child of its parent it is; set exactly when `parent` is.
    #[prost(message, optional, tag = "30")]
    pub link: Option<Link>,
    /// Set once a termination was processed that its children share (R2.51).
    #[prost(message, optional, tag = "31")]
    pub recursion: Option<Recursion>,
    /// Indices of history events that workers are not shown (R4.82), ascending.
    #[prost(uint32, repeated, tag = "32")]
    pub hidden: Vec<u32>,
    /// An `executionRewound` waits in the inbox: it makes a turn due and is not shown to the worker (R4.83).
    #[prost(bool, tag = "33")]
    pub rewinding: bool,
    /// The critical section that this generation is in or wants to enter (R5.31).
    #[prost(message, optional, tag = "60")]
    pub section: Option<Section>,
    /// External events that wait in the inbox, as far as they are counted.
    #[prost(uint32, tag = "50")]
    pub raised_events: u32,
    /// What this generation asked for and no turn of it has taken an answer to: activities, timers, children.
    #[prost(uint32, tag = "51")]
    pub pending: u32,
    /// The status under which the index rows have it; written by `evolve` only, and never true of a record
    /// that was made anew.
    #[prost(enumeration = "OrchestrationStatus", optional, tag = "40")]
    pub listed: Option<i32>,
}

/// A termination that goes on to the children once their parent has ended.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Recursion {
    /// The output to end with.
    #[prost(message, optional, tag = "1")]
    pub output: Option<Text>,
}

/// A suspension in force. Its place splits the inbox: what came before it, and what is held (R4.69).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Suspension {
    /// Sequence of its place in the inbox.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Sub-place; the one after it is kept for the resumption.
    #[prost(uint32, tag = "2")]
    pub sub: u32,
    /// Whether `executionSuspended` stands in the history or in the inbox already.
    #[prost(bool, tag = "3")]
    pub recorded: bool,
    /// The encoded `executionSuspended`.
    #[prost(bytes = "bytes", tag = "4")]
    pub event: bytes::Bytes,
}

impl Suspension {
    /// Where `executionSuspended` belongs.
    pub fn place(&self) -> Place {
        Place { sequence: self.sequence, sub: self.sub }
    }

    /// Where `executionResumed` belongs.
    pub fn resume_place(&self) -> Place {
        Place { sequence: self.sequence, sub: self.sub + 1 }
    }
}

impl InstanceRecord {
    /// Whether it has ended.
    pub fn is_terminal(&self) -> bool {
        is_terminal(self.status())
    }

    /// Whether waiting events may be handed to a worker (R2.6, R4.64).
    pub fn is_dispatchable(&self) -> bool {
        let held = self.suspension.is_some() && !self.terminating;
        !self.is_terminal() && self.start_timer.is_none() && !held
    }

    /// The parent, if an orchestration wants its answer.
    pub fn parent(&self) -> Option<Parent> {
        Some(Parent { info: self.parent.clone()?, link: self.link? })
    }

    /// Whether it is the child that `parent` knows by that link.
    pub fn is_child(&self, parent: &str, link: Link) -> bool {
        self.parent().is_some_and(|own| own.instance() == parent && own.link == link)
    }

    /// The version that worker filters compare: unset counts as empty (R3.10).
    pub fn filter_version(&self) -> &str {
        self.version.as_ref().map_or("", Text::as_str)
    }
}

/// Whether a status is final until restart, reuse or rewind.
pub fn is_terminal(status: OrchestrationStatus) -> bool {
    use OrchestrationStatus::{Canceled, Completed, Failed, Terminated};
    matches!(status, Completed | Failed | Terminated | Canceled)
}
