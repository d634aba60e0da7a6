//! The gateway: what SDKs talk to. It translates, routes and answers; it keeps no state but open streams.
//!
//! A call names its task hub in the `taskhub` header (R1.8 to R1.12) and is checked before anything is
//! proposed: a refusal names the field, the limit and what to do, and leaves nothing half done. Writes
//! become commands to the partition that holds the instance; reads ask that partition's leader.
//!
//! - [`client_api`]: start, read, wait, raise, terminate, suspend, resume;
//! - [`list`]: pages of instances and of ids over all partitions;
//! - [`history`]: the history of one instance, in chunks;
//! - [`purge`], [`skip`]: ended instances go, others are ended at once;
//! - [`hubs`]: task hubs come and go, and say how long ended instances stay;
//! - [`entities`], [`entity_locks`]: signals, single entities, pages of entities; who holds and awaits them;
//! - [`lifecycle`]: rewind and restart;
//! - [`scaler`]: how many workers a task hub needs, for KEDA;
//! - [`worker_api`]: the work item stream, completions, abandons;
//! - [`sidecar`]: the generated service, a list of one-liners;
//! - [`demand`]: what is refused while a leader is short of room;
//! - [`status`]: the one table from our errors to gRPC codes;
//! - [`oversize`]: the code for messages that are too large;
//! - [`deadline`]: the code for calls whose time is over;
//! - [`calls`]: how many calls, and how long they took;
//! - [`traced`]: spans of calls, for a collector of traces.

mod calls;
mod client_api;
mod deadline;
mod demand;
mod entities;
mod entity_locks;
mod history;
mod hubs;
mod lifecycle;
mod list;
mod oversize;
mod purge;
mod scaler;
mod sidecar;
mod skip;
mod status;
mod traced;
mod worker_api;

use std::sync::Arc;

use bytes::Bytes;
use durahub_cluster::Demand;
use durahub_proto::Text;
use durahub_proto::own::entity_service_server::EntityServiceServer;
use durahub_proto::own::task_hub_service_server::TaskHubServiceServer;
use durahub_proto::scaler::external_scaler_server::ExternalScalerServer;
use durahub_proto::wire::task_hub_sidecar_service_server::TaskHubSidecarServiceServer;
use tokio::sync::watch;
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::dispatch::{CurrentRules, Dispatcher, Limits};
use crate::engine::command::CreateHub;
use crate::engine::{Command, Reject, Reply, decode_answer, read};
use crate::machine::{Partition, RowsView};
use crate::spans::Spans;
use crate::throttle::{Held, Unread};

pub use calls::CallsLayer;
pub use deadline::DeadlineLayer;
pub use oversize::OversizeLayer;

/// The hub of clients that name none (R1.8).
const DEFAULT_HUB: &str = "default";
/// Longest name of a task hub, in characters.
const HUB_NAME_LENGTH: usize = 64;
/// What every SDK accepts: the gRPC default (R1.23), less room for framing.
pub const SEND_LIMIT: usize = 4 * 1024 * 1024 - 64 * 1024;

/// How the gateway behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest message accepted, in bytes (R1.24, R1.25).
    pub message_bytes: usize,
    /// Whether an unknown task hub is created on first use.
    pub dynamic_hubs: bool,
    /// How large instances may be, and how long they stay.
    pub rules: CurrentRules,
    /// Whether clients may create and delete task hubs (R2.97).
    pub hub_calls: bool,
    /// Records what calls do, if anybody wants to know.
    pub spans: Spans,
}

/// The gateway of a node; a cheap handle.
#[derive(Clone)]
pub struct Gateway(Arc<Shared>);

struct Shared {
    settings: Settings,
    metadata: Partition,
    dispatcher: Dispatcher,
    entropy: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Bounds what lists may cost at a time.
    pages: tokio::sync::Semaphore,
    /// Bounds what purges by filter may cost at a time.
    purges: tokio::sync::Semaphore,
    /// Turns true when streams and waits must end.
    closing: watch::Receiver<bool>,
}

