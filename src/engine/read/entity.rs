//! One entity: its head, its state, and the batch that a worker would be handed now (section 3.6).

use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_proto::Text;
use prost::Message as _;

use crate::engine::command::BatchId;
use crate::engine::state::{
    Address, EntityRecord, Holder, Line, LockRequest, Operation, Place, Sender, Spot, Waiting,
    WaitingRecord, decode, entity_keys,
};
use crate::engine::view::{View, after_prefix};

/// How large a batch may be (R3.42).
#[derive(Clone, Copy, Debug)]
pub struct BatchRoom {
    /// Operations.
    pub operations: usize,
    /// Bytes of the operations; the first one is not held to it.
    pub operation_bytes: usize,
    /// Bytes of state and operations together.
    pub bytes: usize,
}

/// A batch, ready to be handed out.
#[derive(Debug)]
pub struct Batch {
    /// What it is computed from; comes back with its completion.
    pub id: BatchId,
    /// The state; `None` if there is none.
    pub state: Option<Text>,
    /// The operations, as encoded history events.
    pub operations: Vec<Bytes>,
}

/// The state and the first waiting operation exceed what one message may hold.
#[derive(Debug)]
pub struct BatchTooLarge {
    /// The first operation alone.
    pub id: BatchId,
    /// Size of state and operation, in bytes.
    pub bytes: usize,
}

/// Bytes that framing adds to each operation at most.
const FRAME: usize = 6;

/// The head of an entity: who holds it since when, what waits, whether it has a state.
pub fn entity(view: &dyn View, at: &Address) -> Option<EntityRecord> {
    view.get(&entity_keys::entity(at)).map(decode)
}

/// The state of an entity; `None` if it has none.
///
/// # Panics
/// When the row is not text: see [`decode`].
pub fn entity_state(view: &dyn View, at: &Address) -> Option<Text> {
    let row = view.get(&entity_keys::entity_state(at))?;
    Some(Text::from_utf8(row).expect("stored state is text"))
}

/// The operations that may run now: from the front line, then, if nobody holds the lock, from the main line up
/// to the first request for it (R5.44). `None` if there is none.
///
/// # Errors
/// When the state and the first operation do not fit into `room` together.
pub fn batch(
    view: &dyn View,
    at: &Address,
    room: BatchRoom,
) -> Option<Result<Batch, Box<BatchTooLarge>>> {
    let record = entity(view, at).filter(EntityRecord::is_runnable)?;
    let state = if record.has_state { entity_state(view, at) } else { None };
    let state_bytes = state.as_ref().map_or(0, Text::len);
    let (mut operations, mut bytes, mut last) = (Vec::new(), 0, Place::default());
    visit_runnable(view, at, &record, &mut |(_, place), operation| {
        let more = operation.event.len() + FRAME;
        let is_full = operations.len() >= room.operations
            || bytes + more > room.operation_bytes
            || state_bytes + bytes + more > room.bytes;
        if is_full && !operations.is_empty() {
            return ControlFlow::Break(());
        }
        (bytes, last) = (bytes + more, place);
        operations.push(operation.event);
        ControlFlow::Continue(())
    });
    if operations.is_empty() {
        return None;
    }
    let id = BatchId {
        hub: at.hub,
        instance: at.instance.clone(),
        version: record.version,
        count: operations.len() as u32,
        through_sequence: last.sequence,
        through_sub: last.sub,
    };
    let bytes = state_bytes + bytes;
    if bytes > room.bytes {
        return Some(Err(Box::new(BatchTooLarge { id, bytes })));
    }
    Some(Ok(Batch { id, state, operations }))
}

/// Whether the completion of a batch would be accepted.
pub fn batch_is_current(view: &dyn View, id: &BatchId) -> bool {
    entity(view, &id.at()).is_some_and(|record| operations_of(view, &record, id).is_some())
}

/// The operations of a batch, if it is current: they are still the first that may run, and the state is still
/// the one that they were computed from.
pub(crate) fn operations_of(
    view: &dyn View,
    record: &EntityRecord,
    id: &BatchId,
) -> Option<Vec<(Spot, Operation)>> {
    if record.version != id.version || id.count == 0 {
        return None;
    }
    let mut operations = Vec::with_capacity(id.count as usize);
    visit_runnable(view, &id.at(), record, &mut |spot, operation| {
        operations.push((spot, operation));
        match operations.len() < id.count as usize {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    });
    let is_current = operations.len() == id.count as usize
        && operations.last().is_some_and(|((_, place), _)| *place == id.through());
    is_current.then_some(operations)
}

/// The first operation that may run.
pub(crate) fn first_operation(
    view: &dyn View,
    at: &Address,
    record: &EntityRecord,
) -> Option<Bytes> {
    let mut first = None;
    visit_runnable(view, at, record, &mut |_, operation| {
        first = Some(operation.event);
        ControlFlow::Break(())
    });
    first
}

fn visit_runnable(
    view: &dyn View,
    at: &Address,
    record: &EntityRecord,
    visit: &mut dyn FnMut(Spot, Operation) -> ControlFlow<()>,
) {
    let lines = [(Line::Front, record.front > 0), (Line::Main, record.lock.is_none())];
    let mut flow = ControlFlow::Continue(());
    for (line, _) in lines.into_iter().filter(|(_, may_run)| *may_run) {
        if flow.is_break() {
            return;
        }
        let prefix = entity_keys::queue_line(at, line);
        view.scan(&prefix, &after_prefix(&prefix), &mut |key, value| {
            let place = entity_keys::parse_queue(key).expect("stored key reads back");
            flow = match waiting(value) {
                Some(Waiting::Operation(operation)) => visit((line, place), operation),
                Some(Waiting::Lock(_)) | None => ControlFlow::Break(()),
            };
            flow
        });
    }
}

/// All that waits for an entity, in order: for tests.
#[cfg(test)]
pub(crate) fn queue(view: &dyn View, at: &Address) -> Vec<(Line, Waiting)> {
    let mut found = Vec::new();
    for line in [Line::Front, Line::Main] {
        let prefix = entity_keys::queue_line(at, line);
        view.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
            found.extend(waiting(value).map(|waiting| (line, waiting)));
            ControlFlow::Continue(())
        });
    }
    found
}

