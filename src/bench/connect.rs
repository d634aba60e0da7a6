//! What all calls of the benchmark share: channels, headers, and which failures deserve a retry.

use std::time::Duration;

use anyhow::{Context, bail};
use durahub_proto::wire;
use durahub_proto::wire::task_hub_sidecar_service_client::TaskHubSidecarServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::dial::DialArgs;
use crate::tls::Dial;

/// A client whose calls carry the task hub's name. Cheap to clone; clones share one connection.
pub(super) type Rpc = TaskHubSidecarServiceClient<InterceptedService<Channel, Headers>>;

/// Servers commonly allow some 200 calls in flight per connection, and a waiting call counts.
const INSTANCES_PER_CONNECTION: u32 = 100;
const MAX_CONNECTIONS: u32 = 32;
/// Largest message accepted. Servers keep below 4 MiB (R1.23); a larger one is still worth reading.
const MAX_MESSAGE: usize = 64 << 20;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// The server under test.
pub(super) struct Target {
    endpoint: Endpoint,
    dial: Dial,
    url: String,
    task_hub: MetadataValue<Ascii>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Target {
    /// Takes the address apart; nothing is opened yet.
    ///
    /// # Errors
    /// When the URL or the name cannot be used.
    pub(super) fn new(url: &str, task_hub: &str, args: &DialArgs) -> anyhow::Result<Self> {
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let endpoint = Endpoint::from_shared(full.clone())
            .with_context(|| format!("endpoint {url} is not a URL"))?
            .connect_timeout(Duration::from_secs(5))
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            // Notices a server that vanished without closing its connections.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(20));
        let task_hub =
            task_hub.parse().with_context(|| format!("task hub {task_hub:?} is not a header"))?;
        let (dial, authorization) = (args.dial()?, args.authorization()?);
        Ok(Self { endpoint, dial, url: full, task_hub, authorization })
    }

    /// Asks the server for an instance that does not exist: it is there, and it knows the task hub.
    ///
    /// # Errors
    /// When it is not or does not.
    pub(super) async fn check(&self) -> anyhow::Result<()> {
        let url = &self.url;
        let channel = self.connect().await.with_context(|| format!("connect to {url}"))?;
        let request =
            wire::GetInstanceRequest { instance_id: "durahub-bench".into(), ..Default::default() };
        let answer = self.rpc(channel, None).get_instance(request).await;
        match answer {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => bail!("{url}: {}", status.message()),
            Err(status) => Err(status).with_context(|| format!("ask {url} for an instance")),
        }
    }

    /// Enough connections for this many instances in flight.
    pub(super) fn clients(&self, concurrency: u32) -> Vec<Rpc> {
        let connections = concurrency.div_ceil(INSTANCES_PER_CONNECTION).clamp(1, MAX_CONNECTIONS);
        (0..connections).map(|_| self.rpc(self.lazily(), None)).collect()
    }

    /// A connection for one worker stream and its completions.
    ///
    /// # Errors
    /// Never in practice: the worker's id is plain ASCII.
    pub(super) fn worker(&self, number: u32) -> anyhow::Result<Rpc> {
        let id = format!("durahub-bench:{}:{number}", std::process::id()).parse()?;
        Ok(self.rpc(self.lazily(), Some(id)))
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        self.endpoint.connect_with_connector(self.dial.clone()).await
    }

    fn lazily(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.dial.clone())
    }

    fn rpc(&self, channel: Channel, worker: Option<MetadataValue<Ascii>>) -> Rpc {
        let (task_hub, authorization) = (self.task_hub.clone(), self.authorization.clone());
        let headers = Headers { task_hub, worker, authorization };
        TaskHubSidecarServiceClient::with_interceptor(channel, headers)
            .max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Puts the headers of an SDK on every call (R1.12).
#[derive(Clone)]
pub(super) struct Headers {
    task_hub: MetadataValue<Ascii>,
    worker: Option<MetadataValue<Ascii>>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("taskhub", self.task_hub.clone());
        let agent = concat!("durahub-bench/", env!("CARGO_PKG_VERSION"));
        metadata.insert("x-user-agent", MetadataValue::from_static(agent));
        if let Some(worker) = &self.worker {
            metadata.insert("workerid", worker.clone());
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// Whether the call may succeed when repeated: the server or the way to it had a problem, not the call.
pub(super) fn is_passing(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Internal
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
    )
}
