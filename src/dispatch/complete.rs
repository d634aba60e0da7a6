//! What workers send back (sections 3.9 to 3.11): a check against the lease, then a command.
//!
//! A completion that is stale, unknown or repeated changes nothing, and its worker is told nothing of it
//! (R3.54, R3.55): an error would make some workers drop their stream.
//!
//! Only the leader does this, since the lease must end with it. A node that takes itself for the leader and is not finds
//! out: its own log takes no command, and what its tables do not know it asks its quorum about. Then [`super::feeds`] asks
//! the leader.

use std::time::Duration;

use durahub_cluster::{Error, Leadership};
use durahub_proto::wire;

use super::Dispatcher;
use super::hub::{Claim, End, Kept, Key, Kind, LeaseId, index_of, is_partial};
use super::meter::Returned;
use super::token::{Token, Work};
use crate::engine::command::{
    CompleteActivity, CompleteBatch, CompleteTurn, FailBatch, FailTurn, TurnId,
};
use crate::engine::{Answer, Command, Reject, Reply, decode_answer};

/// Pause before looking again what became of a completion that is being committed.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a completion was not taken in. Nothing was committed by it, unless its outcome is unknown.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// The partition could not be reached, or did not answer.
    #[error(transparent)]
    Cluster(#[from] durahub_cluster::Error),
    /// Other completions in parts take all the memory that is meant for them.
    #[error("too many unfinished completions are being collected; send this part again")]
    NoRoom,
}

/// What a completion or an abandon is about.
struct Named {
    work: Work,
    key: Key,
    lease: LeaseId,
    /// What the token says: run and lease of the leader that gave it out.
    given: (u64, LeaseId),
    /// Given out in this term of this node, or taken over from the last leader; all other leases of earlier leaders
    /// are forgotten, and so are its own from before somebody else led.
    of_this_term: bool,
    /// The tables held all that the last leader told when the token was looked up.
    is_settled: bool,
}

impl Named {
    /// Nothing may be dropped for being unknown while what the last leader told is not in the tables: its lease would
    /// stay with a worker that is done with it.
    fn check_settled(&self) -> Result<(), Error> {
        match self.of_this_term || self.is_settled {
            true => Ok(()),
            false => Err(Error::NotLeader { leader: None }),
        }
    }
}

/// A completion under the same lease is being committed.
struct Underway;

/// Ends a lease when the answer to a completion is known.
struct Ending<'a> {
    dispatcher: &'a Dispatcher,
    hub: u32,
    named: &'a Named,
    end: End,
    /// It does not end.
    is_kept: bool,
}

impl Ending<'_> {
    /// The lease goes on: whoever asked looks for the leader, which may be this node again.
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            let Named { key, lease, .. } = self.named;
            let now = self.dispatcher.0.clock.now();
            return self.dispatcher.with_hub(self.hub, |hub| hub.unclaim(key, *lease, now));
        }
        let now = self.dispatcher.0.clock.now();
        let Named { work, key, lease, given: (run, given), .. } = self.named;
        let is_over =
            self.dispatcher.with_hub(self.hub, |hub| hub.finish(key, *lease, self.end, now));
        // What is done, the next leader finds done.
        if !is_over && self.end != End::Done {
            let token = Token { run: *run, lease: *given, work: Some(work.clone()) };
            self.dispatcher.give_back_there(token);
        }
        self.dispatcher.pump(self.hub);
    }
}

