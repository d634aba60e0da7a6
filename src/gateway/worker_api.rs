//! What workers call (section 3).

use std::time::Duration;

use durahub_proto::wire;
use tonic::Status;

use super::{Gateway, status};
use crate::dispatch::{Abandoned, StreamOptions, WorkStream};
use crate::engine::read;
use crate::machine::RowsView;
use crate::throttle::Kept;

/// Pause between two looks at the hubs.
const HUB_LOOK: Duration = Duration::from_secs(10);

impl Gateway {
    pub(super) fn work_items(
        &self,
        hub: u32,
        request: wire::GetWorkItemsRequest,
        worker: &str,
    ) -> WorkStream {
        tracing::info!(
            hub = %self.0.dispatcher.hub_name(hub),
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
                () = gateway.hub_gone(hub) => {}
            }
        };
        self.0.dispatcher.open_stream(StreamOptions { hub, request }, closing)
    }

    /// Ends once no hub has that number. Looked up now and then: where a replica catches up by a snapshot, nobody
    /// hears that a hub was closed.
    async fn hub_gone(&self, hub: u32) {
        loop {
            tokio::time::sleep(HUB_LOOK).await;
            let hubs = self.0.metadata.peek(|rows| read::hubs(&RowsView(rows)));
            if hubs.values().all(|it| it.id != hub) {
                return;
            }
        }
    }

    pub(super) async fn complete_turn(
        &self,
        hub: u32,
        response: wire::OrchestratorResponse,
        kept: Kept,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_turn(hub, response, kept).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }

    pub(super) async fn complete_activity(
        &self,
        hub: u32,
        response: wire::ActivityResponse,
        kept: Kept,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_activity(hub, response, kept).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }

    pub(super) async fn abandon(
        &self,
        hub: u32,
        kind: Abandoned,
        token: &str,
    ) -> Result<(), Status> {
        let done = self.0.dispatcher.abandon(hub, kind, token).await;
        done.map_err(|error| status::of_completion(&error))
    }

    pub(super) async fn complete_batch(
        &self,
        hub: u32,
        result: wire::EntityBatchResult,
        kept: Kept,
    ) -> Result<wire::CompleteTaskResponse, Status> {
        let done = self.0.dispatcher.complete_batch(hub, result, kept).await;
        done.map_err(|error| status::of_completion(&error))?;
        Ok(wire::CompleteTaskResponse {})
    }
}
