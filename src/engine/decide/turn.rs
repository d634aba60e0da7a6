//! `CompleteTurn` and `FailTurn`: the only way a history grows by a worker's will (sections 4.1 to 4.8).
//!
//! A turn is accepted only on the very history and inbox prefix it was computed from. Then, in one step:
//! `orchestratorStarted`, the inbox events it consumed, one event per action, and the outcome.

use bytes::Bytes;
use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::orchestrator_action::OrchestratorActionType as Action;
use durahub_proto::wire::{self, OrchestrationStatus};

use super::Plan;
use super::actions::{self, Outcome};
use super::children::End;
use super::critical;
use super::limits;
use super::start::new_execution_id;
use crate::engine::command::{CompleteTurn, FailTurn, TurnId};
use crate::engine::event::{
    NO_ID, START_ID, execution_completed, failure, history, orchestrator_started,
};
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::{
    Address, ChildRecord, FORMAT, InstanceRecord, Item, Place, Recursion, Suspension, TaskRecord,
    TimerKind, TimerRecord,
};
use crate::engine::time::nanos;
use crate::engine::{Effect, Event, effect::Class, read};

/// Commits a turn.
pub(crate) fn complete_turn(plan: &mut Plan<'_>, command: CompleteTurn) -> Answer {
    let mut turn = Turn::begin(plan, &command.turn, command.processed)?;
    turn.id_length = command.id_length;
    turn.record.custom_status = command.custom_status.filter(|text| !text.is_empty());
    // A response without a span keeps the stored one (R6.6).
    if let Some(span) =
        command.span.filter(|span| span.span_id.as_ref().is_some_and(|id| !id.is_empty()))
    {
        turn.record.span = Some(span);
    }
    let sorted = actions::sort(command.actions)
        .and_then(|sorted| critical::check(&turn.record, sorted, turn.id_length))
        .and_then(|sorted| limits::check(&plan.limits, &mut turn.record, &turn.appended, sorted));
    match sorted {
        Ok(sorted) => {
            let ends = sorted.outcome.is_some();
            for (id, action) in sorted.actions {
                turn.act(plan, id, action, ends);
            }
            turn.commit(plan, sorted.outcome);
        }
        Err(problem) => turn.fail(plan, problem),
    }
    Ok(Reply::Done)
}

/// Ends an instance whose turn no worker can be given.
pub(crate) fn fail_turn(plan: &mut Plan<'_>, command: FailTurn) -> Answer {
    let turn = Turn::begin(plan, &command.turn, None)?;
    turn.fail(plan, command.reason);
    Ok(Reply::Done)
}

/// A turn while it is being committed.
pub(super) struct Turn {
    pub(super) at: Address,
    pub(super) record: InstanceRecord,
    /// What will be appended to the history.
    pub(super) appended: Vec<Bytes>,
    /// Timers of this turn, armed only if the generation goes on.
    armed: Vec<(Item, TimerRecord)>,
    /// Children of this turn; forgotten with a generation that another one follows.
    pub(super) children: Vec<(Item, ChildRecord)>,
    /// Answers for children that could not even be asked for, if the generation goes on.
    pub(super) refused: Vec<Bytes>,
    /// What the turn sent to its own instance.
    pub(super) to_self: Vec<Bytes>,
    /// Whether a termination is among it.
    pub(super) ends_self: bool,
    /// Longest id of a child, in characters; 0 is no limit.
    pub(super) id_length: u32,
    pub(super) now: i64,
}

impl Turn {
    /// Checks that the turn is current, and takes its inbox events.
    fn begin(plan: &mut Plan<'_>, id: &TurnId, processed: Option<u32>) -> Result<Turn, Reject> {
        let at = id.at();
        let record = read::head(plan.view, &at)
            .filter(|record| !record.is_terminal())
            .filter(|record| {
                record.generation == id.generation && record.history_events == id.history_events
            })
            .ok_or(Reject::StaleTurn)?;
        let mut waiting = read::inbox_through(plan.view, &at, id.through());
        if waiting.is_empty() || waiting.len() != id.inbox_events as usize {
            return Err(Reject::StaleTurn);
        }
        if let Some(processed) = processed {
            // The worker counts what it was shown.
            waiting.truncate(processed as usize + usize::from(record.rewinding));
        }
        let mut appended = Vec::with_capacity(waiting.len() + 4);
        appended.push(orchestrator_started(id.clock));
        let mut record = record;
        for (place, event) in waiting {
            plan.push(Event::EventTaken { at: at.clone(), place });
            limits::consume(&mut record, &event);
            if record.rewinding && read::is_rewound(&event) {
                record.rewinding = false;
                record.hidden.push(record.history_events + appended.len() as u32);
            }
            appended.push(event);
        }
        let now = plan.stamp.now.max(id.clock);
        let mut turn = Turn::of(at, record, appended, now);
        if turn.record.terminating {
            turn.note_recursion();
        }
        turn.record.clock = id.clock;
        turn.record.updated = now;
        turn.record.has_run = true;
        Ok(turn)
    }

