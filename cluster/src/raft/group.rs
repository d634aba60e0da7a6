//! One running Raft group, in this crate's own words.
//!
//! [`Group::start`] opens log and state and runs openraft over them. A task watches who leads: it reports
//! [`Leadership::Leader`] only after everything committed before has been applied here, so whoever builds
//! queues from the rows then sees all of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{
    ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError,
};
use openraft::raft::ClientWriteResponse;
use openraft::{BasicNode, Config, Raft, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::log::LogStore;
use super::network::{self, Network};
use super::snapshots::Snapshots;
use super::state::{Facts, State};
use super::types::{LogId, OnDone, Proposal, Types};
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::metrics;
use crate::peers::{Call, Method, SnapshotBody, Transport};
use crate::store::flusher::{Flusher, Job};
use crate::store::rows::StateRows;
use crate::store::{Engine, FaultHook, Space, keys};

/// Pause before asking again when a fresh leader has no quorum lease yet.
const LEASE_PAUSE: Duration = Duration::from_millis(2);

/// Time for a group that ends to apply what it has begun to apply, or to install a snapshot.
const APPLY_TIME: Duration = Duration::from_secs(30);

/// What a group is started with.
pub(crate) struct Setup<M: Machine> {
    pub(crate) id: GroupId,
    pub(crate) node: u64,
    pub(crate) address: String,
    /// All voters of a new cluster; empty when this node is alone.
    pub(crate) initial_members: BTreeMap<u64, String>,
    /// The node came to a running cluster: it is told its first membership by the others.
    pub(crate) joins: bool,
    /// It may vote: it has applied all that was committed when it was begun.
    pub(crate) grown: bool,
    pub(crate) machine: Arc<M>,
    pub(crate) rows: Arc<StateRows>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) flusher: Arc<Flusher>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) tail_limit: usize,
    pub(crate) snapshot_every: u64,
    pub(crate) keep_entries: u64,
    pub(crate) fault: FaultHook,
}

/// What became of a proposal.
pub(crate) enum Outcome {
    /// Committed and applied here; one reply per command.
    Applied(Vec<Bytes>),
    /// Nothing was committed: another node leads.
    NotLeader { leader: Option<u64> },
    /// Nothing was committed: the leader is new and has no quorum yet. Ask again shortly.
    NotYet,
    /// Committed or not, nobody knows.
    Unknown(String),
}

/// A running group.
pub(crate) struct Group<M: Machine> {
    id: GroupId,
    pub(super) raft: Raft<Types, State<M>>,
    watcher: JoinHandle<()>,
    snapshots: Arc<Snapshots>,
    facts: Arc<Facts>,
    flusher: Arc<Flusher>,
    quarantined: AtomicBool,
    grown: AtomicBool,
    /// Ends when openraft uses the state no more.
    unused: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

impl<M: Machine> Group<M> {
    /// Opens and runs the group; `leadership` is told who leads. A group whose only voter is this node is led by it at
    /// once.
    pub(crate) async fn start(
        setup: Setup<M>,
        leadership: watch::Sender<Leadership>,
    ) -> io::Result<Self> {
        let id = setup.id;
        if let Some(mark) = setup.engine.get(Space::Log, &keys::pointer(keys::QUARANTINE, id.0))? {
            let text = String::from_utf8_lossy(&mark).into_owned();
            return Err(io::Error::other(format!(
                "{text}: remove this node from the cluster and let it join again with an empty data folder"
            )));
        }
        let log = LogStore::open(id.0, setup.engine, Arc::clone(&setup.flusher), setup.tail_limit)?;
        let snapshots = Arc::clone(&setup.snapshots);
        let facts = Arc::<Facts>::default();
        let (known, files) = (Arc::clone(&facts), Arc::clone(&snapshots));
        let state = State::open(id, setup.machine, setup.rows, files, setup.fault, known).await?;
        let (in_use, unused) = mpsc::channel(1);
        let (state, unused) = (state.until_dropped(in_use), tokio::sync::Mutex::new(unused));
        let network = Network { node: setup.node, group: id, transport: setup.transport };
        let config = Config {
            // A vote for itself is a vote, too.
            enable_elect: setup.grown,
            ..config(id, setup.snapshot_every, setup.keep_entries)
        };
        let config = config.validate().map_err(io::Error::other)?;
        let raft = Raft::new(setup.node, Arc::new(config), network, log, state)
            .await
            .map_err(io::Error::other)?;
        snapshots.set_live();

        let watcher = tokio::spawn(watch_leadership(id, raft.clone(), leadership));
        let (flusher, quarantined) = (setup.flusher, AtomicBool::new(false));
        let grown = AtomicBool::new(setup.grown);
        metrics::quarantined(id.0).set(0.0);
        let group =
            Self { id, raft, watcher, snapshots, facts, flusher, quarantined, grown, unused };
        if !setup.joins {
            group.bootstrap(setup.node, setup.address, setup.initial_members).await?;
        }
        Ok(group)
    }

