//! What became true: hints for a leader.
//!
//! Followers drop them, and a new leader computes them again from the rows (`read::open_work`), so a lost
//! effect loses nothing and a repeated one does no harm.

use super::state::{Address, Item};
use durahub_proto::wire::OrchestrationStatus;

/// Something that a leader may act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An instance has events that a turn may consume.
    TurnReady {
        /// The instance.
        at: Address,
        /// What worker filters compare.
        class: Class,
    },
    /// An activity waits for a worker.
    ActivityReady {
        /// The activity.
        item: Item,
        /// What worker filters compare.
        class: Class,
    },
    /// An entity has operations that may run.
    EntityReady {
        /// The entity.
        at: Address,
        /// What worker filters compare: the name part of its id.
        class: Class,
    },
    /// A timer is due at that time, in nanoseconds since the Unix epoch.
    TimerSet {
        /// The time.
        due: i64,
    },
    /// A message waits in the outbox.
    MessageSent,
    /// Status, history or existence of an instance changed.
    InstanceChanged {
        /// The instance.
        at: Address,
        /// Its status now.
        status: OrchestrationStatus,
    },
    /// An instance was created. For counting: told once, by whoever led at that moment, and not told again
    /// by `read::open_work`.
    InstanceStarted {
        /// Number of its hub.
        hub: u32,
    },
    /// An instance ended. For counting, as above.
    InstanceEnded {
        /// Number of its hub.
        hub: u32,
        /// How it ended.
        status: OrchestrationStatus,
        /// Nanoseconds since it was created.
        nanos: i64,
    },
    /// An instance is there no more.
    InstanceGone {
        /// The instance.
        at: Address,
    },
    /// In the metadata group: another retention holds for a hub.
    RetentionSet,
    /// Rows were left to be swept; in the metadata group, a hub was deleted.
    SweepDue,
    /// A hub was deleted, and this partition takes nothing new for it.
    HubGone {
        /// Its number.
        hub: u32,
    },
}

/// What worker filters compare (R3.8, R3.10): a name and a version.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    /// Name of the orchestration or activity, as sent.
    pub name: String,
    /// Its version; unset counts as empty.
    pub version: String,
}
