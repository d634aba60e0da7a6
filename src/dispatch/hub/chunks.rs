//! Completions that come in parts (section 3.11): collected here until the last one is in.
//!
//! Nothing of an unfinished series is ever visible. It lives in the lease, so it is dropped with it: when
//! the worker gives the turn back, when its time is over, when the node restarts.

use durahub_proto::wire;
use prost::Message as _;

/// The parts of one completion so far.
#[derive(Clone, Default)]
pub(crate) struct Series {
    /// Each with its size in bytes.
    parts: Vec<(usize, wire::OrchestratorResponse)>,
    bytes: usize,
}

/// What became of a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It waits for the rest.
    Yes,
    /// A part before it is missing.
    Gap,
    /// The parts are more than a completion may be, in bytes.
    TooLarge(usize),
    /// The hub holds as many parts as it may; the worker should try again.
    NoRoom,
    /// The lease is not current.
    Stale,
}

impl Series {
    /// Takes in part number `index`, counted from 0. The first one begins anew; one that is here already
    /// is replaced, since a worker may send it again (R3.68).
    pub(super) fn keep(
        &mut self,
        index: usize,
        bytes: usize,
        part: wire::OrchestratorResponse,
    ) -> bool {
        if index > self.parts.len() {
            return false;
        }
        self.bytes -= self.parts.drain(index..).map(|(bytes, _)| bytes).sum::<usize>();
        self.bytes += bytes;
        self.parts.push((bytes, part));
        true
    }

    /// Size of the parts, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole completion, if `last` is the part that was missing (R3.66, R3.67): actions in order,
    /// span and count of processed events of the first part that has them, status of the last.
    pub(crate) fn whole(
        self,
        last: wire::OrchestratorResponse,
    ) -> Option<wire::OrchestratorResponse> {
        if index_of(&last) != Some(self.parts.len()) {
            return None;
        }
        let mut parts = self.parts.into_iter().map(|(_, part)| part).chain([last]);
        let mut whole = parts.next()?;
        for part in parts {
            whole.actions.extend(part.actions);
            whole.custom_status = part.custom_status;
            whole.orchestration_trace_context =
                whole.orchestration_trace_context.or(part.orchestration_trace_context);
        }
        Some(whole)
    }
}

/// Number of a part in its series, if it says one.
#[expect(deprecated, reason = "some clients still split large completions (R3.65)")]
pub(crate) fn index_of(part: &wire::OrchestratorResponse) -> Option<usize> {
    part.chunk_index.and_then(|index| usize::try_from(index).ok())
}

/// Whether more parts follow.
#[expect(deprecated, reason = "some clients still split large completions (R3.65)")]
pub(crate) fn is_partial(part: &wire::OrchestratorResponse) -> bool {
    part.is_partial
}

/// Size of a part, in bytes.
pub(super) fn size(part: &wire::OrchestratorResponse) -> usize {
    part.encoded_len()
}
