//! The service of the SDKs, method by method: find the hub, call the function that does it.
//!
//! Methods that are not there yet answer `UNIMPLEMENTED`, which clients understand (R1.4).

use std::pin::Pin;

use durahub_proto::wire;
use durahub_proto::wire::task_hub_sidecar_service_server::TaskHubSidecarService;
use futures::stream::MapErr;
use futures::{Stream, TryStreamExt as _};
use tonic::{Request, Response, Status};

use super::Gateway;
use crate::dispatch::{Abandoned, Closing, Wanted, WorkStream};

type Answer<T> = Result<Response<T>, Status>;

fn later<T>(what: &str) -> Answer<T> {
    Err(Status::unimplemented(format!("this version of Durahub does not support {what}")))
}

#[tonic::async_trait]
impl TaskHubSidecarService for Gateway {
    async fn hello(&self, _: Request<()>) -> Answer<()> {
        Ok(Response::new(()))
    }

    async fn start_instance(
        &self,
        request: Request<wire::CreateInstanceRequest>,
    ) -> Answer<wire::CreateInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.start(hub, request.into_inner()).await.map(Response::new)
    }

    async fn get_instance(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.get(hub, request.get_ref()).await.map(Response::new)
    }

    async fn wait_for_instance_start(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.wait(hub, request.into_inner(), Wanted::Started).await.map(Response::new)
    }

    async fn wait_for_instance_completion(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.wait(hub, request.into_inner(), Wanted::Completed).await.map(Response::new)
    }

    async fn raise_event(
        &self,
        request: Request<wire::RaiseEventRequest>,
    ) -> Answer<wire::RaiseEventResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.raise(hub, request.into_inner()).await.map(Response::new)
    }

    async fn terminate_instance(
        &self,
        request: Request<wire::TerminateRequest>,
    ) -> Answer<wire::TerminateResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.terminate(hub, request.into_inner()).await.map(Response::new)
    }

    async fn suspend_instance(
        &self,
        request: Request<wire::SuspendRequest>,
    ) -> Answer<wire::SuspendResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.suspend(hub, request.into_inner()).await.map(Response::new)
    }

    async fn resume_instance(
        &self,
        request: Request<wire::ResumeRequest>,
    ) -> Answer<wire::ResumeResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.resume(hub, request.into_inner()).await.map(Response::new)
    }

    type StreamInstanceHistoryStream =
        Pin<Box<dyn Stream<Item = Result<wire::HistoryChunk, Status>> + Send>>;

    async fn stream_instance_history(
        &self,
        request: Request<wire::StreamInstanceHistoryRequest>,
    ) -> Answer<Self::StreamInstanceHistoryStream> {
        let hub = self.hub(request.metadata()).await?;
        let chunks = self.history(hub, request.into_inner()).await?;
        Ok(Response::new(Box::pin(chunks)))
    }

    type GetWorkItemsStream = MapErr<WorkStream, fn(Closing) -> Status>;

    async fn get_work_items(
        &self,
        request: Request<wire::GetWorkItemsRequest>,
    ) -> Answer<Self::GetWorkItemsStream> {
        let hub = self.hub(request.metadata()).await?;
        // The header names the worker; the field does where it is missing; neither is needed (R1.13).
        let header =
            request.metadata().get("workerid").and_then(|id| id.to_str().ok()).map(str::to_owned);
        let request = request.into_inner();
        let worker = header.unwrap_or_else(|| request.worker_instance_id.clone());
        // A worker connects again on UNAVAILABLE, politely; on a clean end some do so in a tight loop (R1.41).
        let closing: fn(Closing) -> Status =
            |Closing| Status::unavailable("this server is shutting down; connect again");
        Ok(Response::new(self.work_items(hub, request, &worker).map_err(closing)))
    }

    async fn complete_orchestrator_task(
        &self,
        request: Request<wire::OrchestratorResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.complete_turn(hub, request.into_inner()).await.map(Response::new)
    }

    async fn complete_activity_task(
        &self,
        request: Request<wire::ActivityResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.complete_activity(hub, request.into_inner()).await.map(Response::new)
    }

    async fn abandon_task_activity_work_item(
        &self,
        request: Request<wire::AbandonActivityTaskRequest>,
    ) -> Answer<wire::AbandonActivityTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.0.dispatcher.abandon(hub, Abandoned::Activity, &request.get_ref().completion_token);
        Ok(Response::new(wire::AbandonActivityTaskResponse {}))
    }

    async fn abandon_task_orchestrator_work_item(
        &self,
        request: Request<wire::AbandonOrchestrationTaskRequest>,
    ) -> Answer<wire::AbandonOrchestrationTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.0.dispatcher.abandon(hub, Abandoned::Turn, &request.get_ref().completion_token);
        Ok(Response::new(wire::AbandonOrchestrationTaskResponse {}))
    }

    async fn abandon_task_entity_work_item(
        &self,
        request: Request<wire::AbandonEntityTaskRequest>,
    ) -> Answer<wire::AbandonEntityTaskResponse> {
        // No entity item is handed out yet, so every token is unknown, and that is OK (R3.61).
        self.hub(request.metadata()).await?;
        Ok(Response::new(wire::AbandonEntityTaskResponse {}))
    }

    async fn complete_entity_task(
        &self,
        request: Request<wire::EntityBatchResult>,
    ) -> Answer<wire::CompleteTaskResponse> {
        // As above: unknown, nothing changes (R3.55).
        self.hub(request.metadata()).await?;
        Ok(Response::new(wire::CompleteTaskResponse {}))
    }

    async fn rewind_instance(
        &self,
        request: Request<wire::RewindInstanceRequest>,
    ) -> Answer<wire::RewindInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.rewind(hub, request.into_inner()).await.map(Response::new)
    }

    async fn restart_instance(
        &self,
        request: Request<wire::RestartInstanceRequest>,
    ) -> Answer<wire::RestartInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.restart(hub, request.into_inner()).await.map(Response::new)
    }

    async fn query_instances(
        &self,
        _: Request<wire::QueryInstancesRequest>,
    ) -> Answer<wire::QueryInstancesResponse> {
        later("queries")
    }

    async fn list_instance_ids(
        &self,
        _: Request<wire::ListInstanceIdsRequest>,
    ) -> Answer<wire::ListInstanceIdsResponse> {
        later("listing instance ids")
    }

    async fn purge_instances(
        &self,
        _: Request<wire::PurgeInstancesRequest>,
    ) -> Answer<wire::PurgeInstancesResponse> {
        later("purge")
    }

    async fn create_task_hub(
        &self,
        _: Request<wire::CreateTaskHubRequest>,
    ) -> Answer<wire::CreateTaskHubResponse> {
        later("creating task hubs by call; use --task-hubs or --dynamic-task-hubs")
    }

    async fn delete_task_hub(
        &self,
        _: Request<wire::DeleteTaskHubRequest>,
    ) -> Answer<wire::DeleteTaskHubResponse> {
        later("deleting task hubs")
    }

    async fn signal_entity(
        &self,
        _: Request<wire::SignalEntityRequest>,
    ) -> Answer<wire::SignalEntityResponse> {
        later("entities")
    }

    async fn get_entity(
        &self,
        _: Request<wire::GetEntityRequest>,
    ) -> Answer<wire::GetEntityResponse> {
        later("entities")
    }

    async fn query_entities(
        &self,
        _: Request<wire::QueryEntitiesRequest>,
    ) -> Answer<wire::QueryEntitiesResponse> {
        later("entities")
    }

    async fn clean_entity_storage(
        &self,
        _: Request<wire::CleanEntityStorageRequest>,
    ) -> Answer<wire::CleanEntityStorageResponse> {
        later("entities")
    }

    async fn skip_graceful_orchestration_terminations(
        &self,
        _: Request<wire::SkipGracefulOrchestrationTerminationsRequest>,
    ) -> Answer<wire::SkipGracefulOrchestrationTerminationsResponse> {
        later("termination without a worker")
    }
}
