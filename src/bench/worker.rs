//! The built-in worker: one stream of work items, answered as they come.
//!
//! It behaves like an SDK worker: says `Hello`, opens `GetWorkItems` with filters for its own names, so
//! that it never takes the work of others in the same task hub, echoes completion tokens, repeats a completion
//! that met a passing failure, and opens a new stream when one ends or stays silent for two minutes.
//!
//! Every item is worked on in a task of its own; the work itself costs microseconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use durahub_proto::wire;
use tonic::{Code, Status};
use wire::work_item::Request as Work;

use super::connect::{Rpc, is_passing};
use super::workload::{self, ACTIVITY, Kind};
use super::{backoff, workload::step};

/// Silence after which a stream counts as dead, as in the SDKs (R1.28).
const SILENCE: Duration = Duration::from_secs(120);
/// Attempts to hand in one completion; after that the server will hand out the item again.
const ATTEMPTS: u32 = 10;

/// What the workers of a run did.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Streams opened beyond the first of each worker.
    pub(super) reconnects: AtomicU64,
    /// Turns answered.
    pub(super) turns: AtomicU64,
    /// Activities answered.
    pub(super) activities: AtomicU64,
    /// Completions repeated after a passing failure.
    pub(super) retries: AtomicU64,
    /// Completions given up.
    pub(super) refused: AtomicU64,
}

/// Works for ever; end it by dropping or aborting its task.
///
/// `concurrency` is the number of instances in flight: it sizes what the stream may hold at once.
pub(super) async fn run(rpc: Rpc, concurrency: u32, counters: Arc<Counters>) {
    let request = request(concurrency);
    let mut failures = 0;
    loop {
        if let Err(status) = serve(&rpc, &request, &counters, &mut failures).await {
            tracing::debug!(code = ?status.code(), message = status.message(), "stream ended");
        }
        failures += 1;
        counters.reconnects.fetch_add(1, Relaxed);
        // Half the pause is random: a hundred workers do not come back in the same instant.
        tokio::time::sleep(backoff(failures).mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// One stream, from `Hello` to its end. Resets `failures` when an item arrives.
async fn serve(
    rpc: &Rpc,
    request: &wire::GetWorkItemsRequest,
    counters: &Arc<Counters>,
    failures: &mut u32,
) -> Result<(), Status> {
    rpc.clone().hello(()).await?;
    let mut stream = rpc.clone().get_work_items(request.clone()).await?.into_inner();
    loop {
        let item = tokio::time::timeout(SILENCE, stream.message())
            .await
            .map_err(|_| Status::deadline_exceeded("silent stream"))??;
        let Some(item) = item else { return Ok(()) };
        *failures = 0;
        let token = item.completion_token;
        let hand = Hand { rpc: rpc.clone(), counters: counters.clone(), token };
        match item.request {
            Some(Work::OrchestratorRequest(turn)) => drop(tokio::spawn(hand.turn(turn))),
            Some(Work::ActivityRequest(activity)) => drop(tokio::spawn(hand.activity(activity))),
            // Health pings, and entities, which the filters keep away.
            _ => {}
        }
    }
}

fn request(concurrency: u32) -> wire::GetWorkItemsRequest {
    let orchestrations = Kind::ALL
        .map(|kind| wire::OrchestrationFilter {
            name: kind.orchestration().into(),
            ..Default::default()
        })
        .to_vec();
    let activities = vec![wire::ActivityFilter { name: ACTIVITY.into(), ..Default::default() }];
    let limit = i32::try_from(concurrency.saturating_mul(2).clamp(100, 20_000)).unwrap_or(100);
    wire::GetWorkItemsRequest {
        max_concurrent_orchestration_work_items: limit,
        max_concurrent_activity_work_items: limit,
        max_concurrent_entity_work_items: 1,
        capabilities: vec![wire::WorkerCapability::HistoryStreaming.into()],
        work_item_filters: Some(wire::WorkItemFilters {
            orchestrations,
            activities,
            entities: Vec::new(),
        }),
        worker_instance_id: String::new(),
    }
}

/// One work item in hand.
struct Hand {
    rpc: Rpc,
    counters: Arc<Counters>,
    token: String,
}

impl Hand {
    async fn turn(self, request: wire::OrchestratorRequest) {
        let actions = if request.requires_history_streaming {
            match self.history(&request).await {
                Ok(past) => workload::turn(&past, &request.new_events),
                Err(_) => None,
            }
        } else {
            workload::turn(&request.past_events, &request.new_events)
        };
        let Some(actions) = actions else { return self.abandon_turn().await };
        let response = wire::OrchestratorResponse {
            instance_id: request.instance_id,
            actions,
            completion_token: self.token.clone(),
            ..Default::default()
        };
        self.counters.turns.fetch_add(1, Relaxed);
        let mut attempt = 0;
        // The last clone could be saved, at the price of a second path for the common case.
        while let Err(status) = self.rpc.clone().complete_orchestrator_task(response.clone()).await
        {
            attempt += 1;
            if self.gives_up(&status, attempt).await {
                return self.abandon_turn().await;
            }
        }
    }

    async fn activity(self, request: wire::ActivityRequest) {
        let result = match &request.input {
            Some(input) if request.name == ACTIVITY => step(input),
            _ => None,
        };
        let failure_details = result.is_none().then(|| wire::TaskFailureDetails {
            error_type: "BenchUnknownActivity".into(),
            error_message: "the benchmark's worker serves BenchStep with its own inputs only"
                .into(),
            is_non_retriable: true,
            ..Default::default()
        });
        let response = wire::ActivityResponse {
            instance_id: request.orchestration_instance.unwrap_or_default().instance_id,
            task_id: request.task_id,
            result,
            failure_details,
            completion_token: self.token.clone(),
        };
        self.counters.activities.fetch_add(1, Relaxed);
        let mut attempt = 0;
        while let Err(status) = self.rpc.clone().complete_activity_task(response.clone()).await {
            attempt += 1;
            if self.gives_up(&status, attempt).await {
                let request =
                    wire::AbandonActivityTaskRequest { completion_token: self.token.clone() };
                // Last resort: if it fails too, the server's lease ends some day.
                let _ = self.rpc.clone().abandon_task_activity_work_item(request).await;
                return;
            }
        }
    }

    /// The past events of a turn whose history was too long to come with it (R3.30).
    async fn history(&self, request: &wire::OrchestratorRequest) -> Result<Vec<Bytes>, Status> {
        let request = wire::StreamInstanceHistoryRequest {
            instance_id: request.instance_id.clone(),
            execution_id: request.execution_id.clone(),
            for_work_item_processing: true,
        };
        let mut chunks = self.rpc.clone().stream_instance_history(request).await?.into_inner();
        let mut events = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            events.extend(chunk.events);
        }
        Ok(events)
    }

    async fn abandon_turn(&self) {
        let request =
            wire::AbandonOrchestrationTaskRequest { completion_token: self.token.clone() };
        // Last resort: if it fails too, the server's lease ends some day.
        let _ = self.rpc.clone().abandon_task_orchestrator_work_item(request).await;
    }

    /// Pauses before the next attempt, or says that there is no point in one.
    async fn gives_up(&self, status: &Status, attempt: u32) -> bool {
        if !is_passing(status) || attempt >= ATTEMPTS {
            self.counters.refused.fetch_add(1, Relaxed);
            if status.code() != Code::NotFound {
                tracing::warn!(code = ?status.code(), message = status.message(), "completion refused");
            }
            return true;
        }
        self.counters.retries.fetch_add(1, Relaxed);
        tokio::time::sleep(backoff(attempt)).await;
        false
    }
}
