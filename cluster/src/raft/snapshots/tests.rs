//! Sending, installing and refusing snapshots, with the end of the process in between.

use std::ops::ControlFlow;

use bytes::Bytes;
use tempfile::TempDir;

use super::super::types::{CommittedLeaderId, StoredMembership};
use super::*;
use crate::machine::Changes;
use crate::store::FaultHook;
use crate::store::sled::SledEngine;

const CLUSTER: [u8; 16] = [5; 16];

struct Replica {
    dir: TempDir,
    engine: Arc<dyn Engine>,
    flusher: Arc<Flusher>,
    rows: Arc<StateRows>,
    snapshots: Arc<Snapshots>,
}

impl Replica {
    fn open(dir: TempDir) -> Self {
        let fault = FaultHook::new(|message| panic!("{message}"));
        let engine: Arc<dyn Engine> =
            Arc::new(SledEngine::open(&dir.path().join("sled"), 2, 8 << 20).unwrap());
        let flusher = Arc::new(Flusher::start(Arc::clone(&engine), fault.clone()).unwrap());
        let rows = Arc::new(StateRows::new(Arc::clone(&engine), 1, fault));
        let folder = Some(dir.path().join("snap"));
        let snapshots =
            Snapshots::new(CLUSTER, GroupId(1), folder, Arc::clone(&engine), Arc::clone(&flusher));
        snapshots.set_live();
        Self { dir, engine, flusher, rows, snapshots: Arc::new(snapshots) }
    }

    fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    /// The same folder after the process ended. There is no log here that could repeat the newest rows.
    fn restart(self) -> Self {
        self.rows.store().unwrap();
        self.flusher.close();
        self.engine.close();
        Self::open(self.dir)
    }

    fn write(&self, index: u64, rows: impl IntoIterator<Item = (u32, usize)>) -> Applied {
        let applied = applied(index);
        let value = |size| Some(Bytes::from(vec![index as u8; size]));
        let changes: Changes =
            rows.into_iter().map(|(key, size)| (key.to_be_bytes().to_vec(), value(size))).collect();
        self.rows.write(changes, codec::encode(&applied).unwrap()).unwrap();
        applied
    }

    fn contents(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut seen = Vec::new();
        self.rows
            .scan_all(&mut |key, value| {
                seen.push((key.to_vec(), value.to_vec()));
                ControlFlow::Continue(())
            })
            .unwrap();
        seen
    }

    fn marker(&self) -> Option<Bytes> {
        self.engine.get(Space::Log, &keys::pointer(keys::INSTALL, 1)).unwrap()
    }

    /// A copy of what `source` would send, as the transport leaves it.
    async fn receive(&self, source: &Replica, applied: &Applied) -> (SnapshotMeta, PathBuf) {
        let snapshot = source.snapshots.current(&source.rows, applied).await.unwrap().unwrap();
        let path = self.snapshots.incoming().unwrap().unwrap();
        let Body::File(sent) = snapshot.snapshot else { panic!("a file was expected") };
        fs::copy(sent, &path).unwrap();
        (snapshot.meta, path)
    }
}

fn applied(index: u64) -> Applied {
    let last = Some(LogId::new(CommittedLeaderId::new(3), index));
    Applied { last, membership: StoredMembership::default(), time: 77 }
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_replaces_the_rows() {
    let (leader, follower) = (Replica::new(), Replica::new());
    let position = leader.write(40, (0..300).map(|key| (key, 100 * key as usize)));
    follower.write(2, [(1, 50_000), (999, 10)]);
    let (meta, path) = follower.receive(&leader, &position).await;
    let installed =
        follower.snapshots.install(&follower.rows, &meta, Body::File(path.clone())).await.unwrap();
    assert_eq!(installed, position);
    assert!(!path.exists(), "the received file was renamed");
    let follower = follower.restart();
    assert_eq!(follower.contents(), leader.contents());
    assert_eq!(
        follower.rows.applied().unwrap().as_deref(),
        Some(&codec::encode(&position).unwrap()[..])
    );
    assert_eq!(follower.marker(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn install_that_was_cut_short_is_repeated_at_start() {
    let (leader, follower) = (Replica::new(), Replica::new());
    let position = leader.write(40, (0..300).map(|key| (key, 5_000)));
    let (meta, path) = follower.receive(&leader, &position).await;
    // The process ends after the marker, with some of the rows loaded and some old ones left.
    let (_, body) = follower.snapshots.accept(&meta, Body::File(path)).await.unwrap();
    let Body::File(path) = &body else { panic!("a file was expected") };
    follower.snapshots.mark(Some(file_name(path).unwrap())).await.unwrap();
    follower.write(2, [(7, 9_000), (5_000, 9_000)]);
    let follower = follower.restart();
    assert_ne!(follower.contents(), leader.contents());
    follower.snapshots.resume_install(&follower.rows).await.unwrap();
    assert_eq!(follower.contents(), leader.contents());
    assert_eq!(follower.marker(), None);
    // A second start has nothing to repeat.
    follower.write(41, [(0, 1)]);
    let follower = follower.restart();
    follower.snapshots.resume_install(&follower.rows).await.unwrap();
    assert_eq!(follower.contents()[0].1, [41]);
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_that_does_not_fit_is_refused_and_the_rows_stay() {
    let (leader, follower) = (Replica::new(), Replica::new());
    let position = leader.write(40, (0..300).map(|key| (key, 5_000)));
    follower.write(2, [(1, 10)]);
    let before = follower.contents();
    let refused = async |meta: &SnapshotMeta, path: PathBuf| {
        let error =
            follower.snapshots.install(&follower.rows, meta, Body::File(path)).await.unwrap_err();
        assert_eq!(follower.contents(), before);
        assert_eq!(follower.marker(), None);
        error.to_string()
    };

    let (meta, path) = follower.receive(&leader, &position).await;
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 100]).unwrap();
    refused(&meta, path).await;

    let (_, path) = follower.receive(&leader, &position).await;
    let error = refused(&meta_of(&applied(41)), path).await;
    assert!(error.contains("another position"), "{error}");

    let (meta, path) = follower.receive(&leader, &position).await;
    let mut foreign = whole;
    foreign[8] ^= 1;
    fs::write(&path, &foreign).unwrap();
    refused(&meta, path).await;

    let other = Snapshots::new(
        [6; 16],
        GroupId(1),
        None,
        Arc::clone(&leader.engine),
        Arc::clone(&leader.flusher),
    );
    other.set_live();
    let snapshot = other.current(&leader.rows, &position).await.unwrap().unwrap();
    let error = follower
        .snapshots
        .install(&follower.rows, &snapshot.meta, snapshot.snapshot)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another cluster"), "{error}");
    assert_eq!(follower.contents(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_file_is_sent_again_until_the_log_moves_past_it() {
    let leader = Replica::new();
    let position = leader.write(40, [(1, 10)]);
    let first = leader.snapshots.current(&leader.rows, &position).await.unwrap().unwrap();
    let later = leader.write(41, [(2, 10)]);
    let again = leader.snapshots.current(&leader.rows, &later).await.unwrap().unwrap();
    assert_eq!(again.meta, first.meta);
    // Entries up to 41 may be purged after this, so the file of 40 no longer leads anywhere.
    leader.snapshots.builder(&leader.rows, &later).build().await.unwrap();
    let fresh = leader.snapshots.current(&leader.rows, &later).await.unwrap().unwrap();
    assert_eq!(fresh.meta, meta_of(&later));
    assert_eq!(fs::read_dir(leader.dir.path().join("snap")).unwrap().count(), 2);
}
