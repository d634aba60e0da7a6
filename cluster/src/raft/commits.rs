//! A commit travels with the entries that come next.
//!
//! openraft tells followers of a commit at once: with entries if there are any, else in a message of its own. A busy
//! leader has its next entries a moment later, and they would wait for the answer to that message. So a message that
//! carries nothing but a commit is held back for a moment, and the next one takes its place: it says at least as much.

use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::time::Instant;

use super::types::Types;

type Request = openraft::raft::AppendEntriesRequest<Types>;

/// How long followers may hear later of a commit that no entries follow.
const MOMENT: Duration = Duration::from_millis(1);

/// The requests of `input` without those that the next one makes needless.
pub(super) fn with_entries<S>(input: S) -> impl Stream<Item = Request> + Send + Unpin + 'static
where
    S: Stream<Item = Request> + Send + Unpin + 'static,
{
    Box::pin(futures::stream::unfold(input.fuse(), |mut input| async move {
        let mut request = input.next().await?;
        let until = Instant::now() + MOMENT;
        while request.entries.is_empty() {
            // What is being made when the moment is over stays in the stream.
            match tokio::time::timeout_at(until, input.next()).await {
                Ok(Some(next)) => request = next,
                Ok(None) | Err(_) => break,
            }
        }
        Some((request, input))
    }))
}
