//! Armed timers: a row under the instance, and one under its time.

use super::Operation;

/// A timer that has not fired.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TimerRecord {
    /// Meaning of this record.
    #[prost(uint32, tag = "1")]
    pub format: u32,
    /// What happens when it is due.
    #[prost(enumeration = "TimerKind", tag = "2")]
    pub kind: i32,
    /// When it is due, in nanoseconds since the Unix epoch, as far as that form reaches.
    #[prost(int64, tag = "3")]
    pub due: i64,
    /// The id that the worker gave the action.
    #[prost(int32, tag = "4")]
    pub timer_id: i32,
    /// The time as the worker wrote it, repeated in the history (R4.6).
    #[prost(message, optional, tag = "5")]
    pub fire_at: Option<prost_types::Timestamp>,
    /// The operation that waits for its time; only with [`TimerKind::Signal`].
    #[prost(message, optional, tag = "20")]
    pub operation: Option<Operation>,
}

/// What a due timer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum TimerKind {
    /// Sends `timerFired` to its generation.
    Timer = 0,
    /// Makes an instance with a scheduled start ready (R2.6).
    Start = 1,
    /// Puts an operation into the queue of an entity (R5.16).
    Signal = 10,
    /// Forgets the requests of a hub that were seen in a period (R5.14).
    Forget = 11,
}