impl Gateway {
    /// A gateway that finds task hubs in `metadata` and work behind `dispatcher`. Streams and waits end once
    /// `closing` turns true.
    pub fn new(
        settings: Settings,
        metadata: Partition,
        dispatcher: Dispatcher,
        entropy: impl Fn() -> u64 + Send + Sync + 'static,
        closing: watch::Receiver<bool>,
    ) -> Gateway {
        Gateway(Arc::new(Shared {
            settings,
            metadata,
            dispatcher,
            entropy: Box::new(entropy),
            pages: tokio::sync::Semaphore::new(list::PAGES_AT_ONCE),
            purges: tokio::sync::Semaphore::new(purge::FILTERS_AT_ONCE),
            closing,
        }))
    }

    /// The service that SDKs call.
    pub fn sidecar(&self) -> TaskHubSidecarServiceServer<Gateway> {
        TaskHubSidecarServiceServer::new(self.clone())
            .max_decoding_message_size(self.0.settings.message_bytes)
            .max_encoding_message_size(usize::MAX)
    }

    /// The service that `durahub hub list` and `durahub hub retention` call.
    pub fn hub_service(&self) -> TaskHubServiceServer<Gateway> {
        TaskHubServiceServer::new(self.clone())
    }

    /// The service that `durahub entity locks` calls.
    pub fn entity_service(&self) -> EntityServiceServer<Gateway> {
        EntityServiceServer::new(self.clone())
    }

    /// The service that KEDA calls.
    pub fn scaler(&self) -> ExternalScalerServer<Gateway> {
        ExternalScalerServer::new(self.clone())
    }

    /// Creates a task hub unless it exists; returns its number. An operator wants it: it is made even where room is
    /// short.
    ///
    /// # Errors
    /// When the metadata group cannot be reached, or the name is not allowed.
    pub async fn create_hub(&self, name: &str) -> Result<u32, Status> {
        let command = CreateHub { name: name.to_owned(), recreate: false };
        self.put_hub(command, Demand::Must).await
    }

    /// Creates a task hub for a client; with `recreate` the one that is there goes first, with all that it has.
    pub(crate) async fn begin_hub(&self, name: &str, recreate: bool) -> Result<u32, Status> {
        // One that is there begins nothing, however short of room the node is (R2.97).
        if !recreate {
            let known = self.0.metadata.read(|rows| read::hub(&RowsView(rows), name)).await;
            if let Some(hub) = known.map_err(|error| status::of_cluster(&error))? {
                return Ok(hub.id);
            }
        }
        let command = CreateHub { name: name.to_owned(), recreate };
        let demand = demand::of(&Command::CreateHub(command.clone()));
        self.put_hub(command, demand).await
    }

