//! The gRPC port's part: counts calls, refuses those that are too many, and gives handlers the room that the
//! connection has for answers.

use std::future::ready;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataValue;

use super::{Refused, Throttle, unread};
use crate::access::{Needs, rpc};
use crate::tls::ConnectionInfo;

/// The hub of callers that name none (R1.8).
const DEFAULT_HUB: &str = "default";
/// The call by which a connection shows that it is a worker's.
const WORK: &str = "/TaskHubSidecarService/GetWorkItems";
/// Where gRPC clients look for the time after which a call is worth repeating.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Counts the calls of the services that it wraps.
#[derive(Clone)]
pub struct ThrottleLayer(pub Throttle);

impl<S> tower_layer::Layer<S> for ThrottleLayer {
    type Service = Throttled<S>;

    fn layer(&self, inner: S) -> Throttled<S> {
        Throttled { inner, throttle: self.0.clone() }
    }
}

/// Services whose calls are counted.
#[derive(Clone)]
pub struct Throttled<S> {
    inner: S,
    throttle: Throttle,
}

impl<S, In> Service<Request<In>> for Throttled<S>
where
    S: Service<Request<In>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<In>) -> Self::Future {
        let needs = rpc(request.uri().path()).map(|call| call.needs);
        let connection = request.extensions().get::<ConnectionInfo>();
        let is_counted = self.is_counted(request.uri().path(), needs, connection);
        let mut running = None;
        if is_counted && !self.throttle.is_unlimited() {
            let hub = request.headers().get("taskhub").and_then(|name| name.to_str().ok());
            match self.throttle.begin(hub.unwrap_or(DEFAULT_HUB), connection) {
                Err(refused) => return Box::pin(ready(Ok(status(&refused).into_http()))),
                Ok(begun) => running = Some(begun),
            }
        }
        // The answers of the others are small, or are handed out as there is room.
        if !matches!(needs, Some(Needs::Work | Needs::Contribute)) {
            let unread = connection.map(|connection| self.throttle.unread(connection));
            request.extensions_mut().insert(unread.unwrap_or_default());
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            drop(running);
            answer.map(unread::tie)
        })
    }
}

impl<S> Throttled<S> {
    /// Calls of clients; not those of workers, nor greetings and probes. What both may read is a client's unless its
    /// connection has asked for work.
    fn is_counted(
        &self,
        path: &str,
        needs: Option<Needs>,
        connection: Option<&ConnectionInfo>,
    ) -> bool {
        match needs {
            Some(Needs::Read | Needs::Contribute | Needs::Administer) => true,
            Some(Needs::ReadOrWork) => {
                !connection.is_some_and(|connection| self.throttle.is_worker(connection))
            }
            Some(Needs::Work) => {
                if path == WORK {
                    connection.into_iter().for_each(|connection| {
                        self.throttle.note_worker(connection);
                    });
                }
                false
            }
            _ => false,
        }
    }
}

fn status(refused: &Refused) -> Status {
    let mut status = Status::resource_exhausted(refused.text.clone());
    status.metadata_mut().insert(PUSHBACK, MetadataValue::from(refused.retry_ms));
    status
}
