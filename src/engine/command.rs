//! What can be asked of the engine. Commands are replicated, so they are kept readable for ever: fields
//! and variants are only added, and `version` tells a changed meaning.

use bytes::Bytes;
use durahub_proto::{Text, wire};
use prost::Message as _;

use super::limits::Limits;
use super::state::{Address, Place};

/// The form of commands written today.
const VERSION: u32 = 1;

/// Time, entropy and place of a command: what the leader attaches, and the only door for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Nanoseconds since the Unix epoch; never runs backwards within a partition.
    pub now: i64,
    /// Entropy, different for every command.
    pub seed: u64,
    /// Grows from command to command within a partition.
    pub sequence: u64,
}

/// A command as it stands in the log.
#[derive(Clone, PartialEq, prost::Message)]
struct Envelope {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(
        oneof = "Command",
        tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22, 23, 24, 25, 26, 40, 41, 42, 43"
    )]
    command: Option<Command>,
    /// Limits that it is judged by, unless they are the usual ones.
    #[prost(message, optional, tag = "30")]
    limits: Option<Limits>,
}

/// One request to a partition (or, for hubs, to the metadata group).
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Command {
    /// Start an orchestration.
    #[prost(message, tag = "2")]
    Start(Start),
    /// Commit an orchestrator turn.
    #[prost(message, tag = "3")]
    CompleteTurn(CompleteTurn),
    /// Fail an instance whose turn cannot be handed to a worker.
    #[prost(message, tag = "4")]
    FailTurn(FailTurn),
    /// Take in the result of an activity.
    #[prost(message, tag = "5")]
    CompleteActivity(CompleteActivity),
    /// Fire what is due.
    #[prost(message, tag = "6")]
    FireTimers(FireTimers),
    /// Bring an external event.
    #[prost(message, tag = "7")]
    RaiseEvent(RaiseEvent),
    /// Ask an instance to end.
    #[prost(message, tag = "8")]
    Terminate(Terminate),
    /// Hold an instance.
    #[prost(message, tag = "9")]
    Suspend(Suspend),
    /// Let a held instance go on.
    #[prost(message, tag = "10")]
    Resume(Resume),
    /// Create a task hub, unless it exists.
    #[prost(message, tag = "11")]
    CreateHub(CreateHub),
    /// Take in messages of another partition, or of the own one.
    #[prost(message, tag = "12")]
    Deliver(Deliver),
    /// Forget messages that were delivered.
    #[prost(message, tag = "13")]
    TruncateOutbox(TruncateOutbox),
    /// Let a failed instance try again.
    #[prost(message, tag = "14")]
    Rewind(Rewind),
    /// Start an ended instance again under its id.
    #[prost(message, tag = "15")]
    Restart(Restart),
    /// Bring an operation to an entity.
    #[prost(message, tag = "40")]
    SignalEntity(SignalEntity),
    /// Commit a batch of operations.
    #[prost(message, tag = "41")]
    CompleteBatch(CompleteBatch),
    /// Fail the operations of a batch that cannot be handed to a worker, or whose result cannot be kept.
    #[prost(message, tag = "42")]
    FailBatch(FailBatch),
    /// Delete the states of entities.
    #[prost(message, tag = "43")]
    PurgeEntities(PurgeEntities),
    /// Delete instances that have ended.
    #[prost(message, tag = "20")]
    Purge(Purge),
    /// Remove some of the rows that a purge or a long generation left.
    #[prost(message, tag = "21")]
    Sweep(Sweep),
    /// End instances at once, without a worker.
    #[prost(message, tag = "22")]
    ForceTerminate(ForceTerminate),
    /// Delete a task hub: its name is free, its instances go bit by bit.
    #[prost(message, tag = "23")]
    DeleteHub(DeleteHub),
    /// Remove some of what a partition has of a deleted hub.
    #[prost(message, tag = "24")]
    ClearHub(ClearHub),
    /// Forget a deleted hub that no partition has anything of.
    #[prost(message, tag = "25")]
    ForgetHub(ForgetHub),
    /// Say how long the ended instances of a task hub stay.
    #[prost(message, tag = "26")]
    SetRetention(SetRetention),
}

