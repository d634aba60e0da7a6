//! Who holds a group, changed at its leader for the controller; and what a node is told to hold.
//!
//! A replica is begun before it is added, and given up after it was removed, both by the leader in the moment in which a
//! quorum confirms that it leads: what it says of the log and of the members is true then. One change of a group runs at
//! a time.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::change_outcome::Outcome as Told;
use durahub_proto::peer::change_replicas::Change;
use durahub_proto::peer::{
    BeginReplica, ChangeOutcome, ChangeReplicas, Done, DropReplica, HandOver, Lead, Leads, Member,
    NotLeader, Replica,
};
use prost::Message;

use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::node::Inner;
use crate::partition::Partition;
use crate::peers::Method;
use crate::raft::group::Group;

/// Time for a node to begin a replica or to give one up.
const NODE_TIME: Duration = Duration::from_secs(10);

fn unreadable(error: prost::DecodeError) -> Error {
    Error::Unavailable(error.to_string())
}

/// Does something to its end, though whoever asked may go away, or the link to it break: half of it would be worse.
pub(crate) async fn whole(
    doing: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<(), Error> {
    tokio::spawn(doing).await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string())))
}

/// What the leader of a group tells a node that holds a replica and is no member.
pub(crate) async fn request_to_drop<M: Machine>(
    group: &Group<M>,
    replica: Replica,
) -> Result<DropReplica, Error> {
    let Replica { node, begun } = replica;
    // Read before: the term in which a quorum confirms the leader is this one, or a later one.
    let leader_term = group.progress().term;
    group.confirm_leadership().await?;
    let Some(membership_index) = group.membership_without(node).await? else {
        let text = format!("node {node} may still be a member of the partition");
        return Err(Error::Unavailable(text));
    };
    Ok(DropReplica { begun, membership_index, leader_term })
}

impl<M: Machine> Inner<M> {
    /// Answers what the controller asks of the leader of a group, or its leader of this node.
    pub(crate) async fn answer_change(
        &self,
        group: GroupId,
        method: Method,
        payload: Bytes,
    ) -> Bytes {
        let result = match self.groups.get(group.0 as usize) {
            None => Err(Error::Unavailable(format!("there is no partition {group}"))),
            Some(partition) => self.change_holders(partition, method, payload).await,
        };
        let outcome = match result {
            Ok(()) => Told::Done(Done {}),
            Err(Error::NotLeader { leader }) => Told::NotLeader(NotLeader { leader }),
            Err(error) => Told::Unavailable(error.to_string()),
        };
        Bytes::from(ChangeOutcome { outcome: Some(outcome) }.encode_to_vec())
    }

    async fn change_holders(
        &self,
        partition: &Partition<M>,
        method: Method,
        payload: Bytes,
    ) -> Result<(), Error> {
        match method {
            Method::ChangeReplicas => {
                let request = ChangeReplicas::decode(payload).map_err(unreadable)?;
                let _one = partition.inner.changing.lock().await;
                match &request.change {
                    Some(Change::DropReplica(replica)) => {
                        return self.drop_there(partition, *replica).await;
                    }
                    Some(Change::AddLearner(Member { node, .. }))
                        if partition.id() != GroupId::METADATA =>
                    {
                        self.begin_there(partition, *node).await?;
                    }
                    _ => {}
                }
                partition.replica()?.group.change_replicas(request).await
            }
            Method::BeginReplica | Method::DropReplica if partition.id() == GroupId::METADATA => {
                Err(Error::Unavailable("every node holds the metadata, always".into()))
            }
            Method::BeginReplica => {
                let request = BeginReplica::decode(payload).map_err(unreadable)?;
                let own = partition.clone();
                whole(async move { own.begin(request).await }).await
            }
            Method::DropReplica => {
                let request = DropReplica::decode(payload).map_err(unreadable)?;
                let own = partition.clone();
                whole(async move { own.give_up(request).await }).await
            }
            _ => {
                let HandOver { to } = HandOver::decode(payload).map_err(unreadable)?;
                self.give_lead(partition, to).await
            }
        }
    }

    /// Has a node begin a replica of a group that this node leads.
    async fn begin_there(&self, partition: &Partition<M>, node: u64) -> Result<(), Error> {
        let group = partition.replica()?.group.clone();
        // Not the end of the log: what is not committed may never be.
        let committed_index = group.confirm_leadership().await?;
        let payload = Bytes::from(BeginReplica { committed_index }.encode_to_vec());
        self.ask_within(node, partition.id(), Method::BeginReplica, payload, NODE_TIME).await
    }

    /// Has a node give up a replica of a group that this node leads, if it is no member any more.
    async fn drop_there(&self, partition: &Partition<M>, replica: Replica) -> Result<(), Error> {
        if replica.node == self.node_id {
            return Err(Error::Unavailable("the leader of the partition keeps its replica".into()));
        }
        let group = partition.replica()?.group.clone();
        let request = request_to_drop(&group, replica).await?;
        let payload = Bytes::from(request.encode_to_vec());
        self.ask_within(replica.node, partition.id(), Method::DropReplica, payload, NODE_TIME).await
    }

    /// Hands the lead of a group to another voter, after the program has told that node what goes with it. Returns
    /// before it has happened.
    pub(crate) async fn give_lead(&self, partition: &Partition<M>, to: u64) -> Result<(), Error> {
        partition.replica()?.group.may_transfer(to)?;
        let (program, partition) = (self.program(), partition.clone());
        // Work is held back from here on.
        whole(async move {
            if let Some(program) = program {
                program.hand_over(partition.id(), to).await;
            }
            partition.transfer_leader(to).await
        })
        .await
    }

    /// Hears who leads the groups that are not here.
    pub(crate) fn hear(&self, payload: Bytes) {
        let Ok(Leads { leads }) = Leads::decode(payload) else { return };
        for Lead { group, term, leader, members } in leads {
            if let Some(partition) = self.groups.get(group as usize) {
                partition.hear(term, leader, BTreeSet::from_iter(members));
            }
        }
    }
}
