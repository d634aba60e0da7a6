//! `FireTimers`: what is due goes to the inboxes (section 4.6).

use std::collections::BTreeMap;

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use super::entity::Entity;
use super::signal::forget_requests;
use crate::engine::command::FireTimers;
use crate::engine::event::{NO_ID, history};
use crate::engine::reply::{Answer, Reply};
use crate::engine::state::{Address, InstanceRecord, Item, Operation, TimerKind, is_entity};
use crate::engine::{Effect, Event, read};

/// How many timers one command fires, so that a burst of due timers cannot hold up the partition.
const BATCH: usize = 512;

pub(crate) fn fire_timers(plan: &mut Plan<'_>, command: FireTimers) -> Answer {
    // The leader's wish is bounded by partition time: no timer fires early (R4.46).
    let due = read::due(plan.view, command.up_to.min(plan.stamp.now), BATCH);
    let more = due.len() == BATCH;
    let mut signals: BTreeMap<Address, Vec<Operation>> = BTreeMap::new();
    for (time, item) in due {
        if is_entity(&item.at.instance) {
            // A deleted hub takes in nothing more.
            if read::hub_closed(plan.view, item.at.hub) {
                plan.push(Event::TimerCleared { item, due: time });
                continue;
            }
            let operation = read::timer(plan.view, &item).and_then(|timer| timer.operation);
            signals.entry(item.at.clone()).or_default().extend(operation);
        } else if item.at.instance.is_empty() {
            // Cleared first: it may be armed again.
            plan.push(Event::TimerCleared { item: item.clone(), due: time });
            if !read::hub_closed(plan.view, item.at.hub) {
                forget_requests(plan, &item);
            }
            continue;
        } else if let Some(record) = read::head(plan.view, &item.at) {
            fire(plan, &item, record);
        }
        plan.push(Event::TimerCleared { item, due: time });
    }
    for (at, operations) in signals {
        let mut entity = Entity::load(plan, &at);
        operations.into_iter().for_each(|operation| entity.enqueue(plan, operation));
        entity.settle(plan);
    }
    if more {
        plan.tell(Effect::TimerSet { due: plan.stamp.now });
    }
    Ok(Reply::Done)
}

fn fire(plan: &mut Plan<'_>, item: &Item, mut record: InstanceRecord) {
    let Some(timer) = read::timer(plan.view, item) else { return };
    // Timers die with their generation (R4.48).
    if record.generation != item.generation || record.is_terminal() {
        return;
    }
    match timer.kind() {
        // Entities and hubs were dealt with above.
        TimerKind::Signal | TimerKind::Forget => {}
        TimerKind::Start => {
            record.start_timer = None;
            // Its first turn is no earlier (R4.14), whatever the clock of the leader says then.
            record.clock = record.clock.max(plan.stamp.now - 1);
            plan.wake(&item.at, &record);
            plan.write(&item.at, record);
        }
        TimerKind::Timer => {
            let fired = wire::TimerFiredEvent { fire_at: timer.fire_at, timer_id: timer.timer_id };
            let event = history(NO_ID, plan.stamp.now, EventType::TimerFired(fired));
            plan.receive(&item.at, &record, event);
        }
    }
}
