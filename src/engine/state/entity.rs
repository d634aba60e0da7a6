//! Entities: a head, a state, and a queue of what waits for them.
//!
//! The queue has two lines. What comes from the orchestration that holds the lock stands in the *front* line
//! and goes first; all else stands in the *main* line, in the order in which it came. A request for the lock
//! stands in the main line too, as a barrier. Nothing leaves the middle of a line but a request that was
//! withdrawn, so a batch is always the beginning of front line and main line together.

use bytes::Bytes;

use super::Place;

/// The head of an entity: all that is known of it but its state and its queue.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EntityRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// Sequence of the command that last wrote the state: a batch computed from an older one is stale.
    #[prost(uint64, tag = "2")]
    pub version: u64,
    /// Whether it has a state: it exists exactly while it has (R5.7).
    #[prost(bool, tag = "3")]
    pub has_state: bool,
    /// When the last batch was committed, in nanoseconds since the Unix epoch (R5.8).
    #[prost(int64, tag = "4")]
    pub modified: i64,
    /// Who holds it, if anybody does.
    #[prost(message, optional, tag = "5")]
    pub lock: Option<Lock>,
    /// Operations in the front line.
    #[prost(uint32, tag = "6")]
    pub front: u32,
    /// Operations in the main line.
    #[prost(uint32, tag = "7")]
    pub main: u32,
    /// Requests for the lock, in the main line.
    #[prost(uint32, tag = "8")]
    pub lock_requests: u32,
    /// Batches in a row that failed as a whole (R3.73).
    #[prost(uint32, tag = "9")]
    pub failures: u32,
    /// The second of the last change under which the index has it; `evolve` keeps it.
    #[prost(int64, optional, tag = "10")]
    pub listed: Option<i64>,
    /// Whether it stands in the list of entities that are locked or waited for; `evolve` keeps it.
    #[prost(bool, tag = "11")]
    pub contended: bool,
}

impl EntityRecord {
    /// Whether an operation may run now. A request for the lock at the head of the main line would have been
    /// granted, so whatever waits there behind no lock begins with an operation (R5.42).
    pub fn is_runnable(&self) -> bool {
        self.front > 0 || (self.lock.is_none() && self.main > 0)
    }

    /// Whether nothing of it is worth a row (R5.7).
    pub fn is_empty(&self) -> bool {
        !self.has_state
            && self.lock.is_none()
            && self.front == 0
            && self.main == 0
            && self.lock_requests == 0
    }

    /// Whether anybody holds it, or waits for its lock.
    pub fn is_contended(&self) -> bool {
        self.lock.is_some() || self.lock_requests > 0
    }

    /// Operations that wait, those of a batch that is with a worker included (R5.9).
    pub fn backlog(&self) -> u32 {
        self.front.saturating_add(self.main)
    }
}

/// A lock that is held.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Lock {
    /// By whom.
    #[prost(message, required, tag = "1")]
    pub holder: Holder,
    /// Since when, in nanoseconds since the Unix epoch.
    #[prost(int64, tag = "2")]
    pub since: i64,
}

/// One generation of an orchestration: who sent an operation, and who wants the answer.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct Sender {
    /// The instance.
    #[prost(string, tag = "1")]
    pub instance: String,
    /// Its generation.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
}

/// A critical section of one generation: what a lock belongs to.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct Holder {
    /// The orchestration.
    #[prost(message, required, tag = "1")]
    pub owner: Sender,
    /// The id that its worker gave the critical section.
    #[prost(string, tag = "2")]
    pub section: String,
    /// Where the history of the generation asks for the locks: an id that a worker gives twice means two sections,
    /// and what still travels for the first must not touch the second. 0 in rows of before.
    #[prost(uint32, tag = "3")]
    pub request: u32,
}

/// An operation on its way to a worker.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Operation {
    /// The encoded history event that the worker is sent (R3.38).
    #[prost(bytes = "bytes", tag = "1")]
    pub event: Bytes,
    /// The id that an answer repeats (R5.18).
    #[prost(string, tag = "2")]
    pub request_id: String,
    /// The orchestration that sent it, if one did.
    #[prost(message, optional, tag = "3")]
    pub sender: Option<Sender>,
    /// Whether the sender waits for an answer.
    #[prost(bool, tag = "4")]
    pub is_call: bool,
}

/// A request for the locks of a set, at one entity of it.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct LockRequest {
    /// Who will hold them.
    #[prost(message, required, tag = "1")]
    pub holder: Holder,
    /// All entities of the set, each once, in the order that all sets share: no two requests can wait for
    /// each other (R5.36).
    #[prost(string, repeated, tag = "2")]
    pub set: Vec<String>,
    /// Which of them it is at.
    #[prost(uint32, tag = "3")]
    pub position: u32,
    /// Since when it waits there, in nanoseconds since the Unix epoch.
    #[prost(int64, tag = "4")]
    pub since: i64,
}

impl LockRequest {
    /// The same request at the next entity of the set, with the id of that; `None` behind the last one.
    pub fn next(mut self) -> Option<(String, LockRequest)> {
        self.position += 1;
        let entity = self.set.get(self.position as usize)?.clone();
        Some((entity, self))
    }
}

/// What stands in a line of an entity.
#[derive(Clone, PartialEq, prost::Message)]
pub struct WaitingRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// The thing itself.
    #[prost(oneof = "Waiting", tags = "2, 3")]
    pub waiting: Option<Waiting>,
}

/// Something that waits for an entity.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Waiting {
    /// An operation.
    #[prost(message, tag = "2")]
    Operation(Operation),
    /// A request for the lock.
    #[prost(message, tag = "3")]
    Lock(LockRequest),
}

/// A line of an entity. The front line goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// Operations of the holder of the lock.
    Front,
    /// Everything else.
    Main,
}

/// A place in the queue of an entity.
pub type Spot = (Line, Place);

/// The critical section that an orchestration has asked for and not left: kept in its head, so that whatever
/// ends the generation ends the locks too (R5.31, R5.32). There is one at most.
#[derive(Clone, Eq, PartialEq, prost::Message)]
pub struct Section {
    /// The id that its worker gave it.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The entities of the set that were not given back, in the order in which they are locked.
    #[prost(string, repeated, tag = "2")]
    pub set: Vec<String>,
    /// Whether all of them are locked.
    #[prost(bool, tag = "3")]
    pub granted: bool,
    /// Where the history asks for it, as in [`Holder`].
    #[prost(uint32, tag = "4")]
    pub request: u32,
}

impl Section {
    /// What the locks of this section belong to.
    pub fn holder(&self, owner: Sender) -> Holder {
        Holder { owner, section: self.id.clone(), request: self.request }
    }
}

/// The name part of an entity id, which worker filters compare; `None` if it is not one.
pub fn entity_name(id: &str) -> Option<&str> {
    let (name, _) = id.strip_prefix('@')?.split_once('@')?;
    (!name.is_empty()).then_some(name)
}

/// An entity id with its name in lower case, as all SDKs write it (R5.3); `None` if it is not one (R5.1).
pub fn entity_id(id: &str) -> Option<String> {
    let name = entity_name(id)?;
    Some(format!("@{}{}", name.to_lowercase(), &id[1 + name.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_cased_and_keys_are_not() {
        for (id, normal) in [
            ("@Counter@Key", Some("@counter@Key")),
            ("@a@", Some("@a@")),
            ("@a@b@C", Some("@a@b@C")),
            ("@@b", None),
            ("@a", None),
            ("a@b", None),
            ("", None),
        ] {
            assert_eq!(entity_id(id).as_deref(), normal, "{id}");
        }
    }
}
