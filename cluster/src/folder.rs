//! Whose data folder this is.
//!
//! ```text
//! <data>/node      identity: format, cluster id, node id, partitions (JSON; written once, then synced)
//! <data>/lock      held exclusively while a process uses the folder
//! <data>/sled/     the database, in a numbered folder that `current` names
//! <data>/snap/     snapshot files, one folder per group
//! ```
//!
//! A start that does not fit the folder is refused before anything in it is changed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::StartError;
use crate::store::sled::sync_dir;

/// Format of the folder that this build writes; older ones are read as long as this says so.
pub const FORMAT: u32 = 1;

/// Who a node is. Fixed at its first start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Format of the folder.
    pub format: u32,
    /// Cluster id: 32 hexadecimal digits.
    pub cluster: String,
    /// Node id, unique in the cluster and never reused.
    pub node: u64,
    /// Number of partitions of the cluster, without the metadata group.
    pub partitions: u32,
    /// Drawn for the folder: a node that comes back with another one has lost its data. 0 in folders of
    /// versions before it was known.
    #[serde(default, with = "hex")]
    pub incarnation: u64,
    /// The node came to a running cluster, so it never makes one by itself.
    #[serde(default)]
    pub joined: bool,
}

/// Sixteen digits: JSON readers round large numbers.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &u64, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&format!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

impl Identity {
    /// The cluster id as bytes.
    pub(crate) fn cluster_bytes(&self) -> Option<[u8; 16]> {
        Some(u128::from_str_radix(&self.cluster, 16).ok()?.to_be_bytes())
            .filter(|_| self.cluster.len() == 32)
    }
}

/// What a start expects of a folder.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) node: u64,
    pub(crate) partitions: u32,
    /// `None` accepts any cluster, and makes one up in a new folder.
    pub(crate) cluster: Option<String>,
    /// Incarnation of a new folder.
    pub(crate) incarnation: u64,
    /// Whether a new folder belongs to a node that joins.
    pub(crate) joined: bool,
}

/// An open folder; its lock goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl Folder {
    /// The identity in a folder, if it has one; changes nothing.
    pub(crate) fn peek(path: &Path) -> Result<Option<Identity>, StartError> {
        let identity_path = path.join("node");
        match fs::read(&identity_path) {
            Ok(bytes) => read_identity(&identity_path, &bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StartError::Folder { path: identity_path, source }),
        }
    }

    /// Opens the folder, or makes it. `invent` gives the cluster id of a new folder.
    pub(crate) fn open(
        path: &Path,
        expected: &Expected,
        invent: impl FnOnce() -> String,
    ) -> Result<Self, StartError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| StartError::Folder { path, source }
        };
        fs::create_dir_all(path).map_err(failed(path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StartError::InUse { path: path.to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StartError::Folder { path: lock_path, source });
            }
        }
        let identity_path = path.join("node");
        let identity = match fs::read(&identity_path) {
            Ok(bytes) => {
                let identity = read_identity(&identity_path, &bytes)?;
                check(path, &identity, expected)?;
                identity
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if path.join("sled").exists() {
                    let reason = "there is a database but no identity".to_owned();
                    return Err(StartError::Identity { path: identity_path, reason });
                }
                let identity = Identity {
                    format: FORMAT,
                    cluster: expected.cluster.clone().unwrap_or_else(invent),
                    node: expected.node,
                    partitions: expected.partitions,
                    incarnation: expected.incarnation,
                    joined: expected.joined,
                };
                write_identity(path, &identity).map_err(failed(path))?;
                identity
            }
            Err(source) => return Err(StartError::Folder { path: identity_path, source }),
        };
        Ok(Self { path: path.to_owned(), identity, _lock: lock })
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("sled")
    }

    pub(crate) fn snapshots(&self) -> PathBuf {
        self.path.join("snap")
    }
}

fn read_identity(path: &Path, bytes: &[u8]) -> Result<Identity, StartError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let broken = |reason: String| StartError::Identity { path: path.to_owned(), reason };
    // The format is read first: the rest of a newer file may look different.
    let Format { format } =
        serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    if format > FORMAT {
        let path = path.parent().unwrap_or(path).to_owned();
        return Err(StartError::NewerFormat { path, found: format, known: FORMAT });
    }
    let identity: Identity =
        serde_json::from_slice(bytes).map_err(|error| broken(error.to_string()))?;
    if identity.cluster_bytes().is_none() {
        return Err(broken(format!("{:?} is not a cluster id", identity.cluster)));
    }
    Ok(identity)
}

