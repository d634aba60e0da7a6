//! Every key that is stored, in one table. Old meanings are kept for ever.
//!
//! Log space (all numbers big-endian, so that key order is log order):
//!
//! ```text
//! 'L' group:u32 first:u64           record of consecutive entries (record.rs)
//! 'X' group:u32 index:u64 n:u16     chunk n of an entry that does not fit into a record
//! 'V' group:u32                     vote
//! 'P' group:u32                     last purged position
//! 'C' group:u32                     committed position, a hint that is never synced on its own
//! 'I' group:u32                     a snapshot install is under way: name of its file
//! 'Q' group:u32                     the replica differs from most others and must not run: a sentence
//! 'H' group:u32                     what the node has of the group (holding.rs); absent in older folders
//! ```
//!
//! State space of one group:
//!
//! ```text
//! 0x00                              applied record: position, membership, group time
//! 0x01 key                          row: 0x00 value, or 0x01 length:u32 for a row in chunks
//! 0x02 key n:u32                    chunk n of a row
//! ```

/// Prefix of log records.
pub(crate) const RECORD: u8 = b'L';
/// Prefix of the chunks of large entries.
pub(crate) const CHUNK: u8 = b'X';
/// Prefix of votes.
pub(crate) const VOTE: u8 = b'V';
/// Prefix of purge positions.
pub(crate) const PURGED: u8 = b'P';
/// Prefix of committed positions.
pub(crate) const COMMITTED: u8 = b'C';
/// Prefix of quarantine marks.
pub(crate) const QUARANTINE: u8 = b'Q';
/// Prefix of what a node has of a group.
pub(crate) const HOLDING: u8 = b'H';
/// Prefix of install markers.
pub(crate) const INSTALL: u8 = b'I';

/// Key of the applied record in a state space.
pub(crate) const APPLIED: &[u8] = &[0x00];
/// Prefix of rows.
pub(crate) const ROW: u8 = 0x01;
/// Prefix of the chunks of large rows.
pub(crate) const ROW_CHUNK: u8 = 0x02;
/// Just above every key of a state space.
pub(crate) const STATE_END: &[u8] = &[0x03];

/// Key of a pointer of one group: vote, purged, committed, install.
pub(crate) fn pointer(prefix: u8, group: u32) -> Vec<u8> {
    let mut key = Vec::with_capacity(5);
    key.push(prefix);
    key.extend_from_slice(&group.to_be_bytes());
    key
}

/// Key of the record whose first entry is `first`.
pub(crate) fn record(group: u32, first: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(13);
    key.push(RECORD);
    key.extend_from_slice(&group.to_be_bytes());
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Just above every record of a group.
pub(crate) fn record_end(group: u32) -> Vec<u8> {
    let mut key = record(group, u64::MAX);
    key.push(0);
    key
}

/// Just above every chunk of a group's entries.
pub(crate) fn chunk_end(group: u32) -> Vec<u8> {
    let mut key = chunk(group, u64::MAX, u16::MAX);
    key.push(0);
    key
}

/// Index of the first entry of the record under `key`.
pub(crate) fn record_first(key: &[u8]) -> Option<u64> {
    let bytes: [u8; 8] = key.get(5..13)?.try_into().ok()?;
    (key.len() == 13).then(|| u64::from_be_bytes(bytes))
}

/// Key of chunk `n` of the entry at `index`.
pub(crate) fn chunk(group: u32, index: u64, n: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(15);
    key.push(CHUNK);
    key.extend_from_slice(&group.to_be_bytes());
    key.extend_from_slice(&index.to_be_bytes());
    key.extend_from_slice(&n.to_be_bytes());
    key
}

/// Key of the row `key`.
pub(crate) fn row(key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(1 + key.len());
    stored.push(ROW);
    stored.extend_from_slice(key);
    stored
}

/// Key of chunk `n` of the row `key`.
pub(crate) fn row_chunk(key: &[u8], n: u32) -> Vec<u8> {
    let mut stored = Vec::with_capacity(5 + key.len());
    stored.push(ROW_CHUNK);
    stored.extend_from_slice(key);
    stored.extend_from_slice(&n.to_be_bytes());
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_never_change() {
        assert_eq!(pointer(VOTE, 7), b"V\0\0\0\x07");
        assert_eq!(record(1, 258), b"L\0\0\0\x01\0\0\0\0\0\0\x01\x02");
        assert_eq!(chunk(1, 2, 3), b"X\0\0\0\x01\0\0\0\0\0\0\0\x02\0\x03");
        assert_eq!(row(b"k"), b"\x01k");
        assert_eq!(row_chunk(b"k", 5), b"\x02k\0\0\0\x05");
        assert_eq!(record_first(&record(1, 258)), Some(258));
        assert_eq!(record_first(b"L"), None);
    }
}
