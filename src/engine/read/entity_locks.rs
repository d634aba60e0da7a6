//! Who holds which entity and who waits for it, for operators. A row of its own stands for each entity that is
//! locked or that a lock is waited for, so a page costs what it returns.

use std::ops::ControlFlow;

use super::entity::{entity, place_of};
use crate::engine::state::{Address, Line, LockRequest, Place, Waiting, entity_keys};
use crate::engine::view::{View, after_prefix};

/// How many requests are looked at to find the first of them.
const REQUESTS: usize = 64;
/// How many of them are told.
const TOLD: usize = 8;

/// An orchestration and its critical section.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LockParty {
    /// The orchestration.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// The id that its worker gave the section.
    #[prost(string, tag = "2")]
    pub section: String,
    /// Since when, in nanoseconds since the Unix epoch; 0 when that is not known.
    #[prost(int64, tag = "3")]
    pub since: i64,
}

/// An entity that is locked, or that a lock is waited for.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct EntityLock {
    /// Id of the entity.
    #[prost(string, tag = "1")]
    pub entity: String,
    /// Who holds it, if anybody does.
    #[prost(message, optional, tag = "2")]
    pub holder: Option<LockParty>,
    /// How many requests wait for it.
    #[prost(uint32, tag = "3")]
    pub waiting: u32,
    /// The first of them, in order; of very many, some.
    #[prost(message, repeated, tag = "4")]
    pub first: Vec<LockParty>,
    /// Operations that wait.
    #[prost(uint32, tag = "5")]
    pub operations: u32,
}

/// The entities of a hub behind `after` that are locked or waited for, at most `limit`, in the order of ids.
pub fn entity_locks(
    view: &dyn View,
    hub: u32,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Vec<EntityLock> {
    let mut found = Vec::new();
    let prefix = entity_keys::locked_of(hub, prefix);
    let behind = after_prefix(&entity_keys::locked(&Address::new(hub, after)));
    let (from, end) = (prefix.clone().max(behind), after_prefix(&prefix));
    if from >= end {
        return found;
    }
    view.scan(&from, &end, &mut |key, _| {
        let at = entity_keys::parse_locked(key).expect("stored key reads back");
        found.extend(lock(view, at));
        if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    found
}

fn lock(view: &dyn View, at: Address) -> Option<EntityLock> {
    let record = entity(view, &at)?;
    let operations = record.backlog();
    let holder = record.lock.map(|lock| LockParty {
        instance: lock.holder.owner.instance,
        section: lock.holder.section,
        since: lock.since,
    });
    let mut places = Vec::new();
    let prefix = entity_keys::lock_requests(&at);
    view.scan(&prefix, &after_prefix(&prefix), &mut |_, value| {
        places.extend(entity_keys::parse_place(value));
        if places.len() < REQUESTS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    places.sort_unstable();
    let first = places.into_iter().take(TOLD).filter_map(|place| request(view, &at, place));
    let first = first.map(|LockRequest { holder, since, .. }| LockParty {
        instance: holder.owner.instance,
        section: holder.section,
        since,
    });
    let first = first.collect();
    Some(EntityLock {
        entity: at.instance,
        holder,
        waiting: record.lock_requests,
        first,
        operations,
    })
}

fn request(view: &dyn View, at: &Address, place: Place) -> Option<LockRequest> {
    match place_of(view, at, (Line::Main, place))? {
        Waiting::Lock(request) => Some(request),
        Waiting::Operation(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::rig::{SECOND, bring};
    use crate::engine::state::message::{Body, ReleaseMessage};
    use crate::engine::state::{Holder, Sender};
    use crate::engine::view::Counted;

    fn request(instance: &str, entity: &str) -> LockRequest {
        let owner = Sender { instance: instance.into(), generation: 1 };
        let holder = Holder { owner, section: format!("s-{instance}"), request: 1 };
        LockRequest { holder, set: vec![entity.into()], ..Default::default() }
    }

    #[test]
    fn holders_and_waiters_are_seen_with_their_times_until_the_lock_is_free() {
        let mut rows = BTreeMap::new();
        let party = |instance: &str, since| LockParty {
            instance: instance.into(),
            section: format!("s-{instance}"),
            since: since * SECOND,
        };
        // "z" comes before "y": the order is that of the queue, not of ids.
        for (number, instance) in (1..).zip(["o1", "z", "y"]) {
            bring(&mut rows, number, "@a@1", Body::Lock(request(instance, "@a@1")));
        }
        bring(&mut rows, 4, "@b@1", Body::Lock(request("o2", "@b@1")));
        let locks = entity_locks(&rows, 1, "", "", 9);
        let a = EntityLock {
            entity: "@a@1".into(),
            holder: Some(party("o1", 1)),
            waiting: 2,
            first: vec![party("z", 2), party("y", 3)],
            operations: 0,
        };
        assert_eq!((locks.len(), &locks[0]), (2, &a));
        assert_eq!(entity_locks(&rows, 1, "", "", 1), [a]);
        assert_eq!(entity_locks(&rows, 1, "", "@a@1", 9), locks[1..]);
        assert_eq!(entity_locks(&rows, 1, "@b", "", 9), locks[1..]);
        assert_eq!(entity_locks(&rows, 1, "@a", "@b", 9), []);
        assert_eq!(entity_locks(&rows, 2, "", "", 9), []);

        for (number, instance) in (5..).zip(["o1", "z"]) {
            let LockRequest { holder, set, position, .. } = request(instance, "@a@1");
            let release = ReleaseMessage { holder, set, position };
            bring(&mut rows, number, "@a@1", Body::Release(release));
        }
        let [lock, _] = entity_locks(&rows, 1, "", "", 9).try_into().expect("both are held");
        assert_eq!((lock.holder, lock.waiting, lock.first), (Some(party("y", 6)), 0, vec![]));
        for (number, (instance, entity)) in (7..).zip([("y", "@a@1"), ("o2", "@b@1")]) {
            let LockRequest { holder, set, position, .. } = request(instance, entity);
            let release = ReleaseMessage { holder, set, position };
            bring(&mut rows, number, entity, Body::Release(release));
        }
        let counted = Counted::new(&rows);
        assert_eq!((entity_locks(&counted, 1, "", "", 9), counted.looked()), (vec![], 0));
    }
}
