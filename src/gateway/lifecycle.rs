//! Trying again: rewind and restart (sections 2.7 and 2.8).

use durahub_proto::wire;
use tonic::Status;

use super::Gateway;
use super::list::look;
use crate::engine::command::{Restart, Rewind, Start};
use crate::engine::read::OfState;
use crate::engine::state::is_entity;
use crate::engine::{Address, Command, Reply};

impl Gateway {
    pub(super) async fn rewind(
        &self,
        hub: u32,
        request: wire::RewindInstanceRequest,
    ) -> Result<wire::RewindInstanceResponse, Status> {
        self.check_payload("reason", request.reason.as_ref())?;
        let instance = request.instance_id.clone();
        self.propose(hub, &instance, Command::Rewind(Rewind { hub, request })).await?;
        self.note_done(hub, &instance, "rewound");
        Ok(wire::RewindInstanceResponse {})
    }

    pub(super) async fn restart(
        &self,
        hub: u32,
        request: wire::RestartInstanceRequest,
    ) -> Result<wire::RestartInstanceResponse, Status> {
        let wire::RestartInstanceRequest { instance_id, restart_with_new_instance_id } = request;
        let command = match restart_with_new_instance_id {
            false => Command::Restart(Restart { hub, instance: instance_id.clone() }),
            true => {
                let request = self.copy_of(hub, &instance_id).await?;
                Command::Start(Start { hub, request })
            }
        };
        let target = match &command {
            Command::Start(start) => start.request.instance_id.clone(),
            _ => instance_id.clone(),
        };
        match self.propose(hub, &target, command).await? {
            Reply::Started { instance } => {
                let dispatcher = &self.0.dispatcher;
                tracing::info!(
                    hub = %dispatcher.hub_name(hub),
                    partition = %dispatcher.partition_of(hub, &instance).id(),
                    instance,
                    of = instance_id,
                    "restarted"
                );
                Ok(wire::RestartInstanceResponse { instance_id: instance })
            }
            other => Err(Status::internal(format!("unexpected answer {other:?}"))),
        }
    }

    /// A request that starts an instance like this one under a new id, whatever became of it (R2.69, R2.70).
    async fn copy_of(
        &self,
        hub: u32,
        instance: &str,
    ) -> Result<wire::CreateInstanceRequest, Status> {
        let at = Address::new(hub, instance);
        let partition = self.0.dispatcher.partition_of(hub, instance);
        let limit = self.0.settings.message_bytes;
        let found = look(partition, OfState { at, payloads: true, limit: limit as u64 }).await?;
        if let Some(bytes) = found.too_large {
            return Err(Status::resource_exhausted(format!(
                "the state of this instance takes {bytes} bytes, the limit is {limit} (limits.max_message_bytes); \
                 restart it under its own id, or start another one with its input"
            )));
        }
        let Some(state) = found.state.filter(|_| !is_entity(instance)) else {
            return Err(Status::not_found(format!("orchestration instance not found: {instance}")));
        };
        Ok(wire::CreateInstanceRequest {
            instance_id: self.new_id(),
            name: state.name,
            version: state.version,
            input: state.input,
            tags: state.tags,
            ..Default::default()
        })
    }
}
