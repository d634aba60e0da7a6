//! Finds the leader for a proposal or a read, wherever it is, and survives its change.
//!
//! A node that does not lead hands a command to the one that does. When it cannot know what became of it (the
//! leader died, the link broke), it proposes the command again under the same origin: whoever leads then
//! either finds that it was applied and answers with the same reply, or applies it. So a command is applied
//! once, and its caller hears of trouble only when no leader answers for long.
//!
//! A read on a node that holds the rows is done there: the leader says how far a reader must have applied, and the
//! rows are read once that is so. What the leader says holds at some moment during the call, so a process that was
//! paused in between still returns nothing older than its call. On any other node the question goes to the leader,
//! as bytes that its machine understands.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::peer::proposal_outcome::Outcome as Told;
use durahub_proto::peer::read_outcome::Outcome as Read;
use durahub_proto::peer::read_point::Point;
use durahub_proto::peer::{
    NotLeader, Proposal, ProposalOutcome, ReadOutcome, ReadPoint, Reading, Refused, Stopping,
    TooLarge,
};
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;

use crate::admission::{Demand, Refusal};
use crate::batch::Origin;
use crate::directory::Leadership;
use crate::error::Error;
use crate::machine::{GroupId, Machine};
use crate::partition::{Kind, Partition};
use crate::peers::{Call, Method, Peer, Transport};
use crate::replica::Replica;

/// How long a call that has reached no leader looks for one.
const SEARCH_TIME: Duration = Duration::from_secs(5);
/// Longest pause before looking again; a change of leader ends it early.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a reader waits for its own rows before it asks the leader for an answer instead.
const CATCH_UP_TIME: Duration = Duration::from_secs(1);
/// How long, where that was in vain the last time.
const BEHIND_TIME: Duration = Duration::from_millis(50);
/// Time for a forwarded call before it is asked again, besides that for its bytes.
const FORWARD_TIME: Duration = Duration::from_secs(5);
/// Slowest way on which a long command still arrives in time.
const BYTES_PER_SECOND: f64 = (4 << 20) as f64;

/// The way from one partition handle to the other replicas.
pub(crate) struct Route {
    node: u64,
    group: GroupId,
    transport: Arc<dyn Transport>,
    /// Drawn at each start.
    session: u64,
    open: Mutex<Open>,
    /// The last reader has waited for the rows here in vain.
    behind: AtomicBool,
}

/// Commands whose callers still wait.
#[derive(Default)]
struct Open {
    last: u64,
    waiting: BTreeSet<u64>,
}

/// A command from its first proposal to its answer.
struct Ticket<'a> {
    open: &'a Mutex<Open>,
    origin: Origin,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.open.lock().waiting.remove(&self.origin.sequence);
    }
}

impl Route {
    /// `session` is drawn at each start of the node.
    pub(crate) fn new(
        node: u64,
        group: GroupId,
        transport: Arc<dyn Transport>,
        session: u64,
    ) -> Self {
        Self {
            node,
            group,
            transport,
            session,
            open: Mutex::default(),
            behind: AtomicBool::new(false),
        }
    }

    fn ticket(&self) -> Ticket<'_> {
        let mut open = self.open.lock();
        open.last += 1;
        let sequence = open.last;
        open.waiting.insert(sequence);
        let settled_below = open.waiting.first().copied().unwrap_or(sequence);
        let origin = Origin { session: self.session, sequence, settled_below };
        Ticket { open: &self.open, origin }
    }

    async fn call<A: Message + Default>(
        &self,
        to: Peer,
        method: Method,
        payload: Bytes,
    ) -> Result<A, Error> {
        let time = FORWARD_TIME + Duration::from_secs_f64(payload.len() as f64 / BYTES_PER_SECOND);
        let call = Call { group: self.group, method, payload };
        match self.transport.call(&to, call, time).await {
            Ok(answer) => A::decode(answer).map_err(|error| Error::Unavailable(error.to_string())),
            Err(error) if error.not_sent() => Err(Error::NotLeader { leader: None }),
            Err(error) => Err(Error::Unavailable(error.to_string())),
        }
    }
}

