//! What a command answers: a reply, or a deterministic refusal.

use bytes::Bytes;
use prost::Message as _;

/// The answer to an accepted command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, with nothing to tell.
    Done,
    /// The instance that was started, or the running one that a legacy policy asked to keep (R2.21).
    Started {
        /// Its id.
        instance: String,
    },
    /// A batch failed; what is left of it is to be tried again, but not at once (R3.73).
    TriedInVain,
    /// The hub with that name.
    Hub {
        /// Its number.
        id: u32,
    },
}

/// A deterministic refusal: part of the answer, the same on every replica. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The command is of a form that this version does not know.
    #[error("this version does not know that command")]
    UnknownCommand,
    /// There is no such instance.
    #[error("orchestration instance not found: {instance}")]
    NotFound {
        /// Its id.
        instance: String,
    },
    /// The instance exists and may not be replaced (R2.22 asks for these words).
    #[error("orchestration instance already exists: {instance}")]
    AlreadyExists {
        /// Its id.
        instance: String,
    },
    /// Only a failed instance can be rewound (R2.60 asks for these words).
    #[error(
        "orchestration instance is not in a failed state, so rewinding is not allowed: {instance}"
    )]
    NotFailed {
        /// Its id.
        instance: String,
    },
    /// Only an ended instance can be started again under its id (R2.68).
    #[error(
        "orchestration instance has not ended: {instance}; wait for its end, terminate it, or restart it with a new id"
    )]
    NotEnded {
        /// Its id.
        instance: String,
    },
    /// The reuse policy contradicts itself (R2.19 asks for these words).
    #[error(
        "Invalid reusable statuses: cannot exclude 'Terminated' while also allowing reuse of running instances"
    )]
    InvalidReusePolicy,
    /// The turn was computed from a history or an inbox that is no longer the current one.
    #[error("turn is stale")]
    StaleTurn,
    /// The batch was computed from a state or a queue that is no longer the current one.
    #[error("batch is stale")]
    StaleBatch,
    /// A rewound instance would believe that it holds locks (R2.65).
    #[error(
        "orchestration instance cannot be rewound: {instance}; it failed inside a critical section, and the locks that \
         its history tells of were given back; start it anew"
    )]
    LocksLost {
        /// Its id.
        instance: String,
    },
    /// As many external events wait for the instance as may.
    #[error(
        "{limit} events wait for orchestration instance {instance}, the limit \
         (limits.max_waiting_events); raise more once it has taken some in"
    )]
    InboxFull {
        /// Its id.
        instance: String,
        /// The limit.
        limit: u32,
    },
    /// The task has been answered, or its generation is gone.
    #[error("task is not open")]
    TaskNotOpen,
}

/// The answer as it travels from the replica that applied the command to whoever asked.
pub type Answer = Result<Reply, Reject>;

/// Encodes an answer.
pub(crate) fn encode(answer: &Answer) -> Bytes {
    AnswerRecord::from(answer).encode_to_vec().into()
}

/// Reads an encoded answer; `None` if it is not one.
pub fn decode(bytes: Bytes) -> Option<Answer> {
    AnswerRecord::decode(bytes).ok()?.answer()
}

#[derive(Clone, PartialEq, prost::Message)]
struct AnswerRecord {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    instance: String,
    #[prost(uint32, tag = "3")]
    hub: u32,
    #[prost(uint32, tag = "50")]
    limit: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Done = 0,
    Started = 1,
    Hub = 2,
    UnknownCommand = 3,
    NotFound = 4,
    AlreadyExists = 5,
    InvalidReusePolicy = 6,
    StaleTurn = 7,
    TaskNotOpen = 8,
    NotFailed = 30,
    NotEnded = 31,
    StaleBatch = 60,
    TriedInVain = 62,
    LocksLost = 61,
    InboxFull = 50,
}

