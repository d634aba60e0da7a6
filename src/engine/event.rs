//! Two kinds of events.
//!
//! [`Event`] is what a command did to the partition, past tense; `evolve` turns each into rows. The
//! functions below make the wire's own history events, which an instance's history consists of.

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::{Text, wire};
use prost::Message as _;
use prost::encoding::{DecodeContext, decode_key, skip_field};

use super::state::{
    Address, ChildRecord, DeletedHubRecord, EntityRecord, Holder, HubRecord, InstanceRecord, Item,
    Leftover, MessageRecord, Place, Spot, TaskRecord, TimerRecord, Waiting,
};
use super::time::{nanos, timestamp};

/// What a command did.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A task hub came to be.
    HubCreated {
        /// Its name.
        name: String,
        /// The hub.
        hub: HubRecord,
    },
    /// Something else shall hold for how long ended instances of a hub stay.
    RetentionSet {
        /// Its name.
        name: String,
        /// The hub.
        hub: HubRecord,
    },
    /// A generation is gone: its history, and the tasks, timers and children it had before this command.
    GenerationDiscarded {
        /// The instance.
        at: Address,
        /// The generation.
        generation: u64,
        /// Its history is too long to go at once: it is swept later.
        later: bool,
    },
    /// An instance is gone.
    InstanceRemoved {
        /// The instance.
        at: Address,
        /// Its last generation.
        generation: u64,
        /// It has too many rows to go at once: those besides its head are swept later.
        later: bool,
    },
    /// Some rows of what was left were removed.
    LeftoverSwept {
        /// What was left.
        leftover: Leftover,
        /// The rows.
        keys: Vec<Vec<u8>>,
        /// These were the last of it.
        done: bool,
    },
    /// The name of a task hub is free; its number is to be cleared.
    HubDeleted {
        /// The hub.
        hub: DeletedHubRecord,
    },
    /// A partition takes nothing new for a deleted hub.
    HubClosed {
        /// Its number.
        hub: u32,
    },
    /// No partition has anything of a deleted hub.
    HubForgotten {
        /// Its number.
        id: u32,
    },
    /// The head of an instance was written.
    InstanceWritten {
        /// The instance.
        at: Address,
        /// Its new head.
        record: Box<InstanceRecord>,
    },
    /// An event arrived in an inbox.
    EventReceived {
        /// The instance.
        at: Address,
        /// Its place in the inbox.
        place: Place,
        /// The encoded history event.
        event: Bytes,
    },
    /// An inbox event became history, or was dropped.
    EventTaken {
        /// The instance.
        at: Address,
        /// Its place in the inbox.
        place: Place,
    },
    /// Events were appended to a history.
    HistoryAppended {
        /// The instance.
        at: Address,
        /// Its generation.
        generation: u64,
        /// Index of the first of them.
        first: u32,
        /// The encoded events.
        events: Vec<Bytes>,
    },
    /// An activity was scheduled.
    TaskOpened {
        /// The activity.
        item: Item,
        /// What a worker will be handed.
        task: Box<TaskRecord>,
    },
    /// An activity was answered, or is no longer wanted.
    TaskClosed {
        /// The activity.
        item: Item,
    },
    /// A timer was armed.
    TimerArmed {
        /// The timer.
        item: Item,
        /// What it does.
        timer: TimerRecord,
    },
    /// A timer fired or was dropped.
    TimerCleared {
        /// The timer.
        item: Item,
        /// When it was due.
        due: i64,
    },
    /// A child was asked for, or has answered.
    ChildWritten {
        /// The child, as an item of its parent.
        item: Item,
        /// What the parent knows of it.
        child: ChildRecord,
    },
    /// A message went into the outbox.
    MessageSent {
        /// Its place there.
        place: Place,
        /// The message.
        message: Box<MessageRecord>,
    },
    /// A message left the outbox: it was delivered.
    MessageDelivered {
        /// Its place there.
        place: Place,
    },
    /// All messages of a partition up to this one came.
    MessagesTaken {
        /// Number of the sending partition.
        from: u32,
        /// Place of the last one in the outbox of its sender.
        through: Place,
    },
    /// The head of an entity was written.
    EntityWritten {
        /// The entity.
        at: Address,
        /// Its new head.
        record: Box<EntityRecord>,
    },
    /// Nothing is left of an entity.
    EntityRemoved {
        /// The entity.
        at: Address,
    },
    /// The state of an entity was written, or is gone.
    EntityStateWritten {
        /// The entity.
        at: Address,
        /// Its new state.
        state: Option<Text>,
    },
    /// Something waits for an entity.
    WaitBegan {
        /// The entity.
        at: Address,
        /// The place in its queue.
        spot: Spot,
        /// What waits.
        waiting: Box<Waiting>,
    },
    /// Something no longer waits for an entity.
    WaitEnded {
        /// The entity.
        at: Address,
        /// The place in its queue.
        spot: Spot,
        /// Whose lock request it was, if it was one.
        holder: Option<Box<Holder>>,
    },
    /// A request came that must not take effect again for a while (R5.14).
    RequestSeen {
        /// The entity.
        at: Address,
        /// The period in which it came.
        period: u32,
        /// Its id.
        id: String,
    },
    /// Rows of the entities of a deleted hub went.
    EntityRowsSwept {
        /// Their keys.
        keys: Vec<Vec<u8>>,
    },
    /// Requests that came long ago are forgotten.
    RequestsForgotten {
        /// Keys of their rows.
        keys: Vec<Vec<u8>>,
    },
}

