//! A group's whole state as one checked stream of bytes: how a replica that is too far behind catches up.
//!
//! ```text
//! header   "DHSNAP" version:u8 0  cluster:16 group:u32 applied length:u32  applied record  crc:u32
//! block    length:u32 crc:u32, then rows: key length:u32 value length:u32 key value     (any number)
//! footer   0:u32 rows:u64 crc of everything before it:u32
//! ```
//!
//! Numbers are little-endian; every crc is CRC-32. A reader verifies the whole stream before it uses any
//! of it, so a torn or changed file is refused and never half installed. Rows are whole: how they are cut
//! for storage is not part of the format.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::dump::Dump;

const MAGIC: &[u8; 6] = b"DHSNAP";
const VERSION: u8 = 1;
const BLOCK_BYTES: usize = 64 << 10;
/// Longest block that a reader accepts; one row may be longer than [`BLOCK_BYTES`].
const BLOCK_LIMIT: usize = 256 << 20;

/// Opens a snapshot that is made while it is read.
type Open = Arc<dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync>;

/// The bytes of a snapshot.
#[derive(Clone)]
pub enum Body {
    /// In a file.
    File(PathBuf),
    /// In memory.
    Memory(Bytes),
    /// Made from the rows while it is read, of the moment at which it is opened.
    Live(Open),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Memory(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Live(_) => f.write_str("live rows"),
        }
    }
}

impl Body {
    /// Opens the bytes for reading. Reading blocks.
    pub fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(match self {
            Self::File(path) => Box::new(BufReader::with_capacity(256 << 10, File::open(path)?)),
            Self::Memory(bytes) => Box::new(Cursor::new(bytes.clone())),
            Self::Live(open) => open()?,
        })
    }
}

/// What a snapshot says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) cluster: [u8; 16],
    pub(crate) group: u32,
    pub(crate) applied: Bytes,
}

/// A snapshot that is made from a dump while it is read.
pub(crate) struct Live {
    dump: Dump,
    /// Made and not read yet.
    out: Vec<u8>,
    read: usize,
    crc: crc32fast::Hasher,
    rows: u64,
    ended: bool,
}

impl Live {
    /// Begins with the header; `applied` of the header is the dump's.
    pub(crate) fn new(cluster: [u8; 16], group: u32, dump: Dump) -> Self {
        let applied = dump.applied().clone();
        let mut head = Vec::with_capacity(64 + applied.len());
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&[VERSION, 0]);
        head.extend_from_slice(&cluster);
        head.extend_from_slice(&group.to_le_bytes());
        head.extend_from_slice(&(applied.len() as u32).to_le_bytes());
        head.extend_from_slice(&applied);
        let crc = crc32fast::Hasher::new();
        let mut live = Self { dump, out: Vec::new(), read: 0, crc, rows: 0, ended: false };
        live.put(&head);
        live.put(&crc32fast::hash(&head).to_le_bytes());
        live
    }

    fn put(&mut self, bytes: &[u8]) {
        self.crc.update(bytes);
        self.out.extend_from_slice(bytes);
    }

    /// Makes one block, or the footer after the last.
    fn make(&mut self) -> io::Result<()> {
        self.out.clear();
        self.read = 0;
        let rows = self.dump.next(BLOCK_BYTES)?;
        if rows.is_empty() {
            self.put(&0_u32.to_le_bytes());
            self.put(&self.rows.to_le_bytes());
            let crc = self.crc.clone().finalize();
            self.out.extend_from_slice(&crc.to_le_bytes());
            self.ended = true;
            return Ok(());
        }
        let mut block = Vec::with_capacity(BLOCK_BYTES * 2);
        for (key, value) in rows {
            self.rows += 1;
            block.extend_from_slice(&(key.len() as u32).to_le_bytes());
            block.extend_from_slice(&(value.len() as u32).to_le_bytes());
            block.extend_from_slice(&key);
            block.extend_from_slice(&value);
        }
        self.put(&(block.len() as u32).to_le_bytes());
        self.put(&crc32fast::hash(&block).to_le_bytes());
        self.put(&block);
        Ok(())
    }
}

impl Read for Live {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.read == self.out.len() {
            if self.ended {
                return Ok(0);
            }
            self.make()?;
        }
        let ready = &self.out[self.read..];
        let count = ready.len().min(into.len());
        into[..count].copy_from_slice(&ready[..count]);
        self.read += count;
        Ok(count)
    }
}

