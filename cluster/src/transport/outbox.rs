//! What waits to be sent on one stream of frames.
//!
//! Short messages go in order. A long one is cut, and its pieces take turns with short messages and with other
//! long ones. The stream is pulled by the connection when its window has room, so a slow peer stops it here;
//! then whoever wants to send bulk waits for room, while heartbeats and votes never do.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use durahub_proto::peer::frame::Body;
use durahub_proto::peer::{Cancel, Frame, Hello, Item, Method, Refusal, Request, Response};
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::FRAME_BYTES;

/// Bytes of one kind of bulk that may wait; one message may be longer when it is alone.
const ROOM_BYTES: usize = 64 << 20;
/// Bytes of feeds that may wait; one item may be longer when it is alone. Little, since items are sent in order.
const FEED_BYTES: usize = 1 << 20;
/// Shorter messages of consensus wait for nothing.
const SHORT_BYTES: usize = 4 << 10;

/// How a message begins.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Begin {
    Request { method: Method, group: u32, timeout_ms: u32 },
    Response,
}

struct Long {
    call: u64,
    rest: Bytes,
    /// The first piece has gone out.
    begun: bool,
    _room: Option<OwnedSemaphorePermit>,
}

#[derive(Default)]
struct Waiting {
    short: VecDeque<(Frame, Option<OwnedSemaphorePermit>)>,
    long: VecDeque<Long>,
    /// A long message was served last.
    long_had_its_turn: bool,
    waker: Option<Waker>,
    closed: bool,
}

/// Messages that wait to be sent. Clones share it.
#[derive(Clone)]
pub(super) struct Outbox {
    waiting: Arc<Mutex<Waiting>>,
    bulk: Arc<Semaphore>,
    proposals: Arc<Semaphore>,
    feeds: Arc<Semaphore>,
}

impl Outbox {
    /// An outbox whose first frame is the greeting.
    pub(super) fn new(hello: Hello) -> Self {
        let outbox = Self {
            waiting: Arc::default(),
            bulk: Arc::new(Semaphore::new(ROOM_BYTES)),
            proposals: Arc::new(Semaphore::new(ROOM_BYTES)),
            feeds: Arc::new(Semaphore::new(FEED_BYTES)),
        };
        outbox.push(Frame { call: 0, body: Some(Body::Hello(hello)) }, None);
        outbox
    }

    /// Queues a message, after waiting for room if it is bulk.
    pub(super) async fn send(&self, call: u64, begin: Begin, payload: Bytes) {
        let room = match &begin {
            Begin::Request { method: Method::Propose | Method::Ask, .. } => Some(&self.proposals),
            Begin::Response => None,
            _ if payload.len() < SHORT_BYTES => None,
            _ => Some(&self.bulk),
        };
        let room = match room {
            Some(room) => {
                let wanted = payload.len().clamp(1, ROOM_BYTES) as u32;
                Arc::clone(room).acquire_many_owned(wanted).await.ok()
            }
            None => None,
        };
        let length = payload.len() as u64;
        let mut rest = payload;
        let data = rest.split_to(rest.len().min(FRAME_BYTES));
        let body = match begin {
            Begin::Request { method, group, timeout_ms } => {
                Body::Request(Request { method: method.into(), group, length, data, timeout_ms })
            }
            Begin::Response => Body::Response(Response { length, data, refusal: None }),
        };
        let frame = Frame { call, body: Some(body) };
        if rest.is_empty() {
            self.push(frame, room);
        } else {
            let mut waiting = self.waiting.lock();
            if waiting.closed {
                return;
            }
            // The first piece goes the way of short messages, so it always comes before the others.
            waiting.short.push_back((frame, None));
            waiting.long.push_back(Long { call, rest, begun: false, _room: room });
            wake(waiting);
        }
    }

    /// Queues the next item of a feed. All its pieces at once: those of a feed are never mixed.
    pub(super) async fn send_item(&self, call: u64, payload: Bytes) {
        let wanted = payload.len().clamp(1, FEED_BYTES) as u32;
        let mut room = Arc::clone(&self.feeds).acquire_many_owned(wanted).await.ok();
        let length = payload.len() as u64;
        let mut rest = payload;
        let data = rest.split_to(rest.len().min(FRAME_BYTES));
        let mut body = Body::Item(Item { length, data, last: false });
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return;
        }
        loop {
            let frame = Frame { call, body: Some(body) };
            if rest.is_empty() {
                waiting.short.push_back((frame, room.take()));
                break;
            }
            waiting.short.push_back((frame, None));
            body = Body::More(rest.split_to(rest.len().min(FRAME_BYTES)));
        }
        wake(waiting);
    }

    /// Queues a refusal.
    pub(super) fn refuse(&self, call: u64, reason: String) {
        let refusal = Some(Refusal { reason });
        let response = Response { length: 0, data: Bytes::new(), refusal };
        self.push(Frame { call, body: Some(Body::Response(response)) }, None);
    }

    /// Drops what is left of a call and tells the peer that nobody waits for the answer.
    pub(super) fn cancel(&self, call: u64) {
        self.waiting.lock().long.retain(|long| long.call != call);
        self.push(Frame { call, body: Some(Body::Cancel(Cancel {})) }, None);
    }

    /// Ends the stream once what is short has gone out. Nobody waits for room any more.
    pub(super) fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.closed = true;
        waiting.long.clear();
        wake(waiting);
        for room in [&self.bulk, &self.proposals, &self.feeds] {
            room.close();
        }
    }

    fn push(&self, frame: Frame, room: Option<OwnedSemaphorePermit>) {
        let mut waiting = self.waiting.lock();
        if !waiting.closed {
            waiting.short.push_back((frame, room));
        }
        wake(waiting);
    }
}

