//! How much memory this process may take, and how much it has.
//!
//! What it may take is the tightest limit of its cgroup and of those above it, of version 2 or 1, or else what the
//! machine has. What it has is what is resident: pages that the kernel keeps of files can be taken back at any time
//! and do not count.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Room;

/// Smallest and largest storage cache, in bytes, that is chosen by itself.
const CACHE_LEAST: u64 = 16 << 20;
const CACHE_MOST: u64 = 128 << 20;
/// The part of the memory that a storage cache takes in between.
const CACHE_SHARE: u64 = 16;
/// Least and most room for requests, in bytes, that is chosen by itself.
const REQUESTS_LEAST: u64 = 32 << 20;
const REQUESTS_MOST: u64 = 2 << 30;
/// The part of the memory that is room for requests in between.
const REQUESTS_SHARE: u64 = 4;

/// The memory that this process may take, in bytes; `None` where the system does not say.
#[must_use]
pub fn limit() -> Option<u64> {
    limit_under(Path::new("/"))
}

fn limit_under(root: &Path) -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(root.join(path)).ok();
    let machine = read(Path::new("proc/meminfo")).and_then(|text| kibibytes(&text, "MemTotal:"));
    let groups = read(Path::new("proc/self/cgroup")).unwrap_or_default();
    let limits = groups.lines().flat_map(files).filter_map(|file| {
        // Version 2 says "max", version 1 a number beyond all machines.
        read(&file)?.trim().parse::<u64>().ok()
    });
    limits.chain(machine).min()
}

/// The files with the limits of one line of `/proc/self/cgroup`, `NUMBER:CONTROLLERS:PATH`: of the group and of all
/// above it. In a container the path may be one of the host's, and only the root is there.
fn files(line: &str) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (mount, file) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors();
    groups.map(|group| Path::new(mount).join(group).join(file)).collect()
}

/// Bytes for the storage cache of a process that may take so much.
#[must_use]
pub fn cache_share(budget: Option<u64>) -> u64 {
    budget.map_or(CACHE_MOST, |budget| budget / CACHE_SHARE).clamp(CACHE_LEAST, CACHE_MOST)
}

/// Bytes of requests that a process takes in at a time, if it may take so much memory.
#[must_use]
pub fn request_share(budget: Option<u64>) -> usize {
    let share = budget.map_or(REQUESTS_MOST, |budget| budget / REQUESTS_SHARE);
    share.clamp(REQUESTS_LEAST, REQUESTS_MOST) as usize
}

/// Room of a process that may take so many bytes. It blocks, though hardly.
///
/// # Errors
/// When the system does not say what is resident.
pub(super) fn look(budget: u64) -> io::Result<Room> {
    let status = fs::read_to_string("/proc/self/status")?;
    // Pages of files can go at any time; kernels before 4.5 do not tell them apart.
    let used = kibibytes(&status, "RssAnon:")
        .or_else(|| kibibytes(&status, "VmRSS:"))
        .ok_or_else(|| io::Error::other("/proc/self/status has neither RssAnon nor VmRSS"))?;
    Ok(Room { free: budget.saturating_sub(used), total: budget })
}

/// The number behind a name, in bytes: `MemTotal:  1024 kB`.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The limit on a machine that has these files.
    fn limit_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        limit_under(root.path())
    }

    #[test]
    fn the_tightest_limit_counts() {
        let machine = ("proc/meminfo", "MemTotal:       1048576 kB\nMemFree:  5 kB\n");
        let v2 = ("proc/self/cgroup", "0::/kubepods/pod7\n");
        let v1 = ("proc/self/cgroup", "4:memory:/docker/c0\n3:cpuset,cpu:/\n0::/\n");
        for (files, expected) in [
            (vec![], None),
            (vec![machine], Some(1024 * MIB)),
            (
                vec![machine, v2, ("sys/fs/cgroup/kubepods/pod7/memory.max", "max\n")],
                Some(1024 * MIB),
            ),
            (vec![machine, v2, ("sys/fs/cgroup/kubepods/pod7/memory.max", "1048576\n")], Some(MIB)),
            // The pod has no limit of its own, but one above it has.
            (vec![machine, v2, ("sys/fs/cgroup/kubepods/memory.max", "2097152\n")], Some(2 * MIB)),
            // Inside a container that sees nothing but its own group.
            (vec![machine, v2, ("sys/fs/cgroup/memory.max", "3145728\n")], Some(3 * MIB)),
            (
                vec![
                    machine,
                    v1,
                    ("sys/fs/cgroup/memory/docker/c0/memory.limit_in_bytes", "4194304"),
                ],
                Some(4 * MIB),
            ),
            (
                vec![
                    machine,
                    v1,
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
                ],
                Some(1024 * MIB),
            ),
        ] {
            assert_eq!(limit_with(&files), expected, "{files:?}");
        }
    }

    #[test]
    fn caches_fit_small_containers_and_do_not_grow_for_ever() {
        let chosen = [None, Some(64 * MIB), Some(512 * MIB), Some(2048 * MIB), Some(1 << 40)];
        assert_eq!(chosen.map(|budget| cache_share(budget) / MIB), [128, 16, 32, 128, 128]);
        assert_eq!(chosen.map(|budget| request_share(budget) >> 20), [2048, 32, 128, 512, 2048]);
    }

    #[test]
    fn this_process_has_some_memory_and_may_have_more() {
        let limit = limit().unwrap();
        let Room { free, total } = look(limit).unwrap();
        assert_eq!(total, limit);
        assert!(0 < free && free < total, "{free} of {total}");
        assert_eq!(look(1).unwrap(), Room { free: 0, total: 1 });
    }
}