    /// A turn that no worker is asked for: it begins the history if nothing has, and then has only `event`.
    pub(super) fn without_worker(
        plan: &Plan<'_>,
        at: Address,
        record: InstanceRecord,
        event: wire::ExecutionTerminatedEvent,
    ) -> Turn {
        let clock = plan.stamp.now.max(record.clock + 1);
        let mut appended = vec![orchestrator_started(clock)];
        if record.history_events == 0 {
            // `executionStarted`: no history is without it (R3.25).
            appended.extend(read::first_event(plan.view, &at));
        }
        appended.push(history(NO_ID, clock, EventType::ExecutionTerminated(event)));
        let record = InstanceRecord {
            clock,
            updated: clock,
            has_run: true,
            start_timer: None,
            rewinding: false,
            ..record
        };
        Turn::of(at, record, appended, clock)
    }

    fn of(at: Address, record: InstanceRecord, appended: Vec<Bytes>, now: i64) -> Turn {
        Turn {
            at,
            record,
            appended,
            armed: Vec::new(),
            children: Vec::new(),
            refused: Vec::new(),
            to_self: Vec::new(),
            ends_self: false,
            id_length: 0,
            now,
        }
    }

    /// Remembers a termination that goes on to the children once the instance has ended (R2.51).
    fn note_recursion(&mut self) {
        let terminated = self.appended.iter().find_map(|event| match actions::event_type(event) {
            Some(EventType::ExecutionTerminated(event)) if event.recurse => Some(event),
            _ => None,
        });
        if let Some(wire::ExecutionTerminatedEvent { input, .. }) = terminated {
            self.record.recursion = Some(Recursion { output: input });
        }
    }

    /// Carries out one action that does not end the generation.
    fn act(&mut self, plan: &mut Plan<'_>, id: i32, action: Action, ends: bool) {
        match action {
            Action::ScheduleTask(action) => self.schedule(plan, id, action),
            Action::CreateTimer(action) => self.create_timer(id, action, ends),
            Action::CreateSubOrchestration(action) => self.create_child(plan, id, action),
            Action::SendEvent(action) => self.send_event(plan, id, action),
            Action::TerminateOrchestration(action) => self.terminate_other(plan, action),
            Action::SendEntityMessage(action) => self.send_entity_message(plan, id, action),
            // `actions::sort` lets nothing else through.
            _ => {}
        }
    }

    fn schedule(&mut self, plan: &mut Plan<'_>, id: i32, action: wire::ScheduleTaskAction) {
        let trace = action.parent_trace_context.or_else(|| self.record.parent_trace.clone());
        let item = self.next_item();
        let filter_version = match &action.version {
            Some(version) => version.as_str(),
            None => self.record.filter_version(),
        }
        .to_owned();
        let class = Class { name: action.name.clone(), version: filter_version.clone() };
        self.appended.push(history(
            id,
            self.now,
            EventType::TaskScheduled(wire::TaskScheduledEvent {
                name: action.name.clone(),
                version: action.version.clone(),
                input: action.input.clone(),
                parent_trace_context: trace.clone(),
                tags: action.tags.clone(),
            }),
        ));
        let task = TaskRecord {
            format: FORMAT,
            task_id: id,
            name: action.name,
            version: action.version,
            input: action.input,
            trace,
            tags: action.tags,
            execution_id: self.record.execution_id.clone(),
            filter_version,
            scheduled: self.now,
        };
        plan.push(Event::TaskOpened { item: item.clone(), task: Box::new(task) });
        plan.tell(Effect::ActivityReady { item, class });
    }