impl Dispatcher {
    /// Commits an orchestrator turn; returns once it is durable (R3.56), or at once if it is stale or if
    /// more parts of it follow (R3.66).
    ///
    /// # Errors
    /// When the partition cannot be reached, or the node holds as many unfinished completions as it may.
    pub(super) async fn complete_turn_here(
        &self,
        hub: u32,
        response: wire::OrchestratorResponse,
    ) -> Result<(), CompleteError> {
        let named = self.name(hub, &response.completion_token, &response.instance_id, None);
        let Some(named) = named.await? else { return Ok(()) };
        let Work::Turn(turn) = &named.work else { return Ok(()) };
        let turn = turn.clone();
        if is_partial(&response) {
            return self.keep_part(hub, named, turn, response).await;
        }
        if response.requires_history && response.actions.is_empty() {
            // The worker has no state to go on from, and did nothing (R3.32).
            named.check_settled()?;
            self.give_back(hub, &named, "a history was missing");
            return Ok(());
        }
        let Some(ending) = self.hold(hub, &named).await else { return Ok(()) };
        let index = index_of(&response).unwrap_or(0);
        let parts = self.with_hub(hub, |hub| hub.parts(&named.key, named.lease));
        let response = match index {
            0 => response,
            _ => match parts.whole(response) {
                Some(whole) => whole,
                None => {
                    named.check_settled()?;
                    self.abandon_broken(hub, named.key.instance(), ending);
                    return Ok(());
                }
            },
        };
        let rules = self.rules();
        let command = match rules.limits.check_turn(&response) {
            Ok(()) => Command::CompleteTurn(CompleteTurn {
                turn,
                actions: response.actions,
                custom_status: response.custom_status,
                span: response.orchestration_trace_context,
                // Parts after the first carry 0, which does not mean "nothing" (R3.58).
                processed: response
                    .num_events_processed
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|n| *n > 0),
                id_length: rules.instance_id_length as u32,
            }),
            Err(reason) => Command::FailTurn(FailTurn { turn, reason }),
        };
        self.commit(hub, &named, command, ending).await
    }

    /// Takes in the result of an activity; returns once it is durable, or at once if it is stale.
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub(super) async fn complete_activity_here(
        &self,
        hub: u32,
        response: wire::ActivityResponse,
    ) -> Result<(), CompleteError> {
        let task = Some(response.task_id);
        let named = self.name(hub, &response.completion_token, &response.instance_id, task);
        let Some(named) = named.await? else { return Ok(()) };
        let Work::Activity(activity) = &named.work else { return Ok(()) };
        let task = activity.task.clone();
        let Some(ending) = self.hold(hub, &named).await else { return Ok(()) };
        let limits = self.rules().limits;
        let (result, failure) = limits.admit_result(response.result, response.failure_details);
        let command = Command::CompleteActivity(CompleteActivity { task, result, failure });
        self.commit(hub, &named, command, ending).await
    }

    /// Commits a batch of an entity; returns once it is durable, or at once if it is stale (section 3.12).
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub(super) async fn complete_batch_here(
        &self,
        hub: u32,
        result: wire::EntityBatchResult,
    ) -> Result<(), CompleteError> {
        // The result names nothing but its token (R3.45).
        let Some(token) = Token::from_text(&result.completion_token) else { return Ok(()) };
        let Some(named) = self.named(hub, token).await? else { return Ok(()) };
        let Work::Entity(batch) = &named.work else { return Ok(()) };
        let batch = batch.clone();
        if result.requires_state && result.results.is_empty() {
            // The worker has no state to go on from, and did nothing; every batch carries it (R3.76).
            named.check_settled()?;
            self.give_back(hub, &named, "a state was missing");
            return Ok(());
        }
        let Some(ending) = self.hold(hub, &named).await else { return Ok(()) };
        let rules = self.rules();
        let command = match rules.limits.check_batch(&result, self.0.settings.item_bytes) {
            Ok(()) => Command::CompleteBatch(CompleteBatch {
                batch,
                results: result.results,
                actions: result.actions,
                state: result.entity_state,
                failure: result.failure_details,
                id_length: rules.instance_id_length as u32,
            }),
            Err(reason) => {
                let entity = named.key.instance();
                tracing::warn!(
                    hub = %self.hub_name(hub),
                    partition = %self.partition_of(hub, entity).id(),
                    %entity,
                    reason,
                    "a batch fails"
                );
                Command::FailBatch(FailBatch { batch, reason })
            }
        };
        self.commit(hub, &named, command, ending).await
    }

    /// Takes an item back; it is offered again after a delay that grows (R3.61, R3.62).
    ///
    /// # Errors
    /// When another node leads.
    pub(super) async fn abandon_here(
        &self,
        hub: u32,
        kind: Kind,
        token: &str,
    ) -> Result<(), CompleteError> {
        let Some(token) = Token::from_text(token) else { return Ok(()) };
        let named = self.named(hub, token).await?;
        let Some(named) = named.filter(|named| named.key.kind() == kind) else { return Ok(()) };
        named.check_settled()?;
        self.give_back(hub, &named, "abandoned");
        Ok(())
    }

    fn give_back(&self, hub: u32, named: &Named, why: &str) {
        // What is being committed is not given back.
        let Ok(Some(Some(mut ending))) = self.claim(hub, named) else { return };
        let instance = named.key.instance();
        tracing::debug!(
            hub = %self.hub_name(hub),
            partition = %self.partition_of(hub, instance).id(),
            %instance,
            why,
            "work item given back"
        );
        self.0.meters.of(hub).returned(named.key.kind(), Returned::Abandoned);
        self.give_back_span(hub, &named.key, named.lease);
        ending.end = End::Abandoned;
    }

    /// Parts of a completion are missing: the turn is handed out again.
    fn abandon_broken(&self, hub: u32, instance: &str, ending: Option<Ending<'_>>) {
        tracing::warn!(
            hub = %self.hub_name(hub),
            partition = %self.partition_of(hub, instance).id(),
            instance,
            "a completion in parts lacks one; the turn is handed out again"
        );
        if let Some(mut ending) = ending {
            ending.end = End::Abandoned;
        }
    }

    /// Keeps a part of a completion until the rest is in.
    async fn keep_part(
        &self,
        hub: u32,
        named: Named,
        turn: TurnId,
        part: wire::OrchestratorResponse,
    ) -> Result<(), CompleteError> {
        // Parts that an earlier leader has seen are gone: the turn is handed out again (R3.68).
        if !named.of_this_term {
            return Ok(named.check_settled()?);
        }
        let limit = self.rules().limits.completion_bytes;
        match self.with_hub(hub, |hub| hub.keep_part(&named.key, named.lease, part, limit)) {
            Kept::Yes | Kept::Stale => Ok(()),
            // Nothing was committed: the worker may send it again, and does (R1.10).
            Kept::NoRoom => Err(CompleteError::NoRoom),
            Kept::Gap => {
                let ending = self.claim(hub, &named).ok().flatten().flatten();
                self.abandon_broken(hub, named.key.instance(), ending);
                Ok(())
            }
            Kept::TooLarge(bytes) => {
                let Some(ending) = self.hold(hub, &named).await else { return Ok(()) };
                let reason = format!(
                    "the completion of this turn takes more than {bytes} bytes, the limit is {limit} \
                     (limits.max_message_bytes); do less in one turn"
                );
                let command = Command::FailTurn(FailTurn { turn, reason });
                self.commit(hub, &named, command, ending).await
            }
        }
    }

    /// Finds what a completion is about: by its token or, where it has none, by its ids (R3.44). A token
    /// that does not fit the ids is ignored (R3.46).
    async fn name(
        &self,
        hub: u32,
        text: &str,
        instance: &str,
        task: Option<i32>,
    ) -> Result<Option<Named>, CompleteError> {
        let is_settled = self.has_settled(hub, instance);
        let token = if text.is_empty() {
            let found = self.with_hub(hub, |hub| hub.outstanding(instance, task));
            found.map(|(lease, work)| Token { run: self.0.run, lease, work: Some(work) })
        } else {
            Token::from_text(text)
        };
        let Some(token) = token else {
            // Without a token only the leader can tell whether anybody has it.
            self.partition_of(hub, instance).confirm_leads().await?;
            return match is_settled {
                true => Ok(None),
                false => Err(Error::NotLeader { leader: None }.into()),
            };
        };
        let named = self.named(hub, token).await?;
        Ok(named.filter(|named| instance.is_empty() || **named.key.instance() == *instance))
    }

    /// A token is looked up inside one hub (R1.12). One that these tables do not know may be of the leader that this
    /// node has not heard of yet: that one must hear of it, since the item is not handed out again before.
    async fn named(&self, hub: u32, token: Token) -> Result<Option<Named>, CompleteError> {
        let Some(work) = token.work.filter(|work| work.hub() == hub) else { return Ok(None) };
        let (key, given) = (work.key(), (token.run, token.lease));
        // Before the look: what comes into the tables after it is not missed.
        let is_settled = self.has_settled(hub, key.instance());
        let known = match self.knows_lease(token.run, token.lease, hub, key.instance()) {
            true => Some(token.lease),
            false => self.with_hub(hub, |hub| hub.taken_over(&key, given)),
        };
        if known.is_none() {
            self.partition_of(hub, key.instance()).confirm_leads().await?;
        }
        let (lease, of_this_term) = (known.unwrap_or(token.lease), known.is_some());
        Ok(Some(Named { key, work, lease, given, of_this_term, is_settled }))
    }

    /// Takes hold of a lease, so that its work can be committed; `None` when the completion is stale. While
    /// another completion under the lease is being committed, waits for what becomes of it: before that, "stale"
    /// would tell a worker that its work is safe (R3.56).
    async fn hold<'a>(&'a self, hub: u32, named: &'a Named) -> Option<Option<Ending<'a>>> {
        loop {
            match self.claim(hub, named) {
                Ok(claimed) => return claimed,
                Err(Underway) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Takes hold of a lease. The inner `None` means that the token was given out before a restart or by an
    /// earlier leader: good while the item is open, whoever has it now (R3.48). Whichever completion comes first
    /// wins (R3.50).
    fn claim<'a>(
        &'a self,
        hub: u32,
        named: &'a Named,
    ) -> Result<Option<Option<Ending<'a>>>, Underway> {
        let Named { key, lease, of_this_term, .. } = named;
        if !*of_this_term {
            return Ok(Some(None));
        }
        match self.with_hub(hub, |hub| hub.claim(key, *lease)) {
            Claim::Current => {
                let end = End::Again;
                Ok(Some(Some(Ending { dispatcher: self, hub, named, end, is_kept: false })))
            }
            Claim::Underway => Err(Underway),
            // Leases end with the lead; the items that they were for may be finished all the same.
            Claim::Unleased if !self.leads(hub, key.instance()) => Ok(Some(None)),
            Claim::Unleased | Claim::Stale => {
                let instance = key.instance();
                tracing::debug!(
                    hub = %self.hub_name(hub),
                    partition = %self.partition_of(hub, instance).id(),
                    %instance,
                    "completion is stale"
                );
                self.0.meters.of(hub).answered(key.kind(), false);
                Ok(None)
            }
        }
    }

    fn leads(&self, hub: u32, instance: &str) -> bool {
        let leadership = self.partition_of(hub, instance).leadership();
        matches!(*leadership.borrow(), Leadership::Leader { .. })
    }

    async fn commit(
        &self,
        hub: u32,
        named: &Named,
        command: Command,
        ending: Option<Ending<'_>>,
    ) -> Result<(), CompleteError> {
        let Named { key, work, lease, .. } = named;
        let span = self.answered_span(hub, key, *lease);
        let command = command.within(&self.rules().limits.engine);
        let partition = self.partition_of(hub, key.instance());
        let reply = match partition.propose_as_leader(command).await {
            Ok(reply) => reply,
            Err(error) => {
                let may_ask_on = matches!(
                    error,
                    Error::NotLeader { .. } | Error::Unavailable(_) | Error::Stopping
                );
                if may_ask_on && !partition.is_alone() {
                    // Ended, its item would go to somebody else, from a node that may lead no more.
                    self.keep_answered(hub, key, *lease, span);
                    ending.into_iter().for_each(Ending::keep);
                }
                return Err(error.into());
            }
        };
        let answer: Answer = decode_answer(reply).unwrap_or(Err(Reject::UnknownCommand));
        match (ending, &answer) {
            (Some(mut ending), Ok(reply)) => {
                ending.end = match reply {
                    Reply::TriedInVain => End::Abandoned,
                    _ => End::Done,
                };
            }
            (None, Ok(_)) => {
                let now = self.0.clock.now();
                self.with_hub(hub, |hub| hub.overtaken(key, work, now));
                self.pump(hub);
            }
            (_, Err(_)) => {}
        }
        self.0.meters.of(hub).answered(key.kind(), answer.is_ok());
        self.end_span(span, answer.is_ok());
        if let Err(reject) = answer {
            let (kind, instance) = (key.kind(), key.instance());
            tracing::debug!(
                hub = %self.hub_name(hub),
                partition = %self.partition_of(hub, instance).id(),
                %instance,
                ?kind,
                %reject,
                "completion changed nothing"
            );
        }
        Ok(())
    }
}