impl Command {
    /// The bytes that are replicated, for a command that no limit concerns.
    pub fn into_bytes(self) -> Bytes {
        self.within(&Limits::USUAL)
    }

    /// The bytes that are replicated, with the limits that the command is judged by.
    pub fn within(self, limits: &Limits) -> Bytes {
        let limits = Some(*limits).filter(|limits| *limits != Limits::USUAL);
        Envelope { version: VERSION, command: Some(self), limits }.encode_to_vec().into()
    }

    /// Reads replicated bytes; `None` if they are not a command that this version knows.
    pub(crate) fn from_bytes(bytes: &Bytes) -> Option<(Command, Limits)> {
        let envelope = Envelope::decode(bytes.clone()).ok()?;
        let command = envelope.command.filter(|_| envelope.version == VERSION)?;
        Some((command, envelope.limits.unwrap_or(Limits::USUAL)))
    }
}

/// Start an orchestration (section 2.1).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Start {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request; its `instance_id` is set.
    #[prost(message, required, tag = "2")]
    pub request: wire::CreateInstanceRequest,
}

/// Commit an orchestrator turn, if the history is still the one it was computed from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompleteTurn {
    /// What was handed out.
    #[prost(message, required, tag = "1")]
    pub turn: TurnId,
    /// What the worker wants done.
    #[prost(message, repeated, tag = "2")]
    pub actions: Vec<wire::OrchestratorAction>,
    /// The status text that the worker reports.
    #[prost(message, optional, tag = "3")]
    pub custom_status: Option<Text>,
    /// The orchestration's own span, if the worker made one.
    #[prost(message, optional, tag = "4")]
    pub span: Option<wire::OrchestrationTraceContext>,
    /// How many of the turn's inbox events were processed; unset means all (R3.58).
    #[prost(uint32, optional, tag = "5")]
    pub processed: Option<u32>,
    /// Longest instance id that a child may have, in characters (R2.3, R2.4); 0 is no limit.
    #[prost(uint32, tag = "12")]
    pub id_length: u32,
}

/// Fail an instance because its turn cannot be handed out (R1.27).
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailTurn {
    /// What would have been handed out.
    #[prost(message, required, tag = "1")]
    pub turn: TurnId,
    /// Why not, in words for the user.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// A turn: the exact history and inbox prefix that a worker computes from.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct TurnId {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instance.
    #[prost(string, tag = "2")]
    pub instance: String,
    /// Its generation.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// How many events the history had.
    #[prost(uint32, tag = "4")]
    pub history_events: u32,
    /// Place of the last inbox event of the turn.
    #[prost(uint64, tag = "5")]
    pub through_sequence: u64,
    /// Its sub-place.
    #[prost(uint32, tag = "6")]
    pub through_sub: u32,
    /// Time of its `orchestratorStarted`, in nanoseconds since the Unix epoch.
    #[prost(int64, tag = "7")]
    pub clock: i64,
    /// How many inbox events it has.
    #[prost(uint32, tag = "8")]
    pub inbox_events: u32,
}

impl TurnId {
    /// Whose turn it is.
    pub fn at(&self) -> Address {
        Address::new(self.hub, self.instance.clone())
    }

    /// The last inbox event of the turn.
    pub fn through(&self) -> Place {
        Place { sequence: self.through_sequence, sub: self.through_sub }
    }
}

/// Take in the result of an activity, if it is still open.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompleteActivity {
    /// The activity.
    #[prost(message, required, tag = "1")]
    pub task: TaskId,
    /// Its result; unset and empty kept apart (R3.59).
    #[prost(message, optional, tag = "2")]
    pub result: Option<Text>,
    /// Its failure; present exactly when it failed.
    #[prost(message, optional, tag = "3")]
    pub failure: Option<wire::TaskFailureDetails>,
}

/// A scheduled activity.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct TaskId {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instance that scheduled it.
    #[prost(string, tag = "2")]
    pub instance: String,
    /// The generation that scheduled it.
    #[prost(uint64, tag = "3")]
    pub generation: u64,
    /// Its number in the generation.
    #[prost(uint64, tag = "4")]
    pub number: u64,
}

/// Fire the timers of the partition that are due.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct FireTimers {
    /// Nanoseconds since the Unix epoch; a timer due later stays, whatever this says (R4.46).
    #[prost(int64, tag = "1")]
    pub up_to: i64,
}

