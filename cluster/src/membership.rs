//! Who belongs to the cluster: how it is first formed, and how a node gets in.
//!
//! A node that is alone is a cluster of one. A cluster that starts with several members gets the same list of
//! members on each of them; any of them may write it first, and all come to the same cluster id by themselves.
//! A node with a new folder asks the other members first what they know of its id: a node that has lost its
//! folder must not come back under its old id, since it has forgotten how it voted. A node that joins a running
//! cluster is told its id and the cluster's by a member, and is given copies and votes by the controller.

use std::collections::BTreeMap;
use std::time::Duration;

use durahub_proto::peer::{IdentifyRequest, JoinRequest};
use futures::future::join_all;
use tokio::time::Instant;

use crate::batch::mix;
use crate::config::NodeConfig;
use crate::error::StartError;
use crate::folder::{Expected, Identity};
use crate::peers::PeerError;
use crate::transport;

/// How long a node asks to be let in.
const JOIN_TIME: Duration = Duration::from_secs(60);

/// What a start has found out about its place.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) expected: Expected,
    /// Peer addresses of members, as far as they were told.
    pub(crate) members: Vec<(u64, String)>,
}

/// Finds the place of a node. `known` is what its folder says, `incarnation` is for a new folder.
pub(crate) async fn find_place(
    config: &NodeConfig,
    known: Option<&Identity>,
    incarnation: u64,
) -> Result<Place, StartError> {
    let options = &config.options;
    let members = &options.initial_members;
    let listed = (members.len() > 1).then(|| cluster_of_members(members));
    if let Some(known) = known {
        let node = if config.node_id == 0 { known.node } else { config.node_id };
        let cluster = listed.filter(|_| !known.joined);
        check_members(node, members)?;
        let partitions = if known.joined { known.partitions } else { config.partitions };
        let expected = Expected { node, partitions, cluster, incarnation, joined: known.joined };
        return Ok(Place { expected, members: Vec::new() });
    }
    if !options.join.is_empty() {
        return join(config, incarnation).await;
    }
    let node = config.node_id.max(1);
    check_members(node, members)?;
    if let Some(cluster) = &listed {
        ask_others(config, node, cluster).await?;
    }
    let partitions = config.partitions;
    let expected = Expected { node, partitions, cluster: listed, incarnation, joined: false };
    Ok(Place { expected, members: Vec::new() })
}

/// Asks the other first members whether this node was here before. Members that do not answer may be about to
/// start for the first time as well.
async fn ask_others(config: &NodeConfig, node: u64, cluster: &str) -> Result<(), StartError> {
    if !config.options.transport.reaches_peers() || config.options.transport.addresses().is_none() {
        return Ok(());
    }
    let others = config.options.initial_members.iter().filter(|(id, _)| **id != node);
    let asked = others.map(|(_, address)| {
        let request = IdentifyRequest { cluster: cluster.to_owned(), node };
        transport::identify(&config.options.secure, address, request)
    });
    for answer in join_all(asked).await.into_iter().flatten() {
        let refused = |reason: String| Err(StartError::Refused { reason });
        if answer.cluster != cluster {
            return refused(format!(
                "node {} of --initial-cluster belongs to cluster {}, this list makes cluster {cluster}: give the \
                 same list to every node",
                answer.node, answer.cluster
            ));
        }
        if answer.removed {
            return refused(format!(
                "node {node} was removed, and ids are not used again: start it with --join and without --node-id"
            ));
        }
        if answer.known_incarnation != 0 {
            return refused(format!(
                "node {node} was here before with another data folder: restore that folder, or remove node {node} \
                 from the cluster and start this one with --join and without --node-id"
            ));
        }
    }
    Ok(())
}

async fn join(config: &NodeConfig, incarnation: u64) -> Result<Place, StartError> {
    let addresses = &config.options.join;
    let until = Instant::now() + JOIN_TIME;
    loop {
        let mut reason = String::new();
        for address in addresses {
            let request = JoinRequest {
                incarnation,
                node: config.node_id,
                address: config.options.peer_address.clone(),
                zone: config.options.zone.clone(),
            };
            match transport::join(&config.options.secure, address, request).await {
                Ok(answer) => {
                    let expected = Expected {
                        node: answer.node,
                        partitions: answer.partitions,
                        cluster: Some(answer.cluster),
                        incarnation,
                        joined: true,
                    };
                    let members =
                        answer.members.into_iter().map(|member| (member.node, member.address));
                    return Ok(Place { expected, members: members.collect() });
                }
                Err(PeerError::Failed { reason, .. }) => {
                    return Err(StartError::Refused { reason });
                }
                Err(error) => reason = error.reason(),
            }
        }
        if Instant::now() >= until {
            return Err(StartError::NoMember { addresses: addresses.clone(), reason });
        }
        tracing::info!(%reason, "no member lets this node join yet");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Checks the first members of a cluster; an empty list is a cluster of one.
pub(crate) fn check_members(node: u64, members: &BTreeMap<u64, String>) -> Result<(), StartError> {
    if members.is_empty() || members.contains_key(&node) {
        return Ok(());
    }
    Err(StartError::Setting {
        name: "initial-cluster",
        value: format!("{:?}", members.keys().collect::<Vec<_>>()),
        rule: "a list that contains this node's own id",
    })
}

/// The id of a cluster that starts with these members: all of them must come to the same one by themselves.
pub(crate) fn cluster_of_members(members: &BTreeMap<u64, String>) -> String {
    let text =
        members.iter().map(|(id, address)| format!("{id}={address}")).collect::<Vec<_>>().join(",");
    let mut halves = [0x6475_7261_6875_6231_u64, 0x6475_7261_6875_6232];
    for byte in text.bytes() {
        for half in &mut halves {
            *half = mix(*half ^ u64::from(byte));
        }
    }
    format!("{:016x}{:016x}", halves[0], halves[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_agree_on_the_cluster() {
        let members = |last: &str| BTreeMap::from([(1, "a:1".to_owned()), (2, last.to_owned())]);
        assert_eq!(cluster_of_members(&members("b:1")), cluster_of_members(&members("b:1")));
        assert_ne!(cluster_of_members(&members("b:1")), cluster_of_members(&members("b:2")));
        assert_eq!(cluster_of_members(&members("b:1")).len(), 32);
    }

    #[test]
    fn member_list_without_this_node_is_refused() {
        let members = BTreeMap::from([(1, "a:1".to_owned())]);
        assert!(check_members(1, &members).is_ok());
        assert!(check_members(2, &members).unwrap_err().to_string().contains("initial-cluster"));
        assert!(check_members(2, &BTreeMap::new()).is_ok());
    }
}
