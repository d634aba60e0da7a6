//! A worker under the test's control: it takes one work item at a time and answers it as told.
//!
//! Items that arrive while the test waits for another kind are kept for later, so a test asks for what it
//! expects next: `next_turn`, `next_activity`, `next_entity`, or `expect_nothing`.

use std::collections::VecDeque;
use std::time::Duration;

use durahub_proto::wire;
use tonic::{Status, Streaming};
use wire::work_item::Request as Work;

use super::client::{Client, PATIENCE, Rpc, good};
use super::history::History;

/// What a worker says when it opens its stream.
#[derive(Clone, Debug, Default)]
pub struct WorkerOptions {
    /// Task hub header; unset sends none.
    pub task_hub: Option<String>,
    /// `workerid` header; unset sends none.
    pub worker_id: Option<String>,
    /// Most turns in hand; 0 leaves it to the server (R3.2).
    pub orchestrations: i32,
    /// Most activities in hand; 0 leaves it to the server.
    pub activities: i32,
    /// Most entity batches in hand; 0 leaves it to the server.
    pub entities: i32,
    /// What the worker can do.
    pub capabilities: Vec<wire::WorkerCapability>,
    /// Names that it serves; unset takes everything (R3.7).
    pub filters: Option<wire::WorkItemFilters>,
}

impl WorkerOptions {
    /// Filters with these orchestration and activity names, any version, no entities.
    pub fn serving(mut self, orchestrations: &[&str], activities: &[&str]) -> Self {
        let orchestrations = orchestrations
            .iter()
            .map(|name| wire::OrchestrationFilter { name: (*name).into(), ..Default::default() });
        let activities = activities
            .iter()
            .map(|name| wire::ActivityFilter { name: (*name).into(), ..Default::default() });
        self.filters = Some(wire::WorkItemFilters {
            orchestrations: orchestrations.collect(),
            activities: activities.collect(),
            entities: Vec::new(),
        });
        self
    }

    pub(super) fn apply(&self, client: &Client) -> Client {
        let mut client = client.clone();
        if let Some(task_hub) = &self.task_hub {
            client = client.in_hub(task_hub);
        }
        if let Some(id) = &self.worker_id {
            client = client.as_worker(id);
        }
        client
    }

    pub(super) fn request(&self) -> wire::GetWorkItemsRequest {
        wire::GetWorkItemsRequest {
            max_concurrent_orchestration_work_items: self.orchestrations,
            max_concurrent_activity_work_items: self.activities,
            max_concurrent_entity_work_items: self.entities,
            capabilities: self.capabilities.iter().map(|it| i32::from(*it)).collect(),
            work_item_filters: self.filters.clone(),
            worker_instance_id: String::new(),
        }
    }
}

/// A turn in hand.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The completion token.
    pub token: String,
    /// The request as it came.
    pub request: wire::OrchestratorRequest,
    /// Its events, decoded.
    pub history: History,
}

/// An activity in hand.
#[derive(Clone, Debug)]
pub struct Activity {
    /// The completion token.
    pub token: String,
    /// The request as it came.
    pub request: wire::ActivityRequest,
}

impl Activity {
    /// The instance that scheduled it.
    pub fn instance(&self) -> &str {
        self.request.orchestration_instance.as_ref().map_or("", |it| it.instance_id.as_str())
    }

    /// Its input; unset reads as empty.
    pub fn input(&self) -> &str {
        self.request.input.as_ref().map_or("", |input| input.as_str())
    }
}

/// An entity batch in hand.
#[derive(Clone, Debug)]
pub struct Entity {
    /// The completion token.
    pub token: String,
    /// The request as it came.
    pub request: wire::EntityRequest,
}

/// One stream of work items and the calls that answer them.
pub struct Worker {
    rpc: Rpc,
    options: WorkerOptions,
    stream: Option<Streaming<wire::WorkItem>>,
    kept: VecDeque<wire::WorkItem>,
    pings: u64,
}

impl Worker {
    /// Opens the stream. Panics when the server refuses.
    pub async fn connect(client: &Client, options: WorkerOptions) -> Worker {
        let worker = Worker::try_connect(client, options).await;
        worker.unwrap_or_else(|status| panic!("open a worker stream: {status}"))
    }

