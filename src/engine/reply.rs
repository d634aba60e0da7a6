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
    /// Instances were purged.
    Purged {
        /// How many.
        count: u32,
    },
    /// All but these were ended (R2.98).
    Unterminated {
        /// Their ids.
        instances: Vec<String>,
    },
    /// A part of a longer work is done.
    Step {
        /// Nothing is left to do.
        done: bool,
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
    /// The hub was deleted while the call was under way (R1.9 asks for these words).
    #[error(
        "Task hub not found: it was deleted while the call was under way; name another hub, or create it again"
    )]
    HubDeleted,
    /// The reuse policy contradicts itself (R2.19 asks for these words).
    #[error(
        "Invalid reusable statuses: cannot exclude 'Terminated' while also allowing reuse of running instances"
    )]
    InvalidReusePolicy,
    /// The turn was computed from a history or an inbox that is no longer the current one.
    #[error("turn is stale")]
    StaleTurn,
    /// As many operations wait for the entity as may.
    #[error(
        "{limit} operations wait for entity {instance}, the limit (limits.max_waiting_events); \
         signal it again once it has carried some out"
    )]
    QueueFull {
        /// Its id.
        instance: String,
        /// The limit.
        limit: u32,
    },
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
    #[prost(uint32, tag = "40")]
    count: u32,
    #[prost(string, repeated, tag = "41")]
    instances: Vec<String>,
    #[prost(bool, tag = "42")]
    done: bool,
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
    QueueFull = 63,
    TriedInVain = 62,
    LocksLost = 61,
    InboxFull = 50,
    Purged = 40,
    Unterminated = 41,
    Step = 42,
    HubDeleted = 43,
}

impl From<&Answer> for AnswerRecord {
    fn from(answer: &Answer) -> Self {
        let plain = |kind| (kind, String::new());
        let (kind, instance) = match answer {
            Ok(Reply::Done) => plain(Kind::Done),
            Ok(Reply::Started { instance }) => (Kind::Started, instance.clone()),
            Ok(Reply::TriedInVain) => plain(Kind::TriedInVain),
            Ok(Reply::Hub { .. }) => plain(Kind::Hub),
            Ok(Reply::Purged { .. }) => plain(Kind::Purged),
            Ok(Reply::Unterminated { .. }) => plain(Kind::Unterminated),
            Ok(Reply::Step { .. }) => plain(Kind::Step),
            Err(Reject::HubDeleted) => plain(Kind::HubDeleted),
            Err(Reject::UnknownCommand) => plain(Kind::UnknownCommand),
            Err(Reject::NotFound { instance }) => (Kind::NotFound, instance.clone()),
            Err(Reject::AlreadyExists { instance }) => (Kind::AlreadyExists, instance.clone()),
            Err(Reject::NotFailed { instance }) => (Kind::NotFailed, instance.clone()),
            Err(Reject::NotEnded { instance }) => (Kind::NotEnded, instance.clone()),
            Err(Reject::InvalidReusePolicy) => plain(Kind::InvalidReusePolicy),
            Err(Reject::StaleTurn) => plain(Kind::StaleTurn),
            Err(Reject::TaskNotOpen) => plain(Kind::TaskNotOpen),
            Err(Reject::StaleBatch) => plain(Kind::StaleBatch),
            Err(Reject::QueueFull { instance, .. }) => (Kind::QueueFull, instance.clone()),
            Err(Reject::LocksLost { instance }) => (Kind::LocksLost, instance.clone()),
            Err(Reject::InboxFull { instance, .. }) => (Kind::InboxFull, instance.clone()),
        };
        let mut record = AnswerRecord { kind: kind.into(), instance, ..Default::default() };
        match answer {
            Ok(Reply::Hub { id }) => record.hub = *id,
            Ok(Reply::Purged { count }) => record.count = *count,
            Ok(Reply::Unterminated { instances }) => record.instances.clone_from(instances),
            Ok(Reply::Step { done }) => record.done = *done,
            Err(Reject::InboxFull { limit, .. } | Reject::QueueFull { limit, .. }) => {
                record.limit = *limit
            }
            _ => {}
        }
        record
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
            Kind::Purged => Ok(Reply::Purged { count: self.count }),
            Kind::Unterminated => Ok(Reply::Unterminated { instances: self.instances }),
            Kind::Step => Ok(Reply::Step { done: self.done }),
            Kind::HubDeleted => Err(Reject::HubDeleted),
            Kind::UnknownCommand => Err(Reject::UnknownCommand),
            Kind::NotFound => Err(Reject::NotFound { instance }),
            Kind::AlreadyExists => Err(Reject::AlreadyExists { instance }),
            Kind::NotFailed => Err(Reject::NotFailed { instance }),
            Kind::NotEnded => Err(Reject::NotEnded { instance }),
            Kind::InvalidReusePolicy => Err(Reject::InvalidReusePolicy),
            Kind::StaleTurn => Err(Reject::StaleTurn),
            Kind::TaskNotOpen => Err(Reject::TaskNotOpen),
            Kind::StaleBatch => Err(Reject::StaleBatch),
            Kind::QueueFull => Err(Reject::QueueFull { instance, limit: self.limit }),
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
            Ok(Reply::Purged { count: 9 }),
            Ok(Reply::Unterminated { instances: vec![instance(), "o2".to_owned()] }),
            Ok(Reply::Step { done: true }),
            Err(Reject::HubDeleted),
            Err(Reject::UnknownCommand),
            Err(Reject::NotFound { instance: instance() }),
            Err(Reject::AlreadyExists { instance: instance() }),
            Err(Reject::NotFailed { instance: instance() }),
            Err(Reject::NotEnded { instance: instance() }),
            Err(Reject::InvalidReusePolicy),
            Err(Reject::StaleTurn),
            Err(Reject::TaskNotOpen),
            Err(Reject::StaleBatch),
            Err(Reject::QueueFull { instance: instance(), limit: 3 }),
            Err(Reject::LocksLost { instance: instance() }),
            Err(Reject::InboxFull { instance: instance(), limit: 3 }),
        ] {
            assert_eq!(decode(encode(&answer)), Some(answer));
        }
    }
}
