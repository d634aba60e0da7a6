//! Messages to other instances: a row from the command that sent them until they are delivered.
//!
//! The engine does not know which partition holds an instance. It writes messages into the *outbox* in the
//! order in which they were sent; the courier (in `dispatch`) carries them over, and `Deliver` there drops
//! what it has seen before. Every message goes that way, to an instance of the same partition too; only
//! what an instance sends to itself does not travel.

use durahub_proto::{Text, wire};

use super::{Address, Holder, Item, LockRequest, Operation, Place};

/// A message on its way.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MessageRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Number of the hub of sender and receiver.
    #[prost(uint32, tag = "2")]
    pub hub: u32,
    /// The receiver.
    #[prost(string, tag = "3")]
    pub instance: String,
    /// What it says; `None` is of a kind that this version does not know, and is dropped.
    #[prost(oneof = "Body", tags = "4, 5, 6, 7, 8, 10, 11, 12, 13, 14")]
    pub body: Option<Body>,
}

impl MessageRecord {
    /// The receiver.
    pub fn to(&self) -> Address {
        Address::new(self.hub, self.instance.clone())
    }
}

/// What a message says. Tags up to 29 are kept for entities.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Body {
    /// Start an orchestration, usually a child.
    #[prost(message, tag = "4")]
    Start(StartMessage),
    /// A child has ended, or could not be started.
    #[prost(message, tag = "5")]
    ChildEnded(ChildEnded),
    /// An external event.
    #[prost(message, tag = "6")]
    Raise(wire::EventRaisedEvent),
    /// A request to end.
    #[prost(message, tag = "7")]
    Terminate(TerminateMessage),
    /// The parent was rewound: see to it that this child answers it (R4.77).
    #[prost(message, tag = "8")]
    Rewind(RewindMessage),
    /// An operation for an entity.
    #[prost(message, tag = "10")]
    Operation(OperationMessage),
    /// An operation was carried out, or failed: the answer to its caller.
    #[prost(message, tag = "11")]
    OperationEnded(OperationEnded),
    /// A request for the lock of an entity.
    #[prost(message, tag = "12")]
    Lock(LockRequest),
    /// All locks of a set are held.
    #[prost(message, tag = "13")]
    LockGranted(Holder),
    /// A lock is given back, or a request for it is withdrawn.
    #[prost(message, tag = "14")]
    Release(ReleaseMessage),
}

/// The start of an orchestration.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StartMessage {
    /// Name, version, input, tags and trace context; the id is that of the receiver.
    #[prost(message, required, tag = "1")]
    pub request: wire::CreateInstanceRequest,
    /// Who wants the answer, if anybody does.
    #[prost(message, optional, tag = "2")]
    pub parent: Option<Parent>,
}

/// A parent as its child knows it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Parent {
    /// What stands in the child's `executionStarted` (R4.34).
    #[prost(message, required, tag = "1")]
    pub info: wire::ParentInstanceInfo,
    /// The child's number among the parent's items.
    #[prost(message, required, tag = "2")]
    pub link: Link,
}

impl Parent {
    /// The parent's id.
    pub fn instance(&self) -> &str {
        self.info.orchestration_instance.as_ref().map_or("", |parent| &parent.instance_id)
    }
}

/// Names one child of one generation of its parent; a child started again under the same id has another.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct Link {
    /// Generation of the parent.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// Number of the child in that generation.
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

impl Link {
    /// Where the parent at `at` keeps the row of this child.
    pub fn item(self, at: Address) -> Item {
        Item { at, generation: self.generation, number: self.number }
    }
}

/// The one answer of a child (R4.39).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ChildEnded {
    /// Which child.
    #[prost(message, required, tag = "1")]
    pub link: Link,
    /// Its output.
    #[prost(message, optional, tag = "2")]
    pub result: Option<Text>,
    /// Why it failed; present exactly when it did not complete.
    #[prost(message, optional, tag = "3")]
    pub failure: Option<wire::TaskFailureDetails>,
}

/// A request to end, by an action or by the end of a parent.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TerminateMessage {
    /// The output to end with.
    #[prost(message, optional, tag = "1")]
    pub output: Option<Text>,
    /// Whether the receiver's children are to end too (R2.51).
    #[prost(bool, tag = "2")]
    pub recurse: bool,
    /// From a parent: it means only its own child, and goes through one that has ended.
    #[prost(message, optional, tag = "3")]
    pub from: Option<FromParent>,
}

/// The sender of a message to a child.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FromParent {
    /// The parent's id.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// The child, as its head knows it.
    #[prost(message, required, tag = "2")]
    pub link: Link,
}

/// What a rewound parent asks of a child that has not answered.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RewindMessage {
    /// How to start the child anew if it is gone, and the link that it shall have from now on.
    #[prost(message, required, tag = "1")]
    pub start: StartMessage,
    /// The link that it has had.
    #[prost(message, required, tag = "2")]
    pub before: Link,
    /// The reason of the rewind.
    #[prost(message, optional, tag = "3")]
    pub reason: Option<Text>,
}

/// An operation for an entity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperationMessage {
    /// The operation.
    #[prost(message, required, tag = "1")]
    pub operation: Operation,
    /// When it may be carried out, in nanoseconds since the Unix epoch; unset means at once (R5.16).
    #[prost(int64, optional, tag = "2")]
    pub due: Option<i64>,
}

/// The one answer to a call (R5.18).
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperationEnded {
    /// Generation of the caller.
    #[prost(uint64, tag = "1")]
    pub generation: u64,
    /// The id that the caller gave the call.
    #[prost(string, tag = "2")]
    pub request_id: String,
    /// The output; unset and empty kept apart.
    #[prost(message, optional, tag = "3")]
    pub output: Option<Text>,
    /// Why it failed; present exactly when it did.
    #[prost(message, optional, tag = "4")]
    pub failure: Option<wire::TaskFailureDetails>,
}

/// The end of a critical section, for one entity or for a whole set.
///
/// While a request may still be under way, nobody but the entities that it passed know how far it has come.
/// Then its end follows it on the same way, from entity to entity, and cannot overtake it: messages between
/// two partitions stay in order.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ReleaseMessage {
    /// Whose locks and requests these are.
    #[prost(message, required, tag = "1")]
    pub holder: Holder,
    /// The way of the request, for one that may be under way; empty if the message means its receiver only.
    #[prost(string, repeated, tag = "2")]
    pub set: Vec<String>,
    /// Which entity of the set the receiver is.
    #[prost(uint32, tag = "3")]
    pub position: u32,
}

/// How far a partition has taken in what another one sent: messages up to this place came before.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct DeliveredRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Sequence of the last message's place in the outbox of its sender.
    #[prost(uint64, tag = "2")]
    pub sequence: u64,
    /// Its sub-place.
    #[prost(uint32, tag = "3")]
    pub sub: u32,
}

impl DeliveredRecord {
    /// The place of the last message.
    pub fn place(self) -> Place {
        Place { sequence: self.sequence, sub: self.sub }
    }
}
