//! How this node answers its peers.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use durahub_proto::peer::{
    Hello, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse, Member,
};
use futures::future::{self, BoxFuture};
use futures::{FutureExt as _, TryFutureExt as _};
use prost::Message;

use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::meta::change::What;
use crate::meta::{Metadata, NodeRecord, State};
use crate::node::Inner;
use crate::partition::Partition;
use crate::peers::{Call, Method, PeerError, PeerService, Rejection, SnapshotCall};
use crate::program::Feed;
use crate::raft::group::Group;

impl<M: Machine> Inner<M> {
    fn find(&self, group: GroupId) -> Result<&Partition<M>, PeerError> {
        self.groups.get(group.0 as usize).ok_or_else(|| PeerError::Failed {
            peer: self.node_id,
            reason: format!("there is no partition {group}"),
        })
    }

    /// The replica that a peer means. None is made for a call: only a request to begin one does that.
    fn group_here(&self, partition: &Partition<M>) -> Result<Arc<Group<M>>, PeerError> {
        partition.group().map_err(|_| PeerError::Failed {
            peer: self.node_id,
            reason: format!("node {} does not hold partition {}", self.node_id, partition.id()),
        })
    }

    async fn ask_program(&self, question: Bytes) -> Result<Bytes, PeerError> {
        let failed = |reason| PeerError::Failed { peer: self.node_id, reason };
        let program = self.program().ok_or_else(|| failed("it has not started yet".to_owned()))?;
        program.answer(question).await.map_err(failed)
    }

    fn failed(&self, error: io::Error) -> PeerError {
        PeerError::Failed { peer: self.node_id, reason: error.to_string() }
    }
}

impl<M: Machine> PeerService for Inner<M> {
    fn greet(&self, hello: &Hello) -> Result<Hello, Rejection> {
        let (mine, id) = (&self.hello, self.node_id);
        let mismatch = |text: String| Err(Rejection::Mismatch(text));
        if hello.version != mine.version {
            return mismatch(format!(
                "node {id} speaks version {} of the peer protocol, not {}",
                mine.version, hello.version
            ));
        }
        if hello.cluster != mine.cluster {
            return mismatch(format!(
                "node {id} is of cluster {}, not {}",
                mine.cluster, hello.cluster
            ));
        }
        if hello.to != id {
            return mismatch(format!("this is node {id}, not node {}", hello.to));
        }
        if hello.node == id {
            return mismatch(format!("node {id} is this node: two nodes use one id"));
        }
        if hello.partitions != mine.partitions {
            return mismatch(format!(
                "the cluster has {} partitions, not {}",
                mine.partitions, hello.partitions
            ));
        }
        self.folders.judge(hello).map_err(Rejection::Expelled)?;
        Ok(Hello { to: hello.node, ..mine.clone() })
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        let partition = match self.find(call.group) {
            Ok(partition) => partition,
            Err(error) => return future::ready(Err(error)).boxed(),
        };
        let told =
            |error: Error| PeerError::Failed { peer: self.node_id, reason: error.to_string() };
        // Each in a box of its own: one for all would have the size of the largest, with every call.
        match call.method {
            Method::Propose => partition.answer_proposal(call.payload).map_err(told).boxed(),
            Method::Read => partition.answer_query(call.payload).map(Ok).boxed(),
            Method::ReadPoint => partition.answer_read_point().map(Ok).boxed(),
            Method::ChangeReplicas
            | Method::HandOver
            | Method::BeginReplica
            | Method::DropReplica => {
                self.answer_change(call.group, call.method, call.payload).map(Ok).boxed()
            }
            Method::StateHashes => {
                let hashes = self.state_hashes(partition).encode_to_vec();
                future::ready(Ok(Bytes::from(hashes))).boxed()
            }
            Method::Quarantine => self.quarantine(partition, call.payload).map_err(told).boxed(),
            Method::Ask => self.ask_program(call.payload).boxed(),
            Method::Report => {
                self.hear(call.payload);
                future::ready(Ok(Bytes::from(self.report().encode_to_vec()))).boxed()
            }
            _ => async move {
                let group = self.group_here(partition)?;
                group.answer(&call).await.map_err(|error| self.failed(error))
            }
            .boxed(),
        }
    }

    fn feed(&self, from: u64, feed: Feed) {
        // Nobody there yet: it ends, and is opened again.
        if let Some(program) = self.program() {
            program.accept(from, feed);
        }
    }

    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError> {
        let group = self.group_here(self.find(group)?)?;
        group.incoming().map_err(|error| self.failed(error))
    }

    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let group = self.group_here(self.find(call.group)?)?;
            let received = group.receive(&call.payload, call.body).await;
            received.map_err(|error| self.failed(error))
        })
    }

    fn identify(&self, request: &IdentifyRequest) -> IdentifyResponse {
        let metadata = self.metadata();
        let known = metadata.nodes.get(&request.node);
        IdentifyResponse {
            cluster: self.identity.cluster.clone(),
            node: self.node_id,
            partitions: self.identity.partitions,
            known_incarnation: self.folders.incarnation(request.node),
            removed: known.is_some_and(|node| node.state() == State::Removed),
        }
    }

    fn addresses(&self, node: Option<u64>) -> Vec<String> {
        let wanted = |id: u64| node.is_none_or(|node| node == id);
        let metadata = self.metadata();
        let known = metadata.nodes.iter().map(|(id, node)| (*id, &node.address));
        // The first members are known before the metadata is.
        let listed = self.initial_members.iter().map(|(id, address)| (*id, address));
        let all = known.chain(listed).filter(|(id, address)| wanted(*id) && !address.is_empty());
        let mut all: Vec<String> = all.map(|(_, address)| address.clone()).collect();
        // So are those that let this node join.
        all.extend(self.transport.addresses().into_iter().flat_map(|book| book.addresses(node)));
        all
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'_, Result<JoinResponse, Rejection>> {
        Box::pin(async move {
            if self.metadata().settings.is_none() {
                return Err(Rejection::NotNow("the cluster is not founded yet".into()));
            }
            let JoinRequest { incarnation, node, address, zone } = request;
            let record = NodeRecord { node, address, zone, incarnation, ..NodeRecord::default() };
            let answer = self
                .change(What::Join(record))
                .await
                .map_err(|error| Rejection::NotNow(error.to_string()))?;
            if !answer.refused.is_empty() {
                return Err(Rejection::Mismatch(answer.refused));
            }
            let metadata = self.groups[0].peek(Metadata::read);
            let present = metadata.nodes.into_values().filter(|node| node.state() == State::Active);
            Ok(JoinResponse {
                cluster: self.identity.cluster.clone(),
                node: answer.node,
                partitions: self.identity.partitions,
                members: present
                    .map(|node| Member { node: node.node, address: node.address })
                    .collect(),
            })
        })
    }
}