impl From<&Answer> for AnswerRecord {
    fn from(answer: &Answer) -> Self {
        let plain = |kind| (kind, String::new());
        let (kind, instance) = match answer {
            Ok(Reply::Done) => plain(Kind::Done),
            Ok(Reply::Started { instance }) => (Kind::Started, instance.clone()),
            Ok(Reply::TriedInVain) => plain(Kind::TriedInVain),
            Ok(Reply::Hub { .. }) => plain(Kind::Hub),
            Err(Reject::UnknownCommand) => plain(Kind::UnknownCommand),
            Err(Reject::NotFound { instance }) => (Kind::NotFound, instance.clone()),
            Err(Reject::AlreadyExists { instance }) => (Kind::AlreadyExists, instance.clone()),
            Err(Reject::NotFailed { instance }) => (Kind::NotFailed, instance.clone()),
            Err(Reject::NotEnded { instance }) => (Kind::NotEnded, instance.clone()),
            Err(Reject::InvalidReusePolicy) => plain(Kind::InvalidReusePolicy),
            Err(Reject::StaleTurn) => plain(Kind::StaleTurn),
            Err(Reject::TaskNotOpen) => plain(Kind::TaskNotOpen),
            Err(Reject::StaleBatch) => plain(Kind::StaleBatch),
            Err(Reject::LocksLost { instance }) => (Kind::LocksLost, instance.clone()),
            Err(Reject::InboxFull { instance, .. }) => (Kind::InboxFull, instance.clone()),
        };
        let hub = if let Ok(Reply::Hub { id }) = answer { *id } else { 0 };
        let limit = if let Err(Reject::InboxFull { limit, .. }) = answer { *limit } else { 0 };
        AnswerRecord { kind: kind.into(), instance, hub, limit }
    }
}

impl AnswerRecord {
    fn answer(self) -> Option<Answer> {
        let instance = self.instance;
        Some(match Kind::try_from(self.kind).ok()? {
            Kind::Done => Ok(Reply::Done),
            Kind::Started => Ok(Reply::Started { instance }),
            Kind::TriedInVain => Ok(Reply::TriedInVain),
            Kind::Hub => Ok(Reply::Hub { id: self.hub }),
            Kind::UnknownCommand => Err(Reject::UnknownCommand),
            Kind::NotFound => Err(Reject::NotFound { instance }),
            Kind::AlreadyExists => Err(Reject::AlreadyExists { instance }),
            Kind::NotFailed => Err(Reject::NotFailed { instance }),
            Kind::NotEnded => Err(Reject::NotEnded { instance }),
            Kind::InvalidReusePolicy => Err(Reject::InvalidReusePolicy),
            Kind::StaleTurn => Err(Reject::StaleTurn),
            Kind::TaskNotOpen => Err(Reject::TaskNotOpen),
            Kind::StaleBatch => Err(Reject::StaleBatch),
            Kind::LocksLost => Err(Reject::LocksLost { instance }),
            Kind::InboxFull => Err(Reject::InboxFull { instance, limit: self.limit }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_way_back() {
        let instance = || "o1".to_owned();
        for answer in [
            Ok(Reply::Done),
            Ok(Reply::Started { instance: instance() }),
            Ok(Reply::TriedInVain),
            Ok(Reply::Hub { id: 7 }),
            Err(Reject::UnknownCommand),
            Err(Reject::NotFound { instance: instance() }),
            Err(Reject::AlreadyExists { instance: instance() }),
            Err(Reject::NotFailed { instance: instance() }),
            Err(Reject::NotEnded { instance: instance() }),
            Err(Reject::InvalidReusePolicy),
            Err(Reject::StaleTurn),
            Err(Reject::TaskNotOpen),
            Err(Reject::StaleBatch),
            Err(Reject::LocksLost { instance: instance() }),
            Err(Reject::InboxFull { instance: instance(), limit: 3 }),
        ] {
            assert_eq!(decode(encode(&answer)), Some(answer));
        }
    }
}