fn wake(mut waiting: parking_lot::MutexGuard<'_, Waiting>) {
    let waker = waiting.waker.take();
    drop(waiting);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl Waiting {
    fn next(&mut self) -> Option<Frame> {
        let long_first = !self.long_had_its_turn || self.short.is_empty();
        if long_first && self.long.front().is_some_and(|long| long.begun) {
            self.long_had_its_turn = true;
            let mut long = self.long.pop_front()?;
            let data = long.rest.split_to(long.rest.len().min(FRAME_BYTES));
            let frame = Frame { call: long.call, body: Some(Body::More(data)) };
            if !long.rest.is_empty() {
                self.long.push_back(long);
            }
            return Some(frame);
        }
        self.long_had_its_turn = false;
        let (frame, _) = self.short.pop_front()?;
        if let Some(long) = self.long.iter_mut().find(|long| long.call == frame.call) {
            long.begun = true;
        }
        Some(frame)
    }
}

/// The frames, as the connection pulls them.
pub(super) struct Frames(pub(super) Outbox);

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut waiting = self.0.waiting.lock();
        match waiting.next() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if waiting.closed => Poll::Ready(None),
            None => {
                waiting.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The connection has ended: what is left goes nowhere.
impl Drop for Frames {
    fn drop(&mut self) {
        self.0.close();
        self.0.waiting.lock().short.clear();
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, StreamExt};

    use super::super::inbox::{Inbox, Message};
    use super::*;

    fn append(length: usize) -> (Begin, Bytes) {
        let begin = Begin::Request { method: Method::Append, group: 1, timeout_ms: 500 };
        (begin, Bytes::from(vec![7; length]))
    }

    #[tokio::test]
    async fn heartbeat_overtakes_the_pieces_of_a_long_message() {
        let outbox = Outbox::new(Hello::default());
        let (begin, long) = append(3 * FRAME_BYTES + 1);
        outbox.send(1, begin, long.clone()).await;
        outbox.send(2, append(0).0, Bytes::new()).await;
        let mut frames = Frames(outbox.clone());
        let mut inbox = Inbox::default();
        let mut order = Vec::new();
        let mut whole = Vec::new();
        while let Some(Some(frame)) = frames.next().now_or_never() {
            assert!(prost::Message::encoded_len(&frame) < FRAME_BYTES + 100);
            order.push(frame.call);
            if let Some(Message::Request { payload, .. }) = inbox.accept(frame).unwrap() {
                whole.push(payload);
            }
        }
        // Greeting, first piece, then turn by turn.
        assert_eq!(order, [0, 1, 1, 2, 1, 1]);
        assert_eq!(whole, [Bytes::new(), long]);
    }

    #[tokio::test]
    async fn bulk_waits_for_room_and_votes_do_not() {
        let outbox = Outbox::new(Hello::default());
        let (begin, half) = append(ROOM_BYTES / 2 + 1);
        outbox.send(1, begin.clone(), half.clone()).await;
        let second = outbox.send(2, begin, half);
        tokio::pin!(second);
        assert!(second.as_mut().now_or_never().is_none());
        let vote = Begin::Request { method: Method::Vote, group: 1, timeout_ms: 500 };
        outbox.send(3, vote, Bytes::from_static(b"vote")).now_or_never().unwrap();
        // What is dropped gives its room back.
        outbox.cancel(1);
        second.await;
    }

    #[tokio::test]
    async fn nobody_waits_for_room_on_a_connection_that_has_ended() {
        let outbox = Outbox::new(Hello::default());
        let frames = Frames(outbox.clone());
        let item = Bytes::from(vec![7; FEED_BYTES]);
        outbox.send_item(1, item.clone()).await;
        let (begin, half) = append(ROOM_BYTES / 2 + 1);
        outbox.send(2, begin.clone(), half.clone()).await;
        let items = outbox.send_item(1, item);
        let bulk = outbox.send(3, begin, half);
        tokio::pin!(items, bulk);
        assert!(items.as_mut().now_or_never().is_none());
        assert!(bulk.as_mut().now_or_never().is_none());
        drop(frames);
        items.now_or_never().expect("it goes on");
        bulk.now_or_never().expect("it goes on");
        let waiting = outbox.waiting.lock();
        assert!(waiting.short.is_empty() && waiting.long.is_empty(), "nothing is kept");
    }
}
