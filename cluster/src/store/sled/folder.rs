//! Where the databases lie, and which one counts.
//!
//! Each database has a numbered folder; the file `current` names the one that counts. It is replaced by a
//! rename, so after a crash there is always one, whole, and whatever else lies there can go.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::sync_dir;

const CURRENT: &str = "current";
const CURRENT_NEW: &str = "current.new";

/// The databases of one node.
pub(super) struct Databases {
    path: PathBuf,
    current: u64,
}

impl Databases {
    /// Finds the database that counts, or makes room for the first one, and removes all others.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let databases = match fs::read_to_string(path.join(CURRENT)) {
            Ok(text) => {
                let number = text.trim().parse();
                let current = number.map_err(|_| broken(path, &text))?;
                Self { path: path.to_owned(), current }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut databases = Self { path: path.to_owned(), current: 1 };
                databases.adopt()?;
                databases.switch(1)?;
                databases
            }
            Err(error) => return Err(error),
        };
        databases.remove_others()?;
        Ok(databases)
    }

    /// The folder of the database that counts.
    pub(super) fn current(&self) -> PathBuf {
        self.folder(self.current)
    }

    /// Number and empty folder for another database.
    pub(super) fn next(&self) -> io::Result<(u64, PathBuf)> {
        let number = self.current + 1;
        let folder = self.folder(number);
        // Of a copy that was given up: its rows must not come back.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok((number, folder))
    }

    /// Makes another database the one that counts, for good once it returns.
    ///
    /// # Errors
    /// After an error nobody knows which one counts after a crash.
    pub(super) fn switch(&mut self, number: u64) -> io::Result<()> {
        let new = self.path.join(CURRENT_NEW);
        let mut file = File::create(&new)?;
        writeln!(file, "{number}")?;
        file.sync_all()?;
        fs::rename(&new, self.path.join(CURRENT))?;
        sync_dir(&self.path)?;
        self.current = number;
        Ok(())
    }

    /// Removes all that does not count.
    pub(super) fn remove_others(&self) -> io::Result<()> {
        let current = self.current.to_string();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == CURRENT || *name == *current {
                continue;
            }
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Moves a database that lies here without a number, as they all once did, to where it belongs. The file
    /// with the rows goes last, so that this can be interrupted and begun again.
    fn adopt(&self) -> io::Result<()> {
        let folder = self.current();
        let rows = self.path.join("db");
        if !rows.exists() {
            return fs::create_dir_all(&folder);
        }
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(&self.path)? {
            let from = entry?.path();
            if let Some(name) = from.file_name().filter(|_| from != folder && from != rows) {
                fs::rename(&from, folder.join(name))?;
            }
        }
        sync_dir(&folder)?;
        fs::rename(&rows, folder.join("db"))?;
        sync_dir(&folder)
    }

    fn folder(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }
}

fn broken(path: &Path, text: &str) -> io::Error {
    let name = path.join(CURRENT);
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{} should hold the number of a database, not {text:?}", name.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_counts_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut databases = Databases::open(dir.path()).unwrap();
        assert_eq!(databases.current(), dir.path().join("1"));
        let (number, folder) = databases.next().unwrap();
        fs::write(folder.join("db"), b"new").unwrap();
        // Given up: nothing of it is left for the next.
        assert_eq!(fs::read_dir(databases.next().unwrap().1).unwrap().count(), 0);
        // Not switched: it goes.
        drop(Databases::open(dir.path()).unwrap());
        assert!(!folder.exists());

        databases.next().unwrap();
        fs::write(folder.join("db"), b"new").unwrap();
        databases.switch(number).unwrap();
        fs::write(dir.path().join(CURRENT_NEW), b"half").unwrap();
        let again = Databases::open(dir.path()).unwrap();
        assert_eq!(again.current(), folder);
        let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        assert_eq!(names, ["2", "current"]);
    }

    #[test]
    fn a_database_without_a_number_is_adopted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["db", "conf", "snap.00"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        // Interrupted the first time, before the rows had moved.
        fs::create_dir(dir.path().join("1")).unwrap();
        fs::rename(dir.path().join("conf"), dir.path().join("1/conf")).unwrap();
        let databases = Databases::open(dir.path()).unwrap();
        for name in ["db", "conf", "snap.00"] {
            assert_eq!(fs::read_to_string(databases.current().join(name)).unwrap(), name);
        }
        assert!(!dir.path().join("db").exists());
    }

    #[test]
    fn a_number_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CURRENT), "one").unwrap();
        let error = Databases::open(dir.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("should hold the number of a database"), "{error}");
    }
}
