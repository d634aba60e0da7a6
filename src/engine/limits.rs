//! How large one instance may grow, where only its rows can tell.
//!
//! The numbers travel with the command that they judge, so every replica judges alike, whatever it was
//! configured with. What a message alone can tell (payloads, names, tags) is judged before a command is
//! made, and not here.

/// Limits of one instance. A limit of 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Limits {
    /// Events in the history of a generation (R4.11).
    #[prost(uint32, tag = "1")]
    pub history_events: u32,
    /// Bytes in the history of a generation.
    #[prost(uint64, tag = "2")]
    pub history_bytes: u64,
    /// External events that wait for an instance.
    #[prost(uint32, tag = "3")]
    pub waiting_events: u32,
    /// Activities, timers and children that a generation waits for.
    #[prost(uint32, tag = "4")]
    pub pending: u32,
}

impl Limits {
    /// What a command without limits means. For ever: it stands in logs.
    pub const USUAL: Limits = Limits {
        history_events: 100_000,
        history_bytes: 64 << 20,
        waiting_events: 100_000,
        pending: 100_000,
    };

    /// Whether `number` is more than `limit` allows.
    pub(crate) fn exceeds(limit: impl Into<u64>, number: u64) -> bool {
        let limit = limit.into();
        limit > 0 && number > limit
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// The numbers themselves: a change would make replicas judge old commands anew.
    #[test]
    fn the_usual_limits_never_change() {
        let bytes = Limits::USUAL.encode_to_vec();
        assert_eq!(
            bytes,
            [8, 0xa0, 0x8d, 6, 16, 0x80, 0x80, 0x80, 0x20, 24, 0xa0, 0x8d, 6, 32, 0xa0, 0x8d, 6]
        );
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        assert!(!Limits::exceeds(0u32, u64::MAX));
        assert!(!Limits::exceeds(3u32, 3) && Limits::exceeds(3u32, 4));
    }
}
