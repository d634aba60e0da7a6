//! A recorded history of calls, and the one checker over it.
//!
//! Customers start orchestrations, raise events and purge what has ended ([`customers`]), tellers pay money into accounts
//! and move it under locks ([`books`], [`teller`], [`accounts`]), workers run it all ([`worker`]), over gRPC as an SDK
//! would ([`calls`]). Everything that was sent and everything that was acknowledged is written down
//! ([`ledger`]). When all is over the ledger is held against what each server then says ([`check`], [`told`]).
//! Beside it, [`register`] records writes and reads of single values and says whether they could have happened
//! one after the other ([`linear`]). What is held to be true, by architecture.md §5:
//!
//! - S1: every acknowledged start completes, with the right output; every acknowledged event and activity
//!   result is there; a write that was refused is never seen;
//! - S2: a start with a reuse policy replaces atomically: two writers' values never mix;
//! - S3, S4: what a worker has seen of a history stays as it was, and grows only at its end;
//! - S5: each scheduled task has one terminal event, and no result comes without a task;
//! - S6: timers fire once, not early;
//! - S7: events arrive in the order of their sender, and once unless the client had to send them twice;
//!   operations of entities likewise;
//! - S8: what has ended stays as it ended, and whoever waits for the end is woken;
//! - S9: a parent gets one answer per child, and it is the child's;
//! - S10: nobody writes between what an orchestration reads under its locks and what it writes; no lock is left;
//! - S11: nothing of a purged instance is found, and an instance that is started under its id begins from nothing;
//! - S12: a read sees every write that was acknowledged before it began, through whatever server;
//! - S13: the history of an instance is the same, byte by byte, from every server;
//! - L1, L3: once the faults end, everything finishes, work lost with a server included.
//!
//! Not visible from outside, and checked elsewhere: rows that a purge leaves (`src/engine/decide/purge/tests.rs`).
//!
//! `tests/support/main.rs` shows that the checker sees each kind of damage.
#![allow(dead_code)] // each test uses its part

pub(crate) mod accounts;
pub(crate) mod books;
pub(crate) mod calls;
pub(crate) mod check;
pub(crate) mod customers;
pub(crate) mod ledger;
pub(crate) mod linear;
pub(crate) mod register;
pub(crate) mod teller;
pub(crate) mod told;
pub(crate) mod worker;
