//! A worker that runs by itself: orchestrators and activities are closures.
//!
//! An orchestrator closure is called with the whole history and returns every action that it wants so
//! far, numbered as it likes from 1. The runner leaves out those that are history already, so a
//! closure needs no memory:
//!
//! ```ignore
//! Program::new()
//!     .orchestrator("Greet", |history| match history.result(1) {
//!         None => vec![schedule_task(1, "Hello", history.input())],
//!         Some(result) => vec![complete(2, &result.expect("Hello never fails"))],
//!     })
//!     .activity("Hello", |name| Ok(format!("hello {name}")))
//!     .run(&client, WorkerOptions::default());
//! ```
//!
//! It answers termination and suspension as an SDK does, and reconnects until it is stopped.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use durahub_proto::wire;
use tonic::Status;
use wire::work_item::Request as Work;

use super::actions::{fail, failure, terminated};
use super::client::{Client, Rpc};
use super::history::History;
use super::worker::{WorkerOptions, activity_response};

type Orchestrator = dyn Fn(&History) -> Vec<wire::OrchestratorAction> + Send + Sync;
type Activity = dyn Fn(&str) -> Result<String, wire::TaskFailureDetails> + Send + Sync;

/// A worker's code. Names that it lacks fail their instances, as in the SDKs.
#[derive(Clone, Default)]
pub struct Program {
    orchestrators: BTreeMap<String, Arc<Orchestrator>>,
    activities: BTreeMap<String, Arc<Activity>>,
    repeats_ids: bool,
}

impl Program {
    /// A program without code.
    pub fn new() -> Self {
        Program::default()
    }

    /// Adds an orchestrator.
    pub fn orchestrator(
        mut self,
        name: &str,
        code: impl Fn(&History) -> Vec<wire::OrchestratorAction> + Send + Sync + 'static,
    ) -> Self {
        self.orchestrators.insert(name.into(), Arc::new(code));
        self
    }

    /// Adds an activity. It runs on a thread of its own and may block.
    pub fn activity(
        mut self,
        name: &str,
        code: impl Fn(&str) -> Result<String, wire::TaskFailureDetails> + Send + Sync + 'static,
    ) -> Self {
        self.activities.insert(name.into(), Arc::new(code));
        self
    }

    /// Lets orchestrators give an action again under an id that is history, as a retry does in one SDK.
    /// They then return only what is new.
    pub fn repeating_ids(mut self) -> Self {
        self.repeats_ids = true;
        self
    }

