//! Free bytes of the file system of the data folder.

use std::io;
use std::path::Path;

use super::Room;

/// How much room there is where `path` lies, for a process without privileges. It blocks.
///
/// # Errors
/// When the system does not say.
pub(super) fn look(path: &Path) -> io::Result<Room> {
    let disk = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    Ok(Room { free: bytes(disk.f_bavail), total: bytes(disk.f_blocks) })
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
