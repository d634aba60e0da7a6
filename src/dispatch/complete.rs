//! What workers send back (sections 3.9 and 3.10): a check against the lease, then a command.
//!
//! A completion that is stale, unknown or repeated changes nothing, and its worker is told nothing of it
//! (R3.54, R3.55): an error would make some workers drop their stream.

use durahub_cluster::Error;
use durahub_proto::wire;

use super::Dispatcher;
use super::hub::{Claim, End, LeaseId};
use super::token::{ActivityWork, Token, Work};
use crate::engine::command::{CompleteActivity, CompleteTurn};
use crate::engine::{Answer, Command, Reject, decode_answer};

/// A completion that may be proposed.
struct Claimed {
    work: Work,
    lease: LeaseId,
    is_current: bool,
}

impl Dispatcher {
    /// Commits an orchestrator turn; returns once it is durable (R3.56), or at once if it is stale.
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub async fn complete_turn(
        &self,
        hub: u32,
        response: wire::OrchestratorResponse,
    ) -> Result<(), Error> {
        let claimed = self.claim(hub, &response.completion_token, || {
            self.with_hub(hub, |hub| hub.outstanding(&response.instance_id, None))
        });
        let Some(Claimed { work: Work::Turn(turn), lease, is_current }) = claimed else {
            return Ok(());
        };
        let key = Work::Turn(turn.clone()).key();
        let processed =
            response.num_events_processed.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        let command = Command::CompleteTurn(CompleteTurn {
            turn,
            actions: response.actions,
            custom_status: response.custom_status,
            span: response.orchestration_trace_context,
            processed,
            id_length: self.0.settings.instance_id_length as u32,
        });
        let answer = self.propose(hub, key.instance(), command).await;
        if is_current {
            let end = match &answer {
                Ok(Ok(_)) => End::Done,
                // The history moved on, or nobody knows: look again.
                Ok(Err(_)) | Err(_) => End::Again,
            };
            let now = self.0.clock.now();
            self.with_hub(hub, |hub| hub.finish(&key, lease, end, now));
            self.pump(hub);
        }
        self.report(hub, key.instance(), "turn", answer)
    }

    /// Takes in the result of an activity; returns once it is durable, or at once if it is stale.
    ///
    /// # Errors
    /// When the partition cannot be reached.
    pub async fn complete_activity(
        &self,
        hub: u32,
        response: wire::ActivityResponse,
    ) -> Result<(), Error> {
        let claimed = self.claim(hub, &response.completion_token, || {
            self.with_hub(hub, |hub| hub.outstanding(&response.instance_id, Some(response.task_id)))
        });
        let Some(Claimed { work: Work::Activity(activity), lease, is_current }) = claimed else {
            return Ok(());
        };
        let ActivityWork { task, .. } = activity.clone();
        let key = Work::Activity(activity).key();
        let command = Command::CompleteActivity(CompleteActivity {
            task,
            result: response.result,
            failure: response.failure_details,
        });
        let answer = self.propose(hub, key.instance(), command).await;
        if is_current {
            let end = if answer.is_ok() { End::Done } else { End::Again };
            let now = self.0.clock.now();
            self.with_hub(hub, |hub| hub.finish(&key, lease, end, now));
            self.pump(hub);
        }
        self.report(hub, key.instance(), "activity", answer)
    }

    /// Takes an item back; it is offered again after a delay that grows (R3.61, R3.62).
    pub fn abandon(&self, hub: u32, token: &str) {
        let Some(Claimed { work, lease, is_current: true }) = self.claim(hub, token, || None)
        else {
            return;
        };
        tracing::debug!(hub, instance = work.instance(), "work item abandoned");
        let now = self.0.clock.now();
        self.with_hub(hub, |hub| hub.finish(&work.key(), lease, End::Abandoned, now));
        self.pump(hub);
    }

    /// Finds what a token means, if it may still be completed.
    fn claim(
        &self,
        hub: u32,
        text: &str,
        outstanding: impl FnOnce() -> Option<(LeaseId, Work)>,
    ) -> Option<Claimed> {
        let token = if text.is_empty() {
            let (lease, work) = outstanding()?;
            Token { run: self.0.run, lease, work: Some(work) }
        } else {
            Token::from_text(text)?
        };
        // A token is looked up inside one hub (R1.12).
        let work = token.work.filter(|work| work.hub() == hub)?;
        let of_this_run = token.run == self.0.run;
        let claim = self.with_hub(hub, |hub| hub.claim(&work.key(), token.lease));
        let is_current = match claim {
            Claim::Current if of_this_run => true,
            // Given out before a restart or by an earlier leader: good while the item is open (R3.48).
            Claim::Unleased if !of_this_run => false,
            _ => {
                tracing::debug!(hub, instance = work.instance(), "completion is stale");
                return None;
            }
        };
        Some(Claimed { work, lease: token.lease, is_current })
    }

    async fn propose(&self, hub: u32, instance: &str, command: Command) -> Result<Answer, Error> {
        let reply = self.partition_of(hub, instance).propose(command.into_bytes()).await?;
        Ok(decode_answer(reply).unwrap_or(Err(Reject::UnknownCommand)))
    }

    fn report(
        &self,
        hub: u32,
        instance: &str,
        what: &str,
        answer: Result<Answer, Error>,
    ) -> Result<(), Error> {
        match answer? {
            Ok(_) => {}
            Err(reject) => {
                tracing::debug!(hub, instance, %reject, "{what} completion changed nothing")
            }
        }
        Ok(())
    }
}
