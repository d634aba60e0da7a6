//! Text on the wire that the server carries but does not read.

use std::fmt;

use bytes::{Buf, BufMut, Bytes};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

/// A `google.protobuf.StringValue`: UTF-8 text that shares the buffer it was decoded from.
///
/// Unset and empty differ: the wire's "unset" is `None` of `Option<Text>` (R2.7, R2.8).
/// Text that is not UTF-8 is refused while decoding, because it would break the SDK that receives it.
/// `Debug` shows the length only: payloads are never logged.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(Bytes);

impl Text {
    /// Takes bytes that are known to be UTF-8, for example a part of another text.
    ///
    /// # Errors
    /// When they are not.
    pub fn from_utf8(bytes: Bytes) -> Result<Text, std::str::Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Text(bytes))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        // Checked on every way in; the default is never used.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no characters. An empty text is not an unset one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Text(Bytes::from(text))
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Text(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<Text> for String {
    fn from(text: Text) -> Self {
        text.as_str().to_owned()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({} bytes)", self.0.len())
    }
}

impl Message for Text {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        if !self.0.is_empty() {
            encoding::bytes::encode(1, &self.0, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != 1 {
            return encoding::skip_field(wire_type, tag, buf, context);
        }
        encoding::bytes::merge(wire_type, &mut self.0, buf, context)?;
        if std::str::from_utf8(&self.0).is_err() {
            self.0.clear();
            #[allow(deprecated)] // prost offers no other constructor to hand-written messages
            return Err(DecodeError::new("text is not UTF-8"));
        }
        Ok(())
    }

    fn encoded_len(&self) -> usize {
        if self.0.is_empty() { 0 } else { encoding::bytes::encoded_len(1, &self.0) }
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_keeps_empty_apart_from_unset() {
        for text in ["", "null", "\"grüß\""] {
            let encoded = String::from(text).encode_to_vec();
            let decoded = Text::decode(encoded.as_slice()).expect("decodes");
            assert_eq!(decoded.as_str(), text);
            assert_eq!(decoded.encode_to_vec(), encoded);
        }
    }

    #[test]
    fn refuses_text_that_is_not_utf8() {
        let mut encoded = Vec::new();
        encoding::bytes::encode(1, &Bytes::from_static(b"\xff\xfe"), &mut encoded);
        assert!(Text::decode(encoded.as_slice()).is_err());
    }

    #[test]
    fn shares_the_buffer_it_was_read_from() {
        let encoded = Bytes::from(String::from("a payload").encode_to_vec());
        let decoded = Text::decode(encoded.clone()).expect("decodes");
        assert!(encoded.as_ptr_range().contains(&decoded.as_str().as_ptr()));
    }
}
