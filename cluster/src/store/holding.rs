//! What a node has of a group, written down: whether it holds a replica, and which one.
//!
//! A group that nothing is written of is as it was made: the first members hold all groups, and so does a folder of a
//! version that knew nothing else; whoever joins holds none but the metadata. A replica that was *begun* by request
//! grows until it has applied all that was committed then; only after that it may vote. One that was given up goes bit
//! by bit; its vote stays for ever, so that nobody who was promised something is promised the contrary.

use std::io;
use std::ops::ControlFlow;

use prost::Message;

use super::{Engine, Space, keys};

/// What a node has of a group.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Holding {
    #[prost(enumeration = "Stage", tag = "1")]
    pub(crate) stage: i32,
    /// Requests to begin a replica so far: names the replica that is here.
    #[prost(uint64, tag = "2")]
    pub(crate) begun: u64,
    /// Log index that a replica must have applied to be grown.
    #[prost(uint64, tag = "3")]
    pub(crate) until: u64,
}

/// Where a replica is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Stage {
    /// Not known to this version.
    Unspecified = 0,
    /// It is here, and votes.
    Held = 1,
    /// It is here, and does not vote yet.
    Growing = 2,
    /// It was given up, and its rows are being deleted.
    Going = 3,
    /// Nothing is here but a vote.
    Gone = 4,
}

impl Holding {
    pub(crate) fn new(stage: Stage, begun: u64, until: u64) -> Self {
        Self { stage: stage.into(), begun, until }
    }

    /// Whether there is a replica.
    pub(crate) fn is_here(&self) -> bool {
        matches!(self.stage(), Stage::Held | Stage::Growing)
    }

    /// What is written of a group. `is_first`: the node is one of those that the cluster began with.
    pub(crate) fn load(engine: &dyn Engine, group: u32, is_first: bool) -> io::Result<Self> {
        if let Some(bytes) = engine.get(Space::Log, &keys::pointer(keys::HOLDING, group))? {
            let holding = Self::decode(bytes).map_err(io::Error::other)?;
            if holding.stage() == Stage::Unspecified {
                let text =
                    format!("a newer version has written what this node has of partition {group}");
                return Err(io::Error::other(text));
            }
            return Ok(holding);
        }
        let is_held = group == 0 || is_first || has_any(engine, group)?;
        Ok(Self::new(if is_held { Stage::Held } else { Stage::Gone }, 0, 0))
    }
}

/// Whether a version that wrote no [`Holding`] has left a replica.
fn has_any(engine: &dyn Engine, group: u32) -> io::Result<bool> {
    if engine.get(Space::Log, &keys::pointer(keys::VOTE, group))?.is_some() {
        return Ok(true);
    }
    let mut found = false;
    let (from, to) = (keys::record(group, 0), keys::record(group, u64::MAX));
    engine.scan(Space::Log, &from, &to, &mut |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found || engine.get(Space::State(group), keys::APPLIED)?.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::*;

    fn load(engine: &MemoryEngine, group: u32, is_first: bool) -> Holding {
        Holding::load(engine, group, is_first).unwrap()
    }

    #[test]
    fn a_folder_of_before_holds_all_and_a_new_one_what_it_was_made_with() {
        let engine = MemoryEngine::default();
        let (held, gone) = (Holding::new(Stage::Held, 0, 0), Holding::new(Stage::Gone, 0, 0));
        assert_eq!(load(&engine, 1, true), held);
        assert_eq!(load(&engine, 1, false), gone);
        assert_eq!(load(&engine, 0, false), held, "the metadata is everywhere");
        engine.write(Space::Log, vec![(keys::pointer(keys::VOTE, 1), Some(vec![1]))]).unwrap();
        engine.write(Space::Log, vec![(keys::record(3, 1), Some(vec![1]))]).unwrap();
        assert_eq!([1, 2, 3].map(|group| load(&engine, group, false)), [held, gone, held]);
    }

    #[test]
    fn what_is_written_counts_and_what_a_newer_version_wrote_is_refused() {
        let engine = MemoryEngine::default();
        let write = |holding: Holding| {
            let row = (keys::pointer(keys::HOLDING, 1), Some(holding.encode_to_vec()));
            engine.write(Space::Log, vec![row]).unwrap();
        };
        for stage in [Stage::Held, Stage::Growing, Stage::Going, Stage::Gone] {
            let holding = Holding::new(stage, 7, 9);
            write(holding);
            assert_eq!(load(&engine, 1, true), holding);
            assert_eq!(holding.is_here(), matches!(stage, Stage::Held | Stage::Growing));
        }
        assert_eq!(Holding::new(Stage::Growing, 7, 9).encode_to_vec(), [8, 2, 16, 7, 24, 9]);
        write(Holding { stage: 5, begun: 1, until: 1 });
        assert!(Holding::load(&engine, 1, true).is_err());
    }
}
