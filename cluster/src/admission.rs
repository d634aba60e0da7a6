//! Whether a leader takes a command in while its node is short of something.
//!
//! What a node is short of, and when, the program around it knows: it is asked before a command is put into the
//! log, on the node that leads the group, since the command grows that node's store. Followers take whatever their
//! leader has taken: a follower that did not would fall behind and have to be sent everything anew.

use std::sync::Arc;
use std::time::Duration;

/// What a command asks of a node that is short of room, from what it must take to what it can do without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// It is taken in whatever happens: it frees room, ends what has begun, or is the cluster's own.
    #[default]
    Must,
    /// It lets what is there grow.
    Grows,
    /// It begins something new.
    Begins,
}

impl Demand {
    /// How it travels between nodes.
    pub(crate) fn number(self) -> u32 {
        self as u32
    }

    /// Reads what an older or a newer node sends: what is not known must be taken in.
    pub(crate) fn numbered(number: u32) -> Demand {
        [Demand::Must, Demand::Grows, Demand::Begins]
            .into_iter()
            .find(|demand| demand.number() == number)
            .unwrap_or_default()
    }
}

/// Why a command was not taken in. Nothing was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One sentence for the caller: what is short, the setting, what to do.
    pub reason: String,
    /// Time after which it is worth asking again.
    pub retry: Duration,
}

/// Asked by a leader before it takes a command in. Must return at once.
pub type Admit = Arc<dyn Fn(Demand) -> Result<(), Refusal> + Send + Sync>;

/// Takes everything in.
pub(crate) fn everything() -> Admit {
    Arc::new(|_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demands_keep_their_numbers_between_nodes() {
        for (number, demand) in [(0, Demand::Must), (1, Demand::Grows), (2, Demand::Begins)] {
            assert_eq!((demand.number(), Demand::numbered(number)), (number, demand));
        }
        assert_eq!(Demand::numbered(3), Demand::Must);
        assert!(Demand::Must < Demand::Grows && Demand::Grows < Demand::Begins);
    }
}
