//! `RaiseEvent`: an external event waits in the inbox, whatever the instance is doing (section 2.4).

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use crate::engine::command::RaiseEvent;
use crate::engine::event::{NO_ID, history};
use crate::engine::read;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::Address;

pub(crate) fn raise_event(plan: &mut Plan<'_>, command: RaiseEvent) -> Answer {
    let wire::RaiseEventRequest { instance_id, name, input } = command.request;
    let at = Address::new(command.hub, instance_id);
    let Some(record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    if !record.is_terminal() {
        let event = EventType::EventRaised(wire::EventRaisedEvent { name, input });
        plan.receive(&at, &record, history(NO_ID, plan.stamp.now, event));
    }
    Ok(Reply::Done)
}
