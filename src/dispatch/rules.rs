//! What the configuration says of instances, and may say anew while the node runs.

use std::sync::Arc;

use parking_lot::RwLock;

use super::{Limits, Retention};

/// How large instances may be, and how long those that have ended stay.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How large one instance may be.
    pub limits: Limits,
    /// Longest instance id, in characters (R2.3).
    pub instance_id_length: usize,
    /// How long ended instances stay in hubs that do not say so themselves.
    pub retention: Retention,
}

/// The rules that hold now; a cheap handle, shared by all who ask.
#[derive(Clone, Debug)]
pub struct CurrentRules(Arc<RwLock<Rules>>);

impl CurrentRules {
    /// Begins with these.
    #[must_use]
    pub fn new(rules: Rules) -> CurrentRules {
        CurrentRules(Arc::new(RwLock::new(rules)))
    }

    /// What holds at this moment. What is under way is judged by what held when it began.
    #[must_use]
    pub fn get(&self) -> Rules {
        *self.0.read()
    }

    pub(super) fn set(&self, rules: Rules) {
        *self.0.write() = rules;
    }
}
