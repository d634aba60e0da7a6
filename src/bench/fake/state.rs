//! What the fake remembers, and how turns and activities move it.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use durahub_proto::wire;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;
use wire::OrchestrationStatus as Phase;
use wire::history_event::EventType;
use wire::orchestrator_action::OrchestratorActionType;
use wire::work_item::Request as Work;

use super::Mischief;

#[derive(Default)]
pub(super) struct State {
    pub(super) mischief: Mischief,
    pub(super) instances: BTreeMap<String, Instance>,
    ready: VecDeque<Item>,
    /// By completion token.
    leases: BTreeMap<String, Lease>,
    pub(super) stream: Option<mpsc::UnboundedSender<Result<wire::WorkItem, Status>>>,
    /// Items of the current stream that have been completed.
    answered: u32,
    pub(super) streams: u32,
    tokens: u32,
    completions: u32,
}

#[derive(Default)]
pub(super) struct Instance {
    pub(super) state: wire::OrchestrationState,
    pub(super) history: Vec<Bytes>,
    inbox: VecDeque<Bytes>,
    /// A turn is ready or in hand.
    busy: bool,
}

enum Item {
    Turn(String),
    Activity(Box<wire::ActivityRequest>),
}

struct Lease {
    item: Item,
    /// New events of a turn.
    events: Vec<Bytes>,
}

impl State {
    /// Puts events into an instance's inbox and makes it ready.
    pub(super) fn deliver(&mut self, id: &str, events: impl IntoIterator<Item = EventType>) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if instance.state.completed_timestamp.is_some() {
            return;
        }
        instance.inbox.extend(events.into_iter().map(|it| event(id_of(&it), it)));
        self.wake(id);
    }

    fn wake(&mut self, id: &str) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        if !instance.busy && !instance.inbox.is_empty() {
            instance.busy = true;
            self.ready.push_back(Item::Turn(id.to_owned()));
        }
        self.pump();
    }

    /// Sends what is ready while there is a stream.
    pub(super) fn pump(&mut self) {
        while let Some(stream) = self.stream.clone() {
            if self.mischief.break_stream_after.is_some_and(|limit| self.answered >= limit) {
                // The receiver may be gone already; then the stream is broken as asked.
                let _ = stream.send(Err(Status::unavailable("broken on purpose")));
                return self.lose_stream();
            }
            let Some(item) = self.ready.pop_front() else { return };
            self.tokens += 1;
            let token = format!("token-{}", self.tokens);
            let (request, events) = self.request(&item);
            self.leases.insert(token.clone(), Lease { item, events });
            let item = wire::WorkItem { request: Some(request), completion_token: token };
            if stream.send(Ok(item)).is_err() {
                return self.lose_stream();
            }
        }
    }

    fn request(&mut self, item: &Item) -> (Work, Vec<Bytes>) {
        match item {
            Item::Activity(request) => (Work::ActivityRequest((**request).clone()), Vec::new()),
            Item::Turn(id) => {
                let instance = self.instances.get_mut(id).expect("a turn has an instance");
                let started = EventType::OrchestratorStarted(Default::default());
                let mut events = vec![event(-1, started)];
                events.extend(instance.inbox.drain(..));
                let request = wire::OrchestratorRequest {
                    instance_id: id.clone(),
                    execution_id: Some("1".into()),
                    past_events: instance.history.clone(),
                    new_events: events.clone(),
                    ..Default::default()
                };
                (Work::OrchestratorRequest(request), events)
            }
        }
    }

    /// Takes everything back that the stream had in hand.
    pub(super) fn lose_stream(&mut self) {
        self.stream = None;
        self.answered = 0;
        for Lease { item, events } in std::mem::take(&mut self.leases).into_values() {
            self.take_back(item, events);
        }
    }

    fn take_back(&mut self, item: Item, events: Vec<Bytes>) {
        if let Item::Turn(id) = &item {
            let instance = self.instances.get_mut(id).expect("a turn has an instance");
            // Without the turn's own `orchestratorStarted`.
            events.into_iter().skip(1).rev().for_each(|it| instance.inbox.push_front(it));
        }
        self.ready.push_back(item);
    }

    pub(super) fn complete_turn(&mut self, mut response: wire::OrchestratorResponse) {
        let Some(lease) = self.leases.remove(&response.completion_token) else { return };
        let Item::Turn(id) = lease.item else { return };
        self.answered += 1;
        let instance = self.instances.get_mut(&id).expect("a turn has an instance");
        instance.history.extend(lease.events);
        instance.state.set_orchestration_status(Phase::Running);
        instance.busy = false;
        response.actions.sort_by_key(|action| action.id);
        for wire::OrchestratorAction { id: number, orchestrator_action_type } in response.actions {
            match orchestrator_action_type.expect("an action has a type") {
                OrchestratorActionType::ScheduleTask(task) => {
                    instance.history.push(scheduled(number, &task));
                    let request = wire::ActivityRequest {
                        name: task.name,
                        input: task.input,
                        orchestration_instance: Some(wire::OrchestrationInstance {
                            instance_id: id.clone(),
                            execution_id: Some("1".into()),
                        }),
                        task_id: number,
                        ..Default::default()
                    };
                    self.ready.push_back(Item::Activity(request.into()));
                }
                OrchestratorActionType::CompleteOrchestration(end) => {
                    end_instance(instance, number, end)
                }
                other => panic!("the fake cannot do {other:?}"),
            }
        }
        self.wake(&id);
    }

    pub(super) fn complete_activity(&mut self, response: wire::ActivityResponse) {
        let Some(lease) = self.leases.remove(&response.completion_token) else { return };
        let Item::Activity(request) = lease.item else { return };
        self.answered += 1;
        self.completions += 1;
        let lies = self.mischief.lie_at == Some(self.completions);
        let id = request.orchestration_instance.expect("set above").instance_id;
        let answer = match response.failure_details {
            Some(details) => EventType::TaskFailed(wire::TaskFailedEvent {
                task_scheduled_id: request.task_id,
                failure_details: Some(details),
            }),
            None => EventType::TaskCompleted(wire::TaskCompletedEvent {
                task_scheduled_id: request.task_id,
                result: if lies { Some("\"0\"".into()) } else { response.result },
            }),
        };
        self.deliver(&id, [answer]);
    }

    pub(super) fn abandon(&mut self, token: &str) {
        let Some(lease) = self.leases.remove(token) else { return };
        self.take_back(lease.item, lease.events);
        self.pump();
    }
}

