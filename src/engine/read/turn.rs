//! The turn that a worker would be handed now (section 3.4).

use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use prost::Message as _;

use super::history::events;
use super::inbox::{inbox_through, visit_inbox};
use super::instance::head;
use crate::engine::command::TurnId;
use crate::engine::event::{Sort, orchestrator_started, time_of};
use crate::engine::state::{Address, InstanceRecord, Place};
use crate::engine::view::View;

/// A turn, ready to be handed out.
#[derive(Debug)]
pub struct Turn {
    /// What it is computed from; comes back with its completion.
    pub id: TurnId,
    /// Name of the orchestration.
    pub name: String,
    /// The generation as clients know it.
    pub execution_id: String,
    /// The committed history, as far as workers are shown it; empty where it is left out.
    pub past: Vec<Bytes>,
    /// Whether the history is left out, for the worker to ask for (R3.30).
    pub past_left_out: bool,
    /// `orchestratorStarted` and the waiting events.
    pub new: Vec<Bytes>,
    /// The orchestration's own span (R6.5).
    pub span: Option<wire::OrchestrationTraceContext>,
}

/// History and first waiting event exceed what one message may hold.
#[derive(Debug)]
pub struct TurnTooLarge {
    /// What would have been handed out.
    pub id: TurnId,
    /// Size of its events, in bytes.
    pub bytes: u64,
    /// Whether it would fit without its history.
    pub fits_without_past: bool,
}

/// What a turn's message may hold.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes of events.
    pub bytes: u64,
    /// A larger history, in bytes, is left out: the worker asks for it (R3.30). `None`: never.
    pub past: Option<u64>,
}

/// Bytes that framing adds to each event at most.
const FRAME: u64 = 6;

/// The turn of an instance at `now`, with as many waiting events as fit into `room`; `None` if nothing may
/// be handed out. If `again` is still current it is handed out once more, exactly.
///
/// # Errors
/// When history and the first waiting event alone do not fit.
pub fn turn(
    view: &dyn View,
    at: &Address,
    now: i64,
    room: Room,
    again: Option<&TurnId>,
) -> Option<Result<Turn, Box<TurnTooLarge>>> {
    let record = head(view, at).filter(|record| record.is_dispatchable())?;
    let again = again.filter(|again| {
        again.generation == record.generation && again.history_events == record.history_events
    });

    // Strictly later than in the turn before (R3.27), and no earlier than what it answers: a clock that is
    // behind that of the last leader fires no timer early (R4.46).
    let mut clock = now.max(record.clock + 1);
    let mut through = Place::default();
    let mut new = vec![Bytes::new()];
    let past_bytes = record.history_bytes + u64::from(record.history_events) * FRAME;
    let past_left_out = room.past.is_some_and(|limit| past_bytes > limit);
    let mut bytes = if past_left_out { 0 } else { past_bytes };
    let (mut fits, mut taken) = (true, 0);
    visit_inbox(view, at, &mut |place, event| {
        let event = Bytes::copy_from_slice(event);
        let hidden = record.rewinding && is_rewound(&event);
        bytes += if hidden { 0 } else { event.len() as u64 + FRAME };
        fits = bytes <= room.bytes;
        if taken > 0 && (!fits || again.is_some_and(|again| place > again.through())) {
            fits = true;
            return ControlFlow::Break(());
        }
        (through, taken) = (place, taken + 1);
        if Sort::of(&event) == Sort::Answer {
            clock = clock.max(time_of(&event));
        }
        if !hidden {
            new.push(event);
        }
        if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if taken == 0 {
        return None;
    }
    if let Some(again) = again {
        clock = again.clock;
    }
    new[0] = orchestrator_started(clock);
    let id = TurnId {
        hub: at.hub,
        instance: at.instance.clone(),
        generation: record.generation,
        history_events: record.history_events,
        through_sequence: through.sequence,
        through_sub: through.sub,
        clock,
        inbox_events: taken,
    };
    if !fits {
        let fits_without_past = !past_left_out && bytes - past_bytes <= room.bytes;
        return Some(Err(Box::new(TurnTooLarge { id, bytes, fits_without_past })));
    }
    let past = match past_left_out {
        true => Vec::new(),
        false => shown(view, at, &record),
    };
    Some(Ok(Turn {
        id,
        name: record.name,
        execution_id: record.execution_id,
        past,
        past_left_out,
        new,
        span: record.span,
    }))
}

/// Whether the completion of a turn would be accepted.
pub fn turn_is_current(view: &dyn View, id: &TurnId) -> bool {
    let record = head(view, &id.at()).filter(|record| {
        !record.is_terminal()
            && record.generation == id.generation
            && record.history_events == id.history_events
    });
    record.is_some()
        && id.inbox_events > 0
        && inbox_through(view, &id.at(), id.through()).len() == id.inbox_events as usize
}

/// The committed history as far as workers are shown it (R4.82).
fn shown(view: &dyn View, at: &Address, record: &InstanceRecord) -> Vec<Bytes> {
    let mut past = events(view, at, record.generation, record.history_events);
    if !record.hidden.is_empty() {
        let mut index = 0..;
        past.retain(|_| index.next().is_none_or(|index| !record.hidden.contains(&index)));
    }
    past
}

/// Whether it marks a rewind: the turn that follows one has no other new event (R4.83).
pub(crate) fn is_rewound(event: &Bytes) -> bool {
    wire::HistoryEvent::decode(event.clone())
        .is_ok_and(|event| matches!(event.event_type, Some(EventType::ExecutionRewound(_))))
}
