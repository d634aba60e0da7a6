//! What workers call (section 3).

use durahub_proto::wire;
use tonic::Status;

use super::{Gateway, status};
use crate::dispatch::{StreamOptions, WorkStream};

impl Gateway {
    pub(super) fn work_items(
        &self,
        hub: u32,
        request: wire::GetWorkItemsRequest,
        worker: &str,
    ) -> WorkStream {
        tracing::info!(
            hub,
            worker,
            turns = request.max_concurrent_orchestration_work_items,
            activities = request.max_concurrent_activity_work_items,
            entities = request.max_concurrent_entity_work_items,
            filtered = request.work_item_filters.is_some(),
            "worker connected"
        );
        let gateway = self.clone();
        let closing = async move {
            tokio::select! {
                () = gateway.closed() => {}
                // Its name may be in use again, with another number: the worker must ask anew.
                () = gateway.0.dispatcher.hub_closed(hub) => {}
            }
        };
        self.0.dispatcher.open_stream(StreamOptions { hub, request }, closing)
    }

    pub(super) async fn complete_turn(
        &self,
        hub: u32,
        response: wire::OrchestratorResponse,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_turn(hub, response).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }

    pub(super) async fn complete_activity(
        &self,
        hub: u32,
        response: wire::ActivityResponse,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_activity(hub, response).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }

    pub(super) async fn complete_batch(
        &self,
        hub: u32,
        result: wire::EntityBatchResult,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_batch(hub, result).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }
}
