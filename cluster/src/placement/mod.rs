//! Which group holds a key, and ([`plan`]) which nodes should hold and lead a group: pure functions.
//!
//! The hash is written here because it is stored data in disguise: a change would look for every instance
//! in the wrong partition.

pub(crate) mod plan;

use crate::batch::mix;
use crate::machine::GroupId;

/// The partition of an instance: 1 to `partitions`. Panics if `partitions` is 0.
pub fn partition_of(hub: u32, instance: &str, partitions: u32) -> GroupId {
    assert!(partitions > 0, "there is no partition");
    let hash = hash(hub, instance.as_bytes());
    // The high half of the product spreads evenly over any count, without a division.
    let slot = (u128::from(hash) * u128::from(partitions)) >> 64;
    GroupId(slot as u32 + 1)
}

/// FNV-1a over hub and instance, then a finalizer, since FNV alone leaves the high bits poor.
fn hash(hub: u32, instance: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in hub.to_le_bytes().iter().chain(instance) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_of_an_instance_never_changes() {
        let cases = [
            (0, "", 8),
            (0, "a", 8),
            (1, "a", 8),
            (1, "order-4711", 8),
            (1, "@counter@7", 8),
            (2, "order-4711", 32),
            (u32::MAX, "名前", 1000),
        ];
        let found: Vec<u32> =
            cases.iter().map(|(hub, name, count)| partition_of(*hub, name, *count).0).collect();
        assert_eq!(found, GOLDEN);
    }

    const GOLDEN: [u32; 7] = [6, 8, 7, 1, 3, 14, 732];

    #[test]
    fn partitions_are_used_evenly() {
        for partitions in [1_u32, 3, 8, 32] {
            let mut counts = vec![0_u32; partitions as usize];
            for n in 0..40_000 {
                counts[partition_of(1, &format!("instance-{n:08}"), partitions).0 as usize - 1] +=
                    1;
            }
            let even = 40_000 / partitions;
            for count in counts {
                assert!(count.abs_diff(even) < even / 5 + 100, "{count} of {even}");
            }
        }
    }
}
