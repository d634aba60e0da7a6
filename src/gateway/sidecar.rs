//! The service of the SDKs, method by method: find the hub, call the function that does it.

use std::pin::Pin;

use durahub_proto::wire;
use durahub_proto::wire::task_hub_sidecar_service_server::TaskHubSidecarService;
use futures::stream::MapErr;
use futures::{Stream, TryStreamExt as _};
use tonic::{Request, Response, Status};

use super::{Gateway, traced};
use crate::access::Subject;
use crate::dispatch::{Abandoned, Closing, Wanted, WorkStream};
use crate::throttle::{Kept, Unread};

type Answer<T> = Result<Response<T>, Status>;

/// Notes which instance a call is about.
fn about<T>(request: &Request<T>, id: impl FnOnce(&T) -> &str) -> Subject {
    let subject = Subject::of(request.extensions());
    subject.note(id(request.get_ref()));
    subject
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
        let subject = about(&request, |request| &request.instance_id);
        let hub = self.hub(request.metadata()).await?;
        let span = self.start_span(hub, &request);
        let answer = self.start(hub, request.into_inner()).await;
        traced::end(span, &answer, |answer| Some(&answer.instance_id));
        let answer = answer?;
        subject.note(&answer.instance_id);
        Ok(Response::new(answer))
    }

    async fn get_instance(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        // Its headers are not kept while it waits.
        let unread = Unread::of(request.extensions());
        self.get(hub, &request.into_inner(), &unread).await
    }

    async fn wait_for_instance_start(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        self.wait(hub, request.into_inner(), Wanted::Started, &unread).await
    }

    async fn wait_for_instance_completion(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        self.wait(hub, request.into_inner(), Wanted::Completed, &unread).await
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
        about(&request, |request| &request.instance_id);
        let hub = self.hub(request.metadata()).await?;
        self.terminate(hub, request.into_inner()).await.map(Response::new)
    }

    async fn suspend_instance(
        &self,
        request: Request<wire::SuspendRequest>,
    ) -> Answer<wire::SuspendResponse> {
        about(&request, |request| &request.instance_id);
        let hub = self.hub(request.metadata()).await?;
        self.suspend(hub, request.into_inner()).await.map(Response::new)
    }

    async fn resume_instance(
        &self,
        request: Request<wire::ResumeRequest>,
    ) -> Answer<wire::ResumeResponse> {
        about(&request, |request| &request.instance_id);
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
        let unread = Unread::of(request.extensions());
        let chunks = self.history(hub, request.into_inner(), &unread).await?;
        Ok(chunks.map(|chunks| Box::pin(chunks) as Self::StreamInstanceHistoryStream))
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
        let closing: fn(Closing) -> Status = |Closing| {
            Status::unavailable(
                "this server is shutting down, or the task hub was deleted; connect again",
            )
        };
        Ok(Response::new(self.work_items(hub, request, &worker).map_err(closing)))
    }

    async fn complete_orchestrator_task(
        &self,
        request: Request<wire::OrchestratorResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        let kept = Kept::of(request.extensions());
        self.complete_turn(hub, request.into_inner(), kept).await.map(Response::new)
    }

    async fn complete_activity_task(
        &self,
        request: Request<wire::ActivityResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        let kept = Kept::of(request.extensions());
        self.complete_activity(hub, request.into_inner(), kept).await.map(Response::new)
    }

    async fn abandon_task_activity_work_item(
        &self,
        request: Request<wire::AbandonActivityTaskRequest>,
    ) -> Answer<wire::AbandonActivityTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.abandon(hub, Abandoned::Activity, &request.get_ref().completion_token).await?;
        Ok(Response::new(wire::AbandonActivityTaskResponse {}))
    }

    async fn abandon_task_orchestrator_work_item(
        &self,
        request: Request<wire::AbandonOrchestrationTaskRequest>,
    ) -> Answer<wire::AbandonOrchestrationTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.abandon(hub, Abandoned::Turn, &request.get_ref().completion_token).await?;
        Ok(Response::new(wire::AbandonOrchestrationTaskResponse {}))
    }

    async fn abandon_task_entity_work_item(
        &self,
        request: Request<wire::AbandonEntityTaskRequest>,
    ) -> Answer<wire::AbandonEntityTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.abandon(hub, Abandoned::Batch, &request.get_ref().completion_token).await?;
        Ok(Response::new(wire::AbandonEntityTaskResponse {}))
    }

    async fn complete_entity_task(
        &self,
        request: Request<wire::EntityBatchResult>,
    ) -> Answer<wire::CompleteTaskResponse> {
        let hub = self.hub(request.metadata()).await?;
        let kept = Kept::of(request.extensions());
        self.complete_batch(hub, request.into_inner(), kept).await.map(Response::new)
    }

    async fn rewind_instance(
        &self,
        request: Request<wire::RewindInstanceRequest>,
    ) -> Answer<wire::RewindInstanceResponse> {
        about(&request, |request| &request.instance_id);
        let hub = self.hub(request.metadata()).await?;
        self.rewind(hub, request.into_inner()).await.map(Response::new)
    }

    async fn restart_instance(
        &self,
        request: Request<wire::RestartInstanceRequest>,
    ) -> Answer<wire::RestartInstanceResponse> {
        about(&request, |request| &request.instance_id);
        let hub = self.hub(request.metadata()).await?;
        self.restart(hub, request.into_inner()).await.map(Response::new)
    }

    async fn query_instances(
        &self,
        request: Request<wire::QueryInstancesRequest>,
    ) -> Answer<wire::QueryInstancesResponse> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        self.query(hub, request.into_inner(), &unread).await
    }

    async fn list_instance_ids(
        &self,
        request: Request<wire::ListInstanceIdsRequest>,
    ) -> Answer<wire::ListInstanceIdsResponse> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        self.list_ids(hub, request.into_inner(), &unread).await
    }

    async fn purge_instances(
        &self,
        request: Request<wire::PurgeInstancesRequest>,
    ) -> Answer<wire::PurgeInstancesResponse> {
        about(&request, |request| match &request.request {
            Some(wire::purge_instances_request::Request::InstanceId(id)) => id,
            _ => "",
        });
        let hub = self.hub(request.metadata()).await?;
        self.purge(hub, request.into_inner()).await.map(Response::new)
    }

    async fn create_task_hub(
        &self,
        request: Request<wire::CreateTaskHubRequest>,
    ) -> Answer<wire::CreateTaskHubResponse> {
        self.create_task_hub(request.metadata(), request.get_ref()).await.map(Response::new)
    }

    async fn delete_task_hub(
        &self,
        request: Request<wire::DeleteTaskHubRequest>,
    ) -> Answer<wire::DeleteTaskHubResponse> {
        self.delete_task_hub(request.metadata()).await.map(Response::new)
    }

    async fn signal_entity(
        &self,
        request: Request<wire::SignalEntityRequest>,
    ) -> Answer<wire::SignalEntityResponse> {
        let hub = self.hub(request.metadata()).await?;
        let span = self.signal_span(hub, &request);
        let answer = self.signal_entity(hub, request.into_inner()).await;
        traced::end(span, &answer, |_| None);
        answer.map(Response::new)
    }

    async fn get_entity(
        &self,
        request: Request<wire::GetEntityRequest>,
    ) -> Answer<wire::GetEntityResponse> {
        let hub = self.hub(request.metadata()).await?;
        // Its headers are not kept while it waits.
        let unread = Unread::of(request.extensions());
        self.get_entity(hub, &request.into_inner(), &unread).await
    }

    async fn query_entities(
        &self,
        request: Request<wire::QueryEntitiesRequest>,
    ) -> Answer<wire::QueryEntitiesResponse> {
        let hub = self.hub(request.metadata()).await?;
        let unread = Unread::of(request.extensions());
        self.query_entities(hub, request.into_inner(), &unread).await
    }

    async fn clean_entity_storage(
        &self,
        request: Request<wire::CleanEntityStorageRequest>,
    ) -> Answer<wire::CleanEntityStorageResponse> {
        self.hub(request.metadata()).await?;
        // Empty entities go and locks are given back as it happens: there is nothing to clean (R2.103).
        Ok(Response::new(wire::CleanEntityStorageResponse::default()))
    }

    async fn skip_graceful_orchestration_terminations(
        &self,
        request: Request<wire::SkipGracefulOrchestrationTerminationsRequest>,
    ) -> Answer<wire::SkipGracefulOrchestrationTerminationsResponse> {
        let hub = self.hub(request.metadata()).await?;
        self.skip_graceful(hub, request.into_inner()).await.map(Response::new)
    }
}
