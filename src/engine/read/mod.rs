//! What everybody else may ask of the rows: pure functions over a [`View`](super::View), the engine's read models.

mod children;
mod entities;
mod entity;
mod entity_locks;
mod history;
mod hubs;
mod inbox;
mod instance;
mod items;
mod leftovers;
mod list;
mod open_work;
mod outbox;
pub(crate) mod query;
mod tree;
mod turn;

pub(crate) use children::child;
pub use children::children;
pub(crate) use entities::entity_rows_of_hub;
pub use entities::{EntityList, EntitySlice, ListedEntity, entities, metadata};
#[cfg(test)]
pub(crate) use entity::queue;
pub use entity::{Batch, BatchRoom, BatchTooLarge, batch, batch_is_current, entity, entity_state};
pub(crate) use entity::{
    first_in_main, lock_request, lock_request_of, operations_of, request_seen, requests_of,
};
pub use entity_locks::{EntityLock, LockParty, entity_locks};
pub(crate) use history::events;
pub use history::{HistoryPart, history, history_part};
pub(crate) use hubs::last_hub;
pub use hubs::{hub, hubs};
pub(crate) use inbox::{
    first_event, first_waiting, first_waiting_after, inbox, inbox_places, inbox_through,
};
pub use instance::{head, state};
pub(crate) use instance::{input, outcome};
pub(crate) use items::{due, tasks, timer, timers};
pub use items::{next_due, task};
pub use leftovers::{deleted_hubs, has_instances, sweep_due};
pub(crate) use leftovers::{hub_closed, hub_sweep_due, instances_of, leftovers, rows_of};
pub use list::{List, Order, Slice, list, listed_state};
pub use open_work::{Open, OpenWork, open_work};
pub(crate) use outbox::delivered;
pub use outbox::{message, outbox_after};
pub use query::{
    OfEntities, OfEntity, OfHead, OfHistory, OfHub, OfList, OfListed, OfLocks, OfState, OfTree,
    Query, State, Tree, answer,
};
pub use tree::{Known, Seen, see};
pub(crate) use turn::is_rewound;
pub use turn::{Room, Turn, TurnTooLarge, turn, turn_is_current};
