//! The answering side: the peer port.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::peer_server::{self, Peer};
use durahub_proto::peer::{
    Frame, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, Method, SnapshotAnswer,
    SnapshotFrame,
};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use super::gather::Gather;
use super::greeting::Greeting;
use super::inbox::{Inbox, Message};
use super::outbox::{Begin, Frames, Outbox};
use super::places::Places;
use super::stream::{PeerInfo, PeerStream, Secure};
use super::{
    CONNECT_TIME, CONNECTION_WINDOW, KEEPALIVE, KEEPALIVE_ANSWER, STREAM_WINDOW, snapshot,
};
use crate::admin::{AdminApi, AdminService, Guard};
use crate::machine::GroupId;
use crate::peers::{Call, PeerService, Rejection};
use crate::program::Feed;

/// Connections that are being accepted at the same time.
const ACCEPTING: usize = 64;
/// Time for connections to end once they are asked to.
const STOP_TIME: Duration = Duration::from_secs(1);

/// A peer port that is being served.
pub struct PeerServer {
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    accepting: JoinHandle<()>,
}

impl PeerServer {
    /// Answers peers, and the operators whom `guard` admits, on `listener` until [`PeerServer::stop`]. Connections
    /// that find no place are closed.
    pub fn start(
        listener: TcpListener,
        secure: Arc<dyn Secure>,
        service: Arc<dyn PeerService>,
        admin: Arc<dyn AdminService>,
        guard: Arc<dyn Guard>,
        places: Places,
    ) -> Self {
        let (stop, stopping) = watch::channel(false);
        let (accepted, incoming) = mpsc::channel(ACCEPTING);
        let accepting = tokio::spawn(accept(listener, secure, places, accepted));
        let peer = PeerApi { service, stopping: stopping.clone() };
        let serving = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .add_service(peer_server::PeerServer::new(peer))
            .add_service(AdminApi::server(admin, guard))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), until(stopping));
        Self { stop, serving: tokio::spawn(serving), accepting }
    }

    /// Ends all links and closes the port.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.accepting.abort();
        let abort = self.serving.abort_handle();
        if tokio::time::timeout(STOP_TIME, self.serving).await.is_err() {
            abort.abort();
        }
    }
}

