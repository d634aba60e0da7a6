//! From our errors to gRPC codes, in one place (section 1.10).

use durahub_cluster::Error;
use tonic::Status;
use tonic::metadata::MetadataValue;

use crate::dispatch::CompleteError;
use crate::engine::Reject;

/// Where gRPC clients look for the time after which a call is worth repeating, in milliseconds.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The status of a deterministic refusal: nothing was changed.
pub(crate) fn of_reject(reject: &Reject) -> Status {
    let text = reject.to_string();
    match reject {
        Reject::NotFound { .. } | Reject::HubDeleted => Status::not_found(text),
        Reject::AlreadyExists { .. } => Status::already_exists(text),
        Reject::InvalidReusePolicy => Status::invalid_argument(text),
        Reject::InboxFull { .. } | Reject::QueueFull { .. } => Status::resource_exhausted(text),
        Reject::UnknownCommand => Status::internal(text),
        Reject::NotFailed { .. } | Reject::NotEnded { .. } | Reject::LocksLost { .. } => {
            Status::failed_precondition(text)
        }
        // Workers are never told (R3.55); nobody else can meet these.
        Reject::StaleTurn | Reject::StaleBatch | Reject::TaskNotOpen => {
            Status::failed_precondition(text)
        }
    }
}

/// The status of "not here or not now".
pub(crate) fn of_cluster(error: &Error) -> Status {
    let text = error.to_string();
    match error {
        // Retried by clients, and only right because nothing was committed (R1.32, R1.33).
        Error::NotLeader { .. } | Error::Stopping => Status::unavailable(text),
        // It may have been committed: a client must not repeat it blindly.
        Error::Unavailable(_) => Status::unknown(text),
        Error::TooLarge { .. } => Status::resource_exhausted(text),
        Error::Refused(refusal) => {
            let mut status = Status::resource_exhausted(text);
            let retry = refusal.retry.as_millis().try_into().unwrap_or(u64::MAX);
            status.metadata_mut().insert(PUSHBACK, MetadataValue::from(retry));
            status
        }
    }
}

/// The status of a completion that was not taken in.
pub(crate) fn of_completion(error: &CompleteError) -> Status {
    match error {
        CompleteError::Cluster(error) => of_cluster(error),
        // The worker sends it again, after a while (R1.10).
        CompleteError::NoRoom => Status::unavailable(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// R1.32, R1.33: clients repeat a call that was answered so, whatever it is.
    #[test]
    fn only_calls_that_committed_nothing_are_unavailable() {
        assert_eq!(of_cluster(&Error::NotLeader { leader: None }).code(), Code::Unavailable);
        assert_eq!(of_cluster(&Error::Unavailable("no quorum".into())).code(), Code::Unknown);
        assert_eq!(
            of_cluster(&Error::TooLarge { bytes: 2, limit: 1 }).code(),
            Code::ResourceExhausted
        );
    }
}
