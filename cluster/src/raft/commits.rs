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

#[cfg(test)]
mod tests {
    use futures::stream;
    use openraft::entry::RaftEntry;

    use super::super::types::{CommittedLeaderId, Entry, LogId, Vote};
    use super::*;

    fn request(commit: u64, entries: &[u64]) -> Request {
        let id = |index| LogId::new(CommittedLeaderId::new(1), index);
        Request {
            vote: Vote::new_committed(1, 1),
            prev_log_id: None,
            entries: entries.iter().map(|index| Entry::new_blank(id(*index))).collect(),
            leader_commit: Some(id(commit)),
        }
    }

    async fn sent(
        input: impl Stream<Item = Request> + Send + Unpin + 'static,
        count: usize,
    ) -> Vec<(u64, usize)> {
        let told = |request: Request| {
            (request.leader_commit.map_or(0, |id| id.index()), request.entries.len())
        };
        with_entries(input).take(count).map(told).collect().await
    }

    #[tokio::test]
    async fn commit_goes_with_the_entries_that_follow_it() {
        let requests = [request(1, &[2]), request(2, &[]), request(3, &[]), request(3, &[4, 5])];
        assert_eq!(sent(stream::iter(requests), 9).await, [(1, 1), (3, 2)]);
    }

    #[tokio::test]
    async fn commit_that_nothing_follows_goes_alone() {
        let requests = stream::iter([request(1, &[2]), request(2, &[])]);
        assert_eq!(sent(requests.clone(), 9).await, [(1, 1), (2, 0)], "the stream has ended");
        let silent = requests.chain(stream::pending());
        assert_eq!(sent(silent, 2).await, [(1, 1), (2, 0)], "nothing comes");
    }

    #[tokio::test]
    async fn request_that_was_being_made_when_the_moment_was_over_is_sent() {
        let late = stream::once(async {
            tokio::time::sleep(MOMENT * 20).await;
            request(2, &[3])
        });
        let requests = stream::iter([request(2, &[])]).chain(Box::pin(late));
        assert_eq!(sent(requests, 9).await, [(2, 0), (2, 1)]);
    }
}