    fn create_timer(&mut self, id: i32, action: wire::CreateTimerAction, ends: bool) {
        let fire_at = action.fire_at;
        let created = EventType::TimerCreated(wire::TimerCreatedEvent { fire_at });
        self.appended.push(history(id, self.now, created));
        if ends {
            return;
        }
        let timer = TimerRecord {
            format: FORMAT,
            kind: TimerKind::Timer.into(),
            due: fire_at.as_ref().map_or(self.now, nanos),
            timer_id: id,
            fire_at,
            operation: None,
        };
        let item = self.next_item();
        self.armed.push((item, timer));
    }

    pub(super) fn next_item(&mut self) -> Item {
        let number = self.record.next_number;
        self.record.next_number += 1;
        Item { at: self.at.clone(), generation: self.record.generation, number }
    }

    fn commit(self, plan: &mut Plan<'_>, outcome: Option<Outcome>) {
        match outcome {
            None => self.go_on(plan),
            Some(Outcome::End { id, action }) => {
                let status = action.orchestration_status();
                let end = End { status, result: action.result, failure: action.failure_details };
                self.end(plan, id, end);
            }
            Some(Outcome::ContinueAsNew { action, carried }) => {
                self.continue_as_new(plan, action, carried)
            }
        }
    }

    /// Ends the instance as failed, carrying out nothing that the worker asked for.
    fn fail(self, plan: &mut Plan<'_>, problem: String) {
        let failure = Some(failure("DurahubOrchestrationFailure", problem));
        let status = OrchestrationStatus::Failed;
        self.end(plan, NO_ID, End { status, result: None, failure });
    }

    /// The generation goes on.
    fn go_on(mut self, plan: &mut Plan<'_>) {
        let appended = std::mem::take(&mut self.appended);
        plan.append(&self.at, &mut self.record, appended);
        for (item, timer) in std::mem::take(&mut self.armed) {
            plan.arm(item, timer);
        }
        for (item, child) in std::mem::take(&mut self.children) {
            plan.push(Event::ChildWritten { item, child });
        }
        let left = plan.first_left(&self.at);
        if self.record.suspension.is_none() {
            self.record.status = OrchestrationStatus::Running.into();
        }
        plan.record_suspension(&self.at, &mut self.record, left);
        if left.is_some() {
            plan.wake(&self.at, &self.record);
        }
        self.refused.append(&mut self.to_self);
        Turn::receive_own(plan, &self.at, &mut self.record, self.refused, self.ends_self);
        self.record.raised_events += plan.raised(&self.at);
        plan.write(&self.at, self.record);
    }

    /// The instance ends: nothing of it waits any more (R4.52), but what this turn started runs (R4.26).
    pub(super) fn end(mut self, plan: &mut Plan<'_>, id: i32, end: End) {
        let status = end.status;
        let (result, failure) = (end.result.clone(), end.failure.clone());
        self.appended.push(execution_completed(id, self.now, status, result, failure));
        let appended = std::mem::take(&mut self.appended);
        plan.append(&self.at, &mut self.record, appended);
        plan.clear_inbox(&self.at);
        plan.close_items(&self.at, self.record.generation);
        self.record.status = status.into();
        self.record.completed = Some(self.now);
        self.record.suspension = None;
        self.record.terminating = false;
        self.record.raised_events = 0;
        if let Some(recursion) = self.record.recursion.take() {
            let before = read::children(plan.view, &self.at, self.record.generation);
            plan.terminate_children(&self.at, before.iter().chain(&self.children), &recursion);
        }
        for (item, child) in std::mem::take(&mut self.children) {
            plan.push(Event::ChildWritten { item, child });
        }
        plan.release_locks(&self.at, &mut self.record);
        plan.answer_parent(&self.at, &self.record, end);
        let nanos = self.now.saturating_sub(self.record.created);
        plan.tell(Effect::InstanceEnded { hub: self.at.hub, status, nanos });
        plan.write(&self.at, self.record);
    }