    async fn put_hub(&self, command: CreateHub, demand: Demand) -> Result<u32, Status> {
        let (name, recreate) = (command.name.clone(), command.recreate);
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > HUB_NAME_LENGTH || !name.chars().all(allowed) {
            return Err(Status::invalid_argument(format!(
                "taskhub: a name has 1 to {HUB_NAME_LENGTH} letters, digits, '-' or '_'"
            )));
        }
        let command = Command::CreateHub(command).into_bytes();
        match put(&self.0.metadata, command, demand).await? {
            Reply::Hub { id } => {
                if recreate {
                    self.close_deleted_hubs().await;
                }
                tracing::info!(hub = name, id, recreate, "task hub created");
                Ok(id)
            }
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    /// Sees to it that no node takes calls for a deleted hub that it still knows.
    async fn close_deleted_hubs(&self) {
        if let Err(error) = self.0.dispatcher.close_deleted_hubs(&self.0.metadata).await {
            tracing::warn!(%error, "a deleted task hub is closed a little later");
        }
    }

    /// The number of the hub that a call names.
    async fn hub(&self, headers: &MetadataMap) -> Result<u32, Status> {
        let name = hub_name(headers)?;
        if let Some(hub) = self.0.metadata.peek(|rows| read::hub(&RowsView(rows), name)) {
            return Ok(hub.id);
        }
        if self.0.settings.dynamic_hubs {
            return self.begin_hub(name, false).await;
        }
        // Another node may have created it just now.
        let newest = self.0.metadata.read(|rows| read::hub(&RowsView(rows), name)).await;
        if let Some(hub) = newest.map_err(|error| status::of_cluster(&error))? {
            return Ok(hub.id);
        }
        // The words are those of the managed service (R1.9).
        Err(Status::not_found(format!(
            "Task hub not found: {name}. Start the server with --task-hubs {name} or --dynamic-task-hubs"
        )))
    }

    async fn propose(&self, hub: u32, instance: &str, command: Command) -> Result<Reply, Status> {
        let demand = demand::of(&command);
        let command = command.within(&self.limits().engine);
        put(self.0.dispatcher.partition_of(hub, instance), command, demand).await
    }

    /// Notes in the log what a client has done to an instance.
    fn note_done(&self, hub: u32, instance: &str, what: &'static str) {
        let dispatcher = &self.0.dispatcher;
        tracing::info!(
            hub = %dispatcher.hub_name(hub),
            partition = %dispatcher.partition_of(hub, instance).id(),
            instance,
            "{what}"
        );
    }

    fn limits(&self) -> Limits {
        self.0.settings.rules.get().limits
    }

    fn check_payload(&self, field: &str, payload: Option<&Text>) -> Result<(), Status> {
        self.limits().check_payload(field, payload).map_err(Status::invalid_argument)
    }

    /// An id for an instance that got none: 32 hex digits (R2.1).
    fn new_id(&self) -> String {
        format!("{:016x}{:016x}", (self.0.entropy)(), (self.0.entropy)())
    }

    /// Refuses ids that no instance can have.
    fn check_id(&self, instance: &str) -> Result<(), Status> {
        self.check_length("instanceId", instance)
    }

    /// Refuses an id that is longer than ids may be (R2.3).
    fn check_length(&self, field: &str, id: &str) -> Result<(), Status> {
        let (length, limit) = (id.chars().count(), self.0.settings.rules.get().instance_id_length);
        if length > limit {
            return Err(Status::invalid_argument(format!(
                "{field}: its length is {length} characters, the limit is {limit}; choose a shorter id"
            )));
        }
        Ok(())
    }

    /// Room for an answer, once its connection has read enough of the others.
    async fn room(&self, unread: &Unread) -> Result<Held, Status> {
        tokio::select! {
            room = unread.room() => Ok(room),
            () = self.closed() => Err(list::closing()),
        }
    }

    /// Ends when the node stops serving long calls.
    async fn closed(&self) {
        // A sender that is gone means the same.
        let _ = self.0.closing.clone().wait_for(|closing| *closing).await;
    }
}

/// The name of the hub that a call names.
fn hub_name(headers: &MetadataMap) -> Result<&str, Status> {
    match headers.get("taskhub") {
        None => Ok(DEFAULT_HUB),
        Some(value) => value.to_str().map_err(|_| {
            Status::invalid_argument("taskhub: the header holds characters that a name cannot have")
        }),
    }
}

/// Proposes a command that no limit concerns, and reads the engine's answer.
async fn propose(partition: &Partition, command: Command) -> Result<Reply, Status> {
    let demand = demand::of(&command);
    put(partition, command.into_bytes(), demand).await
}

/// Proposes a command and reads the engine's answer.
async fn put(partition: &Partition, command: Bytes, demand: Demand) -> Result<Reply, Status> {
    let reply = partition.propose_if_admitted(command, demand).await;
    let reply = reply.map_err(|error| status::of_cluster(&error))?;
    decode_answer(reply)
        .unwrap_or(Err(Reject::UnknownCommand))
        .map_err(|reject| status::of_reject(&reject))
}
