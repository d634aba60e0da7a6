//! Frames leave together.
//!
//! A task that is woken by another one runs next, before those that were ready already. So a connection would be written
//! to for each frame, though others are about to hand in theirs; and each write wakes the node at the other end. Here
//! the one that was woken first lets the others run, and those that they wake. Where nothing else is ready, it goes on
//! at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;

/// How often others run first: who is woken in one turn has something to send in the next.
const TURNS: u32 = 3;

/// A stream that lets others run before it goes on after a pause.
pub(super) struct Gather<S> {
    stream: S,
    /// How often others run before the stream is asked again.
    turns: u32,
}

impl<S> Gather<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, turns: 0 }
    }
}

impl<S: Stream + Unpin> Stream for Gather<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<S::Item>> {
        if self.turns > 0 {
            self.turns -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = Pin::new(&mut self.stream).poll_next(cx);
        self.turns = if next.is_pending() { TURNS } else { 0 };
        next
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use futures::StreamExt;
    use futures::channel::mpsc;

    use super::*;

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_comes_first_after_a_pause_waits_for_those_that_are_ready() {
        let wakes = Arc::new(Wakes::default());
        let woken = || wakes.0.swap(0, Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let (sender, receiver) = mpsc::unbounded();
        let mut items = Gather::new(receiver);
        for round in 0..2 {
            assert_eq!(items.poll_next_unpin(&mut cx), Poll::Pending, "nothing is there");
            assert_eq!(woken(), 0);
            sender.unbounded_send(round).unwrap();
            assert_eq!(woken(), 1);
            for _ in 0..TURNS {
                assert_eq!(items.poll_next_unpin(&mut cx), Poll::Pending, "others run first");
                assert_eq!(woken(), 1, "and then it goes on");
            }
            sender.unbounded_send(round + 10).unwrap();
            assert_eq!(items.poll_next_unpin(&mut cx), Poll::Ready(Some(round)));
            assert_eq!(items.poll_next_unpin(&mut cx), Poll::Ready(Some(round + 10)));
        }
        drop(sender);
        assert_eq!(items.poll_next_unpin(&mut cx), Poll::Ready(None));
    }
}
