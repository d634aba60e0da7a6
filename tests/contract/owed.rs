//! Rules that no test shows yet, and why. Short, and shrinking: a rule that a test shows must leave it.

/// Rules, as a text of single numbers and ranges, and who owes them.
pub(crate) const OWED: &[(&str, &str)] = &[(
    "R4.81",
    "does not apply: of a rewind by the worker; this server rewrites the history itself (R4.75)",
)];
