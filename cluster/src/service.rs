//! How this node answers its peers.

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::node::Inner;
use crate::partition::Partition;
use crate::peers::{Call, PeerError, PeerService, SnapshotCall};

impl<M: Machine> Inner<M> {
    fn find(&self, cluster: &str, group: GroupId) -> Result<&Partition<M>, PeerError> {
        let failed = |reason: String| PeerError::Failed { peer: self.node_id, reason };
        if cluster != self.identity.cluster {
            return Err(failed(format!(
                "this node is of cluster {}, not {cluster}",
                self.identity.cluster
            )));
        }
        self.groups
            .get(group.0 as usize)
            .ok_or_else(|| failed(format!("there is no partition {group}")))
    }

    fn failed(&self, error: io::Error) -> PeerError {
        PeerError::Failed { peer: self.node_id, reason: error.to_string() }
    }
}

impl<M: Machine> PeerService for Inner<M> {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(&call.cluster, call.group)?;
            partition.group().answer(&call).await.map_err(|error| self.failed(error))
        })
    }

    fn incoming_snapshot(&self, group: GroupId) -> Result<Option<PathBuf>, PeerError> {
        let partition = self.find(&self.identity.cluster, group)?;
        partition.group().incoming().map_err(|error| self.failed(error))
    }

    fn snapshot(&self, call: SnapshotCall) -> BoxFuture<'_, Result<Bytes, PeerError>> {
        Box::pin(async move {
            let partition = self.find(&call.cluster, call.group)?;
            partition
                .group()
                .receive(&call.payload, call.body)
                .await
                .map_err(|error| self.failed(error))
        })
    }

    fn propose<'a>(
        &'a self,
        cluster: &'a str,
        group: GroupId,
        command: Bytes,
    ) -> BoxFuture<'a, Result<Bytes, Error>> {
        Box::pin(async move {
            let partition =
                self.find(cluster, group).map_err(|error| Error::Unavailable(error.to_string()))?;
            partition.propose(command).await
        })
    }
}
