//! Stored and sent forms of openraft's own bookkeeping: a version byte, then bincode with fixed integers.
//!
//! bincode serves only what this crate alone writes and reads. It is positional, so a changed struct means
//! a new version byte and code for the old one. The fixed-integer layout is shared by bincode 1 and 2 and
//! by wincode: the crate can be replaced without touching data. Lengths are limited before allocation.

use std::io;

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{LogId, StoredMembership};

const VERSION: u8 = 1;
/// Longest value that is decoded, in bytes: an append message of the peer protocol is the largest.
const LIMIT: usize = 256 << 20;

const CONFIG: Configuration<LittleEndian, Fixint, Limit<LIMIT>> =
    bincode::config::legacy().with_limit::<LIMIT>();

/// Encodes a value.
pub(crate) fn encode(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut out = vec![VERSION];
    bincode::serde::encode_into_std_write(value, &mut out, CONFIG).map_err(io::Error::other)?;
    Ok(out)
}

/// Decodes a value; `what` names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> io::Result<T> {
    let broken =
        |detail: String| io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {detail}"));
    match bytes.split_first() {
        Some((&VERSION, rest)) => match bincode::serde::decode_from_slice(rest, CONFIG) {
            Ok((value, read)) if read == rest.len() => Ok(value),
            Ok(_) => Err(broken("trailing bytes".into())),
            Err(error) => Err(broken(error.to_string())),
        },
        Some((version, _)) => Err(broken(format!("unknown format version {version}"))),
        None => Err(broken("empty".into())),
    }
}

/// How far a group's rows have come, written in the same batch as the rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Applied {
    /// Position of the last applied entry.
    pub(crate) last: Option<LogId>,
    /// Membership as of that entry.
    pub(crate) membership: StoredMembership,
    /// Latest time handed to the machine, in nanoseconds since the Unix epoch: time never runs backwards.
    pub(crate) time: i64,
}

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::super::types::{CommittedLeaderId, Vote};
    use super::*;

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term), index)
    }

    #[test]
    fn stored_forms_never_change() {
        let vote = Vote { leader_id: RaftLeaderId::new(2, 3), committed: true };
        assert_eq!(encode(&vote).unwrap(), b"\x01\x02\0\0\0\0\0\0\0\x01\x03\0\0\0\0\0\0\0\x01");
        assert_eq!(encode(&log_id(4, 5)).unwrap(), b"\x01\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        let applied =
            Applied { last: Some(log_id(1, 2)), membership: StoredMembership::default(), time: 7 };
        let bytes = encode(&applied).unwrap();
        assert_eq!(
            bytes,
            [
                &b"\x01\x01\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0"[..],
                b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0",
            ]
            .concat()
        );
        assert_eq!(decode::<Applied>("applied", &bytes).unwrap(), applied);
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let bytes = encode(&log_id(4, 5)).unwrap();
        for length in 0..bytes.len() {
            assert!(decode::<LogId>("position", &bytes[..length]).is_err());
        }
        let mut newer = bytes.clone();
        newer[0] = 9;
        assert!(decode::<LogId>("position", &newer).unwrap_err().to_string().contains("version 9"));
        let mut longer = bytes;
        longer.push(0);
        assert!(decode::<LogId>("position", &longer).is_err());
        // A hostile length is refused before anything is allocated for it.
        let hostile = [&[VERSION][..], &u64::MAX.to_le_bytes()].concat();
        assert!(decode::<Vec<u8>>("bytes", &hostile).is_err());
    }
}
