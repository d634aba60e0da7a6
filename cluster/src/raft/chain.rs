//! A hash over everything that a group's replicas have changed, to find one that went another way.
//!
//! The chain begins at a command of the cluster and takes in every changed row of every later command, in order;
//! its value lies in a row beside the machine's, so it comes with snapshots and survives restarts. At each later
//! such command, and so at the same log index everywhere, a replica notes its value as a *point*. Two replicas with
//! different values at one index have applied the same commands to different results: a machine that is not
//! deterministic, or broken memory. A group that nobody asks begins no chain and pays nothing.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

use crate::batch::mix;
use crate::machine::Changes;
use crate::meta::RESERVED;
use crate::store::rows::StateRows;

/// Points that are kept.
const POINTS: usize = 16;

fn key() -> Vec<u8> {
    vec![RESERVED, b'h']
}

/// The chain of one group.
#[derive(Default)]
pub(crate) struct Chain {
    /// `None` until somebody asked for it.
    value: Option<u64>,
    points: VecDeque<(u64, u64)>,
}

impl Chain {
    /// Reads the chain back from the rows.
    pub(crate) fn load(rows: &StateRows) -> io::Result<Self> {
        let value = match rows.look(|rows| rows.get(&key())) {
            Some(bytes) => {
                let bytes = <[u8; 8]>::try_from(&bytes[..]);
                let broken = |_| io::Error::other("the row of the state hash is broken");
                Some(u64::from_le_bytes(bytes.map_err(broken)?))
            }
            None => None,
        };
        Ok(Self { value, points: VecDeque::new() })
    }

    /// Takes in the changes of one command.
    pub(crate) fn add(&mut self, changes: &Changes) {
        let Some(value) = &mut self.value else { return };
        for (key, row) in changes {
            let row = row
                .as_ref()
                .map_or(u64::MAX, |row| u64::from(crc32fast::hash(row)) << 24 ^ row.len() as u64);
            *value = mix(*value ^ u64::from(crc32fast::hash(key)) << 32 ^ row)
                .wrapping_add(key.len() as u64);
        }
    }

    /// Begins the chain, or notes a point, at a log index.
    pub(crate) fn point(&mut self, index: u64) {
        match self.value {
            None => self.value = Some(mix(index)),
            Some(value) => {
                self.points.push_back((index, value));
                if self.points.len() > POINTS {
                    self.points.pop_front();
                }
            }
        }
    }

    /// Writes the row of the chain.
    pub(crate) fn store(&self, changes: &mut Changes) {
        if let Some(value) = self.value {
            changes.insert(key(), Some(Bytes::copy_from_slice(&value.to_le_bytes())));
        }
    }

    pub(crate) fn points(&self) -> &VecDeque<(u64, u64)> {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(rows: &[(&str, Option<&str>)]) -> Changes {
        let row = |(key, row): &(&str, Option<&str>)| {
            (key.as_bytes().to_vec(), row.map(|row| Bytes::copy_from_slice(row.as_bytes())))
        };
        rows.iter().map(row).collect()
    }

    fn value(all: &[Changes]) -> u64 {
        let mut chain = Chain::default();
        chain.add(&changes(&[("before", Some("it begins"))]));
        chain.point(7);
        all.iter().for_each(|changes| chain.add(changes));
        chain.point(9);
        assert_eq!(chain.points().len(), 1);
        chain.points()[0].1
    }

    #[test]
    fn every_difference_shows() {
        let ways = [
            vec![changes(&[("a", Some("1")), ("b", Some("2"))])],
            vec![changes(&[("a", Some("2")), ("b", Some("1"))])],
            vec![changes(&[("a", Some("1")), ("b", None)])],
            vec![changes(&[("a", Some("1")), ("b", Some(""))])],
            vec![changes(&[("a", Some("1"))])],
            vec![changes(&[("b", Some("2"))]), changes(&[("a", Some("1"))])],
            vec![],
        ];
        let values: std::collections::BTreeSet<u64> = ways.iter().map(|way| value(way)).collect();
        assert_eq!(values.len(), ways.len());
        // How commands were cut into batches does not matter.
        let cut = [changes(&[("a", Some("1"))]), changes(&[("b", Some("2"))])];
        assert_eq!(value(&cut), value(&ways[0]));
    }
}
