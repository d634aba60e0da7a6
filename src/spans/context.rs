//! Trace contexts as SDKs write them (W3C), and which traces are recorded.

use durahub_proto::wire;
use ring::digest;

/// Id of a trace.
pub(super) type TraceId = [u8; 16];
/// Id of a span.
pub(super) type SpanId = [u8; 8];

/// Longest `tracestate` that is told on, in bytes: what the W3C asks everybody to carry at least.
const STATE_BYTES: usize = 512;

/// What a span is a child of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub(super) trace: TraceId,
    /// The parent; `None` for the first span of a trace.
    pub(super) parent: Option<SpanId>,
    /// Whether whoever began the trace records it.
    pub(super) is_recorded: bool,
    /// What vendors have to say, as it came.
    pub(super) state: String,
}

impl Context {
    /// Reads the text of a `traceparent`; `None` for a text that is none. It is somebody else's text: it is not
    /// an error, and goes on to workers as it came (R6.11).
    #[must_use]
    pub fn parse(text: &str) -> Option<Context> {
        let mut parts = text.split('-');
        let (version, trace) = (hex::<1>(parts.next()?)?, hex(parts.next()?)?);
        let (parent, [flags]) = (hex(parts.next()?)?, hex::<1>(parts.next()?)?);
        // A later version may say more behind what this one says.
        let is_known = version != [0xff] && (version != [0] || parts.next().is_none());
        let is_real = trace != TraceId::default() && parent != SpanId::default();
        (is_known && is_real).then(|| Context {
            trace,
            parent: Some(parent),
            is_recorded: flags & 1 == 1,
            state: String::new(),
        })
    }

    /// That of a message.
    pub(super) fn of(context: &wire::TraceContext) -> Option<Context> {
        let mut read = Context::parse(&context.trace_parent)?;
        // A longer one may be dropped, whole.
        let state =
            context.trace_state.as_ref().filter(|state| state.as_str().len() <= STATE_BYTES);
        if let Some(state) = state.filter(|_| read.is_recorded) {
            read.state = state.as_str().to_owned();
        }
        Some(read)
    }
}

/// Bytes in lower-case hexadecimal digits, exactly so many.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Which of the traces that begin here are recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sampling {
    /// A trace is recorded if the number at the end of its id is below this.
    below: u128,
}

impl Sampling {
    /// Records a share, 0 to 1.
    pub(super) fn new(ratio: f64) -> Sampling {
        // 2^64 fits into an f64, and so does every part of it as far as it matters.
        Sampling { below: (ratio.clamp(0.0, 1.0) * 18_446_744_073_709_551_616.0) as u128 }
    }

    /// A trace of this id that begins here.
    pub(super) fn root(self, trace: TraceId) -> Context {
        let mut end = [0; 8];
        end.copy_from_slice(&trace[8..]);
        let is_recorded = u128::from(u64::from_be_bytes(end)) < self.below;
        Context { trace, parent: None, is_recorded, state: String::new() }
    }
}

/// The id of the trace of an execution that was given no context: the same on every node.
pub(super) fn trace_of(hub: u32, instance: &str, execution: &str) -> TraceId {
    let mut text = digest::Context::new(&digest::SHA256);
    text.update(b"durahub trace 1");
    text.update(&hub.to_be_bytes());
    text.update(&(instance.len() as u64).to_be_bytes());
    text.update(instance.as_bytes());
    text.update(execution.as_bytes());
    let mut id = TraceId::default();
    id.copy_from_slice(&text.finish().as_ref()[..16]);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn contexts_are_read_as_the_standard_says() {
        let context = Context::parse(GOOD).unwrap();
        assert_eq!((context.trace[0], context.trace[15]), (0x0a, 0x9c));
        assert_eq!(context.parent, Some([0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]));
        assert!(context.is_recorded);
        assert!(!Context::parse(&GOOD.replace("-01", "-00")).unwrap().is_recorded);
        // A later version, with more behind it.
        assert!(Context::parse(&format!("01{}-more", &GOOD[2..])).is_some());
        for bad in [
            String::new(),
            "garbage".into(),
            format!("{GOOD}-more"),
            format!("ff{}", &GOOD[2..]),
            GOOD.to_uppercase(),
            GOOD[..GOOD.len() - 1].into(),
            GOOD.replace("b7ad6b7169203331", "0000000000000000"),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", "00000000000000000000000000000000"),
            GOOD.replace("b7ad", "ü7a"),
        ] {
            assert_eq!(Context::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_share_of_the_traces_is_recorded() {
        let recorded = |ratio: f64| {
            let traces = (0..1000).map(|n| trace_of(1, &format!("i{n}"), "e"));
            traces.filter(|trace| Sampling::new(ratio).root(*trace).is_recorded).count()
        };
        assert_eq!((recorded(0.0), recorded(1.0)), (0, 1000));
        assert!((200..300).contains(&recorded(0.25)), "{}", recorded(0.25));
    }

    #[test]
    fn the_trace_of_an_execution_follows_from_what_it_is() {
        let ids = [(1, "a", "b"), (2, "a", "b"), (1, "ab", ""), (1, "", "ab"), (1, "a", "c")];
        let ids = ids.map(|(hub, instance, execution)| trace_of(hub, instance, execution));
        for (i, id) in ids.iter().enumerate() {
            assert!(!ids[..i].contains(id));
        }
        assert_eq!(ids[0], trace_of(1, "a", "b"));
    }
}
