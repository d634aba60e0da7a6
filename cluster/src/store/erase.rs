//! Deletes what a node has of a group, piece by piece, so that others read and write meanwhile.
//!
//! What stays is the vote, and what is written of the group's [`Holding`](super::holding::Holding), which makes a start
//! go on where the end of the process cut this short. The group's tasks must have ended, and its last writes must have
//! left the flusher.

use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::{Engine, Space, WriteBatch, keys};

/// Keys of one piece.
const PIECE: usize = 512;
/// Longest rest behind a piece: others have half of the time at least.
const REST: Duration = Duration::from_millis(50);

/// Deletes the rows, the log and the pointers of a group. Blocks. Ends early with `Ok(false)` once `stop` says so.
pub(crate) fn erase(engine: &dyn Engine, group: u32, stop: &dyn Fn() -> bool) -> io::Result<bool> {
    let spaces = [
        (Space::State(group), Vec::new(), keys::STATE_END.to_vec()),
        (Space::Log, keys::record(group, 0), keys::record_end(group)),
        (Space::Log, keys::chunk(group, 0, 0), keys::chunk_end(group)),
    ];
    for (space, mut from, to) in spaces {
        loop {
            if stop() {
                return Ok(false);
            }
            let began = Instant::now();
            let mut piece = WriteBatch::new();
            engine.scan(space, &from, &to, &mut |key, _| {
                piece.push((key.to_vec(), None));
                if piece.len() < PIECE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let Some((last, _)) = piece.last() else { break };
            from = last.clone();
            engine.write(space, piece)?;
            if !engine.volatile() {
                std::thread::sleep(began.elapsed().min(REST));
            }
        }
    }
    let pointers = [keys::PURGED, keys::COMMITTED, keys::INSTALL, keys::QUARANTINE];
    let pointers = pointers.iter().map(|prefix| (keys::pointer(*prefix, group), None));
    engine.write(Space::Log, pointers.collect())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryEngine;
    use super::*;

    fn count(engine: &MemoryEngine, space: Space) -> usize {
        let mut count = 0;
        engine
            .scan(space, &[], &[0xff], &mut |_, _| {
                count += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        count
    }

    #[test]
    fn nothing_is_left_but_the_vote_and_others_keep_all() {
        let engine = MemoryEngine::default();
        let put = |space, key: Vec<u8>| engine.write(space, vec![(key, Some(vec![1]))]).unwrap();
        for group in [1, 2, 3] {
            put(Space::State(group), keys::APPLIED.to_vec());
            for n in 0..1_500_u32 {
                put(Space::State(group), keys::row(&n.to_be_bytes()));
                put(Space::State(group), keys::row_chunk(&n.to_be_bytes(), n));
                put(Space::Log, keys::record(group, u64::from(n) << 40));
                put(Space::Log, keys::chunk(group, u64::from(n), n as u16));
            }
            put(Space::Log, keys::record(group, u64::MAX));
            put(Space::Log, keys::chunk(group, u64::MAX, u16::MAX));
            for prefix in [b'V', b'P', b'C', b'I', b'Q', b'H'] {
                put(Space::Log, keys::pointer(prefix, group));
            }
        }
        let (rows, log) = (count(&engine, Space::State(1)), count(&engine, Space::Log) / 3);
        assert!(!erase(&engine, 2, &|| true).unwrap(), "it is told to stop");
        assert!(erase(&engine, 2, &|| false).unwrap());
        for group in [1, 3] {
            assert_eq!(count(&engine, Space::State(group)), rows);
        }
        assert_eq!(count(&engine, Space::State(2)), 0);
        assert_eq!(count(&engine, Space::Log), 2 * log + 2);
        for prefix in [keys::VOTE, keys::HOLDING] {
            assert!(engine.get(Space::Log, &keys::pointer(prefix, 2)).unwrap().is_some());
        }
    }
}
