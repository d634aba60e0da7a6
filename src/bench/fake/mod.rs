//! A minimal server in memory, to test the benchmark and the scripted worker without the real one.
//!
//! It knows starts, waits, events, termination, activities and completion, one worker stream at a time,
//! and hands out again what a broken or replaced stream had in hand. It keeps the order of history that
//! the contract asks for. Everything else is `UNIMPLEMENTED`.
//! It can misbehave on purpose: see [`Mischief`].

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use durahub_proto::wire;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use wire::OrchestrationStatus as Phase;
use wire::history_event::EventType;
use wire::task_hub_sidecar_service_server::{TaskHubSidecarService, TaskHubSidecarServiceServer};
use wire::work_item::Request as Work;

mod state;
use state::{Instance, State};

/// What the server does wrong.
#[derive(Clone, Copy, Default)]
pub(crate) struct Mischief {
    /// Breaks the stream each time this many of its items have been completed.
    pub(crate) break_stream_after: Option<u32>,
    /// Records a wrong result for the activity completion with this number (from 1).
    pub(crate) lie_at: Option<u32>,
    /// Delivers every event twice.
    pub(crate) repeat_events: bool,
    /// Answers this many starts with `UNAVAILABLE` although they took effect.
    pub(crate) forget_starts: u32,
}

/// The running server; it stops when the runtime does.
#[derive(Clone, Default)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

impl Fake {
    /// Serves on a free port of the loopback interface.
    pub(crate) async fn start(mischief: Mischief) -> (Fake, SocketAddr) {
        let fake = Fake::default();
        fake.state().mischief = mischief;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("bound");
        // Without it each answer may wait 40 ms for the other side's delayed acknowledgement.
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let service = TaskHubSidecarServiceServer::new(fake.clone());
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        (fake, address)
    }