/// Id of events that no action created (R4.3).
pub(crate) const NO_ID: i32 = -1;
/// Id of `executionStarted` (R4.3).
pub(crate) const START_ID: i32 = 0;

/// A history event, encoded.
pub(crate) fn history(id: i32, now: i64, event: EventType) -> Bytes {
    wire::HistoryEvent { event_id: id, timestamp: Some(timestamp(now)), event_type: Some(event) }
        .encode_to_vec()
        .into()
}

/// `orchestratorStarted`: begins a turn and sets the orchestration's clock.
pub(crate) fn orchestrator_started(clock: i64) -> Bytes {
    history(NO_ID, clock, EventType::OrchestratorStarted(wire::OrchestratorStartedEvent {}))
}

/// What an encoded event means for the counts of its instance. Told by its field, without decoding it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    /// Answers an activity, a timer or a child.
    Answer,
    /// An external event.
    Raised,
    /// Anything else.
    Other,
}

impl Sort {
    pub(crate) fn of(event: &Bytes) -> Sort {
        let mut rest = event.clone();
        while let Ok((field, form)) = decode_key(&mut rest) {
            match field {
                7 | 8 | 10 | 11 | 13 => return Sort::Answer,
                17 => return Sort::Raised,
                3.. => return Sort::Other,
                _ => {}
            }
            if skip_field(form, field, &mut rest, DecodeContext::default()).is_err() {
                break;
            }
        }
        Sort::Other
    }
}

/// When an encoded event happened, in nanoseconds since the Unix epoch; 0 if it does not say.
pub(crate) fn time_of(event: &Bytes) -> i64 {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Head {
        #[prost(message, optional, tag = "2")]
        timestamp: Option<prost_types::Timestamp>,
    }
    let head = Head::decode(event.clone()).ok();
    head.and_then(|head| head.timestamp).as_ref().map_or(0, nanos)
}

/// Failure details that the server itself makes up.
pub(crate) fn failure(kind: &str, message: impl Into<String>) -> wire::TaskFailureDetails {
    wire::TaskFailureDetails {
        error_type: kind.to_owned(),
        error_message: message.into(),
        is_non_retriable: true,
        ..Default::default()
    }
}

/// `executionCompleted`.
pub(crate) fn execution_completed(
    id: i32,
    now: i64,
    status: wire::OrchestrationStatus,
    result: Option<Text>,
    failure_details: Option<wire::TaskFailureDetails>,
) -> Bytes {
    let event = wire::ExecutionCompletedEvent {
        orchestration_status: status.into(),
        result,
        failure_details,
    };
    history(id, now, EventType::ExecutionCompleted(event))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_and_times_are_read_without_decoding() {
        let completed = EventType::TaskCompleted(wire::TaskCompletedEvent::default());
        let failed = EventType::TaskFailed(wire::TaskFailedEvent::default());
        let fired = EventType::TimerFired(wire::TimerFiredEvent::default());
        let child = EventType::SubOrchestrationInstanceCompleted(Default::default());
        let lost = EventType::SubOrchestrationInstanceFailed(Default::default());
        for answer in [completed, failed, fired, child, lost] {
            assert_eq!(Sort::of(&history(NO_ID, 5, answer.clone())), Sort::Answer, "{answer:?}");
        }
        let raised = EventType::EventRaised(wire::EventRaisedEvent::default());
        assert_eq!(Sort::of(&history(NO_ID, 5, raised.clone())), Sort::Raised);
        assert_eq!(Sort::of(&orchestrator_started(7)), Sort::Other);
        assert_eq!(Sort::of(&Bytes::from_static(b"\xff\xff")), Sort::Other);
        assert_eq!(time_of(&history(NO_ID, 5, raised)), 5);
        assert_eq!(time_of(&Bytes::new()), 0);
    }
}
