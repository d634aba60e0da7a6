//! `Deliver` and `TruncateOutbox`: messages come in, each once in effect, and leave the outbox (S7).
//!
//! A delivery is applied message by message: each sees what the ones before it did, as if it were a command
//! of its own. What a message asks for is never refused, since its sender is gone: it is done, answered by
//! another message, or dropped.

use durahub_proto::wire::history_event::EventType;
use durahub_proto::wire::{self};
use prost::Message as _;

use super::{Plan, children, critical, entity, rewind, start, terminate};
use crate::engine::command::{Deliver, TruncateOutbox};
use crate::engine::event::{NO_ID, history};
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::message::Body;
use crate::engine::state::{Address, MessageRecord};
use crate::engine::view::{Changes, Overlay, View};
use crate::engine::{Effect, Event, Stamp, evolve, read};

/// What a delivery did.
#[derive(Default)]
pub(crate) struct Delivered {
    pub(crate) events: Vec<Event>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) changes: Changes,
}

/// Takes in the messages that have not come before.
pub(crate) fn deliver(view: &dyn View, stamp: Stamp, command: Deliver) -> Delivered {
    let before = read::delivered(view, command.from);
    let fresh = command.messages.into_iter().filter(|message| Some(message.place()) > before);
    let (mut done, mut through, mut places) = (Delivered::default(), None, 0);
    for (index, delivery) in (0_u64..).zip(fresh) {
        through = through.max(Some(delivery.place()));
        let rows = Overlay::new(view, &done.changes);
        // Ids that are made from the seed must differ from message to message.
        let seed = stamp.seed.wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
        let mut plan = Plan::behind(&rows, Stamp { seed, ..stamp }, places);
        // An unreadable message says nothing: it must not hold up the ones behind it.
        if let Ok(message) = MessageRecord::decode(delivery.message) {
            take_in(&mut plan, message);
        }
        places = plan.places();
        let (events, effects) = plan.finish();
        let mut changes = Changes::new();
        events.iter().for_each(|event| evolve::evolve(&rows, event, &mut changes));
        done.changes.extend(changes);
        done.events.extend(events);
        done.effects.extend(effects);
    }
    if let Some(through) = through {
        let taken = Event::MessagesTaken { from: command.from, through };
        evolve::evolve(view, &taken, &mut done.changes);
        done.events.push(taken);
    }
    done
}

fn take_in(plan: &mut Plan<'_>, message: MessageRecord) {
    let at = message.to();
    // What the others ask for needs an instance or an entity, which a deleted hub has not.
    let starts = matches!(
        message.body,
        Some(Body::Start(_) | Body::Rewind(_) | Body::Operation(_) | Body::Lock(_))
    );
    if starts && read::hub_closed(plan.view, at.hub) {
        return;
    }
    match message.body {
        Some(Body::Start(message)) => start::start_by_message(plan, &at, message),
        Some(Body::ChildEnded(ended)) => children::child_ended(plan, &at, ended),
        Some(Body::Raise(raised)) => raise(plan, &at, raised),
        Some(Body::Terminate(message)) => terminate::terminate_by_message(plan, &at, message),
        Some(Body::Rewind(message)) => rewind::rewind_by_parent(plan, &at, message),
        Some(Body::Operation(message)) => entity::take_operation(plan, &at, message),
        Some(Body::OperationEnded(ended)) => critical::operation_ended(plan, &at, ended),
        Some(Body::Lock(request)) => entity::take_lock_request(plan, &at, request),
        Some(Body::LockGranted(holder)) => critical::lock_granted(plan, &at, holder),
        Some(Body::Release(release)) => entity::take_release(plan, &at, release),
        None => {}
    }
}

/// An event of another orchestration; an instance that is unknown or has ended drops it (R4.24).
fn raise(plan: &mut Plan<'_>, at: &Address, raised: wire::EventRaisedEvent) {
    if let Some(mut record) = read::head(plan.view, at).filter(|record| !record.is_terminal()) {
        let event = history(NO_ID, plan.stamp.now, EventType::EventRaised(raised));
        plan.receive(at, &record, event);
        // Counted, and never refused: its sender cannot wait.
        record.raised_events = record.raised_events.saturating_add(1);
        plan.push(Event::InstanceWritten { at: at.clone(), record: Box::new(record) });
    }
}

/// Forgets messages that were delivered. One that is gone already is no error: the command may be a repeat.
pub(crate) fn truncate_outbox(plan: &mut Plan<'_>, command: &TruncateOutbox) -> Answer {
    for place in command.places() {
        plan.push(Event::MessageDelivered { place });
    }
    Ok(Reply::Done)
}
