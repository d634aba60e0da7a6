//! What the commands that talk to a server share: where it is, which task hub, how the answer looks.

use std::time::Duration;

use clap::{Args, ValueEnum};
use durahub_proto::own::entity_service_client::EntityServiceClient;
use durahub_proto::own::task_hub_service_client::TaskHubServiceClient;
use durahub_proto::wire::task_hub_sidecar_service_client::TaskHubSidecarServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::failure::{Failure, Reason, add_causes};
use crate::dial::DialArgs;

/// A client whose calls carry the task hub's name.
pub(super) type Rpc = TaskHubSidecarServiceClient<InterceptedService<Channel, Headers>>;
/// A client of Durahub's own calls about all task hubs.
pub(super) type HubRpc = TaskHubServiceClient<InterceptedService<Channel, Headers>>;
/// A client of Durahub's own calls about the entities of a task hub.
pub(super) type EntityRpc = EntityServiceClient<InterceptedService<Channel, Headers>>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A server that vanished is noticed within this and the next time, also while a call waits for hours.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Servers keep below 4 MiB (R1.23); a larger answer is still worth showing.
const MAX_MESSAGE: usize = 64 << 20;

/// Where the server is.
#[derive(Args, Clone, Debug)]
pub(super) struct ServerArgs {
    /// Server to talk to
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "DURAHUB_ENDPOINT",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Server"
    )]
    endpoint: String,
    /// How the answer looks
    #[arg(long, global = true, value_enum, default_value_t = Output::Table, help_heading = "Server")]
    pub(super) output: Output,
    #[command(flatten)]
    dial: DialArgs,
}

/// How an answer looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Text for people; it may change between versions
    Table,
    /// JSON for programs
    Json,
}

impl ServerArgs {
    /// A client of one task hub.
    pub(super) async fn hub(&self, task_hub: &str) -> Result<Rpc, Failure> {
        let headers = self.headers(task_hub)?;
        Ok(TaskHubSidecarServiceClient::with_interceptor(self.channel().await?, headers)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE))
    }

    /// A client of the calls about all task hubs.
    pub(super) async fn hubs(&self) -> Result<HubRpc, Failure> {
        let headers = Headers { task_hub: None, authorization: self.authorization()? };
        Ok(TaskHubServiceClient::with_interceptor(self.channel().await?, headers))
    }

    /// A client of our own calls about one task hub.
    pub(super) async fn hubs_in(&self, task_hub: &str) -> Result<HubRpc, Failure> {
        let headers = self.headers(task_hub)?;
        Ok(TaskHubServiceClient::with_interceptor(self.channel().await?, headers))
    }

    /// A client of our own calls about the entities of one task hub.
    pub(super) async fn entities(&self, task_hub: &str) -> Result<EntityRpc, Failure> {
        let headers = self.headers(task_hub)?;
        Ok(EntityServiceClient::with_interceptor(self.channel().await?, headers)
            .max_decoding_message_size(MAX_MESSAGE))
    }

    fn headers(&self, task_hub: &str) -> Result<Headers, Failure> {
        let name = task_hub.parse().map_err(|_| {
            Failure::new(Reason::Usage, format!("--task-hub: {task_hub:?} is not a name"))
        })?;
        Ok(Headers { task_hub: Some(name), authorization: self.authorization()? })
    }

    fn authorization(&self) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        self.dial.authorization().map_err(|error| Failure::new(Reason::Usage, error.to_string()))
    }

    async fn channel(&self) -> Result<Channel, Failure> {
        channel(&self.endpoint, &self.dial).await
    }
}

/// Opens a connection to the server at a URL.
pub(super) async fn channel(url: &str, args: &DialArgs) -> Result<Channel, Failure> {
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(full).map_err(|error| {
        Failure::new(Reason::Usage, format!("--endpoint {url} is not a URL: {error}"))
    })?;
    let dial = args.dial().map_err(|error| Failure::new(Reason::Usage, error.to_string()))?;
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT);
    endpoint.connect_with_connector(dial).await.map_err(|error| {
        let mut text = format!("cannot connect to {url}");
        add_causes(&mut text, &error);
        Failure::new(Reason::Unreachable, text)
    })
}

/// Puts the headers of an SDK on every call (R1.12).
#[derive(Clone)]
pub(super) struct Headers {
    task_hub: Option<MetadataValue<Ascii>>,
    authorization: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        if let Some(task_hub) = &self.task_hub {
            metadata.insert("taskhub", task_hub.clone());
        }
        if let Some(authorization) = &self.authorization {
            metadata.insert("authorization", authorization.clone());
        }
        let agent = concat!("durahub-cli/", env!("CARGO_PKG_VERSION"));
        metadata.insert("x-user-agent", MetadataValue::from_static(agent));
        Ok(request)
    }
}
