//! Questions to the leader of an instance, from whatever gateway a worker or a client uses.
//!
//! Everything that is asked may be asked twice: a completion is accepted once, and an item that was given back
//! is not given back again. So when nobody knows what became of a question, or another node leads meanwhile, it
//! is asked again, until a leader answers or the time is over. A completion without a token says too little of what it
//! is about: after an attempt of unknown outcome its worker decides.
//!
//! A call that waits for an instance, on a node that does not hold its rows, is such a question, too: the leader answers
//! when there may be news, or after a while, or when it no longer leads. Then it reads, and asks again. A caller that
//! goes away ends the wait at the leader as well.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use durahub_cluster::{Error, Feed, GroupId, Leadership, Program};
use durahub_proto::peer::ask::About;
use durahub_proto::peer::ask_outcome::Outcome;
use durahub_proto::peer::{
    Abandon, Ask, AskOutcome, Done, HandedOut, Held, NotLeader, TooLarge, WaitFor, WorkOf,
};
use durahub_proto::wire;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::dispatch::hub::{Key, Kind};
use crate::dispatch::token::{Token, Work};
use crate::dispatch::{CompleteError, Dispatcher, Wanted};
use crate::engine::{Address, read};
use crate::machine::RowsView;

/// How long a leader is looked for.
const SEARCH_TIME: Duration = Duration::from_secs(10);
/// Pause before looking again; a change of leader ends it early.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Pause before asking a node that was named.
const BREATH: Duration = Duration::from_millis(2);
/// Time for one question, besides that for its bytes.
const ASK_TIME: Duration = Duration::from_secs(5);
/// Time after which a leader answers a wait without news.
const WAIT_TIME: Duration = Duration::from_secs(30);
/// Pause after a wait for which no leader was found.
const WAIT_AGAIN: Duration = Duration::from_millis(200);
/// Slowest way on which a long question still arrives in time.
const BYTES_PER_SECOND: f64 = (4 << 20) as f64;

/// What a worker gives back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abandoned {
    /// An orchestrator turn.
    Turn,
    /// An activity.
    Activity,
    /// A batch of an entity.
    Batch,
}

impl Abandoned {
    pub(in crate::dispatch) fn of(kind: Kind) -> Abandoned {
        match kind {
            Kind::Turn => Abandoned::Turn,
            Kind::Activity => Abandoned::Activity,
            Kind::Entity => Abandoned::Batch,
        }
    }

    fn kind(self) -> Kind {
        match self {
            Abandoned::Turn => Kind::Turn,
            Abandoned::Activity => Kind::Activity,
            Abandoned::Batch => Kind::Entity,
        }
    }
}

/// Who answers a question.
enum At {
    Here,
    Node(u64),
    Nobody,
}

impl Dispatcher {
    /// Commits an orchestrator turn; returns once it is durable (R3.56), or at once if it is stale or if
    /// more parts of it follow (R3.66). What is `kept` lives until then, whatever becomes of the caller.
    ///
    /// # Errors
    /// When the partition cannot be reached, or its leader holds as many unfinished completions as it may.
    pub async fn complete_turn(
        &self,
        hub: u32,
        response: wire::OrchestratorResponse,
        kept: impl Send + 'static,
    ) -> Result<(), CompleteError> {
        let (token, instance) = (response.completion_token.clone(), response.instance_id.clone());
        let about = |it: &wire::OrchestratorResponse| About::Turn(encoded(it));
        let here = move |own: Dispatcher, it| async move { own.complete_turn_here(hub, it).await };
        self.hand_in(hub, (token, instance), response, about, here, kept).await
    }

    /// Takes in the result of an activity; returns once it is durable, or at once if it is stale. What is `kept` lives
    /// until then.
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub async fn complete_activity(
        &self,
        hub: u32,
        response: wire::ActivityResponse,
        kept: impl Send + 'static,
    ) -> Result<(), CompleteError> {
        let (token, instance) = (response.completion_token.clone(), response.instance_id.clone());
        let about = |it: &wire::ActivityResponse| About::Activity(encoded(it));
        let here =
            move |own: Dispatcher, it| async move { own.complete_activity_here(hub, it).await };
        self.hand_in(hub, (token, instance), response, about, here, kept).await
    }

