//! The turn that a worker would be handed now (section 3.4).

use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::wire;

use super::history::events;
use super::inbox::visit_inbox;
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
    /// The committed history; empty where it is left out.
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

    // Strictly later than in the turn before (R3.27).
    let clock = again.map_or_else(|| now.max(record.clock + 1), |again| again.clock);
    let mut through = Place::default();
    let mut new = vec![orchestrator_started(clock)];
    let past_bytes = record.history_bytes + u64::from(record.history_events) * FRAME;
    let past_left_out = room.past.is_some_and(|limit| past_bytes > limit);
    let mut bytes = if past_left_out { 0 } else { past_bytes };
    let mut fits = true;
    visit_inbox(view, at, &mut |place, event| {
        bytes += event.len() as u64 + FRAME;
        fits = bytes <= room.bytes;
        if new.len() > 1 && (!fits || again.is_some_and(|again| place > again.through())) {
            fits = true;
            return ControlFlow::Break(());
        }
        through = place;
        new.push(Bytes::copy_from_slice(event));
        if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if new.len() == 1 {
        return None;
    }
    let id = TurnId {
        hub: at.hub,
        instance: at.instance.clone(),
        generation: record.generation,
        history_events: record.history_events,
        through_sequence: through.sequence,
        through_sub: through.sub,
        clock,
        inbox_events: new.len() as u32 - 1,
    };
    if !fits {
        let fits_without_past = !past_left_out && bytes - past_bytes <= room.bytes;
        return Some(Err(Box::new(TurnTooLarge { id, bytes, fits_without_past })));
    }
    let past = match past_left_out {
        true => Vec::new(),
        false => events(view, at, record.generation, record.history_events),
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