/// Reads a snapshot to its end, checks everything, and returns its header.
pub(crate) fn verify(body: &Body) -> io::Result<Header> {
    let mut reader = Reader::open(body)?;
    while reader.next_row()?.is_some() {}
    Ok(reader.header)
}

/// Reads what a snapshot says about itself, without checking its rows.
pub(crate) fn header(body: &Body) -> io::Result<Header> {
    Ok(Reader::open(body)?.header)
}

/// Reads a snapshot row by row.
pub(crate) struct Reader {
    input: Box<dyn Read + Send>,
    crc: crc32fast::Hasher,
    header: Header,
    block: Bytes,
    rows: u64,
    done: bool,
}

impl Reader {
    pub(crate) fn open(body: &Body) -> io::Result<Self> {
        let mut input = body.open()?;
        let mut head = vec![0; 32];
        input.read_exact(&mut head)?;
        if &head[..6] != MAGIC {
            return Err(invalid("this is not a snapshot"));
        }
        if head[6] != VERSION {
            return Err(invalid("the snapshot has an unknown format version"));
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&head[8..24]);
        let group = le32(&head[24..28]);
        let length = le32(&head[28..32]) as usize;
        if length > BLOCK_BYTES {
            return Err(invalid("the snapshot's header is broken"));
        }
        head.resize(32 + length, 0);
        input.read_exact(&mut head[32..])?;
        let mut crc = [0; 4];
        input.read_exact(&mut crc)?;
        if crc32fast::hash(&head) != u32::from_le_bytes(crc) {
            return Err(invalid("the snapshot's header is broken"));
        }
        let mut sum = crc32fast::Hasher::new();
        sum.update(&head);
        sum.update(&crc);
        let header = Header { cluster, group, applied: Bytes::copy_from_slice(&head[32..]) };
        Ok(Self { input, crc: sum, header, block: Bytes::new(), rows: 0, done: false })
    }

    /// The next row, in key order; `None` after the last, once the footer has been checked.
    pub(crate) fn next_row(&mut self) -> io::Result<Option<(Vec<u8>, Bytes)>> {
        if self.done {
            return Ok(None);
        }
        if self.block.is_empty() && !self.next_block()? {
            self.done = true;
            return Ok(None);
        }
        if self.block.len() < 8 {
            return Err(invalid("a block of the snapshot is broken"));
        }
        let (key, value) = (le32(&self.block[..4]) as usize, le32(&self.block[4..8]) as usize);
        if self.block.len() - 8 < key || self.block.len() - 8 - key < value {
            return Err(invalid("a block of the snapshot is broken"));
        }
        let mut row = self.block.split_to(8 + key + value);
        let key = row.slice(8..8 + key).to_vec();
        let value = row.split_off(8 + key.len());
        self.rows += 1;
        Ok(Some((key, value)))
    }

    fn next_block(&mut self) -> io::Result<bool> {
        let length = self.read_u32()? as usize;
        if length == 0 {
            let mut rows = [0; 8];
            self.input.read_exact(&mut rows)?;
            self.crc.update(&rows);
            let mut crc = [0; 4];
            self.input.read_exact(&mut crc)?;
            if self.crc.clone().finalize() != u32::from_le_bytes(crc)
                || u64::from_le_bytes(rows) != self.rows
            {
                return Err(invalid("the snapshot is not whole"));
            }
            return Ok(false);
        }
        if length > BLOCK_LIMIT {
            return Err(invalid("a block of the snapshot is broken"));
        }
        let crc = self.read_u32()?;
        // Grows with what arrives: a broken length must not reserve memory.
        let mut block = Vec::with_capacity(length.min(BLOCK_BYTES * 2));
        (&mut self.input).take(length as u64).read_to_end(&mut block)?;
        if block.len() != length || crc32fast::hash(&block) != crc {
            return Err(invalid("a block of the snapshot is broken"));
        }
        self.crc.update(&block);
        self.block = Bytes::from(block);
        Ok(true)
    }

    fn read_u32(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.input.read_exact(&mut bytes)?;
        self.crc.update(&bytes);
        Ok(u32::from_le_bytes(bytes))
    }
}

fn le32(bytes: &[u8]) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(bytes);
    u32::from_le_bytes(out)
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