/// Bring an external event (section 2.4).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RaiseEvent {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request.
    #[prost(message, required, tag = "2")]
    pub request: wire::RaiseEventRequest,
}

/// Ask an instance to end (section 2.5).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Terminate {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request.
    #[prost(message, required, tag = "2")]
    pub request: wire::TerminateRequest,
}

/// Hold an instance (section 2.6).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Suspend {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request.
    #[prost(message, required, tag = "2")]
    pub request: wire::SuspendRequest,
}

/// Let a held instance go on (section 2.6).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resume {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request.
    #[prost(message, required, tag = "2")]
    pub request: wire::ResumeRequest,
}

/// Take in messages, each once in effect, in the order in which they were sent (S7).
///
/// Messages of one sender to one receiver have ascending places, and none is sent before the ones ahead of
/// it were answered; so one place per sending partition tells what came before.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Deliver {
    /// Number of the sending partition.
    #[prost(uint32, tag = "1")]
    pub from: u32,
    /// The messages, in the order of their places.
    #[prost(message, repeated, tag = "2")]
    pub messages: Vec<Delivery>,
}

/// One message of a delivery.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Delivery {
    /// Sequence of its place in the outbox of its sender.
    #[prost(uint64, tag = "1")]
    pub sequence: u64,
    /// Its sub-place.
    #[prost(uint32, tag = "2")]
    pub sub: u32,
    /// The encoded `MessageRecord`.
    #[prost(bytes = "bytes", tag = "3")]
    pub message: Bytes,
}

impl Delivery {
    /// The message that stands at `place` in the outbox.
    pub fn new(place: Place, message: Bytes) -> Delivery {
        Delivery { sequence: place.sequence, sub: place.sub, message }
    }

    /// Its place in the outbox of its sender.
    pub fn place(&self) -> Place {
        Place { sequence: self.sequence, sub: self.sub }
    }
}

/// Forget messages that were delivered: exactly those, since others before them may still wait.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TruncateOutbox {
    /// Sequences of their places.
    #[prost(uint64, repeated, tag = "1")]
    pub sequences: Vec<u64>,
    /// Their sub-places.
    #[prost(uint32, repeated, tag = "2")]
    pub subs: Vec<u32>,
}

impl TruncateOutbox {
    /// Forget the messages at `places`.
    pub fn new(places: impl IntoIterator<Item = Place>) -> TruncateOutbox {
        let (sequences, subs) = places.into_iter().map(|place| (place.sequence, place.sub)).unzip();
        TruncateOutbox { sequences, subs }
    }

    /// The places.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        let pairs = self.sequences.iter().zip(&self.subs);
        pairs.map(|(sequence, sub)| Place { sequence: *sequence, sub: *sub })
    }
}

/// Let a failed instance try again (section 2.7).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rewind {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request.
    #[prost(message, required, tag = "2")]
    pub request: wire::RewindInstanceRequest,
}

/// Start an ended instance again under its id (section 2.8).
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct Restart {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instance.
    #[prost(string, tag = "2")]
    pub instance: String,
}

/// Bring an operation to an entity (R2.99).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SignalEntity {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The request; its `instance_id` is an entity id as [`entity_id`](super::state::entity_id) writes it.
    #[prost(message, required, tag = "2")]
    pub request: wire::SignalEntityRequest,
}

/// A batch: the operations at the beginning of an entity's queue, and the state they were computed from.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct BatchId {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The entity.
    #[prost(string, tag = "2")]
    pub instance: String,
    /// Version of its state.
    #[prost(uint64, tag = "3")]
    pub version: u64,
    /// How many operations there are.
    #[prost(uint32, tag = "4")]
    pub count: u32,
    /// Sequence of the place of the last one.
    #[prost(uint64, tag = "5")]
    pub through_sequence: u64,
    /// Its sub-place.
    #[prost(uint32, tag = "6")]
    pub through_sub: u32,
}

impl BatchId {
    /// Which entity it is of.
    pub fn at(&self) -> Address {
        Address::new(self.hub, self.instance.clone())
    }

    /// Place of the last operation.
    pub fn through(&self) -> Place {
        Place { sequence: self.through_sequence, sub: self.through_sub }
    }
}