/// What stands first in the main line behind `after`.
pub(crate) fn first_in_main(
    view: &dyn View,
    at: &Address,
    after: Option<Place>,
) -> Option<(Place, Waiting)> {
    let line = entity_keys::queue_line(at, Line::Main);
    let from = match after {
        Some(place) => after_prefix(&entity_keys::queue(at, (Line::Main, place))),
        None => line.clone(),
    };
    let mut first = None;
    view.scan(&from, &after_prefix(&line), &mut |key, value| {
        first = entity_keys::parse_queue(key).zip(waiting(value));
        ControlFlow::Break(())
    });
    first
}

/// What stands at a place of the queue.
pub(super) fn place_of(view: &dyn View, at: &Address, spot: Spot) -> Option<Waiting> {
    waiting(&view.get(&entity_keys::queue(at, spot))?)
}

/// Where the request of a holder waits for the lock of an entity.
pub(crate) fn lock_request(view: &dyn View, at: &Address, holder: &Holder) -> Option<Place> {
    entity_keys::parse_place(&view.get(&entity_keys::lock_request(at, holder))?)
}

/// What an orchestration has asked for and waits for at an entity: one request, or none.
pub(crate) fn lock_request_of(
    view: &dyn View,
    at: &Address,
    owner: &Sender,
) -> Option<(Place, LockRequest)> {
    let prefix = entity_keys::lock_requests_of(at, owner);
    let mut found = None;
    view.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
        found = entity_keys::parse_place(value);
        ControlFlow::Break(())
    });
    let place = found?;
    match place_of(view, at, (Line::Main, place))? {
        Waiting::Lock(request) => Some((place, request)),
        Waiting::Operation(_) => None,
    }
}

/// Whether a request was seen in one of these periods.
pub(crate) fn request_seen(view: &dyn View, at: &Address, id: &str, periods: [u32; 2]) -> bool {
    periods.iter().any(|period| view.get(&entity_keys::request(*period, at, id)).is_some())
}

/// Keys of at most `limit` requests of a hub that were seen in a period.
pub(crate) fn requests_of(view: &dyn View, hub: u32, period: u32, limit: usize) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let prefix = entity_keys::requests_of(hub, period);
    view.scan(&prefix, &after_prefix(&prefix), &mut |key, _| {
        found.push(key.to_vec());
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

fn waiting(row: &[u8]) -> Option<Waiting> {
    WaitingRecord::decode(Bytes::copy_from_slice(row)).expect("stored record decodes").waiting
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::command::{CompleteBatch, SignalEntity};
    use crate::engine::view::Counted;
    use crate::engine::{Command, Stamp, apply};

    /// Applies a command; returns how many rows it looked at.
    fn run(rows: &mut BTreeMap<Vec<u8>, Bytes>, command: Command, sequence: u64) -> (usize, usize) {
        let stamp = Stamp { now: sequence as i64, seed: sequence, sequence: sequence << 16 };
        let counted = Counted::new(rows);
        let changes = apply(&counted, stamp, &command.into_bytes()).changes;
        let (looked, written) = (counted.looked(), changes.len());
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        (looked, written)
    }

    /// As many as may wait for an entity.
    const WAITING: u64 = 100_000;

    /// Whatever waits, an operation, a batch and its commit look at a bounded number of rows and write one.
    #[test]
    fn a_long_queue_costs_no_more_than_a_short_one() {
        let mut rows: BTreeMap<Vec<u8>, Bytes> = BTreeMap::new();
        let at = Address::new(1, "@a@1");
        for number in 1..=WAITING {
            let request = durahub_proto::wire::SignalEntityRequest {
                instance_id: "@a@1".into(),
                name: "add".into(),
                request_id: number.to_string(),
                ..Default::default()
            };
            let signal = Command::SignalEntity(SignalEntity { hub: 1, request });
            let cost = run(&mut rows, signal, number);
            // The hub, the request in two periods, the timer that forgets it, the head; request, operation, head.
            // The first one arms the timer and begins the entity.
            let first = number == 1;
            assert_eq!(cost, if first { (5, 6) } else { (5, 3) }, "signal {number}");
        }

        let room = BatchRoom { operations: 100, operation_bytes: 1 << 20, bytes: 1 << 20 };
        let counted = Counted::new(&rows);
        let batch = batch(&counted, &at, room).expect("runnable").expect("fits");
        assert_eq!(batch.operations.len(), 100);
        assert!(counted.looked() < 110, "{}", counted.looked());
        let results = vec![durahub_proto::wire::OperationResult::default(); 100];
        let complete = CompleteBatch { batch: batch.id, results, ..Default::default() };
        let (looked, written) =
            run(&mut rows, Command::CompleteBatch(complete), 1_000_000_000 + WAITING);
        assert!(looked < 110, "{looked}");
        // The operations, the state, the head, and its place in the index, where that has changed.
        assert_eq!(written, 100 + 1 + 1 + 2);
        assert_eq!(u64::from(entity(&rows, &at).expect("is there").main), WAITING - 100);

        let counted = Counted::new(&rows);
        assert_eq!(crate::engine::read::open_work(&counted).len(), 1, "a new leader finds it");
        assert!(counted.looked() < 10, "{}", counted.looked());
    }
}