fn end_instance(instance: &mut Instance, number: i32, end: wire::CompleteOrchestrationAction) {
    let completed = wire::ExecutionCompletedEvent {
        orchestration_status: end.orchestration_status,
        result: end.result.clone(),
        failure_details: end.failure_details.clone(),
    };
    instance.history.push(event(number, EventType::ExecutionCompleted(completed)));
    instance.state.orchestration_status = end.orchestration_status;
    instance.state.output = end.result;
    instance.state.failure_details = end.failure_details;
    instance.state.completed_timestamp = Some(Default::default());
    instance.inbox.clear();
}

fn scheduled(number: i32, task: &wire::ScheduleTaskAction) -> Bytes {
    let scheduled = wire::TaskScheduledEvent {
        name: task.name.clone(),
        input: task.input.clone(),
        ..Default::default()
    };
    event(number, EventType::TaskScheduled(scheduled))
}

fn event(event_id: i32, event_type: EventType) -> Bytes {
    let timestamp = Some(std::time::SystemTime::now().into());
    wire::HistoryEvent { event_id, timestamp, event_type: Some(event_type) }.encode_to_vec().into()
}

/// R4.3: the start has id 0, everything else that arrives has -1.
fn id_of(event: &EventType) -> i32 {
    if matches!(event, EventType::ExecutionStarted(_)) { 0 } else { -1 }
}
