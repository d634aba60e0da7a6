//! A minimal server in memory, to test the benchmark and the scripted worker without the real one.
//!
//! It knows starts, waits, events, termination, activities and completion, one worker stream at a time,
//! and hands out again what a broken or replaced stream had in hand. It keeps the order of history that
//! the contract asks for. Everything else is `UNIMPLEMENTED`.
//! It can misbehave on purpose: see [`Mischief`].

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use durahub_proto::wire;
use prost::Message;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status};
use wire::OrchestrationStatus as Phase;
use wire::history_event::EventType;
use wire::orchestrator_action::OrchestratorActionType;
use wire::task_hub_sidecar_service_server::{TaskHubSidecarService, TaskHubSidecarServiceServer};
use wire::work_item::Request as Work;

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
        let service = TaskHubSidecarServiceServer::new(fake.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
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

#[derive(Default)]
struct State {
    mischief: Mischief,
    instances: BTreeMap<String, Instance>,
    ready: VecDeque<Item>,
    /// By completion token.
    leases: BTreeMap<String, Lease>,
    stream: Option<mpsc::UnboundedSender<Result<wire::WorkItem, Status>>>,
    /// Items of the current stream that have been completed.
    answered: u32,
    streams: u32,
    tokens: u32,
    completions: u32,
}

#[derive(Default)]
struct Instance {
    state: wire::OrchestrationState,
    history: Vec<Bytes>,
    inbox: VecDeque<Bytes>,
    /// A turn is ready or in hand.
    busy: bool,
}

enum Item {
    Turn(String),
    Activity(wire::ActivityRequest),
}

struct Lease {
    item: Item,
    /// New events of a turn.
    events: Vec<Bytes>,
}

impl State {
    /// Puts events into an instance's inbox and makes it ready.
    fn deliver(&mut self, id: &str, events: impl IntoIterator<Item = EventType>) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if instance.state.completed_timestamp.is_some() {
            return;
        }
        instance.inbox.extend(events.into_iter().map(|it| event(id_of(&it), it)));
        self.wake(id);
    }

    fn wake(&mut self, id: &str) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if !instance.busy && !instance.inbox.is_empty() {
            instance.busy = true;
            self.ready.push_back(Item::Turn(id.to_owned()));
        }
        self.pump();
    }

    /// Sends what is ready while there is a stream.
    fn pump(&mut self) {
        while let Some(stream) = self.stream.clone() {
            if self.mischief.break_stream_after.is_some_and(|limit| self.answered >= limit) {
                // The receiver may be gone already; then the stream is broken as asked.
                let _ = stream.send(Err(Status::unavailable("broken on purpose")));
                return self.lose_stream();
            }
            let Some(item) = self.ready.pop_front() else { return };
            self.tokens += 1;
            let token = format!("token-{}", self.tokens);
            let (request, events) = self.request(&item);
            self.leases.insert(token.clone(), Lease { item, events });
            let item = wire::WorkItem { request: Some(request), completion_token: token };
            if stream.send(Ok(item)).is_err() {
                return self.lose_stream();
            }
        }
    }

    fn request(&mut self, item: &Item) -> (Work, Vec<Bytes>) {
        match item {
            Item::Activity(request) => (Work::ActivityRequest(request.clone()), Vec::new()),
            Item::Turn(id) => {
                let instance = self.instances.get_mut(id).expect("a turn has an instance");
                let started = EventType::OrchestratorStarted(Default::default());
                let mut events = vec![event(-1, started)];
                events.extend(instance.inbox.drain(..));
                let request = wire::OrchestratorRequest {
                    instance_id: id.clone(),
                    execution_id: Some("1".into()),
                    past_events: instance.history.clone(),
                    new_events: events.clone(),
                    ..Default::default()
                };
                (Work::OrchestratorRequest(request), events)
            }
        }
    }

    /// Takes everything back that the stream had in hand.
    fn lose_stream(&mut self) {
        self.stream = None;
        self.answered = 0;
        for Lease { item, events } in std::mem::take(&mut self.leases).into_values() {
            self.take_back(item, events);
        }
    }

    fn take_back(&mut self, item: Item, events: Vec<Bytes>) {
        if let Item::Turn(id) = &item {
            let instance = self.instances.get_mut(id).expect("a turn has an instance");
            // Without the turn's own `orchestratorStarted`.
            events.into_iter().skip(1).rev().for_each(|it| instance.inbox.push_front(it));
        }
        self.ready.push_back(item);
    }

    fn complete_turn(&mut self, mut response: wire::OrchestratorResponse) {
        let Some(lease) = self.leases.remove(&response.completion_token) else { return };
        let Item::Turn(id) = lease.item else { return };
        self.answered += 1;
        let instance = self.instances.get_mut(&id).expect("a turn has an instance");
        instance.history.extend(lease.events);
        instance.state.set_orchestration_status(Phase::Running);
        instance.busy = false;
        response.actions.sort_by_key(|action| action.id);
        for wire::OrchestratorAction { id: number, orchestrator_action_type } in response.actions {
            match orchestrator_action_type.expect("an action has a type") {
                OrchestratorActionType::ScheduleTask(task) => {
                    instance.history.push(scheduled(number, &task));
                    self.ready.push_back(Item::Activity(wire::ActivityRequest {
                        name: task.name,
                        input: task.input,
                        orchestration_instance: Some(wire::OrchestrationInstance {
                            instance_id: id.clone(),
                            execution_id: Some("1".into()),
                        }),
                        task_id: number,
                        ..Default::default()
                    }));
                }
                OrchestratorActionType::CompleteOrchestration(end) => {
                    end_instance(instance, number, end)
                }
                other => panic!("the fake cannot do {other:?}"),
            }
        }
        self.wake(&id);
    }

    fn complete_activity(&mut self, response: wire::ActivityResponse) {
        let Some(lease) = self.leases.remove(&response.completion_token) else { return };
        let Item::Activity(request) = lease.item else { return };
        self.answered += 1;
        self.completions += 1;
        let lies = self.mischief.lie_at == Some(self.completions);
        let id = request.orchestration_instance.expect("set above").instance_id;
        let answer = match response.failure_details {
            Some(details) => EventType::TaskFailed(wire::TaskFailedEvent {
                task_scheduled_id: request.task_id,
                failure_details: Some(details),
            }),
            None => EventType::TaskCompleted(wire::TaskCompletedEvent {
                task_scheduled_id: request.task_id,
                result: if lies { Some("\"0\"".into()) } else { response.result },
            }),
        };
        self.deliver(&id, [answer]);
    }

    fn abandon(&mut self, token: &str) {
        let Some(lease) = self.leases.remove(token) else { return };
        self.take_back(lease.item, lease.events);
        self.pump();
    }
}

