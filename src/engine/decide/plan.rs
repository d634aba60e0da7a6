//! What a command is going to do, while it is being decided.

use bytes::Bytes;

use super::purge::Budget;
use crate::engine::effect::Class;
use crate::engine::event::Sort;
use crate::engine::limits::Limits;
use crate::engine::state::message::Body;
use crate::engine::state::{
    Address, FORMAT, InstanceRecord, Item, MessageRecord, Place, TimerRecord,
};
use crate::engine::view::View;
use crate::engine::{Effect, Event, Stamp, event, read};

/// The rows before the command, its stamp, and what was decided so far.
pub(crate) struct Plan<'a> {
    pub(crate) view: &'a dyn View,
    pub(crate) stamp: Stamp,
    pub(crate) limits: Limits,
    events: Vec<Event>,
    effects: Vec<Effect>,
    /// How many places were given out.
    places: u32,
    /// Whether any message was sent.
    sent: bool,
    /// What may still be removed at once.
    pub(super) budget: Budget,
}

impl<'a> Plan<'a> {
    pub(crate) fn new(view: &'a dyn View, stamp: Stamp) -> Plan<'a> {
        Plan::behind(view, stamp, 0)
    }

    /// A plan of the same command behind one that gave out so many places.
    pub(crate) fn behind(view: &'a dyn View, stamp: Stamp, places: u32) -> Plan<'a> {
        Plan {
            view,
            stamp,
            limits: Limits::USUAL,
            events: Vec::new(),
            effects: Vec::new(),
            places,
            sent: false,
            budget: Budget::default(),
        }
    }

    /// How many places this plan and those before it gave out.
    pub(crate) fn places(&self) -> u32 {
        self.places
    }

    pub(crate) fn finish(self) -> (Vec<Event>, Vec<Effect>) {
        let mut effects = self.effects;
        effects.extend(self.sent.then_some(Effect::MessageSent));
        (self.events, effects)
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    pub(crate) fn tell(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// The next place at the end of any inbox and of the outbox: later than all that were before.
    pub(crate) fn next_place(&mut self) -> Place {
        let place = Place { sequence: self.stamp.sequence, sub: self.places };
        self.places += 1;
        place
    }

    /// Sends a message to an instance of the same hub.
    pub(crate) fn send(&mut self, hub: u32, instance: impl Into<String>, body: Body) {
        let place = self.next_place();
        let message =
            MessageRecord { format: FORMAT, hub, instance: instance.into(), body: Some(body) };
        self.push(Event::MessageSent { place, message: Box::new(message) });
        self.sent = true;
    }

    /// Place of the last inbox event that this plan takes.
    pub(crate) fn last_taken(&self) -> Option<Place> {
        self.events.iter().rev().find_map(|event| match event {
            Event::EventTaken { place, .. } => Some(*place),
            _ => None,
        })
    }

    /// How many external events this plan puts into an inbox.
    pub(crate) fn raised(&self, to: &Address) -> u32 {
        let raised = self.events.iter().filter(|event| {
            matches!(event, Event::EventReceived { at, event, .. }
                if at == to && Sort::of(event) == Sort::Raised)
        });
        raised.count() as u32
    }

    /// Puts an event at the end of an inbox.
    pub(crate) fn receive(&mut self, at: &Address, record: &InstanceRecord, event: Bytes) {
        let place = self.next_place();
        self.receive_at(at, record, place, event);
    }

    /// Puts an event at a given place of an inbox.
    pub(crate) fn receive_at(
        &mut self,
        at: &Address,
        record: &InstanceRecord,
        place: Place,
        event: Bytes,
    ) {
        self.push(Event::EventReceived { at: at.clone(), place, event });
        self.wake(at, record);
    }

    /// Says that an instance has waiting events, if they may be handed out.
    pub(crate) fn wake(&mut self, at: &Address, record: &InstanceRecord) {
        if record.is_dispatchable() {
            let class =
                Class { name: record.name.clone(), version: record.filter_version().to_owned() };
            self.tell(Effect::TurnReady { at: at.clone(), class });
        }
    }

    /// Writes the head of an instance and tells whoever waits for it.
    pub(crate) fn write(&mut self, at: &Address, record: InstanceRecord) {
        self.tell(Effect::InstanceChanged { at: at.clone(), status: record.status() });
        if let (true, Some(completed)) = (record.is_terminal(), record.completed) {
            let (status, nanos) = (record.status(), completed.saturating_sub(record.created));
            self.tell(Effect::InstanceEnded { hub: at.hub, status, nanos });
        }
        self.push(Event::InstanceWritten { at: at.clone(), record: Box::new(record) });
    }

    /// Appends events to the history of an instance, as one row.
    pub(crate) fn append(&mut self, at: &Address, record: &mut InstanceRecord, events: Vec<Bytes>) {
        let first = record.history_events;
        record.last_chunk = first;
        record.history_events += events.len() as u32;
        record.history_bytes += events.iter().map(|event| event.len() as u64).sum::<u64>();
        self.push(Event::HistoryAppended {
            at: at.clone(),
            generation: record.generation,
            first,
            events,
        });
    }

    /// Writes down a suspension, in a turn of its own that needs no worker (R4.65, R4.66), as soon as
    /// everything that came before it is history.
    pub(crate) fn record_suspension(
        &mut self,
        at: &Address,
        record: &mut InstanceRecord,
        first_waiting: Option<Place>,
    ) {
        let Some(suspension) = &mut record.suspension else { return };
        let earlier_waits = first_waiting.is_some_and(|place| place < suspension.place());
        if suspension.recorded || earlier_waits || record.history_events == 0 {
            return;
        }
        suspension.recorded = true;
        let suspended = suspension.event.clone();
        record.clock = self.stamp.now.max(record.clock + 1);
        let started = event::orchestrator_started(record.clock);
        self.append(at, record, vec![started, suspended]);
    }

    /// Arms a timer.
    pub(crate) fn arm(&mut self, item: Item, timer: TimerRecord) {
        self.tell(Effect::TimerSet { due: timer.due });
        self.push(Event::TimerArmed { item, timer });
    }

    /// Drops what waits in an inbox.
    pub(crate) fn clear_inbox(&mut self, at: &Address) {
        for place in read::inbox_places(self.view, at, usize::MAX) {
            self.push(Event::EventTaken { at: at.clone(), place });
        }
    }
}
