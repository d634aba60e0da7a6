//! The turn that a worker would be handed now (section 3.4).

use bytes::Bytes;
use durahub_proto::wire;
use durahub_proto::wire::history_event::EventType;
use prost::Message as _;

use super::history::events;
use super::inbox::inbox;
use super::instance::head;
use crate::engine::command::TurnId;
use crate::engine::event::orchestrator_started;
use crate::engine::state::{Address, Place};
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
    /// The committed history, as far as workers are shown it.
    pub past: Vec<Bytes>,
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
}

/// Bytes that framing adds to each event at most.
const FRAME: u64 = 6;

/// The turn of an instance at `now`, with as many waiting events as fit into `limit` bytes; `None` if
/// nothing may be handed out.
///
/// # Errors
/// When history and the first waiting event alone exceed `limit`.
pub fn turn(
    view: &dyn View,
    at: &Address,
    now: i64,
    limit: u64,
) -> Option<Result<Turn, Box<TurnTooLarge>>> {
    let record = head(view, at).filter(|record| record.is_dispatchable())?;
    let mut waiting = inbox(view, at).into_iter().peekable();
    waiting.peek()?;

    // Strictly later than in the turn before (R3.27).
    let clock = now.max(record.clock + 1);
    let mut through = Place::default();
    let mut new = vec![orchestrator_started(clock)];
    let mut bytes = record.history_bytes + u64::from(record.history_events) * FRAME;
    let (mut fits, mut taken) = (true, 0);
    for (place, event) in waiting {
        let hidden = record.rewinding && is_rewound(&event);
        bytes += if hidden { 0 } else { event.len() as u64 + FRAME };
        fits = bytes <= limit;
        if !fits && taken > 0 {
            fits = true;
            break;
        }
        (through, taken) = (place, taken + 1);
        if !hidden {
            new.push(event);
        }
        if !fits {
            break;
        }
    }
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
        return Some(Err(Box::new(TurnTooLarge { id, bytes })));
    }
    let mut past = events(view, at, record.generation, record.history_events);
    if !record.hidden.is_empty() {
        let mut index = 0..;
        past.retain(|_| index.next().is_none_or(|index| !record.hidden.contains(&index)));
    }
    Some(Ok(Turn {
        id,
        name: record.name,
        execution_id: record.execution_id,
        past,
        new,
        span: record.span,
    }))
}

/// Whether it marks a rewind: the turn that follows one has no other new event (R4.83).
pub(crate) fn is_rewound(event: &Bytes) -> bool {
    wire::HistoryEvent::decode(event.clone())
        .is_ok_and(|event| matches!(event.event_type, Some(EventType::ExecutionRewound(_))))
}
