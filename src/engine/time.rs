//! Times as the engine counts them: nanoseconds since the Unix epoch.

use prost_types::Timestamp;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// The wire form of a time.
pub fn timestamp(nanos: i64) -> Timestamp {
    let per_second = NANOS_PER_SECOND as i64;
    Timestamp { seconds: nanos.div_euclid(per_second), nanos: nanos.rem_euclid(per_second) as i32 }
}

/// The time that a timestamp names; beyond the years 1677 to 2262 the nearest one (R4.47).
pub fn nanos(timestamp: &Timestamp) -> i64 {
    let exact = i128::from(timestamp.seconds) * NANOS_PER_SECOND + i128::from(timestamp.nanos);
    exact.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_wire_and_far_ones_saturate() {
        for time in [0, 1, -1, 1_700_000_000_123_456_789, i64::MAX, i64::MIN] {
            assert_eq!(nanos(&timestamp(time)), time);
        }
        assert_eq!(nanos(&Timestamp { seconds: i64::MAX, nanos: 0 }), i64::MAX);
    }
}
