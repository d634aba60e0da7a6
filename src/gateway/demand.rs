//! What each command of a client asks of a node that is short of room: one table.
//!
//! What frees room, ends something or stops it from growing is always taken in; so is what workers send back, which
//! does not pass here.

use durahub_cluster::Demand;

use crate::engine::Command;

/// What a command asks of a leader that is short of room.
pub(super) fn of(command: &Command) -> Demand {
    match command {
        Command::Start(_) | Command::Restart(_) | Command::Rewind(_) => Demand::Begins,
        // One that takes the place of another frees what that one had.
        Command::CreateHub(create) if !create.recreate => Demand::Begins,
        Command::RaiseEvent(_) | Command::SignalEntity(_) | Command::Resume(_) => Demand::Grows,
        Command::CreateHub(_)
        | Command::Terminate(_)
        | Command::ForceTerminate(_)
        | Command::Suspend(_)
        | Command::Purge(_)
        | Command::PurgeEntities(_)
        | Command::Sweep(_)
        | Command::DeleteHub(_)
        | Command::ClearHub(_)
        | Command::ForgetHub(_)
        | Command::SetRetention(_)
        | Command::CompleteTurn(_)
        | Command::FailTurn(_)
        | Command::CompleteActivity(_)
        | Command::CompleteBatch(_)
        | Command::FailBatch(_)
        | Command::FireTimers(_)
        | Command::Deliver(_)
        | Command::TruncateOutbox(_) => Demand::Must,
    }
}