fn check(path: &Path, found: &Identity, expected: &Expected) -> Result<(), StartError> {
    let path = path.to_owned();
    if found.node != expected.node {
        return Err(StartError::OtherNode { path, found: found.node, wanted: expected.node });
    }
    if let Some(wanted) = expected.cluster.clone().filter(|wanted| *wanted != found.cluster) {
        return Err(StartError::OtherCluster { path, found: found.cluster.clone(), wanted });
    }
    if found.partitions != expected.partitions {
        return Err(StartError::OtherPartitions {
            path,
            found: found.partitions,
            wanted: expected.partitions,
        });
    }
    Ok(())
}

fn write_identity(folder: &Path, identity: &Identity) -> io::Result<()> {
    let (path, temporary) = (folder.join("node"), folder.join("node.tmp"));
    let mut file = File::create(&temporary)?;
    let mut text = serde_json::to_vec_pretty(identity)?;
    text.push(b'\n');
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    sync_dir(folder)?;
    folder.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: &str = "00112233445566778899aabbccddeeff";

    fn expected() -> Expected {
        Expected { node: 1, partitions: 8, cluster: None, incarnation: 0xab, joined: false }
    }

    fn open(path: &Path, expected: &Expected) -> Result<Folder, StartError> {
        Folder::open(path, expected, || CLUSTER.to_owned())
    }

    /// Names and bytes of all files, to see that a refusal changes nothing.
    fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.clone(), fs::read(&path).unwrap()))
            .collect();
        files.sort();
        files
    }

    #[test]
    fn identity_is_written_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = open(&path, &expected()).unwrap().identity().clone();
        let again = Folder::open(&path, &expected(), || panic!("the id is known")).unwrap();
        assert_eq!(again.identity(), &first);
        assert_eq!(first.cluster, CLUSTER);
        assert_eq!(
            fs::read_to_string(path.join("node")).unwrap(),
            "{\n  \"format\": 1,\n  \"cluster\": \"00112233445566778899aabbccddeeff\",\n  \"node\": 1,\n  \"partitions\": 8,\n  \"incarnation\": \"00000000000000ab\",\n  \"joined\": false\n}\n"
        );
    }

    #[test]
    fn second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path(), &expected()).unwrap();
        let error = open(dir.path(), &expected()).unwrap_err();
        assert!(matches!(error, StartError::InUse { .. }), "{error}");
        drop(first);
        open(dir.path(), &expected()).unwrap();
    }

    #[test]
    fn folder_that_does_not_fit_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), &expected()).unwrap());
        let before = contents(dir.path());
        let refused = |expected: Expected| open(dir.path(), &expected).unwrap_err().to_string();
        let error = refused(Expected { partitions: 16, ..expected() });
        assert!(error.starts_with("--partitions 16 but the data folder"), "{error}");
        assert!(error.contains("made with 8"), "{error}");
        let error = refused(Expected { node: 2, ..expected() });
        assert!(error.contains("belongs to node 1, not to node 2"), "{error}");
        let error = refused(Expected { cluster: Some("ff".repeat(16)), ..expected() });
        assert!(error.contains(&format!("belongs to cluster {CLUSTER}")), "{error}");
        assert_eq!(contents(dir.path()), before);
    }

    #[test]
    fn newer_format_is_refused_whatever_else_it_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node"), r#"{"format": 7, "name": "x"}"#).unwrap();
        let error = open(dir.path(), &expected()).unwrap_err();
        assert!(matches!(error, StartError::NewerFormat { found: 7, known: 1, .. }), "{error}");
    }

    #[test]
    fn broken_or_missing_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node"), "{").unwrap();
        assert!(matches!(open(dir.path(), &expected()).unwrap_err(), StartError::Identity { .. }));
        fs::remove_file(dir.path().join("node")).unwrap();
        fs::create_dir(dir.path().join("sled")).unwrap();
        assert!(matches!(open(dir.path(), &expected()).unwrap_err(), StartError::Identity { .. }));
    }

    #[test]
    fn folder_that_cannot_be_made_names_its_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = open(&dir.path().join("file/data"), &expected()).unwrap_err();
        assert!(matches!(error, StartError::Folder { .. }), "{error}");
        assert!(error.to_string().contains("file/data"), "{error}");
    }
}