/// Who reads.
enum Reader<'a, M: Machine> {
    /// Rows here, which must be new enough.
    Rows(&'a Replica<M>),
    /// The leader, for whoever has no rows.
    Query(&'a Bytes),
}

/// What a reader found.
enum Found {
    /// The rows here are new enough.
    Rows,
    /// The rows here are not, for a while.
    Behind,
    Answer(Bytes),
}

/// What a call in search of a leader has learned.
struct Search {
    until: Instant,
    /// The leader that was named last, until it was asked.
    hint: Option<u64>,
    /// The leader that this node knows of, when it was the last to be asked.
    asked: Option<u64>,
    /// Asked in turn while nobody is known to lead.
    turn: usize,
}

impl Search {
    fn begin() -> Self {
        Self { until: Instant::now() + SEARCH_TIME, hint: None, asked: None, turn: 0 }
    }
}

/// What a caller hears in the end. That nothing was committed may only be said if no attempt was left open.
fn given_up(unknown: Option<String>, last: Error) -> Error {
    unknown.map_or(last, Error::Unavailable)
}

impl<M: Machine> Partition<M> {
    /// Proposes wherever the leader is.
    pub(crate) async fn propose_routed(
        &self,
        route: &Route,
        command: Bytes,
        kind: Kind,
    ) -> Result<Bytes, Error> {
        let ticket = route.ticket();
        let patience = Instant::now() + self.timeout();
        let mut search = Search::begin();
        let mut unknown = None;
        loop {
            let attempt = match self.next_leader(route, &mut search) {
                Some(node) if node == route.node => {
                    self.propose_here(command.clone(), Some(ticket.origin), kind).await
                }
                Some(node) => self.forward(route, node, &command, &ticket.origin, kind).await,
                None => Err(Error::NotLeader { leader: None }),
            };
            match attempt {
                Ok(reply) => return Ok(reply),
                Err(Error::NotLeader { leader }) => search.hint = leader,
                // It may have been committed. Under its origin it may be proposed again.
                Err(Error::Unavailable(reason)) => {
                    unknown = Some(reason);
                    search.until = patience;
                }
                Err(error) => return Err(given_up(unknown, error)),
            }
            if Instant::now() >= search.until {
                return Err(given_up(unknown, Error::NotLeader { leader: None }));
            }
            self.pause(&search).await;
        }
    }

    async fn forward(
        &self,
        route: &Route,
        node: u64,
        command: &Bytes,
        origin: &Origin,
        kind: Kind,
    ) -> Result<Bytes, Error> {
        let proposal = Proposal {
            command: command.clone(),
            session: origin.session,
            sequence: origin.sequence,
            settled_below: origin.settled_below,
            system: kind == Kind::System,
            demand: match kind {
                Kind::Of(demand) => demand.number(),
                Kind::System => Demand::Must.number(),
            },
        };
        let payload = Bytes::from(proposal.encode_to_vec());
        let answer: ProposalOutcome =
            self.ask_leader(route, node, Method::Propose, payload).await?;
        match answer.outcome {
            Some(Told::Reply(reply)) => {
                self.hear_leader(node);
                Ok(reply)
            }
            Some(Told::NotLeader(NotLeader { leader })) => Err(Error::NotLeader { leader }),
            Some(Told::TooLarge(TooLarge { bytes, limit })) => {
                Err(Error::TooLarge { bytes: bytes as usize, limit: limit as usize })
            }
            Some(Told::Refused(Refused { reason, retry_ms })) => {
                Err(Error::Refused(Refusal { reason, retry: Duration::from_millis(retry_ms) }))
            }
            Some(Told::Unavailable(reason)) => Err(Error::Unavailable(reason)),
            Some(Told::Stopping(_)) => Err(Error::Unavailable("the leader is stopping".into())),
            None => Err(Error::Unavailable("the leader gave no outcome".into())),
        }
    }

    /// Makes sure that the rows of the replica here hold everything that was committed before the call. False if it
    /// is far behind, or is no member any more.
    pub(crate) async fn catch_up_routed(
        &self,
        route: &Route,
        replica: &Replica<M>,
    ) -> Result<bool, Error> {
        match self.read_routed(route, Reader::Rows(replica)).await? {
            Found::Rows => Ok(true),
            Found::Answer(_) | Found::Behind => Ok(false),
        }
    }

    /// Reads at the leader, wherever it is.
    pub(crate) async fn query_routed(&self, route: &Route, query: Bytes) -> Result<Bytes, Error> {
        match self.read_routed(route, Reader::Query(&query)).await? {
            Found::Answer(answer) => Ok(answer),
            Found::Rows | Found::Behind => {
                Err(Error::Unavailable("the leader gave no answer".into()))
            }
        }
    }

    async fn read_routed(&self, route: &Route, reader: Reader<'_, M>) -> Result<Found, Error> {
        let mut search = Search::begin();
        loop {
            let attempt = match (self.next_leader(route, &mut search), &reader) {
                (Some(node), Reader::Rows(replica)) if node == route.node => {
                    replica.group.ensure_readable().await.map(|_| Found::Rows)
                }
                (Some(node), Reader::Query(query)) if node == route.node => {
                    self.query_here(Bytes::clone(query)).await.map(Found::Answer)
                }
                (Some(node), Reader::Rows(replica)) => {
                    self.catch_up_with(route, node, replica, &search).await
                }
                (Some(node), Reader::Query(query)) => {
                    self.query_at(route, node, Bytes::clone(query)).await.map(Found::Answer)
                }
                (None, _) => Err(Error::NotLeader { leader: None }),
            };
            let error = match attempt {
                Ok(found) => return Ok(found),
                Err(Error::NotLeader { leader }) => {
                    search.hint = leader;
                    Error::NotLeader { leader: None }
                }
                Err(Error::Stopping) => return Err(Error::Stopping),
                Err(error) => error,
            };
            if Instant::now() >= search.until {
                return Err(error);
            }
            self.pause(&search).await;
        }
    }

    /// Waits a moment until this node has applied as much as the leader says.
    async fn catch_up_with(
        &self,
        route: &Route,
        node: u64,
        replica: &Replica<M>,
        search: &Search,
    ) -> Result<Found, Error> {
        let asked: ReadPoint =
            self.ask_leader(route, node, Method::ReadPoint, Bytes::new()).await?;
        let index = match asked.point {
            Some(Point::Index(index)) => index,
            Some(Point::NotLeader(NotLeader { leader })) => {
                return Err(Error::NotLeader { leader });
            }
            Some(Point::Unavailable(reason)) => return Err(Error::Unavailable(reason)),
            None => return Err(Error::Unavailable("the leader named no point".into())),
        };
        let left = search.until.saturating_duration_since(Instant::now()).max(LOOK_AGAIN);
        let within = if self.id() == GroupId::METADATA {
            // They are read where they are, on every node.
            left
        } else if route.behind.load(Ordering::Relaxed) {
            BEHIND_TIME
        } else {
            left.min(CATCH_UP_TIME)
        };
        let is_current = replica.group.wait_applied(index, within).await;
        route.behind.store(!is_current, Ordering::Relaxed);
        Ok(if is_current { Found::Rows } else { Found::Behind })
    }

    async fn query_at(&self, route: &Route, node: u64, query: Bytes) -> Result<Bytes, Error> {
        let reading = Bytes::from(Reading { query }.encode_to_vec());
        let told: ReadOutcome = self.ask_leader(route, node, Method::Read, reading).await?;
        match told.outcome {
            Some(Read::Answer(answer)) => {
                self.hear_leader(node);
                Ok(answer)
            }
            Some(Read::NotLeader(NotLeader { leader })) => Err(Error::NotLeader { leader }),
            Some(Read::Unavailable(reason)) => Err(Error::Unavailable(reason)),
            None => Err(Error::Unavailable("the leader gave no outcome".into())),
        }
    }

    /// Reads if this node leads.
    pub(crate) async fn query_here(&self, query: Bytes) -> Result<Bytes, Error> {
        let unavailable = |text: String| Error::Unavailable(text);
        match self.replica()?.group.ensure_readable().await {
            Err(Error::Stopping) => return Err(self.ended()),
            readable => drop(readable?),
        }
        let own = self.clone();
        let answer = tokio::task::spawn_blocking(move || own.answer_from_rows(&query)).await;
        let answer = answer.map_err(|error| unavailable(error.to_string()))?;
        let answer = answer.ok_or_else(|| self.ended())?;
        answer.ok_or_else(|| unavailable("the leader's version does not know this read".into()))
    }

    /// Answers a read of another node.
    pub(crate) async fn answer_query(&self, reading: Bytes) -> Bytes {
        let outcome = match Reading::decode(reading) {
            Ok(Reading { query }) => match self.query_here(query).await {
                Ok(answer) => Read::Answer(answer),
                Err(Error::NotLeader { leader }) => Read::NotLeader(NotLeader { leader }),
                Err(error) => Read::Unavailable(error.to_string()),
            },
            Err(error) => Read::Unavailable(error.to_string()),
        };
        Bytes::from(ReadOutcome { outcome: Some(outcome) }.encode_to_vec())
    }

    /// Whom to ask next. A node that knows of no leader asks the other members in turn: they may.
    fn next_leader(&self, route: &Route, search: &mut Search) -> Option<u64> {
        let known = match *self.leadership().borrow() {
            Leadership::Leader { .. } => Some(route.node),
            Leadership::Follower { leader } => leader.filter(|leader| *leader != route.node),
        };
        if let Some(node) = search.hint.take() {
            return Some(node);
        }
        // What this node knows may be old: after a vain try somebody else is asked before it is tried again.
        if let Some(node) = known.filter(|node| search.asked != Some(*node)) {
            search.asked = known;
            return Some(node);
        }
        search.asked = None;
        let members = self.members();
        search.turn += 1;
        members.get(search.turn % members.len().max(1)).copied()
    }

    async fn pause(&self, search: &Search) {
        if search.hint.is_some() {
            // Somebody was named: a short breath, so that two that name each other do not spin.
            return tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut leadership = self.leadership();
        leadership.borrow_and_update();
        let _ = tokio::time::timeout(LOOK_AGAIN, leadership.changed()).await;
    }

    fn peer(&self, node: u64) -> Peer {
        let address = self.group().ok().and_then(|group| group.address(node));
        Peer { id: node, address: address.unwrap_or_default() }
    }

    /// Asks `node`, which was taken for the leader, and waits no longer once another one is known to lead: the
    /// old one may be cut off and never answer.
    async fn ask_leader<A: Message + Default>(
        &self,
        route: &Route,
        node: u64,
        method: Method,
        payload: Bytes,
    ) -> Result<A, Error> {
        let mut leadership = self.leadership();
        let replaced = |now: &Leadership| match *now {
            Leadership::Leader { .. } => true,
            Leadership::Follower { leader } => leader.is_some_and(|leader| leader != node),
        };
        // What was known before is not news: this node may be the one that is behind.
        let known = replaced(&leadership.borrow_and_update());
        let news = async {
            if known {
                let _ = leadership.changed().await;
            }
            // A group that has ended hears of nothing any more.
            if leadership.wait_for(replaced).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            answer = route.call(self.peer(node), method, payload) => answer,
            () = news => Err(Error::Unavailable(format!("node {node} no longer leads"))),
        }
    }

    /// Answers a command that another node hands over.
    pub(crate) async fn answer_proposal(&self, payload: Bytes) -> Result<Bytes, Error> {
        let proposal =
            Proposal::decode(payload).map_err(|error| Error::Unavailable(error.to_string()))?;
        let origin = Origin {
            session: proposal.session,
            sequence: proposal.sequence,
            settled_below: proposal.settled_below,
        };
        let kind = match proposal.system {
            true => Kind::System,
            false => Kind::Of(Demand::numbered(proposal.demand)),
        };
        let outcome = match self.propose_here(proposal.command, Some(origin), kind).await {
            Ok(reply) => Told::Reply(reply),
            Err(Error::NotLeader { leader }) => Told::NotLeader(NotLeader { leader }),
            Err(Error::TooLarge { bytes, limit }) => {
                Told::TooLarge(TooLarge { bytes: bytes as u64, limit: limit as u64 })
            }
            Err(Error::Refused(Refusal { reason, retry })) => Told::Refused(Refused {
                reason,
                retry_ms: retry.as_millis().try_into().unwrap_or(u64::MAX),
            }),
            Err(Error::Unavailable(reason)) => Told::Unavailable(reason),
            Err(Error::Stopping) => Told::Stopping(Stopping {}),
        };
        Ok(Bytes::from(ProposalOutcome { outcome: Some(outcome) }.encode_to_vec()))
    }

    /// Answers how far a reader on another node must have applied.
    pub(crate) async fn answer_read_point(&self) -> Bytes {
        // What openraft's metrics call applied may be behind what has been answered already.
        let point = async { self.replica()?.group.ensure_readable().await };
        let point = match point.await {
            Ok(index) => Point::Index(index),
            Err(Error::Stopping) => Point::NotLeader(NotLeader { leader: None }),
            Err(Error::NotLeader { leader }) => Point::NotLeader(NotLeader { leader }),
            Err(error) => Point::Unavailable(error.to_string()),
        };
        Bytes::from(ReadPoint { point: Some(point) }.encode_to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_of_unknown_outcome_is_not_denied_by_a_later_one() {
        assert_eq!(given_up(None, Error::Stopping), Error::Stopping);
        let lost = || Some("the link was lost".to_owned());
        for last in [Error::Stopping, Error::NotLeader { leader: None }] {
            assert!(matches!(given_up(lost(), last), Error::Unavailable(_)));
        }
    }
}