async fn until(mut stopping: watch::Receiver<bool>) {
    // A server that was dropped without a stop is told nothing: it serves on.
    if stopping.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn accept(
    listener: TcpListener,
    secure: Arc<dyn Secure>,
    places: Places,
    accepted: mpsc::Sender<io::Result<PeerStream>>,
) {
    loop {
        let (tcp, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of handles, or a connection that ended at once: neither may end the port.
                tracing::warn!(%error, "a peer connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = places.enter(from.ip()) else { continue };
        let (secure, accepted) = (Arc::clone(&secure), accepted.clone());
        tokio::spawn(async move {
            let _ = tcp.set_nodelay(true);
            let begun = async {
                // Who says nothing keeps no place.
                match tcp.peek(&mut [0]).await? {
                    0 => Err(io::ErrorKind::UnexpectedEof.into()),
                    _ => secure.accept(tcp).await,
                }
            };
            match tokio::time::timeout(CONNECT_TIME, begun).await {
                Ok(Ok(stream)) => {
                    let stream = stream.holding(place, Greeting::within(CONNECT_TIME));
                    drop(accepted.send(Ok(stream)).await);
                }
                Ok(Err(error)) => tracing::warn!(%error, "a peer connection was refused"),
                Err(_) => tracing::warn!("a peer connection did not come up in time"),
            }
        });
    }
}

struct PeerApi {
    service: Arc<dyn PeerService>,
    stopping: watch::Receiver<bool>,
}

impl PeerApi {
    /// Refuses a caller whose certificate is for none of these addresses. Never with `PERMISSION_DENIED`, which
    /// tells a node that it is no member any more.
    fn check(&self, info: &PeerInfo, addresses: &[String]) -> Result<(), Status> {
        if info.speaks_for(addresses.iter().map(String::as_str)) {
            return Ok(());
        }
        let shown = info.shown.as_ref().map_or_else(
            || "no certificate was shown".to_owned(),
            |shown| format!("the certificate is for {:?}", shown.names()),
        );
        let text = format!("{shown}, not for the caller's address {addresses:?}");
        tracing::warn!(reason = %text, "a peer was refused");
        Err(Status::unauthenticated(text))
    }
}

fn info<T>(request: &Request<T>) -> PeerInfo {
    // A connection of which nothing is known may do nothing.
    let unknown = || PeerInfo { secured: true, shown: None };
    request.extensions().get::<PeerInfo>().cloned().unwrap_or_else(unknown)
}

pub(super) fn rejected(rejection: Rejection) -> Status {
    match rejection {
        Rejection::NotNow(reason) => Status::unavailable(reason),
        Rejection::Mismatch(reason) => Status::failed_precondition(reason),
        Rejection::Expelled(reason) => Status::permission_denied(reason),
    }
}

#[tonic::async_trait]
impl Peer for PeerApi {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<Frame, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let info = info(&request);
        let mut frames = request.into_inner();
        let mut inbox = Inbox::default();
        let first = tokio::time::timeout(CONNECT_TIME, frames.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no greeting in time"))??;
        let Some(Ok(Some(Message::Hello(hello)))) = first.map(|frame| inbox.accept(frame)) else {
            return Err(Status::invalid_argument("the first frame is not a greeting"));
        };
        self.check(&info, &self.service.addresses(Some(hello.node)))?;
        let mine = self.service.greet(&hello).map_err(rejected)?;
        let outbox = Outbox::new(mine);
        let peer = hello.node;
        let link = Answering {
            peer,
            service: Arc::clone(&self.service),
            outbox: outbox.clone(),
            running: Arc::default(),
            feeds: Arc::default(),
        };
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            let ended = tokio::select! {
                reason = link.run(frames, inbox) => reason,
                () = until(stopping) => "this node is stopping".to_owned(),
            };
            tracing::debug!(peer, reason = %ended, "an incoming link has ended");
            link.outbox.close();
            link.feeds.lock().clear();
            for (_, task) in link.running.lock().drain() {
                task.abort();
            }
        });
        Ok(Response::new(Box::pin(Gather::new(Frames(outbox)).map(Ok))))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotFrame>>,
    ) -> Result<Response<SnapshotAnswer>, Status> {
        self.check(&info(&request), &self.service.addresses(None))?;
        let payload = snapshot::receive(&self.service, request.into_inner()).await?;
        Ok(Response::new(SnapshotAnswer { payload }))
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<IdentifyResponse>, Status> {
        if info(&request).secured && info(&request).shown.is_none() {
            return Err(Status::unauthenticated("a node must show a certificate"));
        }
        Ok(Response::new(self.service.identify(&request.into_inner())))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.check(&info(&request), &[request.get_ref().address.clone()])?;
        self.service.join(request.into_inner()).await.map(Response::new).map_err(rejected)
    }
}

/// One incoming link.
struct Answering {
    peer: u64,
    service: Arc<dyn PeerService>,
    outbox: Outbox,
    running: Arc<Mutex<HashMap<u64, AbortHandle>>>,
    /// Where the items of open feeds go.
    feeds: Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<Bytes>>>>,
}

impl Answering {
    async fn run(&self, mut frames: Streaming<Frame>, mut inbox: Inbox) -> String {
        loop {
            let frame = match frames.message().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return "the peer has closed it".into(),
                Err(status) => return status.message().to_owned(),
            };
            match inbox.accept(frame) {
                Ok(Some(Message::Request { call, method: Method::Feed, .. })) => self.feed(call),
                Ok(Some(Message::Item { call, payload })) => {
                    if let Some(items) = self.feeds.lock().get(&call) {
                        // Whoever no longer reads has let go of the feed.
                        let _ = items.send(payload);
                    }
                }
                Ok(Some(Message::Request { call, method, group, payload })) => {
                    self.answer(call, Call { group: GroupId(group), method, payload });
                }
                Ok(Some(Message::Cancel { call })) => {
                    self.feeds.lock().remove(&call);
                    if let Some(task) = self.running.lock().remove(&call) {
                        task.abort();
                    }
                }
                Ok(_) => {}
                Err(reason) => {
                    tracing::warn!(peer = self.peer, %reason, "a peer breaks the protocol");
                    return reason;
                }
            }
        }
    }

    fn feed(&self, id: u64) {
        let (mine, theirs) = Feed::pair();
        self.feeds.lock().insert(id, mine.sender);
        self.service.feed(self.peer, theirs);
        let (outbox, running) = (self.outbox.clone(), Arc::clone(&self.running));
        let feeds = Arc::clone(&self.feeds);
        let mut to_send = mine.receiver;
        let mut noted = self.running.lock();
        let task = tokio::spawn(async move {
            while let Some(item) = to_send.recv().await {
                outbox.send_item(id, item).await;
            }
            feeds.lock().remove(&id);
            outbox.send(id, Begin::Response, Bytes::new()).await;
            running.lock().remove(&id);
        });
        noted.insert(id, task.abort_handle());
    }

    fn answer(&self, id: u64, call: Call) {
        if call.method == Method::Unspecified {
            self.outbox.refuse(id, "this version does not know the method".into());
            return;
        }
        let (service, outbox) = (Arc::clone(&self.service), self.outbox.clone());
        let running = Arc::clone(&self.running);
        // Held until the task is noted, so that it cannot end before.
        let mut noted = self.running.lock();
        let task = tokio::spawn(async move {
            match service.call(call).await {
                Ok(payload) => outbox.send(id, Begin::Response, payload).await,
                Err(error) => outbox.refuse(id, error.reason()),
            }
            running.lock().remove(&id);
        });
        noted.insert(id, task.abort_handle());
    }
}
