//! An entity while a command changes it: what waits for it, who holds it, and what may run next.
//!
//! The one rule is in [`Entity::settle`]: whatever a command did, in the end a request for the lock that stands
//! first is granted, what may run is told to dispatch, and an entity of which nothing is left goes. So no
//! entity can drop out of dispatch, and no lock waits behind nobody (R5.42).

use std::collections::BTreeSet;

use super::Plan;
use crate::engine::effect::Class;
use crate::engine::state::message::{Body, OperationMessage, ReleaseMessage};
use crate::engine::state::{
    Address, EntityRecord, FORMAT, Holder, Item, Line, Lock, LockRequest, Operation, Place, Sender,
    Spot, TimerKind, TimerRecord, Waiting, entity_name,
};
use crate::engine::{Effect, Event, read};

/// A message brought an operation.
pub(crate) fn take_operation(plan: &mut Plan<'_>, at: &Address, message: OperationMessage) {
    match message.due {
        Some(due) if due > plan.stamp.now => delay(plan, at, message.operation, due),
        _ => {
            let mut entity = Entity::load(plan, at);
            let sender = message.operation.sender.clone();
            entity.enqueue(plan, message.operation);
            if let Some(sender) = sender {
                entity.let_by(plan, &sender);
            }
            entity.settle(plan);
        }
    }
}

/// Keeps an operation until its time has come (R5.16).
pub(crate) fn delay(plan: &mut Plan<'_>, at: &Address, operation: Operation, due: i64) {
    let place = plan.next_place();
    // No generation: an entity has none. The place is a number that nothing else has.
    let item = Item { at: at.clone(), generation: place.sequence, number: place.sub.into() };
    let timer = TimerRecord {
        format: FORMAT,
        kind: TimerKind::Signal.into(),
        due,
        operation: Some(operation),
        ..Default::default()
    };
    plan.arm(item, timer);
}

/// A message brought a request for the lock.
pub(crate) fn take_lock_request(plan: &mut Plan<'_>, at: &Address, request: LockRequest) {
    let mut entity = Entity::load(plan, at);
    entity.request_lock(plan, request);
    entity.settle(plan);
}

/// A message brought the end of a critical section.
pub(crate) fn take_release(plan: &mut Plan<'_>, at: &Address, release: ReleaseMessage) {
    let ReleaseMessage { holder, set, position } = release;
    let mut entity = Entity::load(plan, at);
    let has_waited = entity.withdraw(plan, &holder);
    entity.unlock(&holder);
    entity.settle(plan);
    // The request came no further than here, or it went on; then so does its end.
    if has_waited {
        return;
    }
    let request = LockRequest { holder, set, position, since: 0 };
    if let Some((next, LockRequest { holder, set, position, .. })) = request.next() {
        plan.send(at.hub, next, Body::Release(ReleaseMessage { holder, set, position }));
    }
}

/// An entity while it is being changed.
pub(crate) struct Entity {
    pub(crate) at: Address,
    pub(crate) record: EntityRecord,
    /// Whether the rows have a head.
    is_stored: bool,
    /// What of the main line this command took away: the rows still show it.
    taken: BTreeSet<Place>,
    /// What this command put into the main line first, if that was a request: the rows do not show it yet.
    added: Option<(Place, Option<LockRequest>)>,
}

impl Entity {
    pub(crate) fn load(plan: &Plan<'_>, at: &Address) -> Entity {
        let stored = read::entity(plan.view, at);
        let is_stored = stored.is_some();
        // A version that no earlier life of the entity has had.
        let new = || EntityRecord {
            format: FORMAT,
            version: plan.stamp.sequence,
            modified: plan.stamp.now,
            ..Default::default()
        };
        Entity {
            at: at.clone(),
            record: stored.unwrap_or_else(new),
            is_stored,
            taken: BTreeSet::new(),
            added: None,
        }
    }

    /// Puts an operation into the queue: into the front line if the holder of the lock sent it (R5.30).
    pub(crate) fn enqueue(&mut self, plan: &mut Plan<'_>, operation: Operation) {
        let holder = self.record.lock.as_ref().map(|lock| &lock.holder.owner);
        let line = match (&operation.sender, holder) {
            (Some(sender), Some(holder)) if sender == holder => Line::Front,
            _ => Line::Main,
        };
        match line {
            Line::Front => self.record.front += 1,
            Line::Main => self.record.main += 1,
        }
        self.add(plan, line, Waiting::Operation(operation));
    }

    fn request_lock(&mut self, plan: &mut Plan<'_>, mut request: LockRequest) {
        request.since = plan.stamp.now;
        self.record.lock_requests += 1;
        self.add(plan, Line::Main, Waiting::Lock(request));
    }

    /// Lets the operation that was just queued go before its sender's own request for the lock.
    ///
    /// The request came over other entities and may have overtaken the operation. If it were granted first, the
    /// operation would wait for the unlock, and later ones of the holder would go ahead of it (R5.12).
    fn let_by(&mut self, plan: &mut Plan<'_>, sender: &Sender) {
        if self.record.lock_requests == 0 {
            return;
        }
        if let Some((place, request)) = read::lock_request_of(plan.view, &self.at, sender) {
            self.take_request(plan, place, &request.holder);
            self.record.lock_requests += 1;
            self.add(plan, Line::Main, Waiting::Lock(request));
        }
    }

    fn add(&mut self, plan: &mut Plan<'_>, line: Line, waiting: Waiting) {
        let place = plan.next_place();
        if line == Line::Main && self.added.is_none() {
            let request = match &waiting {
                Waiting::Lock(request) => Some(request.clone()),
                Waiting::Operation(_) => None,
            };
            self.added = Some((place, request));
        }
        let (at, spot) = (self.at.clone(), (line, place));
        plan.push(Event::WaitBegan { at, spot, waiting: Box::new(waiting) });
    }

