//! `CreateTaskHub` and `DeleteTaskHub` (R2.97).

use durahub_proto::wire;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::{Gateway, hub_name, propose};
use crate::engine::Command;
use crate::engine::command::DeleteHub;

impl Gateway {
    pub(super) async fn create_task_hub(
        &self,
        headers: &MetadataMap,
        request: &wire::CreateTaskHubRequest,
    ) -> Result<wire::CreateTaskHubResponse, Status> {
        self.check_hub_calls()?;
        self.begin_hub(hub_name(headers)?, request.recreate_if_exists).await?;
        Ok(wire::CreateTaskHubResponse {})
    }

    /// Frees the name at once; what the hub had goes in the background, after restarts too.
    pub(super) async fn delete_task_hub(
        &self,
        headers: &MetadataMap,
    ) -> Result<wire::DeleteTaskHubResponse, Status> {
        self.check_hub_calls()?;
        // Not `hub`, which would create an unknown one only to delete it.
        let name = hub_name(headers)?.to_owned();
        let command = Command::DeleteHub(DeleteHub { name: name.clone() });
        propose(&self.0.metadata, command.into_bytes()).await?;
        tracing::info!(hub = name, "task hub deleted");
        self.0.dispatcher.hub_was_deleted();
        Ok(wire::DeleteTaskHubResponse {})
    }

    fn check_hub_calls(&self) -> Result<(), Status> {
        if self.0.settings.hub_calls {
            return Ok(());
        }
        Err(Status::permission_denied(
            "creating and deleting task hubs by call is switched off; start the server with --task-hub-calls=true",
        ))
    }
}
