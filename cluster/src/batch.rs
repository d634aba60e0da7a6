//! The log entry: commands that share one append, with the leader's time and entropy.
//!
//! A batch is a protobuf message, encoded once by the leader's batcher and carried as the same bytes
//! through log, replication and apply. It must stay readable for ever: fields are only added, and a batch
//! of a newer version stops the replica instead of being half understood.

use bytes::Bytes;
use prost::Message;

use crate::machine::Stamp;

/// Version of a batch of plain commands.
pub(crate) const VERSION: u32 = 1;
/// Version of a batch whose commands have origins or are the cluster's own: older builds must not apply it.
pub(crate) const CLUSTER_VERSION: u32 = 2;

/// Most commands of one batch; positions must fit into the low bits of [`Stamp::sequence`].
pub(crate) const COMMANDS_LIMIT: usize = 1 << SEQUENCE_BITS;

const SEQUENCE_BITS: u32 = 16;

/// Commands that share a log entry.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Batch {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// Nanoseconds since the Unix epoch on the leader when it closed the batch.
    #[prost(sfixed64, tag = "2")]
    pub(crate) now: i64,
    #[prost(fixed64, tag = "3")]
    pub(crate) seed: u64,
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub(crate) commands: Vec<Bytes>,
    /// The commands are the cluster's own, not the machine's.
    #[prost(bool, tag = "5")]
    pub(crate) system: bool,
    /// One per command, or none at all.
    #[prost(message, repeated, tag = "6")]
    pub(crate) origins: Vec<Origin>,
}

/// Where a command comes from: it is applied once per origin. Session 0 is no origin.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Origin {
    /// Drawn by a node at each start.
    #[prost(fixed64, tag = "1")]
    pub(crate) session: u64,
    /// Counts the commands of the session in one group.
    #[prost(uint64, tag = "2")]
    pub(crate) sequence: u64,
    /// Nobody asks again for a command below this sequence.
    #[prost(uint64, tag = "3")]
    pub(crate) settled_below: u64,
}

impl Batch {
    /// Reads a batch out of a log entry; commands share the entry's memory.
    pub(crate) fn read(entry: Bytes) -> std::io::Result<Self> {
        let batch = Self::decode(entry).map_err(std::io::Error::other)?;
        if batch.version != VERSION && batch.version != CLUSTER_VERSION {
            return Err(std::io::Error::other(format!(
                "a log entry has batch version {}, not {VERSION} or {CLUSTER_VERSION}",
                batch.version
            )));
        }
        Ok(batch)
    }

    /// Origin of command `position`, if it has one.
    pub(crate) fn origin(&self, position: usize) -> Option<Origin> {
        self.origins.get(position).copied().filter(|origin| origin.session != 0)
    }

    /// Stamp of command `position` of the batch at log index `index`, given the latest time of the group.
    pub(crate) fn stamp(&self, index: u64, position: usize, group_time: i64) -> Stamp {
        Stamp {
            now: self.now.max(group_time),
            seed: mix(self
                .seed
                .wrapping_add((position as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))),
            sequence: index << SEQUENCE_BITS | position as u64,
        }
    }
}

/// Spreads every bit of the input over the whole output; a bijection, so different inputs stay different.
pub(crate) fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn encoding_never_changes() {
        let batch = Batch {
            version: 1,
            now: 0x0102,
            seed: 3,
            commands: vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")],
            ..Batch::default()
        };
        let bytes = batch.encode_to_vec();
        assert_eq!(
            bytes,
            b"\x08\x01\x11\x02\x01\0\0\0\0\0\0\x19\x03\0\0\0\0\0\0\0\x22\x02ab\x22\0\x22\x01c"
        );
        assert_eq!(Batch::read(Bytes::from(bytes)).unwrap(), batch);
        let origin = Origin { session: 1, sequence: 2, settled_below: 3 };
        let commands = vec![Bytes::from_static(b"c")];
        let batch = Batch { version: 2, commands, system: true, origins: vec![origin], ..batch };
        let bytes = batch.encode_to_vec();
        assert_eq!(bytes[..20], b"\x08\x02\x11\x02\x01\0\0\0\0\0\0\x19\x03\0\0\0\0\0\0\0"[..]);
        assert_eq!(
            bytes[20..],
            b"\x22\x01c\x28\x01\x32\x0d\x09\x01\0\0\0\0\0\0\0\x10\x02\x18\x03"[..]
        );
        assert_eq!(Batch::read(Bytes::from(bytes)).unwrap(), batch);
    }

    #[test]
    fn newer_batch_is_refused() {
        let bytes = Batch { version: 3, ..Batch::default() }.encode_to_vec();
        assert!(Batch::read(Bytes::from(bytes)).unwrap_err().to_string().contains("version 3"));
    }

    #[test]
    fn stamps_keep_time_and_differ() {
        let batch = Batch { version: 1, now: 100, seed: 7, ..Batch::default() };
        assert_eq!(batch.stamp(5, 0, 90).now, 100);
        assert_eq!(batch.stamp(5, 0, 110).now, 110);
        assert!(batch.stamp(5, 1023, 0).sequence < batch.stamp(6, 0, 0).sequence);
        let seeds: BTreeSet<u64> =
            (0..1000).map(|position| batch.stamp(5, position, 0).seed).collect();
        assert_eq!(seeds.len(), 1000);
        // Golden: a stamp is recomputed by every replica and by every later version.
        assert_eq!(
            batch.stamp(5, 3, 0),
            Stamp { now: 100, seed: 0xe6984080bab12a02, sequence: 5 << 16 | 3 }
        );
    }
}