    /// Takes an operation out of the queue: it was carried out, or has failed.
    pub(crate) fn take(&mut self, plan: &mut Plan<'_>, spot: Spot) {
        match spot.0 {
            Line::Front => self.record.front -= 1,
            Line::Main => {
                self.record.main -= 1;
                self.taken.insert(spot.1);
            }
        }
        plan.push(Event::WaitEnded { at: self.at.clone(), spot, holder: None });
    }

    /// Takes the request of a holder out of the queue. Whether there was one.
    fn withdraw(&mut self, plan: &mut Plan<'_>, holder: &Holder) -> bool {
        let Some(place) = read::lock_request(plan.view, &self.at, holder) else { return false };
        self.take_request(plan, place, holder);
        true
    }

    fn take_request(&mut self, plan: &mut Plan<'_>, place: Place, holder: &Holder) {
        self.record.lock_requests -= 1;
        self.taken.insert(place);
        let holder = Some(Box::new(holder.clone()));
        plan.push(Event::WaitEnded { at: self.at.clone(), spot: (Line::Main, place), holder });
    }

    /// Gives the lock back, if that holder has it (R5.33).
    fn unlock(&mut self, holder: &Holder) {
        if self.record.lock.as_ref().is_some_and(|lock| lock.holder == *holder) {
            self.record.lock = None;
        }
    }

    /// Ends the change: grants the lock, writes the head, tells what may run.
    pub(crate) fn settle(mut self, plan: &mut Plan<'_>) {
        if self.record.lock.is_none() && self.record.front == 0 && self.record.lock_requests > 0 {
            self.grant_first(plan);
        }
        let Entity { at, record, is_stored, .. } = self;
        if record.is_empty() {
            if is_stored {
                plan.push(Event::EntityRemoved { at });
            }
            return;
        }
        if record.is_runnable() {
            let name = entity_name(&at.instance).unwrap_or_default().to_owned();
            let class = Class { name, version: String::new() };
            plan.tell(Effect::EntityReady { at: at.clone(), class });
        }
        plan.push(Event::EntityWritten { at, record: Box::new(record) });
    }

    /// Grants the lock, if a request for it stands first.
    fn grant_first(&mut self, plan: &mut Plan<'_>) {
        let mut after = None;
        let first = loop {
            match read::first_in_main(plan.view, &self.at, after) {
                Some((place, _)) if self.taken.contains(&place) => after = Some(place),
                Some((place, Waiting::Lock(request))) => break Some((place, Some(request))),
                Some((_, Waiting::Operation(_))) => return,
                None => break self.added.take(),
            }
        };
        let Some((place, Some(request))) = first else { return };
        self.take_request(plan, place, &request.holder);
        self.record.lock = Some(Lock { holder: request.holder.clone(), since: plan.stamp.now });
        let hub = self.at.hub;
        let holder = request.holder.clone();
        match request.next() {
            Some((next, request)) => plan.send(hub, next, Body::Lock(request)),
            None => plan.send(hub, holder.owner.instance.clone(), Body::LockGranted(holder)),
        }
    }
}

impl Sender {
    /// The generation of an orchestration.
    pub(crate) fn new(at: &Address, generation: u64) -> Sender {
        Sender { instance: at.instance.clone(), generation }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::rig::bring;

    fn holder(instance: &str) -> Holder {
        let owner = Sender { instance: instance.into(), generation: 1 };
        Holder { owner, section: "s".into(), request: 1 }
    }

    fn lock(instance: &str) -> Body {
        let set = vec!["@a@0".into(), "@a@1".into()];
        Body::Lock(LockRequest { holder: holder(instance), set, position: 1, ..Default::default() })
    }

    fn operation(instance: &str, id: &str) -> Body {
        let operation = Operation {
            request_id: id.into(),
            sender: Some(holder(instance).owner),
            ..Default::default()
        };
        Body::Operation(OperationMessage { operation, due: None })
    }

    /// R5.12: a request for the lock comes over other entities and may overtake what its orchestration sent before
    /// it. The operation still goes first, and so before the later ones of the holder.
    #[test]
    fn an_operation_that_was_overtaken_by_a_lock_request_goes_before_it() {
        let at = Address::new(1, "@a@1");
        let mut rows = BTreeMap::new();
        bring(&mut rows, 1, "@a@1", lock("o1"));
        bring(&mut rows, 2, "@a@1", lock("o2"));
        bring(&mut rows, 3, "@a@1", lock("o3"));
        bring(&mut rows, 4, "@a@1", operation("o2", "first"));
        let shown = |rows: &BTreeMap<Vec<u8>, bytes::Bytes>| {
            let show = |(_, waiting)| match waiting {
                Waiting::Operation(operation) => operation.request_id,
                Waiting::Lock(request) => request.holder.owner.instance,
            };
            read::queue(rows, &at).into_iter().map(show).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(&rows), "o3 first o2");
        let release = |instance: &str| {
            let holder = holder(instance);
            Body::Release(ReleaseMessage { holder, set: Vec::new(), position: 0 })
        };
        bring(&mut rows, 5, "@a@1", release("o1"));
        bring(&mut rows, 6, "@a@1", release("o3"));
        let record = read::entity(&rows, &at).expect("is there");
        assert_eq!((record.lock, record.main, record.lock_requests), (None, 1, 1), "it may run");
        assert_eq!(shown(&rows), "first o2");
    }
}