    /// Streams opened so far.
    pub(crate) fn streams(&self) -> u32 {
        self.state().streams
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> wire::GetInstanceResponse {
        let state = self.state();
        let found = state.instances.get(id).map(|instance| instance.state.clone());
        wire::GetInstanceResponse { exists: found.is_some(), orchestration_state: found }
    }

    async fn wait(
        &self,
        request: Request<wire::GetInstanceRequest>,
        until: impl Fn(Phase) -> bool,
    ) -> Answer<wire::GetInstanceResponse> {
        let id = request.into_inner().instance_id;
        loop {
            let changed = self.changed.notified();
            let found = self.find(&id);
            let phase = found.orchestration_state.as_ref().map(|it| it.orchestration_status());
            if phase.is_none_or(&until) {
                return Ok(Response::new(found));
            }
            changed.await;
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// The rest of the service, written out as `async_trait` would.
macro_rules! unimplemented_rpcs {
    ($($name:ident($request:ident) -> $response:ident),* $(,)?) => {$(
        fn $name<'a, 'async_trait>(
            &'a self,
            _: Request<wire::$request>,
        ) -> Pin<Box<dyn Future<Output = Answer<wire::$response>> + Send + 'async_trait>>
        where
            'a: 'async_trait,
            Self: 'async_trait,
        {
            Box::pin(async { Err(Status::unimplemented("not in the fake")) })
        }
    )*};
}

#[tonic::async_trait]
impl TaskHubSidecarService for Fake {
    type GetWorkItemsStream = UnboundedReceiverStream<Result<wire::WorkItem, Status>>;
    type StreamInstanceHistoryStream =
        tokio_stream::Iter<std::vec::IntoIter<Result<wire::HistoryChunk, Status>>>;

    async fn hello(&self, _: Request<()>) -> Answer<()> {
        Ok(Response::new(()))
    }

    async fn start_instance(
        &self,
        request: Request<wire::CreateInstanceRequest>,
    ) -> Answer<wire::CreateInstanceResponse> {
        let request = request.into_inner();
        let id = request.instance_id;
        let mut state = self.state();
        if state.instances.contains_key(&id) {
            return Err(Status::already_exists("orchestration instance already exists"));
        }
        let mut instance = Instance::default();
        instance.state.instance_id = id.clone();
        instance.state.name = request.name.clone();
        instance.state.set_orchestration_status(Phase::Pending);
        state.instances.insert(id.clone(), instance);
        let started = wire::ExecutionStartedEvent {
            name: request.name,
            input: request.input,
            ..Default::default()
        };
        state.deliver(&id, [EventType::ExecutionStarted(started)]);
        if state.mischief.forget_starts > 0 {
            state.mischief.forget_starts -= 1;
            return Err(Status::unavailable("forgotten on purpose"));
        }
        Ok(Response::new(wire::CreateInstanceResponse { instance_id: id }))
    }

    async fn get_instance(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        Ok(Response::new(self.find(&request.into_inner().instance_id)))
    }

    async fn wait_for_instance_start(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        self.wait(request, |phase| phase != Phase::Pending).await
    }

    async fn wait_for_instance_completion(
        &self,
        request: Request<wire::GetInstanceRequest>,
    ) -> Answer<wire::GetInstanceResponse> {
        self.wait(request, |phase| !matches!(phase, Phase::Pending | Phase::Running)).await
    }

    async fn raise_event(
        &self,
        request: Request<wire::RaiseEventRequest>,
    ) -> Answer<wire::RaiseEventResponse> {
        let wire::RaiseEventRequest { instance_id, name, input } = request.into_inner();
        let raised = EventType::EventRaised(wire::EventRaisedEvent { name, input });
        let mut state = self.state();
        let times = if state.mischief.repeat_events { 2 } else { 1 };
        state.deliver(&instance_id, vec![raised; times]);
        Ok(Response::new(wire::RaiseEventResponse {}))
    }

    async fn terminate_instance(
        &self,
        request: Request<wire::TerminateRequest>,
    ) -> Answer<wire::TerminateResponse> {
        let wire::TerminateRequest { instance_id, output: input, recursive: recurse } =
            request.into_inner();
        let terminated = wire::ExecutionTerminatedEvent { input, recurse };
        self.state().deliver(&instance_id, [EventType::ExecutionTerminated(terminated)]);
        Ok(Response::new(wire::TerminateResponse {}))
    }

    async fn get_work_items(
        &self,
        _: Request<wire::GetWorkItemsRequest>,
    ) -> Answer<Self::GetWorkItemsStream> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let ping = Some(Work::HealthPing(wire::HealthPing {}));
        sender.send(Ok(wire::WorkItem { request: ping, ..Default::default() })).expect("open");
        let mut state = self.state();
        state.lose_stream();
        state.stream = Some(sender);
        state.streams += 1;
        state.pump();
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn complete_orchestrator_task(
        &self,
        request: Request<wire::OrchestratorResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        self.state().complete_turn(request.into_inner());
        self.changed.notify_waiters();
        Ok(Response::new(wire::CompleteTaskResponse {}))
    }

    async fn complete_activity_task(
        &self,
        request: Request<wire::ActivityResponse>,
    ) -> Answer<wire::CompleteTaskResponse> {
        self.state().complete_activity(request.into_inner());
        Ok(Response::new(wire::CompleteTaskResponse {}))
    }

    async fn abandon_task_orchestrator_work_item(
        &self,
        request: Request<wire::AbandonOrchestrationTaskRequest>,
    ) -> Answer<wire::AbandonOrchestrationTaskResponse> {
        self.state().abandon(&request.into_inner().completion_token);
        Ok(Response::new(wire::AbandonOrchestrationTaskResponse {}))
    }

    async fn abandon_task_activity_work_item(
        &self,
        request: Request<wire::AbandonActivityTaskRequest>,
    ) -> Answer<wire::AbandonActivityTaskResponse> {
        self.state().abandon(&request.into_inner().completion_token);
        Ok(Response::new(wire::AbandonActivityTaskResponse {}))
    }

    async fn stream_instance_history(
        &self,
        request: Request<wire::StreamInstanceHistoryRequest>,
    ) -> Answer<Self::StreamInstanceHistoryStream> {
        let state = self.state();
        let found = state.instances.get(&request.into_inner().instance_id);
        let events = found.map(|instance| instance.history.clone()).unwrap_or_default();
        let chunks: Vec<_> = events
            .chunks(4)
            .map(|events| Ok(wire::HistoryChunk { events: events.to_vec() }))
            .collect();
        Ok(Response::new(tokio_stream::iter(chunks)))
    }

    unimplemented_rpcs! {
        rewind_instance(RewindInstanceRequest) -> RewindInstanceResponse,
        restart_instance(RestartInstanceRequest) -> RestartInstanceResponse,
        suspend_instance(SuspendRequest) -> SuspendResponse,
        resume_instance(ResumeRequest) -> ResumeResponse,
        query_instances(QueryInstancesRequest) -> QueryInstancesResponse,
        list_instance_ids(ListInstanceIdsRequest) -> ListInstanceIdsResponse,
        purge_instances(PurgeInstancesRequest) -> PurgeInstancesResponse,
        complete_entity_task(EntityBatchResult) -> CompleteTaskResponse,
        create_task_hub(CreateTaskHubRequest) -> CreateTaskHubResponse,
        delete_task_hub(DeleteTaskHubRequest) -> DeleteTaskHubResponse,
        signal_entity(SignalEntityRequest) -> SignalEntityResponse,
        get_entity(GetEntityRequest) -> GetEntityResponse,
        query_entities(QueryEntitiesRequest) -> QueryEntitiesResponse,
        clean_entity_storage(CleanEntityStorageRequest) -> CleanEntityStorageResponse,
        abandon_task_entity_work_item(AbandonEntityTaskRequest) -> AbandonEntityTaskResponse,
        skip_graceful_orchestration_terminations(SkipGracefulOrchestrationTerminationsRequest)
            -> SkipGracefulOrchestrationTerminationsResponse,
    }
}