    /// A new generation with an empty history (section 4.8). Its inbox: `executionStarted`, the carried
    /// events, then what arrived during the turn, except results of the old generation's work.
    fn continue_as_new(
        self,
        plan: &mut Plan<'_>,
        action: wire::CompleteOrchestrationAction,
        carried: Vec<Bytes>,
    ) {
        let Turn { at, record: mut old, to_self, ends_self, now, .. } = self;
        plan.release_locks(&at, &mut old);
        let left = plan.left(&at);
        plan.clear_inbox(&at);
        plan.discard(&at, &old);

        let execution_id = new_execution_id(plan.stamp.seed);
        let version = action.new_version.or(old.version);
        let tags = if action.tags.is_empty() { old.tags } else { action.tags };
        let mut record = InstanceRecord {
            format: FORMAT,
            name: old.name,
            version,
            status: OrchestrationStatus::Running.into(),
            created: old.created,
            updated: now,
            execution_id: execution_id.clone(),
            generation: plan.stamp.sequence,
            scheduled_start: old.scheduled_start,
            tags,
            parent: old.parent,
            link: old.link,
            custom_status: old.custom_status,
            span: old.span,
            parent_trace: old.parent_trace,
            suspension: old.suspension,
            clock: old.clock,
            has_run: true,
            ..Default::default()
        };
        if record.suspension.is_some() {
            record.status = OrchestrationStatus::Suspended.into();
        }
        let started = wire::ExecutionStartedEvent {
            name: record.name.clone(),
            version: record.version.clone(),
            input: action.result,
            orchestration_instance: Some(wire::OrchestrationInstance {
                instance_id: at.instance.clone(),
                execution_id: Some(execution_id.into()),
            }),
            parent_instance: record.parent.clone(),
            scheduled_start_timestamp: record.scheduled_start,
            parent_trace_context: record.parent_trace.clone(),
            tags: record.tags.clone(),
            ..Default::default()
        };
        plan.receive(&at, &record, history(START_ID, now, EventType::ExecutionStarted(started)));
        for event in carried {
            plan.receive(&at, &record, event);
        }
        Turn::receive_own(plan, &at, &mut record, to_self, ends_self);
        carry_over(plan, &at, &mut record, left);
        record.raised_events = plan.raised(&at);
        plan.write(&at, record);
    }
}

/// Moves what arrived during the turn into the inbox of the new generation, in its order. A suspension
/// keeps its place among them, and is told to the new history anew.
fn carry_over(
    plan: &mut Plan<'_>,
    at: &Address,
    record: &mut InstanceRecord,
    left: Vec<(Place, Bytes)>,
) {
    let mut slot = record.suspension.as_ref().map(Suspension::place);
    for (place, event) in left {
        if let Some(old) = slot.filter(|slot| *slot <= place) {
            slot = None;
            let new = keep_slot(plan, record, old == place);
            if old == place {
                plan.receive_at(at, record, new, event);
                continue;
            }
        }
        match actions::event_type(&event) {
            None
            | Some(
                EventType::TaskCompleted(_)
                | EventType::TaskFailed(_)
                | EventType::TimerFired(_)
                | EventType::SubOrchestrationInstanceCompleted(_)
                | EventType::SubOrchestrationInstanceFailed(_)
                | EventType::EntityOperationCompleted(_)
                | EventType::EntityOperationFailed(_)
                | EventType::EntityLockGranted(_),
            ) => continue,
            Some(EventType::ExecutionTerminated(_)) => record.terminating = true,
            Some(_) => {}
        }
        plan.receive(at, record, event);
    }
    if slot.is_some() {
        keep_slot(plan, record, false);
    }
}

/// Gives a suspension its two places in a rewritten inbox.
fn keep_slot(plan: &mut Plan<'_>, record: &mut InstanceRecord, recorded: bool) -> Place {
    let (place, _for_the_resumption) = (plan.next_place(), plan.next_place());
    if let Some(suspension) = &mut record.suspension {
        (suspension.sequence, suspension.sub) = (place.sequence, place.sub);
        suspension.recorded = recorded;
    }
    place
}

impl Plan<'_> {
    /// What waits in an inbox behind the events that this plan takes.
    fn left(&self, at: &Address) -> Vec<(Place, Bytes)> {
        let taken = self.last_taken();
        read::inbox(self.view, at).into_iter().filter(|(place, _)| Some(*place) > taken).collect()
    }

    /// Place of the first of them.
    fn first_left(&self, at: &Address) -> Option<Place> {
        match self.last_taken() {
            Some(taken) => read::first_waiting_after(self.view, at, taken),
            None => read::first_waiting(self.view, at),
        }
    }

    /// Closes the tasks and timers that a generation had before this command.
    fn close_items(&mut self, at: &Address, generation: u64) {
        for item in read::tasks(self.view, at, generation) {
            self.push(Event::TaskClosed { item });
        }
        for (item, due) in read::timers(self.view, at, generation) {
            self.push(Event::TimerCleared { item, due });
        }
    }
}
