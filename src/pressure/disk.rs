//! Free bytes of the file system of the data folder.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Pressure, Room, Source};

/// Pause between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// How much room there is where `path` lies, for a process without privileges. It blocks.
///
/// # Errors
/// When the system does not say.
fn look(path: &Path) -> io::Result<Room> {
    let disk = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Room { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
}

/// Looks at the room where `path` lies, again and again.
pub struct DiskWatch {
    pressure: Pressure,
    path: PathBuf,
    /// That a look failed was said already.
    is_told: bool,
}

impl DiskWatch {
    /// Looks for the first time. A look that fails changes nothing.
    pub async fn start(pressure: Pressure, path: PathBuf) -> DiskWatch {
        let mut watch = DiskWatch { pressure, path, is_told: false };
        watch.look().await;
        watch
    }

    /// Goes on to look until it is dropped.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let path = self.path.clone();
        // A network file system may take its time: the runtime's threads have other things to do.
        let looked = tokio::task::spawn_blocking(move || look(&path)).await;
        match looked.map_err(io::Error::other).flatten() {
            Ok(room) => {
                self.is_told = false;
                self.pressure.see(Source::Disk, room);
            }
            Err(error) if !self.is_told => {
                self.is_told = true;
                tracing::warn!(%error, "free disk space cannot be looked up");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_where_the_tests_run() {
        let room = look(Path::new(".")).unwrap();
        assert!(0 < room.free && room.free < room.total, "{room:?}");
        assert!(look(Path::new("/nowhere/at/all")).is_err());
    }
}
