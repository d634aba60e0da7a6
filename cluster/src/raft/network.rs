//! openraft's network over a [`Transport`]: encodes calls, decodes answers, and the same on the other side.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend, Raft, RaftNetworkFactory, RaftNetworkV2};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::snapshots::Snapshots;
use super::state::State;
use super::types::{Snapshot, SnapshotMeta, Types, Vote};
use super::{codec, commits};
use crate::machine::{GroupId, Machine};
use crate::peers::{Call, Method, Peer, PeerError, SnapshotCall, Transport};
use crate::store::snapshot::Body;

/// Time for an append with entries, besides that for its bytes: the follower flushes before it answers.
const APPEND_TIME: Duration = Duration::from_secs(3);
/// Slowest network and disk on which a long message still arrives in time.
const BYTES_PER_SECOND: f64 = (4 << 20) as f64;

/// Makes connections of one group.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) node: u64,
    pub(crate) group: GroupId,
    pub(crate) transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Connection {
        Connection { network: self.clone(), peer: Peer { id: target, address: node.addr.clone() } }
    }
}

/// One group's way to one peer.
pub(crate) struct Connection {
    network: Network,
    peer: Peer,
}

type Rpc<T> = Result<T, RPCError<Types>>;
type Appending<'s> = BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Types>>>>>;

impl Connection {
    async fn send<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        request: &Q,
        timeout: Duration,
    ) -> Rpc<A> {
        let payload =
            codec::encode(request).map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
        let timeout = timeout + Duration::from_secs_f64(payload.len() as f64 / BYTES_PER_SECOND);
        let call = Call { group: self.network.group, method, payload: Bytes::from(payload) };
        let answer = self.network.transport.call(&self.peer, call, timeout).await;
        let answer = answer.map_err(|error| self.rpc_error(error, method))?;
        codec::decode("peer answer", &answer)
            .map_err(|error| RPCError::Network(NetworkError::new(&error)))
    }

    fn rpc_error(&self, error: PeerError, method: Method) -> RPCError<Types> {
        match error {
            PeerError::Timeout { timeout, .. } => RPCError::Timeout(Timeout {
                action: match method {
                    Method::Vote | Method::PreVote => RPCTypes::Vote,
                    Method::TransferLeader => RPCTypes::TransferLeader,
                    _ => RPCTypes::AppendEntries,
                },
                id: self.network.node,
                target: self.peer.id,
                timeout,
            }),
            PeerError::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&error)),
            PeerError::Failed { .. } | PeerError::Lost { .. } => {
                RPCError::Network(NetworkError::new(&error))
            }
        }
    }
}

impl RaftNetworkV2<Types> for Connection {
    type SnapshotData = Body;

    fn stream_append<'s, S>(&'s mut self, input: S, option: RPCOption) -> Appending<'s>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        stream_append_sequential(self, commits::with_entries(input), option)
    }

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        // A heartbeat is answered at once; entries are flushed first, and that may take a while.
        let timeout = if rpc.entries.is_empty() {
            option.hard_ttl()
        } else {
            APPEND_TIME.max(option.hard_ttl())
        };
        self.send(Method::Append, &rpc, timeout).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.send(Method::Vote, &rpc, option.hard_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Types>> {
        self.send(Method::PreVote, &rpc, option.hard_ttl()).await
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        self.send(Method::TransferLeader, &rpc, option.hard_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let network = |error: io::Error| StreamingError::Network(NetworkError::new(&error));
        let payload = codec::encode(&(vote, &snapshot.meta)).map_err(network)?;
        let call = SnapshotCall {
            group: self.network.group,
            payload: Bytes::from(payload),
            body: snapshot.snapshot,
        };
        let send = self.network.transport.snapshot(&self.peer, call, option.hard_ttl());
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = send => match answer {
                Ok(answer) => codec::decode("peer answer", &answer).map_err(network),
                Err(error @ PeerError::Unreachable { .. }) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
                Err(error) => Err(StreamingError::Network(NetworkError::new(&error))),
            },
        }
    }
}

/// Answers a peer's call to a group of this node.
pub(crate) async fn answer<M: Machine>(
    raft: &Raft<Types, State<M>>,
    call: &Call,
) -> io::Result<Bytes> {
    let what = "peer call";
    let bytes = match call.method {
        Method::Append => {
            let answer = raft
                .append_entries(codec::decode(what, &call.payload)?)
                .await
                .map_err(io::Error::other)?;
            codec::encode(&answer)
        }
        Method::Vote => {
            let answer =
                raft.vote(codec::decode(what, &call.payload)?).await.map_err(io::Error::other)?;
            codec::encode(&answer)
        }
        Method::PreVote => {
            let answer = raft
                .pre_vote(codec::decode(what, &call.payload)?)
                .await
                .map_err(io::Error::other)?;
            codec::encode(&answer)
        }
        Method::TransferLeader => {
            let request = codec::decode(what, &call.payload)?;
            let answer = raft.handle_transfer_leader(request).await.map_err(io::Error::other)?;
            codec::encode(&answer)
        }
        other => Err(io::Error::other(format!("{} is not a consensus call", other.as_str_name()))),
    };
    bytes.map(Bytes::from)
}

/// Installs a snapshot that a peer has sent. What it says of itself counts, not what was announced: a leader
/// goes on applying until it sends, so the snapshot may be newer.
pub(crate) async fn receive<M: Machine>(
    raft: &Raft<Types, State<M>>,
    snapshots: &Snapshots,
    payload: &Bytes,
    body: Body,
) -> io::Result<Bytes> {
    let (vote, _): (Vote, SnapshotMeta) = codec::decode("snapshot call", payload)?;
    let path = match &body {
        Body::File(path) => Some(path.clone()),
        _ => None,
    };
    let installed = async {
        let meta = snapshots.check(&body).await?;
        let snapshot = Snapshot { meta, snapshot: body };
        let answer = raft.install_full_snapshot(vote, snapshot).await.map_err(io::Error::other)?;
        codec::encode(&answer).map(Bytes::from)
    };
    let answer = installed.await;
    // Still there under its first name: it was refused, or not needed any more.
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
    answer
}