    /// First start: writes the first membership. Later starts: a lone voter need not wait for its own silence.
    async fn bootstrap(
        &self,
        node: u64,
        address: String,
        members: BTreeMap<u64, String>,
    ) -> io::Result<()> {
        if self.raft.is_initialized().await.map_err(io::Error::other)? {
            if self.raft.voter_ids().collect::<Vec<_>>() == [node] {
                self.raft.trigger().elect(false).await.map_err(io::Error::other)?;
            }
            return Ok(());
        }
        let members = if members.is_empty() { BTreeMap::from([(node, address)]) } else { members };
        let members: BTreeMap<u64, BasicNode> =
            members.into_iter().map(|(id, address)| (id, BasicNode::new(address))).collect();
        match self.raft.initialize(members).await {
            Ok(()) => Ok(()),
            // Another member was faster and this node has its log already.
            Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Appends an encoded batch; `done` is called from the task that applied it, or refused it.
    pub(crate) async fn submit(
        &self,
        entry: Bytes,
        done: impl FnOnce(Outcome) + Send + 'static,
    ) -> Result<(), Error> {
        let done = OnDone::new(move |result| done(outcome(result)));
        self.raft.client_write_ff(Proposal(entry), Some(done)).await.map_err(fatal)
    }

    /// Returns once everything committed before the call is applied here, if this node leads: the index up to which
    /// that is.
    pub(crate) async fn ensure_readable(&self) -> Result<u64, Error> {
        match self.raft.ensure_linearizable(ReadPolicy::LeaseRead).await {
            Ok(read) => Ok(read.index()),
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            // The lease is stale: only now is a round to the quorum worth its time.
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                self.confirm_leadership().await
            }
        }
    }

    /// Whether this node leads and a quorum has answered it lately; a lone voter needs no answer. Waits for
    /// nobody.
    pub(crate) async fn has_quorum(&self) -> bool {
        self.raft.voter_ids().count() <= 1
            || self.raft.get_read_linearizer(ReadPolicy::LeaseRead).await.is_ok()
    }

    /// Returns once a quorum has confirmed, after the call, that this node leads, and everything committed before is
    /// applied here: the index up to which that is.
    pub(crate) async fn confirm_leadership(&self) -> Result<u64, Error> {
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(read) => Ok(read.index()),
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(Error::NotLeader { leader: forward.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(error))) => {
                Err(Error::Unavailable(error.to_string()))
            }
        }
    }

    /// Returns once everything up to `index` is applied here; false when that takes longer than `within`.
    pub(crate) async fn wait_applied(&self, index: u64, within: Duration) -> bool {
        let applied = |metrics: &openraft::RaftMetrics<Types>| {
            metrics.last_applied.as_ref().is_some_and(|id| id.index() >= index)
        };
        index == 0 || self.raft.wait(Some(within)).metrics(applied, "applied").await.is_ok()
    }