    /// Opens the stream.
    ///
    /// # Errors
    /// The server's refusal. A server may also accept the call and end the stream with its refusal;
    /// then the next wait for an item shows it.
    pub async fn try_connect(client: &Client, options: WorkerOptions) -> Result<Worker, Status> {
        let rpc = options.apply(client).rpc();
        let mut worker = Worker { rpc, options, stream: None, kept: VecDeque::new(), pings: 0 };
        worker.reconnect().await?;
        Ok(worker)
    }

    /// Opens the stream anew, dropping the one there was. Items in hand keep their tokens.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn reconnect(&mut self) -> Result<(), Status> {
        self.drop_stream();
        let stream = self.rpc.get_work_items(self.options.request()).await?.into_inner();
        self.stream = Some(stream);
        Ok(())
    }

    /// Closes the stream, as a worker does that is shut down or dies. Items not yet asked for are gone.
    pub fn drop_stream(&mut self) {
        self.stream = None;
        self.kept.clear();
    }

    /// Health pings seen so far.
    pub fn pings(&self) -> u64 {
        self.pings
    }

    /// The next item of any kind but pings; `None` when none comes in time.
    ///
    /// # Errors
    /// How the stream ended; `UNAVAILABLE` "end of stream" when it ended with OK, which it never should
    /// (R1.40).
    pub async fn next_within(&mut self, time: Duration) -> Result<Option<wire::WorkItem>, Status> {
        if let Some(item) = self.kept.pop_front() {
            return Ok(Some(item));
        }
        self.receive(time).await
    }

    /// The next item of any kind but pings.
    pub async fn next(&mut self) -> wire::WorkItem {
        self.pick("work item", |_| true).await
    }

    /// The next turn.
    pub async fn next_turn(&mut self) -> Turn {
        let is_turn = |work: &Work| matches!(work, Work::OrchestratorRequest(_));
        let item = self.pick("turn", is_turn).await;
        let Some(Work::OrchestratorRequest(request)) = item.request else { unreachable!() };
        Turn { token: item.completion_token, history: History::of(&request), request }
    }

    /// The next turn of this instance; those of others are kept.
    pub async fn next_turn_of(&mut self, instance: &str) -> Turn {
        let is_turn = |work: &Work| matches!(work, Work::OrchestratorRequest(it) if it.instance_id == instance);
        let item = self.pick(&format!("turn of {instance:?}"), is_turn).await;
        let Some(Work::OrchestratorRequest(request)) = item.request else { unreachable!() };
        Turn { token: item.completion_token, history: History::of(&request), request }
    }

    /// The next activity.
    pub async fn next_activity(&mut self) -> Activity {
        let is_activity = |work: &Work| matches!(work, Work::ActivityRequest(_));
        let item = self.pick("activity", is_activity).await;
        let Some(Work::ActivityRequest(request)) = item.request else { unreachable!() };
        Activity { token: item.completion_token, request }
    }

    /// The next entity batch.
    pub async fn next_entity(&mut self) -> Entity {
        let is_entity = |work: &Work| matches!(work, Work::EntityRequestV2(_));
        let item = self.pick("entity batch", is_entity).await;
        let Some(Work::EntityRequestV2(request)) = item.request else { unreachable!() };
        Entity { token: item.completion_token, request }
    }

    /// Fails when any item but a ping comes within this time or is kept already.
    pub async fn expect_nothing(&mut self, time: Duration) {
        match self.next_within(time).await {
            Ok(None) => {}
            Ok(Some(item)) => panic!("expected no work, got {}", describe(&item)),
            Err(status) => panic!("the worker's stream ended: {status}"),
        }
    }

    /// Hands in a turn's actions.
    pub async fn complete_turn(&self, turn: &Turn, actions: Vec<wire::OrchestratorAction>) {
        let response = self.response(turn, actions);
        good("complete a turn", self.rpc.clone().complete_orchestrator_task(response).await);
    }

    /// What [`Worker::complete_turn`] sends, for a test that changes it first.
    pub fn response(
        &self,
        turn: &Turn,
        actions: Vec<wire::OrchestratorAction>,
    ) -> wire::OrchestratorResponse {
        wire::OrchestratorResponse {
            instance_id: turn.request.instance_id.clone(),
            actions,
            completion_token: turn.token.clone(),
            ..Default::default()
        }
    }

    /// Hands in an activity's result.
    pub async fn complete_activity(&self, activity: &Activity, result: &str) {
        self.answer_activity(activity, Ok(result.to_owned())).await;
    }

    /// Hands in an activity's failure.
    pub async fn fail_activity(&self, activity: &Activity, details: wire::TaskFailureDetails) {
        self.answer_activity(activity, Err(details)).await;
    }

    async fn answer_activity(
        &self,
        activity: &Activity,
        outcome: Result<String, wire::TaskFailureDetails>,
    ) {
        let response = activity_response(&activity.token, &activity.request, outcome);
        good("complete an activity", self.rpc.clone().complete_activity_task(response).await);
    }

    /// Hands in an entity batch; the token is filled in.
    pub async fn complete_entity(&self, entity: &Entity, mut result: wire::EntityBatchResult) {
        result.completion_token = entity.token.clone();
        good("complete an entity batch", self.rpc.clone().complete_entity_task(result).await);
    }

    /// Gives a turn back.
    pub async fn abandon_turn(&self, turn: &Turn) {
        let request =
            wire::AbandonOrchestrationTaskRequest { completion_token: turn.token.clone() };
        let answer = self.rpc.clone().abandon_task_orchestrator_work_item(request).await;
        good("abandon a turn", answer);
    }

    /// Gives an activity back.
    pub async fn abandon_activity(&self, activity: &Activity) {
        let request = wire::AbandonActivityTaskRequest { completion_token: activity.token.clone() };
        let answer = self.rpc.clone().abandon_task_activity_work_item(request).await;
        good("abandon an activity", answer);
    }

    /// Gives an entity batch back.
    pub async fn abandon_entity(&self, entity: &Entity) {
        let request = wire::AbandonEntityTaskRequest { completion_token: entity.token.clone() };
        let answer = self.rpc.clone().abandon_task_entity_work_item(request).await;
        good("abandon an entity batch", answer);
    }

    /// The first item that fits, kept or new; others are kept.
    async fn pick(&mut self, what: &str, fits: impl Fn(&Work) -> bool) -> wire::WorkItem {
        let fits = |item: &wire::WorkItem| item.request.as_ref().is_some_and(&fits);
        if let Some(item) = self.kept.iter().position(fits).and_then(|at| self.kept.remove(at)) {
            return item;
        }
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            match self.receive(left).await {
                Ok(Some(item)) if fits(&item) => return item,
                Ok(Some(item)) => self.kept.push_back(item),
                Ok(None) => {
                    let kept: Vec<_> = self.kept.iter().map(describe).collect();
                    panic!("no {what} within {PATIENCE:?}; kept for later: {kept:?}");
                }
                Err(status) => panic!("the worker's stream ended before a {what} came: {status}"),
            }
        }
    }

    async fn receive(&mut self, time: Duration) -> Result<Option<wire::WorkItem>, Status> {
        let stream = self.stream.as_mut().expect("the worker has no stream: reconnect first");
        let until = tokio::time::Instant::now() + time;
        loop {
            let Ok(item) = tokio::time::timeout_at(until, stream.message()).await else {
                return Ok(None);
            };
            match item? {
                None => return Err(Status::unavailable("end of stream")),
                Some(item) if matches!(item.request, Some(Work::HealthPing(_))) => self.pings += 1,
                Some(item) => return Ok(Some(item)),
            }
        }
    }
}

/// The completion of an activity.
pub(super) fn activity_response(
    token: &str,
    request: &wire::ActivityRequest,
    outcome: Result<String, wire::TaskFailureDetails>,
) -> wire::ActivityResponse {
    let (result, failure_details) = match outcome {
        Ok(result) => (Some(result.into()), None),
        Err(details) => (None, Some(details)),
    };
    let instance = request.orchestration_instance.clone().unwrap_or_default();
    wire::ActivityResponse {
        instance_id: instance.instance_id,
        task_id: request.task_id,
        result,
        failure_details,
        completion_token: token.into(),
    }
}

/// An item in a few words.
pub fn describe(item: &wire::WorkItem) -> String {
    match &item.request {
        Some(Work::OrchestratorRequest(it)) => {
            format!("turn of {:?}: {}", it.instance_id, History::of(it).compact())
        }
        Some(Work::ActivityRequest(it)) => format!("activity {:?}#{}", it.name, it.task_id),
        Some(Work::EntityRequestV2(it)) => format!("entity batch of {:?}", it.instance_id),
        other => format!("{other:?}"),
    }
}