fn end_instance(instance: &mut Instance, number: i32, end: wire::CompleteOrchestrationAction) {
    let completed = wire::ExecutionCompletedEvent {
        orchestration_status: end.orchestration_status,
        result: end.result.clone(),
        failure_details: end.failure_details.clone(),
    };
    instance.history.push(event(number, EventType::ExecutionCompleted(completed)));
    instance.state.orchestration_status = end.orchestration_status;
    instance.state.output = end.result;
    instance.state.failure_details = end.failure_details;
    instance.state.completed_timestamp = Some(Default::default());
    instance.inbox.clear();
}

fn scheduled(number: i32, task: &wire::ScheduleTaskAction) -> Bytes {
    let scheduled = wire::TaskScheduledEvent {
        name: task.name.clone(),
        input: task.input.clone(),
        ..Default::default()
    };
    event(number, EventType::TaskScheduled(scheduled))
}

fn event(event_id: i32, event_type: EventType) -> Bytes {
    let timestamp = Some(std::time::SystemTime::now().into());
    wire::HistoryEvent { event_id, timestamp, event_type: Some(event_type) }.encode_to_vec().into()
}

/// R4.3: the start has id 0, everything else that arrives has -1.
fn id_of(event: &EventType) -> i32 {
    if matches!(event, EventType::ExecutionStarted(_)) { 0 } else { -1 }
}

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
