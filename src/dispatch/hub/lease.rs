//! Leases: the right of one stream to one item, and how it ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::chunks::Series;
use super::item::{Key, Waiting};
use super::stream::StreamId;
use crate::dispatch::token::Work;
use crate::spans::Open;

/// A lease, unique in this run of the node.
pub(crate) type LeaseId = u64;

/// How long leases last.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// A turn on a live stream (R3.51).
    pub turn: Duration,
    /// A batch of an entity on a live stream (R3.51).
    pub entity: Duration,
    /// An activity on a live stream; `None` while the stream lives.
    pub activity: Option<Duration>,
    /// Anything once its stream has ended (R3.50).
    pub grace: Duration,
}

/// What a completion may do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// The lease is current; `Hub::finish` ends it.
    Current,
    /// Nobody holds the item: the token may be of an earlier run.
    Unleased,
    /// A completion under this lease is being committed; what becomes of it is not known yet.
    Underway,
    /// Somebody else holds the item.
    Stale,
}

/// How a lease ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its work is committed, or there was none.
    Done,
    /// It was not committed: somebody should look again at once.
    Again,
    /// Its time is over.
    Expired,
    /// The worker gave it back: later, and later each time (R3.62).
    Abandoned,
    /// It cannot be with a worker beside another one just now: soon.
    Later,
}

pub(super) struct Lease {
    pub(super) id: LeaseId,
    pub(super) stream: StreamId,
    pub(super) item: Waiting,
    /// Number of the item on its way to the stream.
    pub(super) place: u64,
    /// Run and lease of the leader that handed it out, if that was not this one.
    pub(super) given: Option<(u64, LeaseId)>,
    /// The next leader was told of it.
    pub(super) told: bool,
    /// What was handed out, for workers that send no token (R3.44).
    pub(super) work: Option<Work>,
    /// Something arrived for the item meanwhile.
    pub(super) again: bool,
    /// A completion is being committed; the lease cannot be taken away now.
    pub(super) completing: bool,
    pub(super) expires: Option<i64>,
    /// Parts of a completion that is not whole yet (R3.66). They go with the lease (R3.68).
    pub(super) parts: Option<Box<Series>>,
    /// What a collector of traces will be told of it.
    pub(super) span: Option<Box<Open>>,
}

/// Activities with workers, by what a completion without a token says of them (R3.44).
#[derive(Default)]
pub(super) struct Held(HashMap<(Arc<str>, i32), Vec<Key>>);

impl Held {
    pub(super) fn add(&mut self, key: &Key, task_id: i32) {
        self.0.entry((key.instance().clone(), task_id)).or_default().push(key.clone());
    }

    pub(super) fn remove(&mut self, key: &Key, task_id: i32) {
        let name = (key.instance().clone(), task_id);
        if let Some(keys) = self.0.get_mut(&name) {
            keys.retain(|held| held != key);
            if keys.is_empty() {
                self.0.remove(&name);
            }
        }
    }

    /// All that the name means.
    pub(super) fn named(&self, instance: &str, task_id: i32) -> &[Key] {
        self.0.get(&(instance.into(), task_id)).map_or(&[], Vec::as_slice)
    }
}
