//! `SkipGracefulOrchestrationTerminations`: instances end at once, without a worker (R2.98).

use std::collections::BTreeSet;

use durahub_proto::wire;
use tonic::Status;

use super::Gateway;
use crate::engine::command::ForceTerminate;
use crate::engine::{Command, Reply};

/// Most ids in one request (R2.88, R2.98).
pub(super) const BATCH_IDS: usize = 500;
/// Instances that one command ends: what each has is removed in the same step.
const COMMAND_IDS: usize = 32;

impl Gateway {
    pub(super) async fn skip_graceful(
        &self,
        hub: u32,
        request: wire::SkipGracefulOrchestrationTerminationsRequest,
    ) -> Result<wire::SkipGracefulOrchestrationTerminationsResponse, Status> {
        let ids = request.instance_batch.unwrap_or_default().instance_ids;
        check_batch("instanceBatch.instanceIds", &ids)?;
        self.check_payload("reason", request.reason.as_ref())?;
        let mut left = BTreeSet::new();
        for (partition, ids) in self.by_partition(hub, ids.iter().cloned(), |id| id) {
            for ids in ids.chunks(COMMAND_IDS) {
                let reason = request.reason.clone();
                let command = ForceTerminate { hub, instances: ids.to_vec(), reason };
                match super::propose(&partition, Command::ForceTerminate(command)).await? {
                    Reply::Unterminated { instances } => left.extend(instances),
                    other => return Err(Status::internal(format!("unexpected answer {other:?}"))),
                }
            }
        }
        let ended = ids.len() - left.len();
        let hub = self.0.dispatcher.hub_name(hub);
        tracing::info!(%hub, ended, left = left.len(), "instances ended without a worker");
        let unterminated = ids.into_iter().filter(|id| left.remove(id)).collect();
        Ok(wire::SkipGracefulOrchestrationTerminationsResponse {
            unterminated_instance_ids: unterminated,
        })
    }
}

/// Refuses longer lists of ids than the protocol allows.
pub(super) fn check_batch(field: &str, ids: &[String]) -> Result<(), Status> {
    if ids.len() > BATCH_IDS {
        return Err(Status::invalid_argument(format!(
            "{field}: {} ids are more than the limit of {BATCH_IDS}; send several requests",
            ids.len()
        )));
    }
    Ok(())
}
