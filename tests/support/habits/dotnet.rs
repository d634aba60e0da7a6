//! The .NET worker.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire;
use prost::Message as _;
use tokio::task::JoinSet;
use tonic::Status;
use wire::work_item::Request as Work;

use super::{may_retry, response};
use crate::support::client::{Client, Rpc};
use crate::support::history::History;
use crate::support::program::{Counts, Program, Running};
use crate::support::worker::activity_response;

/// What differs between two .NET workers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Completions above this size are split; the SDK's value is 3.9 MB.
    pub chunk_bytes: usize,
    /// Time without any message after which the connection counts as dead; the SDK's value is 120 s.
    pub silence: Duration,
    /// Versions that are rejected: such turns are given back (R3.62).
    pub rejects: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { chunk_bytes: 4_089_446, silence: Duration::from_secs(120), rejects: None }
    }
}

/// Runs a program as the .NET SDK does.
pub fn run(program: &Program, client: &Client, options: Options) -> Running {
    let counts = Arc::new(Counts::default());
    let (program, rpc) = (program.clone(), client.rpc());
    let worker = DotNet { program, rpc, counts: counts.clone(), options };
    Running::new(counts, async move {
        let mut items = JoinSet::new();
        loop {
            // How it ended does not matter: it connects again.
            let _ = worker.serve(&mut items).await;
            worker.counts.streams_ended.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[derive(Clone)]
struct DotNet {
    program: Program,
    rpc: Rpc,
    counts: Arc<Counts>,
    options: Options,
}

impl DotNet {
    async fn serve(&self, items: &mut JoinSet<()>) -> Result<(), Status> {
        let mut rpc = self.rpc.clone();
        rpc.hello(()).await?;
        let request = wire::GetWorkItemsRequest {
            max_concurrent_orchestration_work_items: 200,
            max_concurrent_activity_work_items: 200,
            max_concurrent_entity_work_items: 200,
            // The last one is from a future that no server knows (R3.5).
            capabilities: vec![wire::WorkerCapability::HistoryStreaming.into(), 4711],
            ..Default::default()
        };
        let mut stream = rpc.get_work_items(request).await?.into_inner();
        loop {
            let message = tokio::time::timeout(self.options.silence, stream.message()).await;
            let Ok(message) = message else {
                self.counts.silences.fetch_add(1, Relaxed);
                return Ok(());
            };
            let Some(item) = message? else { return Ok(()) };
            while items.try_join_next().is_some() {}
            let token = item.completion_token;
            match item.request {
                Some(Work::OrchestratorRequest(turn)) => {
                    drop(items.spawn(self.clone().turn(token, turn)))
                }
                Some(Work::ActivityRequest(it)) => {
                    drop(items.spawn(self.clone().activity(token, it)))
                }
                Some(Work::HealthPing(_)) => drop(self.counts.pings.fetch_add(1, Relaxed)),
                other => panic!("it does not know {other:?}"),
            }
        }
    }

    async fn turn(self, token: String, mut request: wire::OrchestratorRequest) {
        self.counts.turns.fetch_add(1, Relaxed);
        let parameters = request.entity_parameters.as_ref().expect("R3.28: or it throws");
        assert_eq!(parameters.entity_message_reorder_window, Some(Default::default()), "R3.28");
        if request.requires_history_streaming {
            assert!(request.past_events.is_empty(), "R3.30");
            request.past_events = self.past(&request).await;
        }
        let history = History::of(&request);
        let version = history.started().version.as_ref().map(|it| it.as_str().to_owned());
        if self.options.rejects.is_some() && version == self.options.rejects {
            self.abandon(&token).await;
            return;
        }
        let whole = response(&token, &request, self.program.decide(&history));
        for part in self.parts(whole) {
            if !self.complete(&token, part).await {
                return;
            }
        }
    }

    /// The history that a turn came without.
    async fn past(&self, request: &wire::OrchestratorRequest) -> Vec<bytes::Bytes> {
        self.counts.histories.fetch_add(1, Relaxed);
        let request = wire::StreamInstanceHistoryRequest {
            instance_id: request.instance_id.clone(),
            execution_id: request.execution_id.clone(),
            for_work_item_processing: true,
        };
        let answer = self.rpc.clone().stream_instance_history(request).await;
        let mut chunks = answer.expect("a history").into_inner();
        let mut events = Vec::new();
        while let Some(chunk) = chunks.message().await.expect("a history") {
            events.extend(chunk.events);
        }
        events
    }

    /// Splits a completion as the SDK does (R3.65, R3.67, R3.69).
    fn parts(&self, whole: wire::OrchestratorResponse) -> Vec<wire::OrchestratorResponse> {
        if whole.encoded_len() <= self.options.chunk_bytes {
            return vec![whole];
        }
        self.counts.in_parts.fetch_add(1, Relaxed);
        let mut chunks: Vec<Vec<wire::OrchestratorAction>> = vec![Vec::new()];
        let mut bytes = 0;
        for action in whole.actions {
            bytes += action.encoded_len();
            if bytes > self.options.chunk_bytes {
                bytes = action.encoded_len();
                chunks.push(Vec::new());
            }
            chunks.last_mut().expect("never empty").push(action);
        }
        let last = chunks.len() - 1;
        let part = |(index, actions)| {
            #[allow(deprecated)]
            wire::OrchestratorResponse {
                instance_id: whole.instance_id.clone(),
                completion_token: whole.completion_token.clone(),
                custom_status: whole.custom_status.clone(),
                actions,
                is_partial: index != last,
                chunk_index: Some(index as i32),
                num_events_processed: (index > 0).then_some(0),
                ..Default::default()
            }
        };
        chunks.into_iter().enumerate().map(part).collect()
    }

    /// Whether it was taken in. It tries 10 times, and gives back what is refused for good (section 1.10).
    async fn complete(&self, token: &str, response: wire::OrchestratorResponse) -> bool {
        for attempt in 0..10 {
            match self.rpc.clone().complete_orchestrator_task(response.clone()).await {
                Ok(_) => return true,
                Err(status) if may_retry(status.code()) => {
                    tokio::time::sleep(Duration::from_millis(200 << attempt.min(5))).await;
                }
                Err(_) => break,
            }
        }
        self.counts.refused.fetch_add(1, Relaxed);
        self.abandon(token).await;
        false
    }

    async fn abandon(&self, token: &str) {
        self.counts.abandoned.fetch_add(1, Relaxed);
        let request = wire::AbandonOrchestrationTaskRequest { completion_token: token.to_owned() };
        // Whatever it answers, the worker is done with it.
        let _ = self.rpc.clone().abandon_task_orchestrator_work_item(request).await;
    }

    async fn activity(self, token: String, request: wire::ActivityRequest) {
        self.counts.activities.fetch_add(1, Relaxed);
        let outcome = self.program.perform(&request).await;
        let response = activity_response(&token, &request, outcome);
        if self.rpc.clone().complete_activity_task(response).await.is_err() {
            self.counts.refused.fetch_add(1, Relaxed);
        }
    }
}
