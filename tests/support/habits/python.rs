//! The Python worker.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};
use wire::work_item::Request as Work;

use super::response;
use crate::support::client::{Client, Rpc};
use crate::support::history::History;
use crate::support::program::{Counts, Program, Running};
use crate::support::worker::activity_response;

/// A running worker that can be stopped politely.
pub struct Python {
    running: Running,
    stop: oneshot::Sender<oneshot::Sender<()>>,
}

impl Python {
    /// What it did so far.
    pub fn counts(&self) -> &Counts {
        &self.running.counts
    }

    /// Stops it: what is queued is given back (R3.64).
    pub async fn stop(self) {
        let (done, stopped) = oneshot::channel();
        self.stop.send(done).expect("it runs");
        stopped.await.expect("it stops");
        self.running.stop().await;
    }
}

/// Runs a program as the Python SDK does, with this many workers for its queue.
pub fn run(program: &Program, client: &Client, capacity: i32) -> Python {
    let counts = Arc::new(Counts::default());
    let (program, rpc) = (program.clone(), client.rpc());
    let worker = Worker { program, rpc, counts: counts.clone(), capacity };
    let (stop, mut stopped) = oneshot::channel();
    let running = Running::new(counts, async move {
        loop {
            match worker.serve(&mut stopped).await {
                Ok(Some(done)) => {
                    let _ = done.send(());
                    return;
                }
                // A clean end is no reason to wait (R1.40), anything else is.
                Ok(None) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
            worker.counts.streams_ended.fetch_add(1, Relaxed);
        }
    });
    Python { running, stop }
}

struct Worker {
    program: Program,
    rpc: Rpc,
    counts: Arc<Counts>,
    capacity: i32,
}

impl Worker {
    async fn serve(
        &self,
        stopped: &mut oneshot::Receiver<oneshot::Sender<()>>,
    ) -> Result<Option<oneshot::Sender<()>>, Status> {
        let mut rpc = self.rpc.clone();
        rpc.hello(()).await?;
        let request = wire::GetWorkItemsRequest {
            // The entity field is never set (R3.2).
            max_concurrent_orchestration_work_items: self.capacity,
            max_concurrent_activity_work_items: self.capacity,
            ..Default::default()
        };
        let mut stream = rpc.get_work_items(request).await?.into_inner();
        let mut queued = VecDeque::new();
        loop {
            if let Ok(done) = stopped.try_recv() {
                self.give_back(queued).await;
                return Ok(Some(done));
            }
            if !self.receive(&mut stream, &mut queued).await? {
                return Ok(None);
            }
            if let Some(item) = queued.pop_front() {
                self.work(item).await;
            }
        }
    }

    /// Queues what has arrived. Whether the stream goes on.
    async fn receive(
        &self,
        stream: &mut Streaming<wire::WorkItem>,
        queued: &mut VecDeque<wire::WorkItem>,
    ) -> Result<bool, Status> {
        loop {
            let soon = Duration::from_millis(if queued.is_empty() { 20 } else { 1 });
            match tokio::time::timeout(soon, stream.message()).await {
                Err(_) => return Ok(true),
                Ok(message) => match message? {
                    None => return Ok(false),
                    Some(item) => queued.push_back(item),
                },
            }
        }
    }

    async fn work(&self, item: wire::WorkItem) {
        let token = item.completion_token;
        let answer = match item.request {
            Some(Work::OrchestratorRequest(turn)) => {
                assert!(!turn.new_events.is_empty(), "R3.19: it throws on no events");
                self.counts.turns.fetch_add(1, Relaxed);
                let actions = self.program.decide(&History::of(&turn));
                let response = response(&token, &turn, actions);
                self.rpc.clone().complete_orchestrator_task(response).await
            }
            Some(Work::ActivityRequest(it)) => {
                self.counts.activities.fetch_add(1, Relaxed);
                let outcome = self.program.perform(&it).await;
                let response = activity_response(&token, &it, outcome);
                self.rpc.clone().complete_activity_task(response).await
            }
            _ => return,
        };
        // Logged and forgotten (section 1.10).
        self.counts.refused.fetch_add(u64::from(answer.is_err()), Relaxed);
    }

    async fn give_back(&self, queued: VecDeque<wire::WorkItem>) {
        for item in queued {
            let completion_token = item.completion_token;
            let mut rpc = self.rpc.clone();
            let refused = match item.request {
                Some(Work::OrchestratorRequest(_)) => {
                    let request = wire::AbandonOrchestrationTaskRequest { completion_token };
                    rpc.abandon_task_orchestrator_work_item(request).await.is_err()
                }
                Some(Work::ActivityRequest(_)) => {
                    let request = wire::AbandonActivityTaskRequest { completion_token };
                    rpc.abandon_task_activity_work_item(request).await.is_err()
                }
                _ => continue,
            };
            assert!(!refused, "R3.61: abandon is OK");
            self.counts.abandoned.fetch_add(1, Relaxed);
        }
    }
}
