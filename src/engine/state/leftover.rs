//! Rows that outlived their instance or generation for a moment, because one command may not remove as many.

use super::Address;

/// A note that rows are to be swept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The instance.
    pub at: Address,
    /// Rows of this generation and of those before it.
    pub generation: u64,
    /// Whether the instance itself is gone. If not, only the history is swept: tasks of a generation may
    /// outlive it (R4.26).
    pub whole: bool,
}
