//! The engine: what happens to orchestrations, decided purely.
//!
//! Its whole interface is [`apply`] and a handful of data types. It returns, it never calls out: no disk,
//! no network, no clock, no randomness, no async, no logging. The same rows, stamp and command yield the
//! same rows on every replica, for ever.
//!
//! **Life of an orchestration.** `Start` writes the head of the instance and puts `executionStarted` into
//! its *inbox*. Whatever else happens to the instance (a result, a due timer, an external event, a
//! request to end) goes to the inbox too, in the order it was accepted. A *turn* hands the whole history
//! and the waiting inbox events to a worker; `CompleteTurn` moves those events into the history, behind
//! an `orchestratorStarted`, appends one event per action, and opens tasks and timers. A turn commits
//! only on the history and inbox prefix it was computed from, so a late or repeated one changes nothing.
//! `executionCompleted` ends the history. Continue-as-new begins a new *generation* with an empty one.
//!
//! **Life of an activity.** `scheduleTask` opens a task; the task row is what a worker is handed, as often
//! as need be; the first `CompleteActivity` closes it and puts the result into the inbox. No row, no
//! result: that is how a task gets exactly one.
//!
//! **Life of a timer.** `createTimer` arms it under its instance and under its time. `FireTimers` takes
//! what is due by partition time and puts `timerFired` into the inbox.
//!
//! **Life of a message.** What a turn asks of another instance (a child to start, an event, an end), and a
//! child's answer to its parent, goes to the *outbox*, in the order in which it was sent. A courier takes it
//! to the partition of the receiver, where `Deliver` takes each message once, and `TruncateOutbox` forgets
//! it at home. A *child* row tells the parent which answers it waits for, and outlives the child's end.
//!
//! **Life of an entity.** Operations queue; a *batch* of the first ones is handed to a worker with the state, and
//! `CompleteBatch` takes them out and writes the state. An orchestration may lock a set of entities: its request
//! waits in their queues one after the other, and whatever ends the orchestration's generation gives them back.
//!
//! Commands are imperative and decided in [`decide`], which reads rows and yields [`Event`]s, past tense.
//! [`evolve`] turns events into row changes. [`read`] is what everybody else may ask of the rows.
//!
//! Invariants (architecture.md section 5) that live here: S2 to S10. Deliberately absent: leases and
//! workers (dispatch knows them), which partition holds which instance, and any error that a disk could cause.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
pub mod command;
mod decide;
mod effect;
mod event;
mod evolve;
mod limits;
pub mod read;
mod reply;
pub mod state;
pub mod time;
mod view;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod mesh;
#[cfg(test)]
mod mesh_locks;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod scripts;
#[cfg(test)]
mod tests;

pub use apply::{Applied, apply};
pub use command::{Command, Stamp};
pub use effect::{Class, Effect};
pub use event::Event;
pub use limits::Limits;
pub use reply::{Answer, Reject, Reply, decode as decode_answer};
pub use state::{Address, InstanceRecord, Item, Mark, TaskRecord, is_entity};
pub use view::{Changes, View};
