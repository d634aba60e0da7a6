//! Rules that no test shows yet, and why. Short, and shrinking: a rule that a test shows must leave it.

/// Rules, as a text of single numbers and ranges, and who owes them.
pub(crate) const OWED: &[(&str, &str)] = &[
    (
        "R2.99, R2.100, R2.102, R2.103, R2.104, R3.36 to R3.41, R3.45, R3.70 to R3.76, R4.25, R4.53, R7.2, R7.3",
        "entities are an issue of their own",
    ),
    (
        "R2.4, R2.51, R2.52, R2.60 to R2.71, R4.23, R4.24, R4.34 to R4.44, R4.58, R4.76 to R4.83, R6.4",
        "children, messages between instances, rewind and restart: the work of branch msg",
    ),
    ("R2.73 to R2.91, R7.7, R7.8, R8.1", "lists, purge: the work of branch read"),
];
