//! `SignalEntity`: a client brings an operation that nobody waits for (R2.99), and takes effect once however
//! often the client sends it (R5.14).

use durahub_proto::wire::{self, history_event::EventType};

use super::Plan;
use super::entity::{Entity, delay};
use super::start::new_execution_id;
use crate::engine::command::SignalEntity;
use crate::engine::event::{NO_ID, history};
use crate::engine::limits::Limits;
use crate::engine::reply::{Answer, Reject, Reply};
use crate::engine::state::{Address, FORMAT, Item, Operation, Sender, TimerKind, TimerRecord};
use crate::engine::time::nanos;
use crate::engine::{Event, read};

/// Requests are remembered for one to two periods of so many nanoseconds.
const PERIOD: i64 = 150_000_000_000;
/// Requests that one timer forgets, and the pause before it forgets more, in nanoseconds.
const FORGET: usize = 512;
const FORGET_AGAIN: i64 = 10_000_000;

pub(crate) fn signal_entity(plan: &mut Plan<'_>, command: SignalEntity) -> Answer {
    let wire::SignalEntityRequest { instance_id, name, input, request_id, scheduled_time, .. } =
        command.request;
    let at = Address::new(command.hub, instance_id);
    if read::hub_closed(plan.view, at.hub) {
        return Err(Reject::HubDeleted);
    }
    // One that was taken in before is not refused now: its answer was lost, its place in the queue is not.
    if !is_first(plan, &at, &request_id) {
        return Ok(Reply::Done);
    }
    let mut entity = Entity::load(plan, &at);
    let limit = plan.limits.waiting_events;
    if Limits::exceeds(limit, u64::from(entity.record.backlog()) + 1) {
        return Err(Reject::QueueFull { instance: at.instance, limit });
    }
    let signal = wire::EntityOperationSignaledEvent {
        request_id: match request_id.is_empty() {
            true => new_request_id(plan.stamp.seed, 0),
            false => request_id,
        },
        operation: name,
        scheduled_time,
        input,
        target_instance_id: Some(at.instance.as_str().into()),
    };
    let operation = signaled(signal, plan.stamp.now, None);
    match scheduled_time.as_ref().map(nanos).filter(|due| *due > plan.stamp.now) {
        Some(due) => delay(plan, &at, operation, due),
        None => {
            entity.enqueue(plan, operation);
            entity.settle(plan);
        }
    }
    Ok(Reply::Done)
}

/// Whether a request has not been seen; from now on it has.
fn is_first(plan: &mut Plan<'_>, at: &Address, id: &str) -> bool {
    if id.is_empty() {
        return true;
    }
    let period = u32::try_from(plan.stamp.now.max(0) / PERIOD).unwrap_or(u32::MAX);
    let before = period.saturating_sub(1);
    if read::request_seen(plan.view, at, id, [period, before]) {
        return false;
    }
    plan.push(Event::RequestSeen { at: at.clone(), period, id: id.to_owned() });
    let item = forgetting(at.hub, period);
    if read::timer(plan.view, &item).is_none() {
        let due = (i64::from(period) + 2).saturating_mul(PERIOD);
        plan.arm(item, forget_at(due));
    }
    true
}

/// The timer that forgets the requests of a period: one of the hub, not of an instance.
fn forgetting(hub: u32, period: u32) -> Item {
    Item { at: Address::new(hub, ""), generation: period.into(), number: 0 }
}

fn forget_at(due: i64) -> TimerRecord {
    TimerRecord { format: FORMAT, kind: TimerKind::Forget.into(), due, ..Default::default() }
}

/// Forgets some of the requests of a period that is long over; the rest a moment later.
pub(crate) fn forget_requests(plan: &mut Plan<'_>, item: &Item) {
    let period = u32::try_from(item.generation).unwrap_or(u32::MAX);
    let keys = read::requests_of(plan.view, item.at.hub, period, FORGET);
    if keys.len() == FORGET {
        plan.arm(item.clone(), forget_at(plan.stamp.now.saturating_add(FORGET_AGAIN)));
    }
    if !keys.is_empty() {
        plan.push(Event::RequestsForgotten { keys });
    }
}

/// A signal as it waits for its entity.
pub(crate) fn signaled(
    signal: wire::EntityOperationSignaledEvent,
    now: i64,
    sender: Option<Sender>,
) -> Operation {
    let request_id = signal.request_id.clone();
    let event = history(NO_ID, now, EventType::EntityOperationSignaled(signal));
    Operation { event, request_id, sender, is_call: false }
}

/// A request id made up by the server: a UUID, as one client demands (R3.40).
pub(crate) fn new_request_id(seed: u64, index: u64) -> String {
    let hex = new_execution_id(seed.wrapping_add(index.wrapping_mul(0xa076_1d64_78bd_642f)));
    let part = |from, to| hex.get(from..to).unwrap_or_default();
    // Version 4, variant 1, as for a random one.
    format!("{}-{}-4{}-8{}-{}", part(0, 8), part(8, 12), part(13, 16), part(17, 20), part(20, 32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_uuids_and_differ() {
        let ids: std::collections::BTreeSet<String> = (0..100)
            .flat_map(|seed| (0..10).map(move |index| new_request_id(seed, index)))
            .collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            let lengths: Vec<usize> = id.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
            assert!(id.chars().all(|c| c == '-' || c.is_ascii_hexdigit()), "{id}");
            assert_eq!((&id[14..15], &id[19..20]), ("4", "8"), "{id}");
        }
    }
}
