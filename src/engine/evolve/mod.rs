//! Events to rows: what each event changes, and nothing else. No decision is taken here.

mod entities;
mod listing;
mod removal;

use std::ops::ControlFlow;

use bytes::Bytes;
use prost::Message;

use super::state::{
    Address, Chunk, DeliveredRecord, FORMAT, Item, Leftover, Waiting, WaitingRecord, entity_keys,
    keys,
};
use super::view::{Changes, View, scan_prefix};
use super::{Event, read};

/// Adds the row changes of one event. Later events of a command override earlier ones.
pub(crate) fn evolve(view: &dyn View, event: &Event, changes: &mut Changes) {
    match event {
        Event::HubCreated { name, hub } => {
            changes.insert(keys::hub(name), Some(encode(hub)));
            changes.insert(keys::last_hub(), Some(Bytes::copy_from_slice(&hub.id.to_be_bytes())));
        }
        Event::RetentionSet { name, hub } => {
            changes.insert(keys::hub(name), Some(encode(hub)));
        }
        Event::GenerationDiscarded { at, generation, later } => {
            discard(view, at, *generation, *later, changes);
        }
        Event::InstanceRemoved { at, generation, later } => {
            removal::remove(view, at, *generation, *later, changes);
        }
        Event::LeftoverSwept { leftover, keys, done } => {
            changes.extend(keys.iter().map(|key| (key.clone(), None)));
            if *done {
                changes.insert(keys::leftover(leftover), None);
            }
        }
        Event::HubDeleted { hub } => {
            changes.insert(keys::hub(&hub.name), None);
            changes.insert(keys::deleted_hub(hub.id), Some(encode(hub)));
        }
        Event::HubClosed { hub } => {
            changes.insert(keys::closed_hub(*hub), Some(Bytes::new()));
        }
        Event::HubForgotten { id } => {
            changes.insert(keys::deleted_hub(*id), None);
        }
        Event::InstanceWritten { at, record } => listing::write_head(view, at, record, changes),
        Event::EventReceived { at, place, event } => {
            changes.insert(keys::inbox(at, *place), Some(event.clone()));
        }
        Event::EventTaken { at, place } => {
            changes.insert(keys::inbox(at, *place), None);
        }
        Event::HistoryAppended { at, generation, first, events } => {
            let mut chunk = Chunk::default();
            events.iter().for_each(|event| chunk.push(event));
            changes.insert(keys::history(at, *generation, *first), Some(chunk.freeze()));
        }
        Event::TaskOpened { item, task } => {
            changes.insert(keys::task(item), Some(encode(task.as_ref())));
        }
        Event::TaskClosed { item } => {
            changes.insert(keys::task(item), None);
        }
        Event::TimerArmed { item, timer } => {
            changes.insert(keys::timer(item), Some(encode(timer)));
            changes.insert(keys::due(timer.due, item), Some(Bytes::new()));
        }
        Event::TimerCleared { item, due } => clear_timer(item, *due, changes),
        Event::ChildWritten { item, child } => {
            changes.insert(keys::child(item), Some(encode(child)));
        }
        Event::MessageSent { place, message } => {
            changes.insert(keys::outbox(*place), Some(encode(message.as_ref())));
        }
        Event::MessageDelivered { place } => {
            changes.insert(keys::outbox(*place), None);
        }
        Event::MessagesTaken { from, through } => {
            let (sequence, sub) = (through.sequence, through.sub);
            let delivered = DeliveredRecord { format: FORMAT, sequence, sub };
            changes.insert(keys::delivered(*from), Some(encode(&delivered)));
        }
        Event::EntityWritten { at, record } => {
            entities::write(at, record, changes);
        }
        Event::EntityRemoved { at } => entities::remove(view, at, changes),
        Event::EntityStateWritten { at, state } => {
            let text =
                state.as_ref().map(|state| Bytes::copy_from_slice(state.as_str().as_bytes()));
            changes.insert(entity_keys::entity_state(at), text);
        }
        Event::WaitBegan { at, spot, waiting } => {
            if let Waiting::Lock(request) = waiting.as_ref() {
                let place = entity_keys::place(spot.1);
                changes.insert(entity_keys::lock_request(at, &request.holder), Some(place));
            }
            let row = WaitingRecord { format: FORMAT, waiting: Some(waiting.as_ref().clone()) };
            changes.insert(entity_keys::queue(at, *spot), Some(encode(&row)));
        }
        Event::WaitEnded { at, spot, holder } => {
            changes.insert(entity_keys::queue(at, *spot), None);
            if let Some(holder) = holder {
                changes.insert(entity_keys::lock_request(at, holder), None);
            }
        }
        Event::RequestSeen { at, period, id } => {
            changes.insert(entity_keys::request(*period, at, id), Some(Bytes::new()));
        }
        Event::EntityRowsSwept { keys } | Event::RequestsForgotten { keys } => {
            changes.extend(keys.iter().map(|key| (key.clone(), None)));
        }
    }
}

/// Removes what a generation had before this command. What the command itself opened for it stays: such
/// tasks run on, and their results are dropped (R4.26).
fn discard(view: &dyn View, at: &Address, generation: u64, later: bool, changes: &mut Changes) {
    if later {
        removal::leave(Leftover { at: at.clone(), generation, whole: false }, changes);
    } else {
        scan_prefix(view, &keys::history_of(at, generation), &mut |key, _| {
            changes.insert(key.to_vec(), None);
            ControlFlow::Continue(())
        });
    }
    for item in read::tasks(view, at, generation) {
        changes.insert(keys::task(&item), None);
    }
    for (item, due) in read::timers(view, at, generation) {
        clear_timer(&item, due, changes);
    }
    for (item, _) in read::children(view, at, generation) {
        changes.insert(keys::child(&item), None);
    }
}

fn clear_timer(item: &Item, due: i64, changes: &mut Changes) {
    changes.insert(keys::timer(item), None);
    changes.insert(keys::due(due, item), None);
}

fn encode(record: &impl Message) -> Bytes {
    record.encode_to_vec().into()
}
