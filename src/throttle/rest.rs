//! The rest of a request that is answered before all of it has come.
//!
//! HTTP/2 ends such a stream with a reset, and what was under way arrives at a stream that is forgotten soon. Each
//! piece of it counts against the connection: h2 takes it for a breach of the protocol, and closes the connection of
//! whoever makes too many. But a client whose calls are refused, or are over their deadlines, has done nothing wrong.
//! So the rest is read and thrown away, [`MOST`] bytes of it within [`TIME`]; only then is the stream reset. That is
//! for callers that were let in: what strangers send counts against their connection as before.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::runtime::Handle;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::Request;

/// Bytes that are thrown away of one request: what gRPC allows a message to have unless it is told otherwise.
const MOST: usize = 4 << 20;
/// Time in which the rest has to come.
const TIME: Duration = Duration::from_secs(2);

/// Reads the rest of requests of the services that it wraps.
#[derive(Clone, Copy, Debug)]
pub struct RestLayer;

impl<S> tower_layer::Layer<S> for RestLayer {
    type Service = Rested<S>;

    fn layer(&self, inner: S) -> Rested<S> {
        Rested { inner }
    }
}

/// A service whose requests are read to their ends.
#[derive(Clone, Debug)]
pub struct Rested<S> {
    inner: S,
}

impl<S: Service<Request<Body>>> Service<Request<Body>> for Rested<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        self.inner.call(request.map(|body| Body::new(Whole(body))))
    }
}

/// The body of a request. What nobody has read of it when it is dropped is thrown away.
struct Whole(Body);

impl http_body::Body for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if self.0.is_end_stream() {
            return;
        }
        // None when the program ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(throw_away(std::mem::take(&mut self.0)));
        }
    }
}

async fn throw_away(mut body: Body) {
    let all = async {
        let mut left = MOST;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // One who has not sent all by now is reset.
    let _ = tokio::time::timeout(TIME, all).await;
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    /// A body that goes on for so many pieces of 64 KiB, and tells of each that is read.
    struct Pieces(usize, mpsc::UnboundedSender<()>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let Some(left) = self.0.checked_sub(1) else { return Poll::Ready(None) };
            self.0 = left;
            self.1.send(()).unwrap();
            Poll::Ready(Some(Ok(Frame::data(vec![0; 64 << 10].into()))))
        }

        fn is_end_stream(&self) -> bool {
            self.0 == 0
        }
    }

    /// How many pieces are read of a body that is dropped.
    async fn read_of(pieces: usize) -> usize {
        let (told, mut reads) = mpsc::unbounded_channel();
        drop(Whole(Body::new(Pieces(pieces, told))));
        let mut read = 0;
        while reads.recv().await.is_some() {
            read += 1;
        }
        read
    }

    #[tokio::test]
    async fn the_rest_of_a_request_is_read_up_to_a_bound() {
        assert_eq!(read_of(0).await, 0);
        assert_eq!(read_of(40).await, 40);
        assert_eq!(read_of(1000).await, MOST / (64 << 10) + 1);
    }
}
