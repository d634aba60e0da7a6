//! The Java worker.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire;
use tonic::Status;
use wire::work_item::Request as Work;

use super::response;
use crate::support::client::{Client, Rpc};
use crate::support::history::History;
use crate::support::program::{Counts, Program, Running};
use crate::support::worker::activity_response;

/// How long it stays away after an error.
pub const AWAY: Duration = Duration::from_secs(5);

/// Runs a program as the Java SDK does (R1.43): one item at a time, on the thread that reads the stream.
/// `twice` completes every item a second time, as a worker does whose first answer got lost.
pub fn run(program: &Program, client: &Client, twice: bool) -> Running {
    let counts = Arc::new(Counts::default());
    let worker =
        Java { program: program.clone(), rpc: client.rpc(), counts: counts.clone(), twice };
    Running::new(counts, async move {
        loop {
            // After a clean end it calls again at once (R1.40).
            if worker.serve().await.is_err() {
                worker.counts.streams_ended.fetch_add(1, Relaxed);
                tokio::time::sleep(AWAY).await;
            }
        }
    })
}

struct Java {
    program: Program,
    rpc: Rpc,
    counts: Arc<Counts>,
    twice: bool,
}

impl Java {
    async fn serve(&self) -> Result<(), Status> {
        let mut rpc = self.rpc.clone();
        // No Hello before it (R1.38), no limits.
        let mut stream =
            rpc.get_work_items(wire::GetWorkItemsRequest::default()).await?.into_inner();
        while let Some(item) = stream.message().await? {
            for _ in 0..=usize::from(self.twice) {
                self.work(&item).await.inspect_err(|_| {
                    self.counts.refused.fetch_add(1, Relaxed);
                })?;
            }
        }
        Ok(())
    }

    async fn work(&self, item: &wire::WorkItem) -> Result<(), Status> {
        let token = &item.completion_token;
        match &item.request {
            Some(Work::OrchestratorRequest(turn)) => {
                self.counts.turns.fetch_add(1, Relaxed);
                let actions = self.program.decide(&History::of(turn));
                let response = response(token, turn, actions);
                self.rpc.clone().complete_orchestrator_task(response).await?;
            }
            Some(Work::ActivityRequest(it)) => {
                self.counts.activities.fetch_add(1, Relaxed);
                let outcome = self.program.perform(it).await;
                let response = activity_response(token, it, outcome);
                self.rpc.clone().complete_activity_task(response).await?;
            }
            _ => {}
        }
        Ok(())
    }
}