    /// Commits a batch of an entity; returns once it is durable, or at once if it is stale (section 3.12). What is
    /// `kept` lives until then.
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub async fn complete_batch(
        &self,
        hub: u32,
        result: wire::EntityBatchResult,
        kept: impl Send + 'static,
    ) -> Result<(), CompleteError> {
        // The result names nothing but its token (R3.45).
        let (token, instance) = (result.completion_token.clone(), String::new());
        let about = |it: &wire::EntityBatchResult| About::Batch(encoded(it));
        let here = move |own: Dispatcher, it| async move { own.complete_batch_here(hub, it).await };
        self.hand_in(hub, (token, instance), result, about, here, kept).await
    }

    /// Hands the work of a worker in at the leader. It goes on without its caller: a lease that nobody ends would be
    /// left. Where it finds no leader, a lease that it has claimed ends by its time (`Hub::unclaim`).
    async fn hand_in<T, Doing>(
        &self,
        hub: u32,
        (token, instance): (String, String),
        work: T,
        about: impl Fn(&T) -> About + Send + 'static,
        here: impl Fn(Dispatcher, T) -> Doing + Send + 'static,
        kept: impl Send + 'static,
    ) -> Result<(), CompleteError>
    where
        T: Clone + Send + Sync + 'static,
        Doing: Future<Output = Result<(), CompleteError>> + Send + 'static,
    {
        let Some(at) = subject(&token, &instance) else { return Ok(()) };
        let doing = |own: Dispatcher| async move {
            let asking = own.clone();
            let here = move |it| here(asking.clone(), it);
            // Without a token it would be taken for the answer to whatever its worker has then.
            let how = (ASK_TIME, !token.is_empty());
            own.ask_within(how, hub, &at, work, about, here).await.map(drop)
        };
        self.alone(kept, doing).await
    }

    /// Takes an item back; it is offered again after a delay that grows (R3.61, R3.62).
    ///
    /// # Errors
    /// When the leader cannot be reached.
    pub async fn abandon(
        &self,
        hub: u32,
        kind: Abandoned,
        token: &str,
    ) -> Result<(), CompleteError> {
        let Some(at) = subject(token, "") else { return Ok(()) };
        let kind = kind.kind();
        let abandon = Abandon { kind: kind as u32, token: token.to_owned() };
        let about = |it: &Abandon| About::Abandon(it.clone());
        let here = |it: Abandon| async move { self.abandon_here(hub, kind, &it.token).await };
        self.ask(hub, &at, abandon, about, here).await.map(drop)
    }

    /// How many operations of an entity are with a worker.
    ///
    /// # Errors
    /// When the leader cannot be reached.
    pub async fn operations_handed_out(
        &self,
        hub: u32,
        entity: &str,
    ) -> Result<u32, CompleteError> {
        self.handed_out(hub, Kind::Entity, entity).await.map(Option::unwrap_or_default)
    }

    /// How many events the history had that a worker computes the turn of an instance from, if one does
    /// (R2.94).
    ///
    /// # Errors
    /// When the leader cannot be reached.
    pub async fn past_of_turn(
        &self,
        hub: u32,
        instance: &str,
    ) -> Result<Option<u32>, CompleteError> {
        self.handed_out(hub, Kind::Turn, instance).await
    }

    async fn handed_out(
        &self,
        hub: u32,
        kind: Kind,
        instance: &str,
    ) -> Result<Option<u32>, CompleteError> {
        let about = |(): &()| {
            About::HandedOut(HandedOut { kind: kind as u32, instance: instance.to_owned() })
        };
        let here = |()| async { Ok(self.check_tables(hub, kind, instance).await?) };
        match self.ask(hub, instance, (), about, here).await? {
            Some(held) => Ok(held.count),
            None => Ok(self.handed_out_here(hub, kind, instance)),
        }
    }

    fn handed_out_here(&self, hub: u32, kind: Kind, instance: &str) -> Option<u32> {
        let instance = instance.into();
        let key = match kind {
            Kind::Entity => Key::Entity { instance },
            _ => Key::Turn { instance },
        };
        match self.with_hub(hub, |hub| hub.handed_out(&key)) {
            Some((_, Work::Entity(batch))) => Some(batch.count),
            Some((_, Work::Turn(turn))) => Some(turn.history_events),
            _ => None,
        }
    }

    /// Waits at the leader of an instance until that may have got there; `known` when it was seen before, so that it
    /// may also be gone. Returns at any other time, too: the caller reads again.
    pub async fn wait_there(&self, at: &Address, wanted: Wanted, known: bool) {
        let about = |(): &()| {
            let (instance, completed) = (at.instance.clone(), wanted == Wanted::Completed);
            About::WaitFor(WaitFor { instance, completed, known })
        };
        // A node that has come to lead holds the rows by now.
        let here = |()| async { Ok(()) };
        let time = WAIT_TIME + ASK_TIME;
        if self.ask_within((time, true), at.hub, &at.instance, (), about, here).await.is_err() {
            tokio::time::sleep(WAIT_AGAIN).await;
        }
    }

