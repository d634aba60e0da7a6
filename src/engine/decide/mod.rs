//! Commands to events: one file per command (or pair of commands that undo each other).
//!
//! Each function reads the rows as they were before the command, adds what it decided to a [`Plan`], and
//! answers. A refusal drops the plan, so nothing is ever half done.

mod actions;
mod activity;
mod batch;
mod children;
mod critical;
mod deliver;
mod entity;
mod force;
mod hub;
mod limits;
mod outgoing;
mod plan;
mod purge;
mod purge_entities;
mod raise;
mod restart;
mod rewind;
mod rewrite;
mod signal;
mod start;
mod suspend;
mod terminate;
mod timers;
mod turn;

pub(crate) use activity::complete_activity;
pub(crate) use batch::{complete_batch, fail_batch};
pub(crate) use deliver::{Delivered, deliver, truncate_outbox};
pub(crate) use force::force_terminate;
pub(crate) use hub::{clear_hub, create_hub, delete_hub, forget_hub, set_retention};
pub(crate) use plan::Plan;
pub(crate) use purge::{purge, sweep};
pub(crate) use purge_entities::purge_entities;
pub(crate) use raise::raise_event;
pub(crate) use restart::restart;
pub(crate) use rewind::rewind;
pub(crate) use signal::signal_entity;
pub(crate) use start::start;
pub(crate) use suspend::{resume, suspend};
pub(crate) use terminate::terminate;
pub(crate) use timers::fire_timers;
pub(crate) use turn::{complete_turn, fail_turn};
