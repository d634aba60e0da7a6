//! The sweeper of a partition: removes, bit by bit, the rows that purges and long generations left behind.
//!
//! It runs where the partition is led and knows nothing that the rows do not: a leader that follows goes on.
//! One command is under way at a time, each is small, and a rest follows it, so other work passes between
//! them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::engine::command::Sweep;
use crate::engine::{Command, read};
use crate::machine::{Partition, RowsView};

/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// The sweeper of one partition; it stops when this is dropped.
pub(super) struct Sweeper {
    wake: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Sweeper {
    /// Begins with what is there.
    pub(super) fn start(partition: Partition) -> Sweeper {
        let wake = Arc::new(Notify::new());
        let task = tokio::spawn(run(partition, Arc::clone(&wake)));
        Sweeper { wake, task }
    }

    /// There is something to sweep.
    pub(super) fn poke(&self) {
        self.wake.notify_one();
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(partition: Partition, wake: Arc<Notify>) {
    loop {
        while partition.peek(|rows| read::sweep_due(&RowsView(rows))) {
            let began = Instant::now();
            if let Err(error) = partition.propose(Command::Sweep(Sweep {}).into_bytes()).await {
                tracing::warn!(partition = %partition.id(), %error, "sweep purged rows");
                tokio::time::sleep(PAUSE).await;
            }
            tokio::time::sleep(began.elapsed().min(PAUSE)).await;
        }
        wake.notified().await;
    }
}