    /// Waits at the leader, for another node's gateway.
    async fn wait_here(&self, at: Address, wanted: Wanted, known: bool) -> Result<(), Error> {
        let partition = self.partition_of(at.hub, &at.instance);
        let mut leadership = partition.leadership();
        // Registered before reading: what happens in between is not missed.
        let mut waiter = self.wait_for(&at, wanted);
        let head = partition.read(|rows| read::head(&RowsView(rows), &at)).await?;
        if head.map_or(known, |head| wanted.is_met_by(head.status())) {
            return Ok(());
        }
        let resigns = |now: &Leadership| matches!(now, Leadership::Follower { .. });
        tokio::select! {
            () = waiter.woken() => {}
            // Whoever leads now is asked.
            _ = leadership.wait_for(resigns) => return Err(Error::NotLeader { leader: None }),
            () = tokio::time::sleep(WAIT_TIME) => {}
        }
        Ok(())
    }

    /// Does something on a task of its own: a caller that goes away, or a link that breaks, must not end the lease
    /// of what is being committed. What is `kept` goes along.
    async fn alone<T, Doing>(
        &self,
        kept: impl Send + 'static,
        what: impl FnOnce(Dispatcher) -> Doing,
    ) -> Result<T, CompleteError>
    where
        T: Send + 'static,
        Doing: Future<Output = Result<T, CompleteError>> + Send + 'static,
    {
        let doing = what(self.clone());
        // A task is moved as a whole when it begins and when it ends.
        let doing = Box::pin(doing);
        let task = tokio::spawn(async move {
            let done = doing.await;
            drop(kept);
            done
        });
        task.await.unwrap_or_else(|error| Err(Error::Unavailable(error.to_string()).into()))
    }

    /// Does something at the leader of an instance: here, or by a question to its node. Returns what another
    /// node said that a worker has.
    pub(in crate::dispatch) async fn ask<T, Doing>(
        &self,
        hub: u32,
        instance: &str,
        what: T,
        about: impl Fn(&T) -> About,
        here: impl FnMut(T) -> Doing,
    ) -> Result<Option<Held>, CompleteError>
    where
        T: Clone,
        Doing: Future<Output = Result<(), CompleteError>>,
    {
        self.ask_within((ASK_TIME, true), hub, instance, what, about, here).await
    }