    /// Ends the group on this node for good: its state differs from that of most others. Nothing that it says
    /// counts any more, after a restart neither.
    pub(crate) async fn quarantine(&self, text: &str) -> io::Result<()> {
        if self.quarantined.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        tracing::error!(partition = self.id.0, "QUARANTINED: {text}");
        metrics::quarantined(self.id.0).set(1.0);
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.flusher.submit(Job::Put {
            key: keys::pointer(keys::QUARANTINE, self.id.0),
            value: Some(text.as_bytes().to_vec()),
            done: Box::new(move |result| drop(sender.send(result))),
        });
        let marked =
            receiver.await.unwrap_or_else(|_| Err(io::Error::other("the flusher is gone")));
        self.stop().await;
        marked
    }

    /// Whether the replica may vote.
    pub(crate) fn is_grown(&self) -> bool {
        self.grown.load(Ordering::Acquire)
    }

    /// The replica has applied all that was committed when it was begun: from now on it may vote.
    pub(crate) fn set_grown(&self) {
        self.grown.store(true, Ordering::Release);
        self.raft.runtime_config().elect(true);
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// What the rest of the node wants to know at once.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Peer address of a member, as the membership says.
    pub(crate) fn address(&self, node: u64) -> Option<String> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.get_node(&node).map(|node| node.addr.clone())
    }

    /// Names a compaction point now, so that older entries may be purged.
    pub(crate) async fn compact(&self) -> Result<(), Error> {
        self.raft.trigger().snapshot().await.map_err(fatal)
    }

    /// Positions of the group, for status pages and tests.
    pub(crate) fn progress(&self) -> Progress {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = term_and_index(metrics.membership_config.log_id());
        Progress {
            term: metrics.current_term,
            last_index: metrics.last_log_index,
            applied_index: metrics.last_applied.as_ref().map(|id| id.index()),
            compacted_index: metrics.snapshot.as_ref().map(|id| id.index()),
            purged_index: metrics.purged.as_ref().map(|id| id.index()),
            leader: metrics.current_leader,
            voters: metrics.membership_config.voter_ids().collect(),
            learners: metrics.membership_config.membership().learner_ids().collect(),
            joint_target: match metrics.membership_config.get_joint_config().as_slice() {
                [_, .., target] => Some(target.iter().copied().collect()),
                _ => None,
            },
            membership_term: membership.0,
            membership_index: membership.1,
            followers: metrics.replication.iter().flatten().map(follower).collect(),
        }
    }

    pub(crate) async fn answer(&self, call: &Call) -> io::Result<Bytes> {
        if !matches!(call.method, Method::Append) && !self.is_grown() {
            return Err(io::Error::other("the replica here has not grown and does not vote"));
        }
        network::answer(&self.raft, call).await
    }

    pub(crate) fn incoming(&self) -> io::Result<Option<std::path::PathBuf>> {
        self.snapshots.incoming()
    }

    pub(crate) async fn receive(&self, payload: &Bytes, body: SnapshotBody) -> io::Result<Bytes> {
        network::receive(&self.raft, &self.snapshots, payload, body).await
    }

    /// Ends the group's tasks. Nothing is written after this returns.
    pub(crate) async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(partition = self.id.0, %error, "the group ended with an error");
        }
        self.watcher.abort();
        // openraft does not wait for what its state machine is still doing.
        let unused = async { self.unused.lock().await.recv().await };
        if tokio::time::timeout(APPLY_TIME, unused).await.is_err() {
            tracing::warn!(partition = self.id.0, "the group still applies entries");
        }
    }
}

