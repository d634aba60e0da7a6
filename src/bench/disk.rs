//! What one flush to the disk costs here and now, so that figures can be compared across machines.
//!
//! A durable server cannot answer faster than its disk flushes. Two hundred times a block of 4 KiB is
//! overwritten in a file that already has its full size, then `fdatasync`: the way a write-ahead log is
//! written. It runs right after the load, in the same minute, and never during it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use hdrhistogram::Histogram;

const BLOCK: usize = 4096;
const BLOCKS: usize = 64;
/// Flushes per probe.
const SAMPLES: usize = 200;

/// Microseconds per flush, as a distribution.
pub(super) struct Probe {
    pub(super) folder: PathBuf,
    pub(super) micros: Histogram<u64>,
}

/// Measures in this folder, with a file that is gone afterwards.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn probe(folder: &Path) -> anyhow::Result<Probe> {
    let path =
        folder.join(format!(".durahub-bench-{}-{:08x}", std::process::id(), fastrand::u32(..)));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("create {} to time fdatasync", path.display()))?;
    let measured = flushes(&mut file);
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    let micros = measured.with_context(|| format!("time fdatasync in {}", folder.display()))?;
    Ok(Probe { folder: folder.to_owned(), micros })
}

fn flushes(file: &mut File) -> anyhow::Result<Histogram<u64>> {
    file.write_all(&vec![0; BLOCK * BLOCKS])?;
    file.sync_all()?;
    let mut micros = Histogram::new(3)?;
    for sample in 0..SAMPLES {
        // Never the same bytes twice: a disk may skip a write that changes nothing.
        let block = [sample as u8 | 1; BLOCK];
        let began = Instant::now();
        file.write_all_at(&block, (sample % BLOCKS * BLOCK) as u64)?;
        file.sync_data()?;
        micros.record(u64::try_from(began.elapsed().as_micros())?)?;
    }
    Ok(micros)
}