    /// The same, with so much time for each question besides that for its bytes, and only if `repeats` again after one
    /// of unknown outcome.
    async fn ask_within<T, Doing>(
        &self,
        (time, repeats): (Duration, bool),
        hub: u32,
        instance: &str,
        mut what: T,
        about: impl Fn(&T) -> About,
        mut here: impl FnMut(T) -> Doing,
    ) -> Result<Option<Held>, CompleteError>
    where
        T: Clone,
        Doing: Future<Output = Result<(), CompleteError>>,
    {
        let partition = self.partition_of(hub, instance);
        let mut leadership = partition.leadership();
        let (mut asked, mut turn) = (None, 0);
        let until = Instant::now() + SEARCH_TIME;
        let (mut question, mut named, mut unknown) = (None, None, None);
        loop {
            if unknown.is_some() && !repeats {
                return Err(given_up(unknown, Error::NotLeader { leader: None }.into()));
            }
            let known = match (*leadership.borrow_and_update(), self.0.peers.get()) {
                (_, None) => At::Here,
                // Unless another one was named here: then this node has not heard of it yet.
                (Leadership::Leader { .. }, _) if named.is_none() => At::Here,
                (now, Some(peers)) => {
                    let leader = match now {
                        Leadership::Leader { .. } => None,
                        Leadership::Follower { leader } => leader,
                    };
                    // Where the rows are not, the leader is hearsay: after a vain try others are asked in turn.
                    turn += 1;
                    let other = partition.somebody(turn);
                    let known = leader.filter(|node| other.is_none() || asked != Some(*node));
                    asked = known;
                    let other = named.take().or(known).or(other);
                    other.filter(|node| *node != peers.node()).map_or(At::Nobody, At::Node)
                }
            };
            match (known, self.0.peers.get()) {
                (At::Here, _) => {
                    let may_repeat = !partition.is_alone() || !self.has_settled(hub, instance);
                    let again = may_repeat.then(|| what.clone());
                    match (here(what).await, again) {
                        (Ok(()), _) => return Ok(None),
                        (Err(CompleteError::Cluster(Error::NotLeader { leader })), Some(it)) => {
                            (named, what) = (leader, it);
                        }
                        (Err(CompleteError::Cluster(Error::Unavailable(reason))), Some(it)) => {
                            (unknown, what) = (Some(reason), it);
                        }
                        (Err(error), _) => return Err(given_up(unknown, error)),
                    }
                }
                (At::Node(node), Some(peers)) => {
                    let question = question
                        .get_or_insert_with(|| encoded(&Ask { hub, about: Some(about(&what)) }));
                    let bytes = question.len() as f64 / BYTES_PER_SECOND;
                    let time = time + Duration::from_secs_f64(bytes);
                    let answer = tokio::select! {
                        biased;
                        answer = peers.ask(node, question.clone(), time) => answer,
                        // It may be cut off and never answer.
                        () = replaced(&mut leadership, node) => {
                            unknown = Some(format!("node {node} no longer leads"));
                            continue;
                        }
                    };
                    match answer.map(|answer| AskOutcome::decode(answer).map(|it| it.outcome)) {
                        Ok(Ok(Some(Outcome::NotLeader(NotLeader { leader })))) => named = leader,
                        // Committed or not: whoever leads next knows.
                        Ok(Ok(Some(Outcome::Unavailable(reason)))) => unknown = Some(reason),
                        Ok(Ok(Some(outcome))) => {
                            partition.hear_leader(node);
                            return settle(outcome);
                        }
                        Ok(Ok(None)) => unknown = Some("the leader gave no outcome".to_owned()),
                        Ok(Err(error)) => unknown = Some(error.to_string()),
                        Err(error) if error.not_sent() => {}
                        Err(error) => unknown = Some(error.to_string()),
                    }
                }
                _ => {}
            }
            if Instant::now() >= until {
                return Err(given_up(unknown, Error::NotLeader { leader: named }.into()));
            }
            match named {
                Some(_) => tokio::time::sleep(BREATH).await,
                None => drop(tokio::time::timeout(LOOK_AGAIN, leadership.changed()).await),
            }
        }
    }

    /// Answers a question of another node's gateway.
    async fn answer_ask(&self, hub: u32, about: About) -> Result<Outcome, CompleteError> {
        match about {
            About::Turn(bytes) => {
                let Ok(it) = wire::OrchestratorResponse::decode(bytes) else { return Ok(DONE) };
                self.must_lead(hub, subject(&it.completion_token, &it.instance_id))?;
                self.complete_turn_here(hub, it).await?;
            }
            About::Activity(bytes) => {
                let Ok(it) = wire::ActivityResponse::decode(bytes) else { return Ok(DONE) };
                self.must_lead(hub, subject(&it.completion_token, &it.instance_id))?;
                self.complete_activity_here(hub, it).await?;
            }
            About::Batch(bytes) => {
                let Ok(it) = wire::EntityBatchResult::decode(bytes) else { return Ok(DONE) };
                self.must_lead(hub, subject(&it.completion_token, ""))?;
                self.complete_batch_here(hub, it).await?;
            }
            About::Abandon(Abandon { kind, token }) => {
                let Some(kind) = Kind::numbered(kind) else { return Ok(DONE) };
                self.must_lead(hub, subject(&token, ""))?;
                self.abandon_here(hub, kind, &token).await?;
            }
            About::HandedOut(HandedOut { kind, instance }) => {
                let Some(kind) = Kind::numbered(kind) else { return Ok(DONE) };
                self.check_tables(hub, kind, &instance).await?;
                let count = self.handed_out_here(hub, kind, &instance);
                return Ok(Outcome::Held(Held { count }));
            }
            About::WaitFor(WaitFor { instance, completed, known }) => {
                self.must_lead(hub, Some(instance.clone()))?;
                let wanted = if completed { Wanted::Completed } else { Wanted::Started };
                self.wait_here(Address::new(hub, instance), wanted, known).await?;
            }
            About::TakeOver(told) => self.hear_of_leases(told),
            About::WorkOf(WorkOf { partitions }) => {
                return Ok(Outcome::Work(self.work_led_here(hub, &partitions)?.into()));
            }
        }
        Ok(DONE)
    }

    /// Fails unless this node leads, with all that the last leader told in its tables. Operations of an entity are only
    /// counted for show.
    async fn check_tables(&self, hub: u32, kind: Kind, instance: &str) -> Result<(), Error> {
        let is_settled = kind == Kind::Entity || self.has_settled(hub, instance);
        self.partition_of(hub, instance).confirm_leads().await?;
        if is_settled { Ok(()) } else { Err(Error::NotLeader { leader: None }) }
    }