/// How far a group has come on this node. Indexes count log entries, `None` means none yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Current term.
    pub term: u64,
    /// Last entry in the log.
    pub last_index: Option<u64>,
    /// Last entry applied to the rows.
    pub applied_index: Option<u64>,
    /// Last compaction point.
    pub compacted_index: Option<u64>,
    /// Last purged entry.
    pub purged_index: Option<u64>,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// Node ids that vote.
    pub voters: Vec<u64>,
    /// Node ids that hold a copy and do not vote.
    pub learners: Vec<u64>,
    /// Voters that a change under way leads to.
    pub joint_target: Option<Vec<u64>>,
    /// Term of the entry that holds the membership.
    pub membership_term: u64,
    /// Index of the entry that holds the membership.
    pub membership_index: u64,
    /// Only on the leader: last entry that each other member is known to hold.
    pub followers: BTreeMap<u64, Option<u64>>,
}

/// Term and index of an entry; 0 where there is none.
fn term_and_index(entry: &Option<LogId>) -> (u64, u64) {
    entry.as_ref().map_or((0, 0), |id| (id.committed_leader_id().term, id.index()))
}

fn follower((node, matched): (&u64, &Option<LogId>)) -> (u64, Option<u64>) {
    (*node, matched.as_ref().map(|id| id.index()))
}

fn config(id: GroupId, snapshot_every: u64, keep_entries: u64) -> Config {
    Config {
        cluster_name: format!("group-{id}"),
        // A follower waits for the longest election timeout (the leader's lease), then for one of its own: so a
        // lost leader is replaced after 1.1 to 1.4 s, and within two if two candidates split the votes once.
        heartbeat_interval: 250,
        election_timeout_min: 400,
        election_timeout_max: 700,
        install_snapshot_timeout: 600_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: keep_entries,
        // Many at a time, but never more than a whole compaction.
        purge_batch_size: snapshot_every.min(1024),
        replication_lag_threshold: 20_000.max(keep_entries * 2),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

fn outcome(result: Result<ClientWriteResponse<Types>, ClientWriteError<Types>>) -> Outcome {
    match result {
        Ok(response) => Outcome::Applied(response.data.0),
        Err(ClientWriteError::ForwardToLeader(ForwardToLeader {
            reason: ForwardReason::LeaseExpired,
            ..
        })) => Outcome::NotYet,
        Err(ClientWriteError::ForwardToLeader(forward)) => {
            Outcome::NotLeader { leader: forward.leader_id }
        }
        Err(error) => Outcome::Unknown(error.to_string()),
    }
}

pub(super) fn fatal(error: Fatal<Types>) -> Error {
    match error {
        Fatal::Stopped => Error::Stopping,
        other => Error::Unavailable(other.to_string()),
    }
}

async fn watch_leadership<M: Machine>(
    id: GroupId,
    raft: Raft<Types, State<M>>,
    sender: watch::Sender<Leadership>,
) {
    let mut server = raft.server_metrics();
    let gauge = metrics::leader_term(id.0);
    let report = |leadership: Leadership| {
        let changed = sender.send_if_modified(|known| {
            let changed = *known != leadership;
            *known = leadership;
            changed
        });
        if changed {
            match leadership {
                Leadership::Leader { term } => {
                    gauge.set(term as f64);
                    tracing::info!(partition = id.0, term, "leading");
                }
                Leadership::Follower { leader } => {
                    gauge.set(0.0);
                    tracing::info!(partition = id.0, ?leader, "following");
                }
            }
        }
    };
    loop {
        let (leads, term, leader) = {
            let now = server.borrow_watched();
            (now.state == ServerState::Leader, now.vote.leader_id.term, now.current_leader)
        };
        if !leads {
            report(Leadership::Follower { leader });
        } else if *sender.borrow() != (Leadership::Leader { term }) {
            // Stays what it was until this term's first entry, and so everything before it, is applied.
            match raft.ensure_linearizable(ReadPolicy::LeaseRead).await {
                Ok(_) => report(Leadership::Leader { term }),
                Err(RaftError::Fatal(_)) => break,
                Err(RaftError::APIError(_)) => {
                    tokio::time::sleep(LEASE_PAUSE).await;
                    continue;
                }
            }
            continue;
        }
        if server.changed().await.is_err() {
            break;
        }
    }
    report(Leadership::Follower { leader: None });
}
