//! Items, and what is remembered of one while it waits. Kept small: a partition may hold millions.

use std::sync::Arc;

use super::lease::{Lease, LeaseId};
use super::stream::StreamId;
use crate::dispatch::queue::{Age, Line};
use crate::engine::command::TurnId;

/// Kinds of work, each with its own queue and its own limit per stream (R3.1, R3.21).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    Turn,
    Activity,
    Entity,
}

impl Kind {
    pub(crate) const COUNT: usize = 3;
    /// The kinds that are dispatched.
    pub(crate) const DISPATCHED: [Kind; 3] = [Kind::Turn, Kind::Activity, Kind::Entity];

    /// The kind with that number between nodes; `None` for one of a newer version.
    pub(crate) fn numbered(number: u32) -> Option<Kind> {
        Kind::DISPATCHED.get(number as usize).copied()
    }
}

/// An item of a hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Key {
    /// The next turn of an instance.
    Turn { instance: Arc<str> },
    /// An activity.
    Activity { instance: Arc<str>, generation: u64, number: u64 },
    /// The next batch of an entity.
    Entity { instance: Arc<str> },
}

impl Key {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Key::Turn { .. } => Kind::Turn,
            Key::Activity { .. } => Kind::Activity,
            Key::Entity { .. } => Kind::Entity,
        }
    }

    pub(crate) fn instance(&self) -> &Arc<str> {
        match self {
            Key::Turn { instance } | Key::Activity { instance, .. } | Key::Entity { instance } => {
                instance
            }
        }
    }
}

/// An item that no worker has.
pub(super) struct Waiting {
    pub(super) line: Arc<Line>,
    pub(super) age: Age,
    /// Only of items that were with a worker before.
    pub(super) past: Option<Box<Past>>,
}

/// What happened to an item before.
#[derive(Default)]
pub(super) struct Past {
    /// How often it was given back.
    pub(super) abandoned: u32,
    /// Who gave it back last: others are preferred (R3.63).
    pub(super) abandoned_by: Option<StreamId>,
    /// The lease that ran out last: its completion is still good while nobody else has the item (R3.50).
    pub(super) late: Option<LeaseId>,
    /// The turn to hand out once more, exactly: for workers without tokens, whose completion cannot say
    /// which of two turns it means.
    pub(super) turn: Option<TurnId>,
}

impl Waiting {
    pub(super) fn past_mut(&mut self) -> &mut Past {
        self.past.get_or_insert_default()
    }

    /// It wants something new now: its past no longer matters.
    pub(super) fn renew(&mut self, age: Age) {
        (self.age, self.past) = (age, None);
        if self.line.large {
            let class = self.line.class.clone();
            self.line = Arc::new(Line { class, large: false });
        }
    }
}

/// Where an item is: in one of these places only (R3.16).
pub(super) enum Slot {
    Ready(Waiting),
    Leased(Box<Lease>),
    Delayed(Box<Delayed>),
}

/// An item that comes back later.
pub(super) struct Delayed {
    pub(super) item: Waiting,
    pub(super) until: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R1 of architecture.md: what a million waiting items cost is a million times this.
    #[test]
    fn a_waiting_item_is_small() {
        assert!(size_of::<Slot>() <= 40, "{}", size_of::<Slot>());
        assert!(size_of::<Key>() <= 40, "{}", size_of::<Key>());
    }
}
