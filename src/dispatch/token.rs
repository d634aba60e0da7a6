//! Completion tokens: opaque to workers (R3.43), and all that is needed to complete an item.
//!
//! A token names the item itself, so it is still good after a restart or on a new leader, where no lease is
//! known (R3.48). It carries no trust: the engine accepts a completion only for a task that is open or a
//! turn or batch that is current, and only inside the caller's task hub.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;

use super::hub::Key;
use crate::engine::command::{BatchId, TaskId, TurnId};

/// What a token says.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Token {
    /// The run of the leader that gave it out: leases do not outlive that run.
    #[prost(fixed64, tag = "1")]
    pub(crate) run: u64,
    /// The lease.
    #[prost(fixed64, tag = "2")]
    pub(crate) lease: u64,
    /// The item.
    #[prost(oneof = "Work", tags = "3, 4, 5")]
    pub(crate) work: Option<Work>,
}

/// What was handed out.
#[derive(Clone, Eq, PartialEq, prost::Oneof)]
pub(crate) enum Work {
    /// An orchestrator turn.
    #[prost(message, tag = "3")]
    Turn(TurnId),
    /// An activity.
    #[prost(message, tag = "4")]
    Activity(ActivityWork),
    /// A batch of an entity: the token alone must name it (R3.45).
    #[prost(message, tag = "5")]
    Entity(BatchId),
}

/// An activity, and how its worker names it.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub(crate) struct ActivityWork {
    /// The task.
    #[prost(message, required, tag = "1")]
    pub(crate) task: TaskId,
    /// The id of its action, which repeats within an instance (R3.34).
    #[prost(int32, tag = "2")]
    pub(crate) task_id: i32,
}

impl Work {
    /// The task hub of the item.
    pub(crate) fn hub(&self) -> u32 {
        match self {
            Work::Turn(turn) => turn.hub,
            Work::Activity(activity) => activity.task.hub,
            Work::Entity(batch) => batch.hub,
        }
    }

    /// How the hub's queue knows the item.
    pub(crate) fn key(&self) -> Key {
        match self {
            Work::Turn(turn) => Key::Turn { instance: turn.instance.as_str().into() },
            Work::Activity(ActivityWork { task, .. }) => Key::Activity {
                instance: task.instance.as_str().into(),
                generation: task.generation,
                number: task.number,
            },
            Work::Entity(batch) => Key::Entity { instance: batch.instance.as_str().into() },
        }
    }
}

impl Token {
    /// The text that a worker is given.
    pub(crate) fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.encode_to_vec())
    }

    /// Reads the text that a worker sent back; `None` if it is not a token.
    pub(crate) fn from_text(text: &str) -> Option<Token> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        Token::decode(bytes.as_slice()).ok().filter(|token| token.work.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_read_back_and_garbage_does_not() {
        let task = TaskId { hub: 1, instance: "ü".into(), generation: 2, number: 3 };
        let work = Work::Activity(ActivityWork { task, task_id: -1 });
        let token = Token { run: u64::MAX, lease: 7, work: Some(work) };
        assert_eq!(Token::from_text(&token.to_text()), Some(token));
        for garbage in ["", "garbage", "????", "AAAA", "id:id:00000000-0000-0000-0000-000000000000"]
        {
            assert_eq!(Token::from_text(garbage), None, "{garbage}");
        }
    }
}
