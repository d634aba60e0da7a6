//! `RaiseEvent`: an external event waits in the inbox, whatever the instance is doing (section 2.4).

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use crate::engine::command::RaiseEvent;
use crate::engine::event::{NO_ID, history};
use crate::engine::limits::Limits;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::Address;
use crate::engine::{Event, read};

pub(crate) fn raise_event(plan: &mut Plan<'_>, command: RaiseEvent) -> Answer {
    let wire::RaiseEventRequest { instance_id, name, input } = command.request;
    let at = Address::new(command.hub, instance_id);
    let Some(mut record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    if !record.is_terminal() {
        let limit = plan.limits.waiting_events;
        record.raised_events = record.raised_events.saturating_add(1);
        if Limits::exceeds(limit, record.raised_events.into()) {
            return Err(Reject::InboxFull { instance: at.instance, limit });
        }
        let event = EventType::EventRaised(wire::EventRaisedEvent { name, input });
        plan.receive(&at, &record, history(NO_ID, plan.stamp.now, event));
        // Only counted: nobody is told, and no time moves.
        plan.push(Event::InstanceWritten { at, record: Box::new(record) });
    }
    Ok(Reply::Done)
}