    /// Runs until the returned handle is stopped or dropped.
    pub fn run(&self, client: &Client, options: WorkerOptions) -> Running {
        let rpc = options.apply(client).rpc();
        let counts = Arc::new(Counts::default());
        let worker = Runner { program: self.clone(), rpc, counts: counts.clone() };
        let request = options.request();
        let task = tokio::spawn(async move {
            // Items are worked on in tasks of this set: stopping the program stops them, too.
            let mut items = tokio::task::JoinSet::new();
            loop {
                let ended = worker.serve(request.clone(), &mut items).await;
                worker.counts.streams_ended.fetch_add(1, Relaxed);
                let pause = if ended.is_ok() { 20 } else { 100 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
        Running { task, counts }
    }

    /// What the code wants next: actions that are history already are left out.
    pub(super) fn decide(&self, history: &History) -> Vec<wire::OrchestratorAction> {
        if let Some(output) = history.terminated() {
            return vec![terminated(-1, &output)];
        }
        if history.is_suspended() {
            return Vec::new();
        }
        let Some(code) = self.orchestrators.get(history.name()) else {
            let text = format!("no orchestrator {:?}", history.name());
            return vec![fail(-1, failure("OrchestratorNotFound", &text))];
        };
        match std::panic::catch_unwind(AssertUnwindSafe(|| code(history))) {
            Ok(mut actions) => {
                if !self.repeats_ids {
                    let known = history.actions();
                    actions.retain(|action| !known.contains(&action.id));
                }
                actions
            }
            Err(_) => vec![fail(-1, failure("Panic", "the orchestrator panicked"))],
        }
    }

    /// Runs an activity.
    pub(super) async fn perform(
        &self,
        request: &wire::ActivityRequest,
    ) -> Result<String, wire::TaskFailureDetails> {
        let Some(code) = self.activities.get(&request.name).cloned() else {
            let text = format!("no activity {:?}", request.name);
            return Err(failure("ActivityTaskNotFound", &text));
        };
        let input = request.input.clone().map(String::from).unwrap_or_default();
        let ran = tokio::task::spawn_blocking(move || code(&input)).await;
        ran.unwrap_or_else(|_| Err(failure("Panic", "the activity panicked")))
    }
}

/// What a program did so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Turns that orchestrators were called for.
    pub turns: AtomicU64,
    /// Activities that were run, repeated deliveries included.
    pub activities: AtomicU64,
    /// Health pings.
    pub pings: AtomicU64,
    /// Streams that ended or could not be opened.
    pub streams_ended: AtomicU64,
    /// Completions that the server refused.
    pub refused: AtomicU64,
    /// Items that were given back.
    pub abandoned: AtomicU64,
    /// Histories that were asked for, because a turn came without.
    pub histories: AtomicU64,
    /// Completions that were sent in parts.
    pub in_parts: AtomicU64,
    /// Connections that were given up because nothing came for too long.
    pub silences: AtomicU64,
}

/// A running program; dropping it kills it in the middle of whatever it does.
pub struct Running {
    task: tokio::task::JoinHandle<()>,
    /// What it did so far.
    pub counts: Arc<Counts>,
}

impl Running {
    pub(super) fn new(
        counts: Arc<Counts>,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Running { task: tokio::spawn(work), counts }
    }

    /// Kills it and waits until its stream is closed on this side.
    pub async fn stop(mut self) {
        self.task.abort();
        // Cancelled, as asked; a panic of the runner shows in the test's output.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Runner {
    program: Program,
    rpc: Rpc,
    counts: Arc<Counts>,
}

impl Runner {
    /// One stream, until it ends.
    async fn serve(
        &self,
        request: wire::GetWorkItemsRequest,
        items: &mut tokio::task::JoinSet<()>,
    ) -> Result<(), Status> {
        let mut rpc = self.rpc.clone();
        rpc.hello(()).await?;
        let mut stream = rpc.get_work_items(request).await?.into_inner();
        while let Some(item) = stream.message().await? {
            while items.try_join_next().is_some() {}
            let (runner, token) = (self.clone(), item.completion_token);
            match item.request {
                Some(Work::OrchestratorRequest(turn)) => {
                    drop(items.spawn(runner.turn(token, turn)))
                }
                Some(Work::ActivityRequest(it)) => drop(items.spawn(runner.activity(token, it))),
                Some(Work::HealthPing(_)) => drop(self.counts.pings.fetch_add(1, Relaxed)),
                other => panic!("a program cannot work on {other:?}"),
            }
        }
        Ok(())
    }

    async fn turn(self, token: String, request: wire::OrchestratorRequest) {
        let history = History::of(&request);
        self.counts.turns.fetch_add(1, Relaxed);
        let response = wire::OrchestratorResponse {
            actions: self.program.decide(&history),
            instance_id: request.instance_id,
            completion_token: token,
            ..Default::default()
        };
        let answer = self.rpc.clone().complete_orchestrator_task(response).await;
        self.note(answer.err());
    }

    async fn activity(self, token: String, request: wire::ActivityRequest) {
        self.counts.activities.fetch_add(1, Relaxed);
        let outcome = self.program.perform(&request).await;
        let response = activity_response(&token, &request, outcome);
        let answer = self.rpc.clone().complete_activity_task(response).await;
        self.note(answer.err());
    }

    fn note(&self, refusal: Option<Status>) {
        if refusal.is_some() {
            self.counts.refused.fetch_add(1, Relaxed);
        }
    }
}
