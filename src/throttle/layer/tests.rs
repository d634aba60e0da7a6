//! What a request holds of the room, and for how long, as a whole call shows it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::poll_fn;
use http_body::Body as _;
use http_body::Frame;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tonic::Code;
use tower_layer::Layer as _;

use super::*;
use crate::clock::Clock;
use crate::throttle::{Requests, Shares};

const START: &str = "/TaskHubSidecarService/StartInstance";
const COMPLETE: &str = "/TaskHubSidecarService/CompleteActivityTask";
const WAIT: &str = "/TaskHubSidecarService/WaitForInstanceCompletion";

/// Reads a request to its end, keeps its room, and answers when it is told to.
#[derive(Clone, Default)]
struct Reads {
    answers: Arc<Notify>,
    kept: Arc<Mutex<Vec<Kept>>>,
}

impl Service<Request<Body>> for Reads {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Reads { answers, kept } = self.clone();
        kept.lock().extend(request.extensions().get::<Kept>().cloned());
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                frame?;
            }
            drop(body);
            answers.notified().await;
            Ok(Response::default())
        })
    }
}

/// A body, piece by piece.
struct Pieces(mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn message(bytes: usize) -> Bytes {
    [&[0][..], &(bytes as u32).to_be_bytes(), &vec![7; bytes]].concat().into()
}

/// Calls through the layer, on one connection.
struct Rig {
    throttle: Throttle,
    connection: ConnectionInfo,
    service: Throttled<Reads>,
}

type Answer = BoxFuture<'static, Result<Response<Body>, Status>>;

impl Rig {
    fn new(requests: Requests) -> Rig {
        let shares = Shares { requests, ..Shares::default() };
        let throttle = Throttle::new(shares, Clock::manual(0));
        let service = ThrottleLayer(throttle.clone()).layer(Reads::default());
        let connection = ConnectionInfo {
            remote: "127.0.0.1:1".parse().unwrap(),
            certificate: None,
            memory: Arc::default(),
        };
        Rig { throttle, connection, service }
    }

    /// A call with so many bytes of headers.
    fn call(&mut self, path: &str, headers: usize) -> (mpsc::UnboundedSender<Bytes>, Answer) {
        let (pieces, body) = mpsc::unbounded_channel();
        let mut request = Request::new(Body::new(Pieces(body)));
        *request.uri_mut() = path.parse().unwrap();
        if headers > 0 {
            let value = "x".repeat(headers - "x-much".len()).parse().unwrap();
            request.headers_mut().insert("x-much", value);
        }
        request.extensions_mut().insert(self.connection.clone());
        (pieces, self.service.call(request))
    }

    fn taken(&self) -> usize {
        self.throttle.under_way().bytes
    }

    /// Answers a call, and forgets what its handler has kept.
    async fn answer(&self, answer: Answer) {
        self.service.inner.answers.notify_one();
        answer.await.unwrap();
        self.service.inner.kept.lock().clear();
    }
}

#[tokio::test]
async fn room_is_held_for_as_long_as_a_handler_may_keep_the_message() {
    let mut rig = Rig::new(Requests::default());
    let two = Bytes::from([message(3000), message(5000)].concat());

    // Bytes that are taken while half of a message has come, when all of it has, and when it was read.
    for (path, half, all, read) in [
        (START, 3000, 3000, 3000),
        (COMPLETE, 3000, 3000, 3000),
        (WAIT, 3000, 3000, 0),
        (TALK, 3000, 0, 0),
        ("/grpc.health.v1.Health/Check", 0, 0, 0),
    ] {
        let (pieces, mut answer) = rig.call(path, 0);
        for (piece, room) in [(0..10, half), (10..3005, all)] {
            pieces.send(two.slice(piece)).unwrap();
            assert!((&mut answer).now_or_never().is_none());
            assert_eq!(rig.taken(), room, "{path}");
        }
        if path == TALK {
            pieces.send(two.slice(3005..5000)).unwrap();
            assert!((&mut answer).now_or_never().is_none());
            assert_eq!(rig.taken(), 5000, "the next message of {path}");
        }
        drop(pieces);
        assert!((&mut answer).now_or_never().is_none());
        assert_eq!(rig.taken(), read, "{path}");
        rig.answer(answer).await;
        assert_eq!(rig.taken(), 0, "{path}");
    }
}

/// What goes on without its caller holds the message, and so its room.
#[tokio::test]
async fn a_handler_may_keep_the_room_when_its_caller_has_gone() {
    let mut rig = Rig::new(Requests::default());
    let (pieces, mut answer) = rig.call(COMPLETE, 0);
    pieces.send(message(3000)).unwrap();
    assert!((&mut answer).now_or_never().is_none());
    drop(answer);
    assert_eq!(rig.taken(), 3000);
    rig.service.inner.kept.lock().clear();
    assert_eq!(rig.taken(), 0);
}

/// However much room uploads take on a connection and at the node, what its worker answers has other room.
#[tokio::test]
async fn no_upload_holds_up_what_a_worker_answers() {
    let (bytes, connection_bytes) = (4 << 20, 1 << 20);
    let mut rig = Rig::new(Requests { bytes, connection_bytes, ..Requests::default() });
    for bytes in [60_000, 16 << 20] {
        let mut uploads = Vec::new();
        while rig.throttle.under_way().waiting == 0 {
            let (pieces, mut answer) = rig.call(START, 0);
            pieces.send(message(bytes).slice(0..10)).unwrap();
            assert!((&mut answer).now_or_never().is_none());
            uploads.push((pieces, answer));
        }
        let (pieces, mut answer) = rig.call(COMPLETE, 0);
        pieces.send(message(bytes)).unwrap();
        drop(pieces);
        assert!((&mut answer).now_or_never().is_none());
        assert_eq!(rig.throttle.under_way().waiting, 1, "the last upload of {bytes} bytes");
        rig.answer(answer).await;
    }
}

/// Large headers wait for room with their message, and give it back with it.
#[tokio::test]
async fn large_headers_are_a_part_of_their_message() {
    let mut rig = Rig::new(Requests::default());
    for (path, read) in [(START, 60_100), (WAIT, 0)] {
        let (pieces, mut answer) = rig.call(path, 60_000);
        assert!((&mut answer).now_or_never().is_none());
        assert_eq!(rig.taken(), 0, "{path} before its message");
        for piece in [0..10, 10..105] {
            pieces.send(message(100).slice(piece)).unwrap();
            assert!((&mut answer).now_or_never().is_none());
            assert_eq!(rig.taken(), 60_100, "{path}");
        }
        drop(pieces);
        assert!((&mut answer).now_or_never().is_none());
        assert_eq!(rig.taken(), read, "{path}");
        rig.answer(answer).await;
    }
}

/// Headers to which no message comes are bounded, and do not stay.
#[tokio::test]
async fn large_headers_without_a_message_are_few_and_end() {
    let time = Duration::from_millis(100);
    let mut rig = Rig::new(Requests { bytes: 2 << 20, time, ..Requests::default() });
    // An eighth as much is for such headers.
    let mut calls: Vec<_> = (0..5).map(|_| rig.call(WAIT, 60_000)).collect();
    let refused = calls.pop().unwrap().1.await.unwrap();
    let told = refused.headers()["grpc-message"].to_str().unwrap();
    assert!(told.contains("limits.request_bytes"), "{told}");
    for (_, answer) in &mut calls {
        let ended = answer.await.unwrap_err();
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    }
    let (pieces, mut answer) = rig.call(WAIT, 60_000);
    pieces.send(message(100)).unwrap();
    drop(pieces);
    assert!((&mut answer).now_or_never().is_none());
    rig.answer(answer).await;
}
