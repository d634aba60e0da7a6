//! openraft's own storage tests, on both engines.

use std::io;
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::log::LogStore;
use super::snapshots::Snapshots;
use super::state::State;
use super::types::Types;
use crate::machine::{Applied, Changes, GroupId, Machine, Rows, Stamp};
use crate::store::flusher::Flusher;
use crate::store::memory::MemoryEngine;
use crate::store::rows::StateRows;
use crate::store::sled::SledEngine;
use crate::store::{Engine, FaultHook};

/// A machine that does nothing: the suite proposes no commands.
struct Idle;

impl Machine for Idle {
    type Effect = ();

    fn apply(&self, _: &dyn Rows, _: Stamp, command: &bytes::Bytes) -> Applied<()> {
        Applied { changes: Changes::new(), reply: command.clone(), effects: Vec::new() }
    }

    fn read(&self, _: &dyn Rows, _: &bytes::Bytes) -> Option<bytes::Bytes> {
        None
    }

    fn committed(&self, _: GroupId, _: Vec<()>) {}
}

struct Builder {
    sled: bool,
}

async fn build(sled: bool) -> io::Result<(tempfile::TempDir, LogStore, State<Idle>)> {
    let dir = tempfile::tempdir()?;
    let engine: Arc<dyn Engine> = if sled {
        Arc::new(SledEngine::open(&dir.path().join("sled"), 2, 8 << 20)?)
    } else {
        Arc::<MemoryEngine>::default()
    };
    let fault = FaultHook::new(|message| panic!("{message}"));
    let flusher = Arc::new(Flusher::start(Arc::clone(&engine), fault.clone())?);
    // So small that most reads of the suite come from stored records.
    let log = LogStore::open(1, Arc::clone(&engine), Arc::clone(&flusher), 200)?;
    let rows = Arc::new(StateRows::new(Arc::clone(&engine), 1, fault.clone()));
    let folder = sled.then(|| dir.path().join("snap"));
    let snapshots = Arc::new(Snapshots::new([7; 16], GroupId(1), folder, engine, flusher));
    snapshots.set_live();
    let state =
        State::open(GroupId(1), Arc::new(Idle), rows, snapshots, fault, Arc::default()).await?;
    Ok((dir, log, state))
}

impl StoreBuilder<Types, LogStore, State<Idle>, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, State<Idle>), StorageError<Types>> {
        build(self.sled).await.map_err(|error| {
            StorageError::from_io_error(
                openraft::ErrorSubject::Store,
                openraft::ErrorVerb::Write,
                error,
            )
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_suite_on_memory() {
    Suite::test_all(Builder { sled: false }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn openraft_suite_on_sled() {
    Suite::test_all(Builder { sled: true }).await.unwrap();
}
