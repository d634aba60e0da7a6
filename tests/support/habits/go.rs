//! The Go worker.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use durahub_proto::wire;
use tokio::task::JoinSet;
use tonic::Status;
use wire::orchestrator_action::OrchestratorActionType as Action;
use wire::work_item::Request as Work;

use crate::support::client::{Client, Rpc};
use crate::support::history::History;
use crate::support::program::{Counts, Program, Running};
use crate::support::worker::activity_response;

/// Runs a program as the Go SDK does: a completion names its item by ids alone (R3.44).
pub fn run(program: &Program, client: &Client) -> Running {
    let counts = Arc::new(Counts::default());
    let worker = Go { program: program.clone(), rpc: client.rpc(), counts: counts.clone() };
    Running::new(counts, async move {
        let mut items = JoinSet::new();
        let mut pause = Duration::from_millis(20);
        loop {
            // It retries on every code, and on the end of the stream.
            if worker.serve(&mut items).await.is_ok() {
                pause = Duration::from_millis(20);
            }
            worker.counts.streams_ended.fetch_add(1, Relaxed);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(15));
        }
    })
}

#[derive(Clone)]
struct Go {
    program: Program,
    rpc: Rpc,
    counts: Arc<Counts>,
}

impl Go {
    async fn serve(&self, items: &mut JoinSet<()>) -> Result<(), Status> {
        let mut rpc = self.rpc.clone();
        rpc.hello(()).await?;
        let mut stream =
            rpc.get_work_items(wire::GetWorkItemsRequest::default()).await?.into_inner();
        while let Some(item) = stream.message().await? {
            while items.try_join_next().is_some() {}
            match item.request {
                Some(Work::OrchestratorRequest(turn)) => drop(items.spawn(self.clone().turn(turn))),
                Some(Work::ActivityRequest(it)) => drop(items.spawn(self.clone().activity(it))),
                // "unknown work item": logged, nothing more.
                _ => {}
            }
        }
        Ok(())
    }

    async fn turn(self, request: wire::OrchestratorRequest) {
        let history = History::of(&request);
        let turn = self.counts.turns.fetch_add(1, Relaxed);
        let mut actions = self.program.decide(&history);
        for action in &mut actions {
            if let Some(Action::CreateSubOrchestration(child)) =
                &mut action.orchestrator_action_type
            {
                child.instance_id.clear();
            }
        }
        // It ranges over a map: any order, the completion first as often as last.
        fastrand::Rng::with_seed(turn).shuffle(&mut actions);
        let response = wire::OrchestratorResponse {
            instance_id: request.instance_id,
            actions,
            custom_status: Some("".into()),
            ..Default::default()
        };
        let answer = self.rpc.clone().complete_orchestrator_task(response).await;
        self.counts.refused.fetch_add(u64::from(answer.is_err()), Relaxed);
    }

    async fn activity(self, request: wire::ActivityRequest) {
        self.counts.activities.fetch_add(1, Relaxed);
        let outcome = self.program.perform(&request).await;
        let response = activity_response("", &request, outcome);
        let answer = self.rpc.clone().complete_activity_task(response).await;
        self.counts.refused.fetch_add(u64::from(answer.is_err()), Relaxed);
    }
}
