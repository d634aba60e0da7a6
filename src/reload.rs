//! What makes a running node read its files again: SIGHUP, or a file that changed.
//!
//! Files are looked at, not watched: a secret that Kubernetes mounts changes by the swap of a link two folders
//! up, which no watch on the file would see, and a look costs nothing.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

/// How often files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before what could not be used is tried again; doubled each time, up to the longest.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Why files are read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody asked, by SIGHUP.
    Signal,
    /// A file has changed.
    Change,
    /// Something could not be used the last time. A file may have been half written then, or not been readable, and
    /// look the same since.
    Again,
}

/// What a look at a file sees.
type Sight = Option<(std::time::Duration, u64)>;

/// Calls `reload` at every SIGHUP, and when one of the files has changed and then was the same for a look: the
/// two files of a certificate and its key do not change at one instant. While `reload` says that something could
/// not be used, it is called again now and then.
///
/// # Errors
/// When the signal cannot be caught.
pub(crate) fn run(
    files: Vec<PathBuf>,
    mut reload: impl FnMut(Cause) -> bool + Send + 'static,
) -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut read = look(&files).await;
        let mut seen = read.clone();
        // When to try again, and the pause before.
        let mut again: Option<(Instant, Duration)> = None;
        loop {
            let cause = tokio::select! {
                _ = hangup.recv() => {
                    read = look(&files).await;
                    seen = read.clone();
                    Cause::Signal
                }
                _ = ticks.tick() => {
                    let now = look(&files).await;
                    let is_quiet = now == seen;
                    seen = now;
                    if !is_quiet {
                        continue;
                    }
                    if seen != read {
                        read = seen.clone();
                        Cause::Change
                    } else if again.is_some_and(|(at, _)| at <= Instant::now()) {
                        Cause::Again
                    } else {
                        continue;
                    }
                }
            };
            // Files may take their time, a pipe as long as it likes: what waits on this thread goes to others.
            let all_read = tokio::task::block_in_place(|| reload(cause));
            again = match (all_read, again) {
                (true, _) => None,
                (false, Some((_, pause))) if cause == Cause::Again => {
                    let pause = (2 * pause).min(AGAIN_MAX);
                    Some((Instant::now() + pause, pause))
                }
                (false, _) => Some((Instant::now() + AGAIN, AGAIN)),
            };
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
