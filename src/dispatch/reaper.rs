//! The reaper: clears deleted task hubs out of every partition, on the node that leads the metadata group.
//!
//! The list of deleted hubs stands in the metadata group until each is clear, so a stop in the middle only
//! delays it: the next leader of that group begins again, and clearing what is clear costs nothing.

use std::time::Duration;

use durahub_cluster::{Error, Leadership};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::{Dispatcher, look};
use crate::engine::command::{ClearHub, ForgetHub};
use crate::engine::read::{self, OfHub};
use crate::engine::state::DeletedHubRecord;
use crate::engine::{Command, Reply, decode_answer};
use crate::machine::{Partition, RowsView};

/// Pause after a failure, and while rows of a hub are being swept.
const PAUSE: Duration = Duration::from_millis(100);
/// A look at the list when nobody has called for one.
const LOOK: Duration = Duration::from_secs(30);

impl Dispatcher {
    /// Closes deleted hubs in every partition: from then on a gateway that has not heard of their end is refused,
    /// so nothing that it acknowledges is lost with them.
    ///
    /// # Errors
    /// When a partition cannot be reached. The reaper goes on all the same.
    pub async fn close_deleted_hubs(&self, metadata: &Partition) -> Result<(), Error> {
        let deleted = metadata.read(|rows| read::deleted_hubs(&RowsView(rows))).await?;
        let closings = deleted.iter().flat_map(|hub| {
            self.0.partitions.iter().map(|partition| {
                let command = Command::ClearHub(ClearHub { hub: hub.id });
                partition.propose(command.into_bytes())
            })
        });
        try_join_all(closings).await.map(drop)
    }

    /// Runs the reaper until the future is dropped.
    pub async fn reap_hubs(self, metadata: Partition) {
        let mut leadership = metadata.leadership();
        loop {
            let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
            if leads && let Err(error) = self.reap(&metadata).await {
                tracing::warn!(%error, "clear a deleted task hub");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            tokio::select! {
                () = self.0.hub_deleted.notified() => {}
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    async fn reap(&self, metadata: &Partition) -> Result<(), Error> {
        for hub in metadata.peek(|rows| read::deleted_hubs(&RowsView(rows))) {
            for partition in &self.0.partitions {
                clear(partition, &hub).await?;
            }
            let forget = Command::ForgetHub(ForgetHub { id: hub.id });
            metadata.propose(forget.into_bytes()).await?;
            tracing::info!(hub = hub.name, id = hub.id, "deleted task hub is clear");
        }
        Ok(())
    }
}

/// Removes what a partition has of a hub, small command by small command.
async fn clear(partition: &Partition, deleted: &DeletedHubRecord) -> Result<(), Error> {
    let hub = deleted.id;
    loop {
        let began = Instant::now();
        let before = look(partition, OfHub { hub }).await?.has_instances;
        let command = Command::ClearHub(ClearHub { hub });
        let reply = partition.propose(command.into_bytes()).await?;
        match decode_answer(reply) {
            Some(Ok(Reply::Step { done: true })) => return Ok(()),
            Some(Ok(Reply::Step { done: false })) => {}
            other => {
                let (hub, partition) = (&deleted.name, partition.id());
                tracing::warn!(hub, %partition, ?other, "clear a deleted task hub");
            }
        }
        // Others have half of the time at least; without instances only the sweeper has something to do.
        let rest = if before { began.elapsed().min(PAUSE) } else { PAUSE };
        tokio::time::sleep(rest).await;
    }
}
