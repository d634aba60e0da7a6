//! `Restart`: an ended instance starts again under its id, as it was started (section 2.8).

use durahub_proto::wire;

use super::Plan;
use super::start::create;
use crate::engine::command::Restart;
use crate::engine::read;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::Address;

pub(crate) fn restart(plan: &mut Plan<'_>, command: Restart) -> Answer {
    let at = Address::new(command.hub, command.instance);
    let Some(record) = read::head(plan.view, &at) else {
        return Err(Reject::NotFound { instance: at.instance });
    };
    if !record.is_terminal() {
        return Err(Reject::NotEnded { instance: at.instance });
    }
    // Neither a parent nor a trace: nobody asked for this run but the caller (R4.44, R6.8).
    let request = wire::CreateInstanceRequest {
        name: record.name.clone(),
        version: record.version.clone(),
        input: read::input(plan.view, &at, &record),
        tags: record.tags.clone(),
        ..Default::default()
    };
    create(plan, &at, Some(&record), request, None);
    Ok(Reply::Started { instance: at.instance })
}
