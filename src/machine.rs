//! The seam: fits the engine to the machine that `cluster` replicates.
//!
//! The only file that knows both sides. It translates rows, stamps and results, and hands effects to
//! whoever was appointed; it decides nothing.

use std::fmt::{self, Write as _};
use std::ops::ControlFlow;

use bytes::Bytes;
use durahub_cluster::{Applied, GroupId, Machine, Rows, Stamp};

use crate::engine::{self, Effect, View};

/// A partition of orchestrations, on this node.
pub type Partition = durahub_cluster::Partition<Orchestrations>;
/// All partitions of this node.
pub type Node = durahub_cluster::Node<Orchestrations>;

/// Takes the effects of a partition, in log order. It must hand over quickly.
pub type Listener = Box<dyn Fn(GroupId, Vec<Effect>) + Send + Sync>;

/// The engine as a replicated machine.
pub struct Orchestrations {
    listener: Listener,
}

impl Orchestrations {
    /// An engine that tells `listener` what became true.
    pub fn new(listener: Listener) -> Orchestrations {
        Orchestrations { listener }
    }
}

impl Machine for Orchestrations {
    type Effect = Effect;

    fn apply(&self, rows: &dyn Rows, stamp: Stamp, command: &Bytes) -> Applied<Effect> {
        let stamp = engine::Stamp { now: stamp.now, seed: stamp.seed, sequence: stamp.sequence };
        let applied = engine::apply(&RowsView(rows), stamp, command);
        for event in &applied.events {
            tracing::trace!(event = %Name(event), sequence = stamp.sequence, "applied");
        }
        Applied { changes: applied.changes, reply: applied.reply, effects: applied.effects }
    }

    fn read(&self, rows: &dyn Rows, query: &Bytes) -> Option<Bytes> {
        engine::read::answer(&RowsView(rows), query)
    }

    fn committed(&self, group: GroupId, effects: Vec<Effect>) {
        if !effects.is_empty() {
            (self.listener)(group, effects);
        }
    }
}

/// The name of an event. What it holds may be somebody's payload, which is never logged.
struct Name<'e>(&'e engine::Event);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Takes the letters that come first, and no more.
        struct Letters<'f, 'b>(&'f mut fmt::Formatter<'b>);

        impl fmt::Write for Letters<'_, '_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                let end = text.find(|letter: char| !letter.is_alphanumeric());
                self.0.write_str(&text[..end.unwrap_or(text.len())])?;
                if end.is_some() { Err(fmt::Error) } else { Ok(()) }
            }
        }

        // It stops at the first character that is not part of the name.
        let _ = write!(Letters(f), "{:?}", self.0);
        Ok(())
    }
}

/// Rows of a partition as the engine's read models want them.
pub struct RowsView<'a>(pub &'a dyn Rows);

impl View for RowsView<'_> {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.0.get(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) {
        self.0.scan(from, to, visit);
    }
}
