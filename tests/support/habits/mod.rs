//! Programs as each public SDK runs them, with the habits that the contract tells of it.
//!
//! | SDK | Habits |
//! | --- | --- |
//! | [`go`] | sends no token, its actions in random order, an empty child id; states no limits; forgets what failed |
//! | [`java`] | one item at a time on the thread that reads; drops its stream for 5 s on any error of a completion |
//! | [`dotnet`] | streams histories; splits completions; gives back what it rejects or cannot complete; gives up on silence |
//! | [`python`] | states its limits; reuses an action's id when it retries; gives back what is queued when it stops |

pub mod dotnet;
pub mod go;
pub mod java;
pub mod python;

use durahub_proto::wire;
use tonic::Code;

/// The completion of a turn, as most SDKs send it.
fn response(
    token: &str,
    request: &wire::OrchestratorRequest,
    actions: Vec<wire::OrchestratorAction>,
) -> wire::OrchestratorResponse {
    wire::OrchestratorResponse {
        instance_id: request.instance_id.clone(),
        actions,
        completion_token: token.to_owned(),
        ..Default::default()
    }
}

/// Codes on which a completion is sent again (section 1.10).
fn may_retry(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::Internal | Code::Unavailable | Code::DeadlineExceeded)
}
