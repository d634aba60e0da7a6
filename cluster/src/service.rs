//! How this node answers its peers.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use durahub_proto::peer::{Hello, IdentifyRequest, IdentifyResponse, JoinRequest, JoinResponse};
use futures::future::BoxFuture;

use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::node::Inner;
use crate::partition::Partition;
use crate::peers::{Call, Method, PeerError, PeerService, Rejection, SnapshotCall};

impl<M: Machine> Inner<M> {
    fn find(&self, group: GroupId) -> Result<&Partition<M>, PeerError> {
        self.groups.get(group.0 as usize).ok_or_else(|| PeerError::Failed {
            peer: self.node_id,
            reason: format!("there is no partition {group}"),
        })
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
        Ok(Hello { to: hello.node, ..mine.clone() })
    }

    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(call.group)?;
            let told = |error: Error| PeerError::Failed {
                peer: self.node_id,
                reason: error.to_string(),
            };
            match call.method {
                Method::Propose => partition.answer_proposal(call.payload).await.map_err(told),
                Method::ReadPoint => Ok(partition.answer_read_point().await),
                _ => partition.group().answer(&call).await.map_err(|error| self.failed(error)),
            }
        })
    }

    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError> {
        self.find(group)?.group().incoming().map_err(|error| self.failed(error))
    }

    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(call.group)?;
            partition
                .group()
                .receive(&call.payload, call.body)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    fn identify(&self, _: &IdentifyRequest) -> IdentifyResponse {
        IdentifyResponse {
            cluster: self.identity.cluster.clone(),
            node: self.node_id,
            partitions: self.identity.partitions,
            known_incarnation: 0,
            removed: false,
        }
    }

    fn join(&self, _: JoinRequest) -> BoxFuture<'_, Result<JoinResponse, Rejection>> {
        Box::pin(async { Err(Rejection::NotNow("nodes cannot join yet".into())) })
    }
}