/// Commit a batch (section 3.12), if its operations still wait and the state is the one it was computed from.
#[derive(Clone, PartialEq, prost::Message)]
pub struct CompleteBatch {
    /// What was handed out.
    #[prost(message, required, tag = "1")]
    pub batch: BatchId,
    /// One result per operation, from the first on; operations without one run again (R3.71).
    #[prost(message, repeated, tag = "2")]
    pub results: Vec<wire::OperationResult>,
    /// What else is to be done, in order (R3.74).
    #[prost(message, repeated, tag = "3")]
    pub actions: Vec<wire::OperationAction>,
    /// The state from now on; unset means none (R3.70).
    #[prost(message, optional, tag = "4")]
    pub state: Option<Text>,
    /// Why the operations without a result have none, if the batch failed (R3.73).
    #[prost(message, optional, tag = "5")]
    pub failure: Option<wire::TaskFailureDetails>,
    /// Longest instance id, in characters, that an action may name; 0 is no limit.
    #[prost(uint32, tag = "6")]
    pub id_length: u32,
}

/// Delete the states of entities (R2.90).
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct PurgeEntities {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The entities.
    #[prost(string, repeated, tag = "2")]
    pub instances: Vec<String>,
}

/// Fail the first operations of a batch. The state stays as it is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct FailBatch {
    /// What would have been handed out, or was.
    #[prost(message, required, tag = "1")]
    pub batch: BatchId,
    /// Why, in words for the user.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Create a task hub in the metadata group.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct CreateHub {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Delete the one of that name first, with all that it has (R2.97).
    #[prost(bool, tag = "20")]
    pub recreate: bool,
}

/// Delete instances that have ended (section 2.11). An instance that does not fulfil all conditions, or is
/// not there, is left out.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Purge {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instances, all of this partition; how many bounds what the command costs.
    #[prost(message, repeated, tag = "2")]
    pub targets: Vec<Target>,
    /// Only with one of these statuses; empty means any terminal one.
    #[prost(enumeration = "wire::OrchestrationStatus", repeated, tag = "3")]
    pub statuses: Vec<i32>,
    /// Only if created then or later, in nanoseconds since the Unix epoch.
    #[prost(int64, optional, tag = "4")]
    pub created_from: Option<i64>,
    /// Only if created before.
    #[prost(int64, optional, tag = "5")]
    pub created_before: Option<i64>,
    /// Only if ended before: the cut-off of retention.
    #[prost(int64, optional, tag = "6")]
    pub ended_before: Option<i64>,
}

/// An instance that is meant.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct Target {
    /// Its id.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// Only in this generation; 0 means any.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// Remove some of the rows that a purge or a long generation left in this partition.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct Sweep {}

/// End instances at once, without a worker (R2.98).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForceTerminate {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
    /// The instances, all of this partition.
    #[prost(string, repeated, tag = "2")]
    pub instances: Vec<String>,
    /// Their output.
    #[prost(message, optional, tag = "3")]
    pub reason: Option<Text>,
}

/// Delete a task hub, in the metadata group.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct DeleteHub {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// Remove some of what a partition has of a deleted hub, and take nothing new for it.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct ClearHub {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub hub: u32,
}

/// Forget a deleted hub, in the metadata group.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct ForgetHub {
    /// Number of the hub.
    #[prost(uint32, tag = "1")]
    pub id: u32,
}

/// Say how long the ended instances of a task hub stay, in the metadata group. What is unset stays as it is.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct SetRetention {
    /// Name of the hub.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Those that completed.
    #[prost(message, optional, tag = "2")]
    pub completed: Option<KeepFor>,
    /// Those that failed.
    #[prost(message, optional, tag = "3")]
    pub failed: Option<KeepFor>,
    /// Those that were terminated.
    #[prost(message, optional, tag = "4")]
    pub terminated: Option<KeepFor>,
}

/// How long instances stay after their end.
#[derive(Clone, Copy, Eq, PartialEq, prost::Message)]
pub struct KeepFor {
    /// In milliseconds; 0 is for ever, unset is as the servers are configured.
    #[prost(uint64, optional, tag = "1")]
    pub milliseconds: Option<u64>,
}
