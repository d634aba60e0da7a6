//! `durahub cluster`: looks at a running cluster and changes it, through the peer port of any node.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand, ValueEnum};
use durahub_cluster::admin::messages::{NodeState, NodeStatus, StatusResponse};
use durahub_cluster::admin::{AdminClient, AdminError};
use serde_json::json;

use super::connect;
use super::failure::{Failure, Reason};
use crate::dial::DialArgs;

/// Looks at a cluster and changes it while it runs.
#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
    /// Peer address of any node of the cluster
    #[arg(long, global = true, value_name = "URL", default_value = "http://127.0.0.1:8083")]
    endpoint: String,
    #[command(flatten)]
    dial: DialArgs,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show nodes, partitions, leaders, lag and sizes.
    Status {
        /// How the answer looks
        #[arg(long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Reserve an id for a node that will be started with --join.
    AddNode {
        /// Wanted node id; without it the cluster chooses
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        node_id: u64,
        /// Address under which the other nodes will reach it
        #[arg(long, value_name = "HOST:PORT", default_value = "", hide_default_value = true)]
        address: String,
        /// Zone that it will run in
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        zone: String,
    },
    /// Move the replicas of a node away, then take it out of the cluster for good.
    RemoveNode {
        /// Its node id
        node_id: u64,
    },
    /// Hand the leadership of a partition to another node.
    TransferLeader {
        /// Number of the partition; 0 is the metadata group
        partition: u32,
        /// Node id of the new leader
        node_id: u64,
    },
    /// Before nodes are stopped for good: check that those at these addresses are all that the cluster has.
    CheckScaleIn {
        /// Addresses under which the nodes that stay are known, comma separated
        #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', required = true)]
        keep: Vec<String>,
    },
    /// Keep leaders away from a node, as before maintenance. A restart of the node ends it.
    Drain {
        /// Its node id
        node_id: u64,
        /// End the drain
        #[arg(long)]
        undo: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs one command; the text is for standard output.
///
/// # Errors
/// When no node answers, or the cluster refuses.
pub(super) async fn run(args: ClusterArgs) -> anyhow::Result<String> {
    ask(args).await.map_err(|error| match error.downcast_ref::<AdminError>() {
        Some(AdminError::Denied(text)) => Failure::new(Reason::Denied, text.clone()).into(),
        _ => error,
    })
}

async fn ask(args: ClusterArgs) -> anyhow::Result<String> {
    let channel = connect::channel(&args.endpoint, &args.dial).await?;
    let mut client = AdminClient::new(channel, args.dial.authorization()?);
    Ok(match args.command {
        ClusterCommand::Status { output } => {
            let status = client.status().await?;
            match output {
                Output::Table => table(&status),
                Output::Json => {
                    let text = serde_json::to_string_pretty(&as_json(&status));
                    text.context("write JSON")? + "\n"
                }
            }
        }
        ClusterCommand::AddNode { node_id, address, zone } => {
            let id = client.add_node(node_id, address, zone).await?;
            format!("node id {id} is reserved: start the node with --join and --node-id {id}\n")
        }
        ClusterCommand::RemoveNode { node_id } => {
            client.remove_node(node_id).await?;
            format!(
                "the replicas of node {node_id} are being moved away; it may stop once `durahub cluster status` \
                 no longer lists it\n"
            )
        }
        ClusterCommand::TransferLeader { partition, node_id } => {
            client.transfer_leader(partition, node_id).await?;
            format!("node {node_id} leads partition {partition}\n")
        }
        ClusterCommand::CheckScaleIn { keep } => check_scale_in(&client.status().await?, &keep)?,
        ClusterCommand::Drain { node_id, undo: false } => {
            client.drain(node_id, false).await?;
            format!("leaders are moving away from node {node_id}; it keeps its replicas\n")
        }
        ClusterCommand::Drain { node_id, undo: true } => {
            client.drain(node_id, true).await?;
            format!("node {node_id} may lead again\n")
        }
    })
}

/// Says that nothing but the nodes at `keep` belongs to the cluster. An id that is only reserved holds nothing.
fn check_scale_in(status: &StatusResponse, keep: &[String]) -> anyhow::Result<String> {
    let holds = |node: &&NodeStatus| node.state() != NodeState::Expected || node.votes_in > 0;
    let stopped = status.nodes.iter().filter(holds).filter(|node| !keep.contains(&node.address));
    let stopped: Vec<_> =
        stopped.map(|node| format!("node {} ({})", node.node, node.address)).collect();
    if stopped.is_empty() {
        return Ok("no node of the cluster would be stopped\n".to_owned());
    }
    bail!(
        "still in the cluster: {}. Remove each with `durahub cluster remove-node ID` and wait until `durahub \
         cluster status` no longer lists it",
        stopped.join(", ")
    )
}

fn state(state: i32) -> &'static str {
    match NodeState::try_from(state) {
        Ok(NodeState::Expected) => "expected",
        Ok(NodeState::Active) => "active",
        Ok(NodeState::Draining) => "draining",
        Ok(NodeState::Leaving) => "leaving",
        Ok(NodeState::Removed) => "removed",
        _ => "unknown",
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn table(status: &StatusResponse) -> String {
    let mut text = format!(
        "cluster {}, {} partitions, replication factor {}, seen by node {}\n\n",
        status.cluster, status.partitions, status.replication_factor, status.node
    );
    let mut rows = vec![
        ["NODE", "STATE", "REACHABLE", "LEADS", "VOTES", "HOLDS", "MIB", "ZONE", "ADDRESS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for node in &status.nodes {
        rows.push(vec![
            node.node.to_string(),
            state(node.state).to_owned(),
            if node.reachable { "yes" } else { "no" }.to_owned(),
            node.leads.to_string(),
            node.votes_in.to_string(),
            node.holds.to_string(),
            mebibytes(node.store_bytes),
            if node.zone.is_empty() { "-".to_owned() } else { node.zone.clone() },
            node.address.clone(),
        ]);
    }
    align(&mut text, &rows);
    text.push('\n');
    let mut rows = vec![
        ["PARTITION", "LEADER", "TERM", "VOTERS", "LEARNERS", "LAG"].map(str::to_owned).to_vec(),
    ];
    for group in &status.groups {
        let ids = |voter: bool| {
            let ids: Vec<_> = group
                .replicas
                .iter()
                .filter(|replica| replica.voter == voter)
                .map(|replica| replica.node.to_string())
                .collect();
            if ids.is_empty() { "-".to_owned() } else { ids.join(",") }
        };
        let lag = group.replicas.iter().map(|replica| replica.lag).max().flatten();
        let broken = group.replicas.iter().any(|replica| replica.quarantined);
        rows.push(vec![
            if group.group == 0 { "0 (metadata)".to_owned() } else { group.group.to_string() },
            group.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string()),
            group.term.to_string(),
            ids(true),
            ids(false),
            lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string())
                + if broken { " QUARANTINED" } else { "" },
        ]);
    }
    align(&mut text, &rows);
    text
}

fn align(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

fn as_json(status: &StatusResponse) -> serde_json::Value {
    let nodes = status.nodes.iter().map(|node| {
        json!({
            "node": node.node,
            "state": state(node.state),
            "address": node.address,
            "zone": node.zone,
            "reachable": node.reachable,
            "version": node.version,
            "storeBytes": node.store_bytes,
            "leads": node.leads,
            "votesIn": node.votes_in,
            "holds": node.holds,
        })
    });
    let groups = status.groups.iter().map(|group| {
        let replicas = group.replicas.iter().map(|replica| {
            json!({
                "node": replica.node,
                "voter": replica.voter,
                "reachable": replica.reachable,
                "appliedIndex": replica.applied_index,
                "lag": replica.lag,
                "quarantined": replica.quarantined,
            })
        });
        json!({
            "partition": group.group,
            "leader": group.leader,
            "term": group.term,
            "replicas": replicas.collect::<Vec<_>>(),
        })
    });
    json!({
        "cluster": status.cluster,
        "seenBy": status.node,
        "partitionCount": status.partitions,
        "replicationFactor": status.replication_factor,
        "nodes": nodes.collect::<Vec<_>>(),
        "partitions": groups.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use durahub_cluster::admin::messages::{GroupStatus, ReplicaStatus};

    use super::*;

    fn status() -> StatusResponse {
        let node = NodeStatus {
            node: 2,
            address: "b:8083".into(),
            state: NodeState::Draining.into(),
            reachable: true,
            store_bytes: 3 << 19,
            leads: 1,
            votes_in: 1,
            holds: 2,
            ..NodeStatus::default()
        };
        let voter =
            ReplicaStatus { node: 2, voter: true, lag: Some(0), ..ReplicaStatus::default() };
        let copy = ReplicaStatus { node: 5, lag: Some(17), ..ReplicaStatus::default() };
        let led = GroupStatus { group: 1, leader: Some(2), term: 9, replicas: vec![voter, copy] };
        let lost = GroupStatus { group: 0, ..GroupStatus::default() };
        StatusResponse {
            cluster: "c0".into(),
            node: 2,
            partitions: 1,
            replication_factor: 3,
            nodes: vec![node],
            groups: vec![lost, led],
        }
    }

    #[test]
    fn table_is_read_at_a_glance() {
        assert_eq!(
            table(&status()),
            "cluster c0, 1 partitions, replication factor 3, seen by node 2\n\n\
             NODE  STATE     REACHABLE  LEADS  VOTES  HOLDS  MIB  ZONE  ADDRESS\n\
             2     draining  yes        1      1      2      1.5  -     b:8083\n\n\
             PARTITION     LEADER  TERM  VOTERS  LEARNERS  LAG\n\
             0 (metadata)  none    0     -       -         ?\n\
             1             2       9     2       5         17\n"
        );
    }

    #[test]
    fn nodes_are_stopped_only_when_the_cluster_has_let_them_go() {
        let mut status = status();
        let keep = ["a:8083".to_owned()];
        let told = check_scale_in(&status, &keep).unwrap_err().to_string();
        assert!(told.starts_with("still in the cluster: node 2 (b:8083)."), "{told}");
        check_scale_in(&status, &[keep[0].clone(), "b:8083".to_owned()]).unwrap();
        // A node that is being emptied still holds votes; an id that was reserved never did.
        status.nodes[0].state = NodeState::Leaving.into();
        check_scale_in(&status, &keep).unwrap_err();
        status.nodes[0].state = NodeState::Expected.into();
        check_scale_in(&status, &keep).unwrap_err();
        status.nodes[0].votes_in = 0;
        check_scale_in(&status, &keep).unwrap();
    }

    #[test]
    fn json_holds_every_node_and_replica() {
        let json = as_json(&status());
        assert_eq!(json["nodes"][0]["state"], "draining");
        assert_eq!(json["partitions"][0]["leader"], serde_json::Value::Null);
        assert_eq!(json["partitions"][1]["replicas"][1]["lag"], 17);
    }
}
