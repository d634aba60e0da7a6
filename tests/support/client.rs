//! The calls that an application makes, in one line each. They panic with what was asked and answered.

use std::time::Duration;

use durahub_proto::wire;
use durahub_proto::wire::task_hub_sidecar_service_client::TaskHubSidecarServiceClient;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use wire::{HistoryEvent, OrchestrationState, OrchestrationStatus};

use super::history;

/// The generated client with the headers of an SDK.
pub type Rpc = TaskHubSidecarServiceClient<InterceptedService<Channel, Headers>>;

/// How long a wait may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client of one task hub. Cheap to clone; clones share a connection.
#[derive(Clone)]
pub struct Client {
    channel: Channel,
    headers: Headers,
}

/// Headers of every call.
#[derive(Clone, Default)]
pub struct Headers {
    task_hub: Option<MetadataValue<Ascii>>,
    worker: Option<MetadataValue<Ascii>>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        if let Some(task_hub) = &self.task_hub {
            request.metadata_mut().insert("taskhub", task_hub.clone());
        }
        if let Some(worker) = &self.worker {
            request.metadata_mut().insert("workerid", worker.clone());
        }
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// A client of the server at this address (`host:port`), without a task hub header (R1.8).
    /// It connects when first used, and again when the connection breaks.
    pub fn new(address: impl std::fmt::Display) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let endpoint = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(5));
        Client { channel: endpoint.connect_lazy(), headers: Headers::default() }
    }

    /// A client on this connection.
    pub fn over(channel: Channel) -> Self {
        Client { channel, headers: Headers::default() }
    }

    /// The same connection, with this token.
    pub fn with_token(&self, token: &str) -> Self {
        let mut client = self.clone();
        let value = format!("Bearer {token}");
        client.headers.authorization = Some(value.parse().expect("a header value"));
        client
    }

    /// The same connection, with this task hub in the header.
    pub fn in_hub(&self, task_hub: &str) -> Self {
        let mut client = self.clone();
        client.headers.task_hub = Some(task_hub.parse().expect("a header value"));
        client
    }

    /// The same connection, with a `workerid` header.
    pub fn as_worker(&self, id: &str) -> Self {
        let mut client = self.clone();
        client.headers.worker = Some(id.parse().expect("a header value"));
        client
    }

    /// The connection, for other services of the server.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The generated client, for calls that have no helper or are meant to fail.
    pub fn rpc(&self) -> Rpc {
        TaskHubSidecarServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20)
    }

    /// Starts an instance; an empty `id` lets the server choose one. Returns the id.
    pub async fn start(&self, id: &str, name: &str, input: &str) -> String {
        let request = wire::CreateInstanceRequest {
            instance_id: id.into(),
            name: name.into(),
            input: Some(input.into()),
            ..Default::default()
        };
        self.start_with(request).await
    }

    /// Starts an instance as the request says. Returns its id.
    pub async fn start_with(&self, request: wire::CreateInstanceRequest) -> String {
        let what = format!("start {:?} {:?}", request.name, request.instance_id);
        good(&what, self.rpc().start_instance(request).await).instance_id
    }

    /// The instance's state with inputs and outputs; `None` when it does not exist.
    pub async fn get(&self, id: &str) -> Option<OrchestrationState> {
        let answer = good(&format!("get {id:?}"), self.rpc().get_instance(get(id)).await);
        assert_eq!(answer.exists, answer.orchestration_state.is_some(), "state of {id:?} (R2.24)");
        answer.orchestration_state
    }

    /// The instance's status.
    pub async fn status(&self, id: &str) -> OrchestrationStatus {
        let state = self.get(id).await;
        state.unwrap_or_else(|| panic!("{id:?} does not exist")).orchestration_status()
    }

    /// Waits until the instance is terminal and returns its state.
    pub async fn wait(&self, id: &str) -> OrchestrationState {
        let mut rpc = self.rpc();
        let answer =
            tokio::time::timeout(PATIENCE, rpc.wait_for_instance_completion(get(id))).await;
        self.awaited("completion", id, answer).await
    }

    /// Waits until the instance is no longer pending and returns its state.
    pub async fn wait_started(&self, id: &str) -> OrchestrationState {
        let mut rpc = self.rpc();
        let answer = tokio::time::timeout(PATIENCE, rpc.wait_for_instance_start(get(id))).await;
        self.awaited("start", id, answer).await
    }

    /// Waits until the instance has completed successfully and returns its output.
    pub async fn output(&self, id: &str) -> String {
        let state = self.wait(id).await;
        assert_eq!(
            state.orchestration_status(),
            OrchestrationStatus::Completed,
            "{id:?}: {state:?}"
        );
        state.output.map(String::from).unwrap_or_default()
    }

    /// Asks until the instance has this status.
    pub async fn wait_status(&self, id: &str, status: OrchestrationStatus) -> OrchestrationState {
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let state = self.get(id).await;
            match state {
                Some(state) if state.orchestration_status() == status => return state,
                state if tokio::time::Instant::now() > until => {
                    panic!("{id:?} did not become {status:?}, it is {state:?}")
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Raises an event.
    pub async fn raise(&self, id: &str, name: &str, data: &str) {
        let request = wire::RaiseEventRequest {
            instance_id: id.into(),
            name: name.into(),
            input: Some(data.into()),
        };
        good(&format!("raise {name:?} on {id:?}"), self.rpc().raise_event(request).await);
    }

    /// Asks for the instance's termination, without its children.
    pub async fn terminate(&self, id: &str, output: &str) {
        let request = wire::TerminateRequest {
            instance_id: id.into(),
            output: Some(output.into()),
            recursive: false,
        };
        good(&format!("terminate {id:?}"), self.rpc().terminate_instance(request).await);
    }

    /// Suspends the instance.
    pub async fn suspend(&self, id: &str) {
        let request = wire::SuspendRequest { instance_id: id.into(), reason: None };
        good(&format!("suspend {id:?}"), self.rpc().suspend_instance(request).await);
    }

    /// Resumes the instance.
    pub async fn resume(&self, id: &str) {
        let request = wire::ResumeRequest { instance_id: id.into(), reason: None };
        good(&format!("resume {id:?}"), self.rpc().resume_instance(request).await);
    }

    /// The history of the instance's current generation. [`history::compact`] makes it a short text.
    pub async fn history(&self, id: &str) -> Vec<HistoryEvent> {
        let request =
            wire::StreamInstanceHistoryRequest { instance_id: id.into(), ..Default::default() };
        let what = format!("history of {id:?}");
        let mut chunks = good(&what, self.rpc().stream_instance_history(request).await);
        let mut events = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap_or_else(|it| panic!("{what}: {it}")) {
            events.extend(history::decode(&chunk.events));
        }
        events
    }

    async fn awaited(
        &self,
        what: &str,
        id: &str,
        answer: Result<
            Result<tonic::Response<wire::GetInstanceResponse>, tonic::Status>,
            tokio::time::error::Elapsed,
        >,
    ) -> OrchestrationState {
        let Ok(answer) = answer else {
            let state = self.get(id).await;
            panic!("no {what} of {id:?} within {PATIENCE:?}; it is {state:?}");
        };
        let answer = good(&format!("wait for the {what} of {id:?}"), answer);
        answer.orchestration_state.unwrap_or_else(|| panic!("{id:?} does not exist"))
    }
}

fn get(id: &str) -> wire::GetInstanceRequest {
    wire::GetInstanceRequest { instance_id: id.into(), get_inputs_and_outputs: true }
}

/// The answer of a call that must succeed.
pub fn good<T>(what: &str, answer: Result<tonic::Response<T>, tonic::Status>) -> T {
    match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => panic!("{what}: {:?}: {}", status.code(), status.message()),
    }
}
