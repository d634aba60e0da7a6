//! What an operator asks of a cluster: any node answers, on the peer port.
//!
//! A running node implements [`AdminService`]; [`AdminClient`] is the other end, for a command line.

use std::sync::Arc;
use std::time::Duration;

use durahub_proto::peer::admin_client;
use durahub_proto::peer::admin_server::{Admin, AdminServer};
use durahub_proto::peer::{
    AddNodeRequest, AddNodeResponse, DrainRequest, DrainResponse, RemoveNodeRequest,
    RemoveNodeResponse, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use futures::future::BoxFuture;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

pub use durahub_proto::peer as messages;

/// Time for one request of an operator.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Why an operator's request was not done. Each is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The request makes no sense in this cluster; repeating it changes nothing.
    #[error("{0}")]
    Refused(String),
    /// Not now, or nobody knows whether it was done: look at the status and ask again.
    #[error("{0}")]
    Unavailable(String),
}

/// Answers operators.
pub trait AdminService: Send + Sync + 'static {
    /// Nodes, partitions, leaders, lag and sizes, as far as they can be reached.
    fn status(&self) -> BoxFuture<'_, Result<StatusResponse, AdminError>>;

    /// Reserves an id for a node that will join; returns it.
    fn add_node(&self, request: AddNodeRequest) -> BoxFuture<'_, Result<u64, AdminError>>;

    /// Notes that a node shall leave; the controller moves its replicas away.
    fn remove_node(&self, node: u64) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Asks for another leader of a group.
    fn transfer_leader(&self, group: u32, to: u64) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Keeps leaders away from a node, or lets them come back.
    fn drain(&self, node: u64, undo: bool) -> BoxFuture<'_, Result<(), AdminError>>;
}

/// The gRPC service over an [`AdminService`].
pub(crate) struct AdminApi(Arc<dyn AdminService>);

impl AdminApi {
    pub(crate) fn server(service: Arc<dyn AdminService>) -> AdminServer<Self> {
        AdminServer::new(Self(service))
    }
}

fn status(error: AdminError) -> Status {
    match error {
        AdminError::Refused(reason) => Status::failed_precondition(reason),
        AdminError::Unavailable(reason) => Status::unavailable(reason),
    }
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.0.status().await.map(Response::new).map_err(status)
    }

    async fn add_node(
        &self,
        request: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        let node = self.0.add_node(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(AddNodeResponse { node }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        self.0.remove_node(request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let TransferLeaderRequest { group, to } = request.into_inner();
        self.0.transfer_leader(group, to).await.map_err(status)?;
        Ok(Response::new(TransferLeaderResponse {}))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let DrainRequest { node, undo } = request.into_inner();
        self.0.drain(node, undo).await.map_err(status)?;
        Ok(Response::new(DrainResponse {}))
    }
}

/// An operator's end: asks the node at one address.
pub struct AdminClient(admin_client::AdminClient<Channel>);

impl AdminClient {
    /// Connects to the peer port at `endpoint`, a URL such as `http://127.0.0.1:8083`.
    ///
    /// # Errors
    /// [`AdminError::Refused`] for what is no URL, [`AdminError::Unavailable`] when nothing answers.
    pub async fn connect(endpoint: &str) -> Result<Self, AdminError> {
        let target = Endpoint::from_shared(endpoint.to_owned())
            .map_err(|_| AdminError::Refused(format!("{endpoint:?} is not a URL")))?
            .connect_timeout(Duration::from_secs(5))
            .timeout(TIMEOUT);
        let channel = target.connect().await.map_err(|_| {
            let text =
                format!("no node answers at {endpoint}: is it running, and is this its peer port?");
            AdminError::Unavailable(text)
        })?;
        Ok(Self(admin_client::AdminClient::new(channel)))
    }

    /// Nodes, partitions, leaders, lag and sizes.
    ///
    /// # Errors
    /// [`AdminError`] as the node says, here and below.
    pub async fn status(&mut self) -> Result<StatusResponse, AdminError> {
        self.0.status(StatusRequest {}).await.map(Response::into_inner).map_err(error)
    }

    /// Reserves an id for a node that will join; `node` 0 lets the cluster choose.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn add_node(
        &mut self,
        node: u64,
        address: String,
        zone: String,
    ) -> Result<u64, AdminError> {
        let request = AddNodeRequest { node, address, zone };
        self.0.add_node(request).await.map(|answer| answer.into_inner().node).map_err(error)
    }

    /// Notes that a node shall leave.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn remove_node(&mut self, node: u64) -> Result<(), AdminError> {
        self.0.remove_node(RemoveNodeRequest { node }).await.map(drop).map_err(error)
    }

    /// Asks for another leader of a group.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn transfer_leader(&mut self, group: u32, to: u64) -> Result<(), AdminError> {
        self.0.transfer_leader(TransferLeaderRequest { group, to }).await.map(drop).map_err(error)
    }

    /// Keeps leaders away from a node, or lets them come back.
    ///
    /// # Errors
    /// [`AdminError`].
    pub async fn drain(&mut self, node: u64, undo: bool) -> Result<(), AdminError> {
        self.0.drain(DrainRequest { node, undo }).await.map(drop).map_err(error)
    }
}

fn error(status: Status) -> AdminError {
    match status.code() {
        tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument => {
            AdminError::Refused(status.message().to_owned())
        }
        _ => AdminError::Unavailable(status.message().to_owned()),
    }
}
