//! What a connection was answered and has not read.
//!
//! An answer is made before anybody knows whether its client takes it: a thousand calls on one connection whose
//! answers nobody reads would hold a thousand of them in memory. So a handler takes room for an answer before it makes
//! one, and the room goes with the bytes until the transport has let go of them. A call that finds none waits within
//! its deadline, and makes nothing meanwhile. Calls that wait for an instance hold no room before they have an answer.
//!
//! What is absent on purpose: streams of work. What may be on its way to a worker is bounded where it is handed out.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::{Response, Status};

/// Room that is taken before an answer is made: none is larger. What the answer does not need is given back at once.
const ANSWER: usize = 4 << 20;
/// Smaller answers are not counted: a thousand of them are nothing.
const SMALL: usize = 1 << 10;

/// Room for what one connection has not read; a cheap handle. The default has no end.
#[derive(Clone, Debug, Default)]
pub struct Unread(Option<Arc<Semaphore>>);

/// Room that is taken, for as long as it is held.
#[derive(Debug)]
pub struct Held(Option<OwnedSemaphorePermit>);

/// Room on its way from a handler to the bytes that it is for.
#[derive(Clone, Debug, Default)]
pub struct Unsent(Arc<Mutex<Vec<Held>>>);

impl Unread {
    /// Room for so many bytes, at least for one answer.
    pub(super) fn new(bytes: usize) -> Unread {
        Unread(Some(Arc::new(Semaphore::new(bytes.max(ANSWER)))))
    }

    /// That of the connection of a request.
    #[must_use]
    pub fn of(extensions: &tonic::Extensions) -> Unread {
        extensions.get::<Unread>().cloned().unwrap_or_default()
    }

    /// Waits until there is room for an answer, and takes it: first come, first served. To be called when nothing
    /// else is left to wait for, since other calls of the connection wait for this one.
    pub async fn room(&self) -> Held {
        let Some(bytes) = &self.0 else { return Held(None) };
        Held(Arc::clone(bytes).acquire_many_owned(ANSWER as u32).await.ok())
    }
}

impl Held {
    /// Takes room for so many bytes out of it, or all that it has.
    #[must_use]
    pub fn split(&mut self, bytes: usize) -> Held {
        let split =
            |permit: &mut OwnedSemaphorePermit| permit.split(bytes.min(permit.num_permits()));
        Held(self.0.as_mut().and_then(split))
    }

    /// The answer that the room was taken for. What it does not need is free at once.
    pub fn answer<T: Message>(mut self, message: T) -> Response<T> {
        let bytes = message.encoded_len();
        let mut response = Response::new(message);
        if bytes > SMALL && self.0.is_some() {
            let unsent = Unsent::default();
            unsent.add(self.split(bytes));
            response.extensions_mut().insert(unsent);
        }
        response
    }
}

impl Unsent {
    /// Room for the next message of the answer, which is made already.
    pub fn add(&self, held: Held) {
        self.0.lock().push(held);
    }

    fn take(&self) -> Vec<Held> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Ties the room that a handler has taken to the bytes of its answer.
pub(super) fn tie(mut answer: http::Response<Body>) -> http::Response<Body> {
    match answer.extensions_mut().remove::<Unsent>() {
        None => answer,
        Some(unsent) => answer.map(|body| Body::new(Tied { body, unsent })),
    }
}

/// The body of an answer for which room was taken.
struct Tied {
    body: Body,
    unsent: Unsent,
}

/// Bytes, and the room that is free again when nobody needs them any more.
struct Charged {
    bytes: Bytes,
    _held: Vec<Held>,
}

impl AsRef<[u8]> for Charged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl http_body::Body for Tied {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
            return Poll::Ready(None);
        };
        let tie = |bytes| match self.unsent.take() {
            none if none.is_empty() => bytes,
            held => Bytes::from_owner(Charged { bytes, _held: held }),
        };
        Poll::Ready(Some(frame.map(|frame| frame.map_data(tie))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn text(bytes: usize) -> String {
        "x".repeat(bytes)
    }

    /// The first bytes of an answer, as the transport takes them.
    async fn bytes_of(answer: Response<String>) -> Bytes {
        let (_, text, extensions) = answer.into_parts();
        let mut answer = http::Response::new(Body::new(http_body_of(text)));
        *answer.extensions_mut() = extensions;
        let mut body = tie(answer).into_body();
        let frame = std::future::poll_fn(|cx| http_body::Body::poll_frame(Pin::new(&mut body), cx));
        frame.await.unwrap().unwrap().into_data().unwrap()
    }

    fn http_body_of(text: String) -> impl http_body::Body<Data = Bytes, Error = Status> {
        struct Once(Option<Bytes>);
        impl http_body::Body for Once {
            type Data = Bytes;
            type Error = Status;

            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
                Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
            }
        }
        Once(Some(text.into()))
    }

    #[tokio::test]
    async fn room_is_free_again_when_the_last_byte_is_gone() {
        let unread = Unread::new(2 * ANSWER);
        let one = unread.room().await.answer(text(ANSWER - 100));
        let other = unread.room().await.answer(text(ANSWER - 100));
        assert!(unread.room().now_or_never().is_none(), "both are full");
        let mut sent = bytes_of(one).await;
        let rest = sent.split_off(ANSWER / 2);
        drop(sent);
        assert!(unread.room().now_or_never().is_none(), "half of it is still there");
        drop(rest);
        assert!(unread.room().now_or_never().is_some());
        drop(other);
        let both = (unread.room().now_or_never(), unread.room().now_or_never());
        assert!(matches!(both, (Some(_), Some(_))), "an answer that nobody wants takes no room");
    }

    #[tokio::test]
    async fn what_an_answer_does_not_need_is_free_at_once() {
        let unread = Unread::new(ANSWER);
        let small = unread.room().await.answer(text(10));
        let free = || unread.0.as_ref().unwrap().available_permits();
        assert_eq!(free(), ANSWER);
        let large = unread.room().await.answer(text(100_000));
        assert_eq!(free(), ANSWER - large.get_ref().encoded_len());
        assert!(unread.room().now_or_never().is_none());
        let sent = bytes_of(large).await;
        assert_eq!(sent.len(), 100_000);
        drop((small, sent));
        assert_eq!(free(), ANSWER);
    }

    #[tokio::test]
    async fn parts_take_room_of_what_was_taken_and_no_more() {
        let unread = Unread::new(ANSWER);
        let mut held = unread.room().await;
        let part = held.split(1000);
        let rest = held.split(usize::MAX);
        assert_eq!(held.split(1).0.map_or(0, |permit| permit.num_permits()), 0);
        drop((held, part));
        assert_eq!(unread.0.as_ref().unwrap().available_permits(), 1000);
        drop(rest);
        assert_eq!(unread.0.as_ref().unwrap().available_permits(), ANSWER);
    }
}
