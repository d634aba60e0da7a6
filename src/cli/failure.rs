//! How a command that talks to a server fails: one message, and an exit code that a script can tell apart.
//!
//! The codes are a promise to scripts: [`EXIT_CODES`] stands in the help text of these commands, and a number
//! never gets another meaning.

use std::fmt;

use tonic::{Code, Status};

/// The table of exit codes, as the help text shows it.
pub(super) const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed for another reason than those below
  2  the command line cannot be understood
  3  no such instance, entity or task hub
  4  refused: the request or the state of the instance does not allow it
  5  the server cannot be reached, or is not ready
  6  not authenticated, or not allowed
  7  an awaited instance has ended, but not as completed
  8  an awaited instance did not get there in time (--timeout)";

/// Why a command failed. The number is the exit code of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Anything else.
    Other = 1,
    /// The command line contradicts itself, or lacks a confirmation.
    Usage = 2,
    /// No such instance, entity or task hub.
    NotFound = 3,
    /// The request or the state does not allow it.
    Refused = 4,
    /// The server cannot be reached, or is not ready.
    Unreachable = 5,
    /// Not authenticated, or not allowed.
    Denied = 6,
    /// An awaited instance has ended, but not as completed.
    NotCompleted = 7,
    /// The time of a wait is over.
    TimedOut = 8,
}

/// A failure with its exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    message: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Failure {
        Failure { reason, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// What a server answered instead of doing what was asked.
impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let reason = match status.code() {
            Code::NotFound => Reason::NotFound,
            Code::InvalidArgument
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::ResourceExhausted => Reason::Refused,
            Code::Unavailable | Code::DeadlineExceeded => Reason::Unreachable,
            Code::Unauthenticated | Code::PermissionDenied => Reason::Denied,
            _ => Reason::Other,
        };
        let mut message = match status.message() {
            "" => status.code().description().to_owned(),
            text => text.to_owned(),
        };
        // A broken connection says why only in its causes.
        add_causes(&mut message, &status);
        Failure::new(reason, message)
    }
}

/// Adds what an error is caused by, each cause that says something new.
pub(super) fn add_causes(message: &mut String, error: &dyn std::error::Error) {
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            *message += &format!(": {text}");
        }
        cause = error.source();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_text_lists_every_code() {
        use Reason::*;
        for reason in [Other, Usage, NotFound, Refused, Unreachable, Denied, NotCompleted, TimedOut]
        {
            let line = format!("\n  {}  ", reason as u8);
            assert!(EXIT_CODES.contains(&line), "{reason:?}");
        }
    }

    #[test]
    fn a_status_becomes_a_code() {
        for (code, reason) in [
            (Code::NotFound, Reason::NotFound),
            (Code::FailedPrecondition, Reason::Refused),
            (Code::Unavailable, Reason::Unreachable),
            (Code::PermissionDenied, Reason::Denied),
            (Code::Unauthenticated, Reason::Denied),
            (Code::Internal, Reason::Other),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")), Failure::new(reason, "x"));
        }
        assert!(!Failure::from(Status::new(Code::Internal, "")).to_string().is_empty());
    }
}
