//! The worker: runs the load's orchestrations, activities and entities, reconnects by itself, forgets like an SDK.
//! Aborting its task is what the end of its process is: what it has in hand is done by somebody else.
//!
//! A completion that fails is not sent again: Python, JS and Go do not either (R1.10), so work that the
//! server lost must come back by itself (R3.49, L3). Completions of items from a lost stream are still sent
//! over the next connection (R1.42).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType;
use durahub_proto::wire::work_item::Request as Item;
use durahub_proto::wire::{
    ActivityRequest, ActivityResponse, CompleteOrchestrationAction, CreateSubOrchestrationAction,
    CreateTimerAction, EntityRequest, GetWorkItemsRequest, HistoryEvent, OrchestrationStatus,
    OrchestratorAction, OrchestratorRequest, OrchestratorResponse, ScheduleTaskAction, WorkItem,
};
use prost::Message;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use super::calls::{Client, is_broken, within};
use super::ledger::{Kind, Ledger, REGISTER, Step, TRANSFER, activity_input, child};
use super::{accounts, teller};

/// Runs until it is aborted.
pub(crate) async fn run(channel: Channel, ledger: Arc<Ledger>, mut random: fastrand::Rng) {
    let mut client = Client::new(channel);
    // Ends with this task.
    let mut works = JoinSet::new();
    loop {
        // Read before the call: see the ledger.
        let life = ledger.life();
        let limits = GetWorkItemsRequest {
            max_concurrent_orchestration_work_items: 20,
            max_concurrent_activity_work_items: 20,
            ..Default::default()
        };
        if let Ok(stream) = client.get_work_items(limits).await {
            let mut stream = stream.into_inner();
            loop {
                let item = tokio::select! {
                    item = stream.message() => item,
                    Some(done) = works.join_next() => {
                        done.expect("no item panics");
                        continue;
                    }
                };
                match item {
                    Ok(Some(item)) => {
                        let ledger = Arc::clone(&ledger);
                        works.spawn(work(client.clone(), ledger, item, life, random.fork()));
                    }
                    Ok(None) => {
                        ledger.violation("the work item stream ended with OK (R1.40)".to_owned());
                        break;
                    }
                    Err(_) => break,
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn work(
    client: Client,
    ledger: Arc<Ledger>,
    item: WorkItem,
    life: u64,
    random: fastrand::Rng,
) {
    match item.request {
        Some(Item::EntityRequestV2(batch)) => {
            run_batch(client, &ledger, batch, item.completion_token, random).await;
        }
        Some(Item::OrchestratorRequest(turn)) => {
            take_turn(client, &ledger, turn, item.completion_token).await
        }
        Some(Item::ActivityRequest(activity)) => {
            run_activity(client, &ledger, activity, item.completion_token, life, random).await;
        }
        Some(Item::HealthPing(_)) => {}
        _ => ledger.violation("a work item of an unknown kind".to_owned()),
    }
}

async fn run_activity(
    mut client: Client,
    ledger: &Ledger,
    activity: ActivityRequest,
    token: String,
    life: u64,
    mut random: fastrand::Rng,
) {
    let instance =
        activity.orchestration_instance.map(|instance| instance.instance_id).unwrap_or_default();
    let Some((attempt, result)) = ledger.dispatched(&instance, activity.task_id, life) else {
        return;
    };
    let input = activity_input(&instance, activity.task_id);
    if activity.input.as_ref().map(durahub_proto::Text::as_str) != Some(&input) {
        ledger.violation(format!("{instance}/{}: handed out with a wrong input", activity.task_id));
    }
    // Work of some length, so that kills fall into it.
    tokio::time::sleep(Duration::from_millis(random.u64(..40))).await;
    let response = ActivityResponse {
        instance_id: instance.clone(),
        task_id: activity.task_id,
        result: Some(result.into()),
        completion_token: token,
        ..Default::default()
    };
    match client.complete_activity_task(within(10, response)).await {
        Ok(_) => ledger.acknowledged(&instance, activity.task_id, attempt),
        Err(status) => lost(ledger, "complete an activity", &status),
    }
}

async fn run_batch(
    mut client: Client,
    ledger: &Ledger,
    batch: EntityRequest,
    token: String,
    mut random: fastrand::Rng,
) {
    tokio::time::sleep(Duration::from_millis(random.u64(..10))).await;
    let result = accounts::carry_out(ledger, &batch, token);
    if let Err(status) = client.complete_entity_task(within(10, result)).await {
        lost(ledger, "complete a batch", &status);
    }
}

async fn take_turn(mut client: Client, ledger: &Ledger, turn: OrchestratorRequest, token: String) {
    if let Some(register) = register_turn(&turn, &token) {
        let _ = client.complete_orchestrator_task(within(10, register)).await;
        return;
    }
    let actions = if turn.instance_id.starts_with(TRANSFER) {
        teller::next(&turn)
    } else {
        ledger.born(&turn.instance_id);
        ledger.saw_past(&turn.instance_id, &turn.past_events);
        History::read(&turn).map(|history| history.next_actions(&turn.instance_id))
    };
    let actions = match actions {
        Ok(actions) => actions,
        Err(wrong) => return ledger.violation(format!("{}: {wrong}", turn.instance_id)),
    };
    let response = OrchestratorResponse {
        instance_id: turn.instance_id,
        actions,
        completion_token: token,
        ..Default::default()
    };
    if let Err(status) = client.complete_orchestrator_task(within(10, response)).await {
        lost(ledger, "complete a turn", &status);
    }
}

/// The answer to a turn of a register: it waits for ever.
fn register_turn(turn: &OrchestratorRequest, token: &str) -> Option<OrchestratorResponse> {
    turn.instance_id.starts_with(REGISTER).then(|| OrchestratorResponse {
        instance_id: turn.instance_id.clone(),
        completion_token: token.to_owned(),
        ..Default::default()
    })
}

/// A completion that did not arrive is nothing to this worker; one that was refused is (R3.55).
fn lost(ledger: &Ledger, what: &str, status: &tonic::Status) {
    if !is_broken(status) {
        ledger.violation(format!("{what}: {status}"));
    }
}

/// What the orchestrator function sees when it is replayed.
struct History {
    kind: Kind,
    now: prost_types::Timestamp,
    scheduled: Vec<i32>,
    results: Vec<(i32, String)>,
    timers: Vec<i32>,
    fired: Vec<i32>,
    children: Vec<i32>,
    answers: Vec<(i32, String)>,
    /// Different ones; a client may have had to send one twice.
    events: Vec<String>,
}

impl History {
    /// Reads a turn and holds it against the rules for what a worker may be given.
    fn read(turn: &OrchestratorRequest) -> Result<History, String> {
        let decode = |event: &Bytes| {
            HistoryEvent::decode(event.clone()).map_err(|error| format!("event: {error}"))
        };
        let past: Vec<_> = turn.past_events.iter().map(decode).collect::<Result<_, _>>()?;
        let new: Vec<_> = turn.new_events.iter().map(decode).collect::<Result<_, _>>()?;
        match new.first().and_then(|event| event.event_type.as_ref()) {
            Some(EventType::OrchestratorStarted(_)) if new.len() > 1 => {}
            _ => {
                return Err(format!(
                    "a turn of {} new events without a beginning (R3.19, R3.24)",
                    new.len()
                ));
            }
        }
        let mut kinds = Vec::new();
        let mut history = History {
            kind: Kind::Sequence,
            now: Default::default(),
            scheduled: Vec::new(),
            results: Vec::new(),
            timers: Vec::new(),
            fired: Vec::new(),
            children: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
        };
        for event in past.into_iter().chain(new) {
            let time = event.timestamp.ok_or("an event without a timestamp (R3.26)")?;
            match event.event_type.ok_or("an event without a type (R3.26)")? {
                EventType::OrchestratorStarted(_) if later(&time, &history.now) => {
                    history.now = time
                }
                EventType::OrchestratorStarted(_) => {
                    return Err(format!("the clock stands still at {time} (R3.27)"));
                }
                EventType::ExecutionStarted(started) => kinds.push(started.name),
                EventType::TaskScheduled(_) => history.scheduled.push(event.event_id),
                EventType::TaskCompleted(completed) => {
                    let task = completed.task_scheduled_id;
                    if !history.scheduled.contains(&task)
                        || history.results.iter().any(|(id, _)| *id == task)
                    {
                        return Err(format!(
                            "task {task} has a second result, or one without a task (S5)"
                        ));
                    }
                    history
                        .results
                        .push((task, completed.result.map(String::from).unwrap_or_default()));
                }
                EventType::TimerCreated(_) => history.timers.push(event.event_id),
                EventType::TimerFired(fired) => {
                    if !history.timers.contains(&fired.timer_id)
                        || history.fired.contains(&fired.timer_id)
                    {
                        return Err(format!(
                            "timer {} fired twice, or was never set (S6)",
                            fired.timer_id
                        ));
                    }
                    history.fired.push(fired.timer_id);
                }
                EventType::SubOrchestrationInstanceCreated(_) => {
                    history.children.push(event.event_id);
                }
                EventType::SubOrchestrationInstanceCompleted(answer) => {
                    let task = answer.task_scheduled_id;
                    if !history.children.contains(&task)
                        || history.answers.iter().any(|(id, _)| *id == task)
                    {
                        return Err(format!("child {task} answered twice, or is none (S9)"));
                    }
                    history
                        .answers
                        .push((task, answer.result.map(String::from).unwrap_or_default()));
                }
                EventType::EventRaised(raised) => {
                    let payload = raised.input.map(String::from).unwrap_or_default();
                    if !history.events.contains(&payload) {
                        history.events.push(payload);
                    }
                }
                other => return Err(format!("an event that nothing here causes: {other:?}")),
            }
        }
        let [name] = kinds.as_slice() else {
            return Err(format!("executionStarted occurs {} times (R3.25)", kinds.len()));
        };
        history.kind = Kind::named(name).ok_or_else(|| format!("an orchestration named {name}"))?;
        Ok(history)
    }

    /// What the orchestration does next: nothing while it waits.
    fn next_actions(&self, instance: &str) -> Vec<OrchestratorAction> {
        let steps = self.kind.steps();
        for (id, step) in (1..).zip(steps) {
            let (set, done) = match step {
                Step::Activity => {
                    (self.scheduled.contains(&id), self.results.iter().any(|(task, _)| *task == id))
                }
                Step::Timer(_) => (self.timers.contains(&id), self.fired.contains(&id)),
                Step::Events(count) => (true, self.events.len() >= *count),
                Step::Child => {
                    (self.children.contains(&id), self.answers.iter().any(|(task, _)| *task == id))
                }
            };
            if done {
                continue;
            }
            return if set { Vec::new() } else { vec![self.action(id, *step, instance)] };
        }
        let complete = CompleteOrchestrationAction {
            orchestration_status: OrchestrationStatus::Completed.into(),
            result: Some(output(self.answered().map(|(_, result)| result.as_str())).into()),
            ..Default::default()
        };
        vec![OrchestratorAction {
            id: steps.len() as i32 + 1,
            orchestrator_action_type: Some(OrchestratorActionType::CompleteOrchestration(complete)),
        }]
    }

    /// Results of activities, then those of children.
    fn answered(&self) -> impl Iterator<Item = &(i32, String)> {
        self.results.iter().chain(&self.answers)
    }

    fn action(&self, id: i32, step: Step, instance: &str) -> OrchestratorAction {
        let action = match step {
            Step::Timer(length) => {
                let now = SystemTime::try_from(self.now).unwrap_or(SystemTime::UNIX_EPOCH);
                OrchestratorActionType::CreateTimer(CreateTimerAction {
                    fire_at: Some((now + length).into()),
                })
            }
            Step::Child => {
                let (instance_id, input) = child(instance, id);
                OrchestratorActionType::CreateSubOrchestration(CreateSubOrchestrationAction {
                    instance_id,
                    name: Kind::Sequence.name().to_owned(),
                    input: Some(input.into()),
                    ..Default::default()
                })
            }
            Step::Activity | Step::Events(_) => {
                OrchestratorActionType::ScheduleTask(ScheduleTaskAction {
                    name: "Work".to_owned(),
                    input: Some(activity_input(instance, id).into()),
                    ..Default::default()
                })
            }
        };
        OrchestratorAction { id, orchestrator_action_type: Some(action) }
    }
}

/// What an orchestration with these activity results gives back.
pub(crate) fn output<'a>(results: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", results.collect::<Vec<_>>().join(","))
}

/// Whether `a` is after `b`.
pub(crate) fn later(a: &prost_types::Timestamp, b: &prost_types::Timestamp) -> bool {
    (a.seconds, a.nanos) > (b.seconds, b.nanos)
}
