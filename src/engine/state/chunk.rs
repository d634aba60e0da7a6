//! History rows: encoded events one after the other, each behind its length.
//!
//! One turn appends one row. Events are never decoded on the way from there to a worker.

use bytes::{Buf, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint};

/// A history row while it is written.
#[derive(Default)]
pub(crate) struct Chunk(BytesMut);

impl Chunk {
    pub(crate) fn push(&mut self, event: &[u8]) {
        encode_varint(event.len() as u64, &mut self.0);
        self.0.extend_from_slice(event);
    }

    pub(crate) fn freeze(self) -> Bytes {
        self.0.freeze()
    }
}

/// The encoded events of a history row, in order; each shares the row's buffer.
pub struct Events(Bytes);

impl Events {
    /// Reads a row.
    pub fn of(row: Bytes) -> Events {
        Events(row)
    }
}

impl Iterator for Events {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.0.is_empty() {
            return None;
        }
        let length = decode_varint(&mut self.0).expect("stored history row is whole") as usize;
        Some(self.0.copy_to_bytes(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_in_order() {
        let mut chunk = Chunk::default();
        let events = [Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 300])];
        events.iter().for_each(|event| chunk.push(event));
        assert_eq!(Events::of(chunk.freeze()).collect::<Vec<_>>(), events);
        assert_eq!(Events::of(Bytes::new()).next(), None);
    }
}