    fn must_lead(&self, hub: u32, instance: Option<String>) -> Result<(), CompleteError> {
        let Some(instance) = instance else { return Ok(()) };
        match *self.partition_of(hub, &instance).leadership().borrow() {
            Leadership::Leader { .. } => Ok(()),
            Leadership::Follower { leader } => Err(Error::NotLeader { leader }.into()),
        }
    }
}

const DONE: Outcome = Outcome::Done(Done {});

/// What an asker hears in the end. That nothing was committed may only be said if no outcome is unknown.
fn given_up(unknown: Option<String>, last: CompleteError) -> CompleteError {
    unknown.map_or(last, |reason| Error::Unavailable(reason).into())
}

/// Ends when another leader becomes known than `node`.
async fn replaced(leadership: &mut watch::Receiver<Leadership>, node: u64) {
    // Who was asked may know more than this node did then: only news counts.
    let is_other = |now: &Leadership| match *now {
        Leadership::Leader { .. } => true,
        Leadership::Follower { leader } => leader.is_some_and(|leader| leader != node),
    };
    while leadership.changed().await.is_ok() {
        if is_other(&leadership.borrow_and_update()) {
            return;
        }
    }
    // A group that has ended hears of nothing any more.
    std::future::pending().await
}

/// What answers the dispatchers of other nodes.
pub(in crate::dispatch) fn program(dispatcher: Dispatcher) -> Arc<dyn Program> {
    Arc::new(dispatcher)
}

impl Program for Dispatcher {
    fn answer(&self, question: Bytes) -> BoxFuture<'_, Result<Bytes, String>> {
        let dispatcher = self.clone();
        Box::pin(async move {
            let Ask { hub, about } = Ask::decode(question).map_err(|error| error.to_string())?;
            let about = about.ok_or("a question that this version does not know")?;
            let answer = match about {
                // It changes nothing, and ends when its asker goes.
                About::WaitFor(_) => dispatcher.answer_ask(hub, about).await,
                _ => {
                    let doing = |own: Dispatcher| async move { own.answer_ask(hub, about).await };
                    dispatcher.alone((), doing).await
                }
            };
            Ok(encoded(&AskOutcome { outcome: Some(answer.unwrap_or_else(told)) }))
        })
    }

    fn accept(&self, from: u64, feed: Feed) {
        self.serve_gateway(from, feed);
    }

    fn hand_over(&self, group: GroupId, to: u64) -> BoxFuture<'_, ()> {
        Box::pin(self.tell_next_leader(group, to))
    }
}

/// How a failure travels.
fn told(error: CompleteError) -> Outcome {
    match error {
        CompleteError::NoRoom => Outcome::NoRoom(Done {}),
        CompleteError::Cluster(error) => match error {
            Error::NotLeader { leader } => Outcome::NotLeader(NotLeader { leader }),
            Error::Stopping => Outcome::NotLeader(NotLeader { leader: None }),
            // Completions are never refused.
            Error::Refused(refusal) => Outcome::Unavailable(refusal.reason),
            Error::Unavailable(reason) => Outcome::Unavailable(reason),
            Error::TooLarge { bytes, limit } => {
                Outcome::TooLarge(TooLarge { bytes: bytes as u64, limit: limit as u64 })
            }
        },
    }
}

/// The instance that a completion is about: by its token or, where it has none, by its id. `None` for garbage.
fn subject(token: &str, instance: &str) -> Option<String> {
    if token.is_empty() {
        return (!instance.is_empty()).then(|| instance.to_owned());
    }
    Some(Token::from_text(token)?.work?.key().instance().to_string())
}

fn encoded(message: &impl prost::Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

fn settle(outcome: Outcome) -> Result<Option<Held>, CompleteError> {
    match outcome {
        // Nobody who asks about an instance is told how much work a hub has.
        Outcome::Done(_) | Outcome::Work(_) => Ok(None),
        Outcome::Held(held) => Ok(Some(held)),
        Outcome::NotLeader(NotLeader { leader }) => Err(Error::NotLeader { leader }.into()),
        Outcome::Unavailable(reason) => Err(Error::Unavailable(reason).into()),
        Outcome::NoRoom(_) => Err(CompleteError::NoRoom),
        Outcome::TooLarge(TooLarge { bytes, limit }) => {
            Err(Error::TooLarge { bytes: bytes as usize, limit: limit as usize }.into())
        }
    }
}
