//! Rules that no test shows yet, and why. Short, and shrinking: a rule that a test shows must leave it.

/// Rules, as a text of single numbers and ranges, and who owes them.
pub(crate) const OWED: &[(&str, &str)] = &[
    (
        "R2.99, R2.100, R2.102, R2.103, R3.36 to R3.41, R3.45, R3.70 to R3.76, R4.25, R4.53, R7.2, R7.3",
        "entities are an issue of their own",
    ),
    (
        "R4.81",
        "does not apply: of a rewind by the worker; this server rewrites the history itself (R4.75)",
    ),
];
