//! What an operator asks of a cluster: any node answers, on the peer port.
//!
//! A running node implements [`AdminService`]; [`AdminClient`] is the other end, for a command line.

use std::sync::Arc;

use durahub_proto::peer::admin_client;
use durahub_proto::peer::admin_server::{Admin, AdminServer};
use durahub_proto::peer::{
    AddNodeRequest, AddNodeResponse, DrainRequest, DrainResponse, RemoveNodeRequest,
    RemoveNodeResponse, StatusRequest, StatusResponse, TransferLeaderRequest,
    TransferLeaderResponse,
};
use futures::future::BoxFuture;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::transport::PeerInfo;

pub use durahub_proto::peer as messages;

/// Why an operator's request was not done. Each is one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The request makes no sense in this cluster; repeating it changes nothing.
    #[error("{0}")]
    Refused(String),
    /// Not now, or nobody knows whether it was done: look at the status and ask again.
    #[error("{0}")]
    Unavailable(String),
    /// The node does not know who asks, or does not allow it.
    #[error("{0}")]
    Denied(String),
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

/// Says which operators may ask what.
pub trait Guard: Send + Sync + 'static {
    /// Admits a call to a method, or refuses it. `subject` says what it is about, such as `node 3`.
    fn admit(
        &self,
        method: &str,
        subject: &str,
        headers: &MetadataMap,
        connection: &PeerInfo,
    ) -> Result<(), Status>;
}

/// Admits everybody: for a network that nobody else can reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Open;

impl Guard for Open {
    fn admit(&self, _: &str, _: &str, _: &MetadataMap, _: &PeerInfo) -> Result<(), Status> {
        Ok(())
    }
}

/// The gRPC service over an [`AdminService`].
pub(crate) struct AdminApi(Arc<dyn AdminService>, Arc<dyn Guard>);

impl AdminApi {
    pub(crate) fn server(
        service: Arc<dyn AdminService>,
        guard: Arc<dyn Guard>,
    ) -> AdminServer<Self> {
        AdminServer::new(Self(service, guard))
    }

    fn admit<T>(&self, method: &str, subject: &str, request: &Request<T>) -> Result<(), Status> {
        let connection = request.extensions().get::<PeerInfo>().cloned().unwrap_or_default();
        self.1.admit(method, subject, request.metadata(), &connection)
    }
}

fn status(error: AdminError) -> Status {
    match error {
        AdminError::Refused(reason) => Status::failed_precondition(reason),
        AdminError::Unavailable(reason) => Status::unavailable(reason),
        AdminError::Denied(reason) => Status::permission_denied(reason),
    }
}

#[tonic::async_trait]
impl Admin for AdminApi {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        self.admit("Status", "", &request)?;
        self.0.status().await.map(Response::new).map_err(status)
    }

    async fn add_node(
        &self,
        request: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        self.admit("AddNode", &format!("node {}", request.get_ref().node), &request)?;
        let node = self.0.add_node(request.into_inner()).await.map_err(status)?;
        Ok(Response::new(AddNodeResponse { node }))
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        self.admit("RemoveNode", &format!("node {}", request.get_ref().node), &request)?;
        self.0.remove_node(request.into_inner().node).await.map_err(status)?;
        Ok(Response::new(RemoveNodeResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        let TransferLeaderRequest { group, to } = *request.get_ref();
        self.admit("TransferLeader", &format!("partition {group} to node {to}"), &request)?;
        self.0.transfer_leader(group, to).await.map_err(status)?;
        Ok(Response::new(TransferLeaderResponse {}))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        let DrainRequest { node, undo } = *request.get_ref();
        let subject = format!("node {node}{}", if undo { ", undo" } else { "" });
        self.admit("Drain", &subject, &request)?;
        self.0.drain(node, undo).await.map_err(status)?;
        Ok(Response::new(DrainResponse {}))
    }
}

/// An operator's end: asks the node at one address.
pub struct AdminClient(admin_client::AdminClient<InterceptedService<Channel, Authorization>>);

/// Puts an `authorization` header on every call.
#[derive(Clone)]
struct Authorization(Option<MetadataValue<Ascii>>);

impl Interceptor for Authorization {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

impl AdminClient {
    /// Asks the node at the other end of `channel`, and sends `authorization` with every call.
    pub fn new(channel: Channel, authorization: Option<MetadataValue<Ascii>>) -> Self {
        let authorization = Authorization(authorization);
        Self(admin_client::AdminClient::with_interceptor(channel, authorization))
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
        tonic::Code::Unauthenticated | tonic::Code::PermissionDenied => {
            AdminError::Denied(status.message().to_owned())
        }
        _ => AdminError::Unavailable(status.message().to_owned()),
    }
}
