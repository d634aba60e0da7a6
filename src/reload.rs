//! What makes a running node read its files again: SIGHUP, or a file that changed.
//!
//! Files are looked at, not watched: a secret that Kubernetes mounts changes by the swap of a link two folders
//! up, which no watch on the file would see, and a look costs nothing.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Why files are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody asked, by SIGHUP.
    Signal,
    /// A file has changed.
    Change,
}

/// What a look at a file sees.
type Sight = Option<(std::time::Duration, u64)>;

/// Calls `reload` at every SIGHUP, and when one of the files has changed and then was the same for a look: the
/// two files of a certificate and its key do not change at one instant.
///
/// # Errors
/// When the signal cannot be caught.
pub(crate) fn run(
    files: Vec<PathBuf>,
    mut reload: impl FnMut(Cause) + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read = look(&files).await;
        let mut seen = read.clone();
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    read = look(&files).await;
                    seen = read.clone();
                    reload(Cause::Signal);
                }
                _ = ticks.tick() => {
                    let now = look(&files).await;
                    if now == seen && now != read {
                        read = now.clone();
                        reload(Cause::Change);
                    }
                    seen = now;
                }
            }
        }
    })
}

async fn look(files: &[PathBuf]) -> Vec<Sight> {
    let mut sights = Vec::with_capacity(files.len());
    for file in files {
        let found = tokio::fs::metadata(file).await.ok();
        sights.push(found.and_then(|found| {
            let changed = found.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
            Some((changed, found.len()))
        }));
    }
    sights
}
