//! The one entrance.

use bytes::Bytes;

use super::command::Deliver;
use super::decide::{self, Delivered, Plan};
use super::reply::{self, Answer, Reject, Reply};
use super::view::{Changes, View};
use super::{Command, Effect, Event, Stamp, evolve};

/// What a command did.
#[derive(Debug)]
pub struct Applied {
    /// What happened, for the log line and for tests.
    pub events: Vec<Event>,
    /// Rows to write, all or none.
    pub changes: Changes,
    /// The encoded [`Answer`].
    pub reply: Bytes,
    /// What became true.
    pub effects: Vec<Effect>,
}

/// Applies one encoded command to the rows of a partition.
///
/// Bad input is an answer, never a panic: every replica would repeat it.
pub fn apply(view: &dyn View, stamp: Stamp, command: &Bytes) -> Applied {
    let command = match Command::from_bytes(command) {
        Some((Command::Deliver(command), _)) => return deliver(view, stamp, command),
        command => command,
    };
    let mut plan = Plan::new(view, stamp);
    let answer = match command {
        Some((command, limits)) => {
            plan.limits = limits;
            decide(&mut plan, command)
        }
        None => Err(Reject::UnknownCommand),
    };
    let (events, effects) = match answer {
        Ok(_) => plan.finish(),
        Err(_) => Default::default(),
    };
    let mut changes = Changes::new();
    for event in &events {
        evolve::evolve(view, event, &mut changes);
    }
    Applied { events, changes, reply: reply::encode(&answer), effects }
}

/// A delivery is many commands in one: each message is decided on what the ones before it left.
fn deliver(view: &dyn View, stamp: Stamp, command: Deliver) -> Applied {
    let Delivered { events, effects, changes } = decide::deliver(view, stamp, command);
    Applied { events, changes, reply: reply::encode(&Ok(Reply::Done)), effects }
}

fn decide(plan: &mut Plan<'_>, command: Command) -> Answer {
    match command {
        Command::Start(start) => decide::start(plan, start),
        Command::CompleteTurn(turn) => decide::complete_turn(plan, turn),
        Command::FailTurn(turn) => decide::fail_turn(plan, turn),
        Command::CompleteActivity(result) => decide::complete_activity(plan, result),
        Command::FireTimers(fire) => decide::fire_timers(plan, fire),
        Command::RaiseEvent(raise) => decide::raise_event(plan, raise),
        Command::Terminate(terminate) => decide::terminate(plan, terminate),
        Command::Suspend(suspend) => decide::suspend(plan, suspend),
        Command::Resume(resume) => decide::resume(plan, resume),
        Command::CreateHub(create) => decide::create_hub(plan, create),
        // Taken by `deliver` above: it needs no plan of its own.
        Command::Deliver(_) => Ok(Reply::Done),
        Command::TruncateOutbox(truncate) => decide::truncate_outbox(plan, &truncate),
        Command::Rewind(rewind) => decide::rewind(plan, rewind),
        Command::Restart(restart) => decide::restart(plan, restart),
        Command::SignalEntity(signal) => decide::signal_entity(plan, signal),
        Command::CompleteBatch(batch) => decide::complete_batch(plan, batch),
        Command::FailBatch(batch) => decide::fail_batch(plan, batch),
        Command::PurgeEntities(purge) => decide::purge_entities(plan, purge),
        Command::Purge(purge) => decide::purge(plan, purge),
        Command::Sweep(_) => decide::sweep(plan),
        Command::ForceTerminate(terminate) => decide::force_terminate(plan, terminate),
        Command::DeleteHub(delete) => decide::delete_hub(plan, delete),
        Command::ClearHub(clear) => decide::clear_hub(plan, clear),
        Command::ForgetHub(forget) => decide::forget_hub(plan, forget),
        Command::SetRetention(set) => decide::set_retention(plan, set),
    }
}
