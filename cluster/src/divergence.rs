//! Compares the state of replicas, and stops one that went another way.
//!
//! The leader of a group asks, now and then, for a point in its log at which every replica notes the hash of its
//! state ([`chain`](crate::raft::chain)). Then it collects the notes and compares those of one index. A replica
//! that differs from more than half of those that answered is told so, checks it against its own note, and ends:
//! it neither votes nor serves any more, and so nothing spreads. The leader may be the one. Without a majority
//! nobody can say who is right: then it is only told, loudly.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::{Quarantine, StateHash, StateHashes};
use futures::future::join_all;
use prost::Message;

use crate::error::Error;
use crate::machine::Machine;
use crate::meta::change::{Change, HashPoint, What};
use crate::node::Inner;
use crate::partition::Partition;
use crate::peers::{Call, Method};

/// Time for a replica to answer.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Verdict over the hashes of one log index, by node.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Equal,
    /// These differ from the hash of most.
    Minority {
        expected: u64,
        nodes: Vec<u64>,
    },
    Undecided,
}

fn judge(hashes: &BTreeMap<u64, u64>) -> Verdict {
    let mut votes = BTreeMap::<u64, usize>::new();
    hashes.values().for_each(|hash| *votes.entry(*hash).or_default() += 1);
    if votes.len() <= 1 {
        return Verdict::Equal;
    }
    let most = votes.iter().find(|(_, count)| **count * 2 > hashes.len());
    match most {
        Some((expected, _)) => {
            let differs = hashes.iter().filter(|(_, hash)| *hash != expected);
            Verdict::Minority {
                expected: *expected,
                nodes: differs.map(|(node, _)| *node).collect(),
            }
        }
        None => Verdict::Undecided,
    }
}

impl<M: Machine> Inner<M> {
    /// Compares the groups that this node leads, again and again.
    pub(crate) async fn compare_states(self: Arc<Self>, every: Duration) {
        loop {
            for partition in &self.groups {
                tokio::time::sleep(every / self.groups.len() as u32).await;
                let now = partition.progress();
                let members = now.voters.len() + now.learners.len();
                if now.leader == Some(self.node_id)
                    && members > 1
                    && let Err(error) = self.compare(partition).await
                {
                    tracing::debug!(partition = %partition.id(), %error, "states not compared");
                }
            }
        }
    }

    async fn compare(&self, partition: &Partition<M>) -> Result<(), Error> {
        // What was noted since the last time is compared first: by now all have applied it.
        let now = partition.progress();
        let members = now.voters.iter().chain(&now.learners).copied();
        let asked = members.filter(|node| *node != self.node_id).map(|node| async move {
            let (group, payload) = (partition.id(), Bytes::new());
            let call = Call { group, method: Method::StateHashes, payload };
            let answer = self.transport.call(&self.peer(node), call, ANSWER_TIME).await.ok()?;
            Some((node, StateHashes::decode(answer).ok()?.hashes))
        });
        let mut all: BTreeMap<u64, Vec<StateHash>> =
            join_all(asked).await.into_iter().flatten().collect();
        all.insert(self.node_id, self.state_hashes(partition).hashes);
        for StateHash { index, .. } in all[&self.node_id].clone() {
            let noted = all.iter().filter_map(|(node, hashes)| {
                hashes.iter().find(|hash| hash.index == index).map(|hash| (*node, hash.hash))
            });
            let noted: BTreeMap<u64, u64> = noted.collect();
            match judge(&noted) {
                Verdict::Equal => {}
                Verdict::Undecided => tracing::error!(
                    partition = %partition.id(), index, ?noted,
                    "replicas differ and none has a majority: compare their data before anything else"
                ),
                Verdict::Minority { expected, nodes } => {
                    tracing::error!(partition = %partition.id(), index, ?nodes, "replicas differ");
                    for node in nodes {
                        self.tell(partition, node, Quarantine { index, expected }).await;
                    }
                    return Ok(());
                }
            }
        }
        partition.propose_system(Change::encode(What::HashPoint(HashPoint {}))).await.map(drop)
    }

    async fn tell(&self, partition: &Partition<M>, node: u64, quarantine: Quarantine) {
        let payload = Bytes::from(quarantine.encode_to_vec());
        if node == self.node_id {
            return drop(self.quarantine(partition, payload).await);
        }
        let call = Call { group: partition.id(), method: Method::Quarantine, payload };
        if let Err(error) = self.transport.call(&self.peer(node), call, ANSWER_TIME).await {
            tracing::error!(partition = %partition.id(), node, %error, "not told of its difference");
        }
    }

    /// The hashes that this replica has noted.
    pub(crate) fn state_hashes(&self, partition: &Partition<M>) -> StateHashes {
        let Ok(group) = partition.group() else { return StateHashes::default() };
        let points = group.facts().points.lock();
        let hashes = points.iter().map(|(index, hash)| StateHash { index: *index, hash: *hash });
        StateHashes { hashes: hashes.collect() }
    }

    /// Ends a group here, if its own note says that it differs.
    pub(crate) async fn quarantine(
        &self,
        partition: &Partition<M>,
        payload: Bytes,
    ) -> Result<Bytes, Error> {
        let Quarantine { index, expected } =
            Quarantine::decode(payload).map_err(|error| Error::Unavailable(error.to_string()))?;
        let own = self.state_hashes(partition).hashes.into_iter().find(|hash| hash.index == index);
        if own.is_some_and(|own| own.hash != expected) {
            let text = format!(
                "the state of partition {} on node {} differs from that of most others at log index {index}",
                partition.id(),
                self.node_id
            );
            partition.quarantine(text).await?;
        }
        Ok(Bytes::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majority_is_right_and_nobody_without_one() {
        let judge = |hashes: &[(u64, u64)]| judge(&hashes.iter().copied().collect());
        assert_eq!(judge(&[(1, 5), (2, 5), (3, 5)]), Verdict::Equal);
        assert_eq!(judge(&[(1, 5)]), Verdict::Equal);
        let minority = |nodes: &[u64]| Verdict::Minority { expected: 5, nodes: nodes.to_vec() };
        assert_eq!(judge(&[(1, 5), (2, 6), (3, 5)]), minority(&[2]));
        assert_eq!(judge(&[(1, 7), (2, 6), (3, 5), (4, 5), (5, 5)]), minority(&[1, 2]));
        assert_eq!(judge(&[(1, 5), (2, 6)]), Verdict::Undecided);
        assert_eq!(judge(&[(1, 7), (2, 6), (3, 5), (4, 5)]), Verdict::Undecided);
    }
}
