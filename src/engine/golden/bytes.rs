//! Encoded messages as text, and as a list of fields.

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// One top-level field of an encoded message.
pub(super) struct Field<'a> {
    pub(super) tag: u32,
    /// Key and value.
    pub(super) bytes: &'a [u8],
}

/// The fields of an encoded message, in their order; an element of a list or map is a field each.
pub(super) fn fields(mut message: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while message.has_remaining() {
        let whole = message;
        let (tag, kind) = decode_key(&mut message).expect("a key");
        skip_field(kind, tag, &mut message, DecodeContext::default()).expect("a value");
        fields.push(Field { tag, bytes: &whole[..whole.len() - message.len()] });
    }
    fields
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal digits; blanks and line ends group them and mean nothing.
pub(super) fn parse(hex: &str) -> Vec<u8> {
    let digits: Vec<char> = hex.chars().filter(|c| !c.is_whitespace()).collect();
    let pair = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16);
    digits.chunks(2).map(|digits| pair(digits).expect("hexadecimal digits")).collect()
}
